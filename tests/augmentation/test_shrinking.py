"""Crops that shrink, beside PyTorch's and Pillow's interpolation of one crop at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_distill.augmentation import shrinking as module
from hf_distill.augmentation.crops import CROP_DRAWS, draw_crops, uniform
from hf_distill.augmentation.shrinking import take_crops
from hf_distill.data.ragged import Ragged
from hf_distill.rng import generator
from tests.helpers.photographs import cropped, photographs


@pytest.mark.parametrize("shape", [(3, 20, 14), (1, 9, 9)], ids=["colour", "gray"])
def test_each_image_has_its_own_crop(shape):
    images = torch.randint(0, 256, (6, *shape), dtype=torch.uint8, generator=generator(0, "noise"))
    boxes = torch.tensor([[0, 0, *shape[1:]], [2, 3, 5, 4], [1, 1, 1, 1], [4, 0, 5, 9], [8, 8, 1, 1], [0, 5, 9, 3]])
    found = take_crops(images, boxes, (7, 5))
    assert found.dtype == torch.uint8
    for crop, image, (top, left, tall, wide) in zip(found, images, boxes.tolist(), strict=True):
        part = image[None, :, top : top + tall, left : left + wide].double()
        plain = F.interpolate(part, (7, 5), mode="bilinear", align_corners=False, antialias=True)[0].round()
        difference = (crop - plain).abs()
        assert difference.max() <= 1  # where the mean is halfway between two bytes
        assert (difference > 0).double().mean() < 0.05


@pytest.mark.parametrize("gray", [False, True])
def test_crops_of_images_of_different_shapes_are_pillows_to_a_grey_level_however_many_at_once(gray, monkeypatch):
    images = photographs(24, gray)
    ragged = Ragged.of([np.asarray(image).reshape(image.height, image.width, -1) for image in images], 1 if gray else 3)
    boxes = draw_crops(uniform(0, (), torch.arange(24), CROP_DRAWS), ragged.sizes).boxes
    found = take_crops(ragged, boxes, (16, 14))
    for crop, image, box in zip(found, images, boxes.tolist(), strict=True):
        difference = np.abs(crop.numpy() - cropped(image, box, (16, 14)))
        assert difference.max() <= 1
        assert difference.mean() < 0.25  # Pillow rounds to bytes once more, between the two directions
    monkeypatch.setattr(module, "MOST_PIXELS", 5000)
    few = take_crops(ragged, boxes, (16, 14)).int()
    assert (few - found.int()).abs().max() <= 1  # sums of other lengths, rounded to bytes
