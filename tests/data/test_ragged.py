import numpy as np
import pytest
import torch

from hf_distill.data.ragged import Ragged

SHAPES = [(3, 5), (4, 2), (1, 1), (6, 6)]


def images(channels: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, channels), dtype=np.uint8) for shape in SHAPES]


@pytest.mark.parametrize("channels", [1, 3])
def test_boxes_are_slices_of_their_images_in_the_corner_of_a_canvas(channels):
    given = images(channels)
    ragged = Ragged.of(given, channels)
    assert (len(ragged), ragged.sizes.tolist()) == (4, [list(shape) for shape in SHAPES])
    numbers = torch.tensor([3, 0, 0, 2, 1])
    boxes = torch.tensor([[1, 2, 4, 3], [0, 0, 3, 5], [2, 4, 1, 1], [0, 0, 1, 1], [1, 0, 3, 2]])
    found = ragged.cut(numbers, boxes)
    assert found.shape == (5, channels, 4, 5)
    for cut, number, (top, left, tall, wide) in zip(found, numbers.tolist(), boxes.tolist(), strict=True):
        expected = given[number][top : top + tall, left : left + wide].transpose(2, 0, 1)
        np.testing.assert_array_equal(cut[:, :tall, :wide].numpy(), expected)
        assert (cut[:, tall:, :wide] == cut[:, tall - 1 : tall, :wide]).all()
        assert (cut[:, :, wide:] == cut[:, :, wide - 1 : wide]).all()


def test_of_no_images_there_is_nothing():
    nothing = Ragged.of([], 3)
    assert (len(nothing), nothing.sizes.shape, nothing.pixels.shape) == (0, (0, 2), (0, 3))
