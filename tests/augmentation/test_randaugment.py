"""RandAugment and Cutout: what PIL does to one image after another, and the same for an image in any batch."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from hf_distill.augmentation.crops import uniform
from hf_distill.augmentation.randaugment import (
    DRAWS,
    OPERATION_DRAWS,
    OPERATIONS,
    cutout_randaugment,
    draw_operations,
    operate,
)
from hf_distill.rng import generator

LEVELS = range(1, 10)


def photos(count: int, channels: int, height: int = 29, width: int = 29) -> Tensor:
    """Smooth pictures with some noise, of different brightness and contrast."""
    draw = generator(0, "photos", channels)
    coarse = torch.rand(count, channels, 5, 5, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    low, span = torch.rand(2, count, 1, 1, 1, generator=draw) * 0.4
    noise = 0.05 * torch.randn(count, channels, height, width, generator=draw)
    return ((low + (0.3 + span) * smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


def picture(image: Tensor) -> Image.Image:
    return tv.to_pil_image(image)


def moved(image: Image.Image, *matrix: float) -> Image.Image:
    fill = (128,) * len(image.getbands())
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=fill)


def hole(image: Image.Image, level: int, place: tuple[float, float]) -> Image.Image:
    half, (row, column) = round(20 * level / 9) // 2, (int(place[0] * image.height), int(place[1] * image.width))
    pixels = np.array(image)
    pixels[max(row - half, 0) : row + half, max(column - half, 0) : column + half] = (
        (125, 122, 113) if pixels.ndim == 3 else 125
    )
    return Image.fromarray(pixels)


# By torchvision on images of PIL, so by PIL, which is what the authors use. Arguments: image, level, sign, place.
BY_PIL = {
    "invert": lambda image, level, sign, place: tv.invert(image),
    "cutout": lambda image, level, sign, place: hole(image, level, place),
    "sharpness": lambda image, level, sign, place: tv.adjust_sharpness(image, 1 + sign * level / 10),
    "autocontrast": lambda image, level, sign, place: tv.autocontrast(image),
    "posterize": lambda image, level, sign, place: tv.posterize(image, round(8 - 4 * level / 9)),
    "shear_x": lambda image, level, sign, place: moved(image, 1, sign * level / 30, 0, 0, 1, 0),
    "translate_x": lambda image, level, sign, place: moved(
        image, 1, 0, sign * image.width * 150 / 331 * level / 9, 0, 1, 0
    ),
    "translate_y": lambda image, level, sign, place: moved(
        image, 1, 0, 0, 0, 1, sign * image.height * 150 / 331 * level / 9
    ),
    "shear_y": lambda image, level, sign, place: moved(image, 1, 0, 0, sign * level / 30, 1, 0),
    "rotate": lambda image, level, sign, place: tv.rotate(
        image, 30 * level / 9, InterpolationMode.NEAREST, fill=[128] * len(image.getbands())
    ),
    "equalize": lambda image, level, sign, place: tv.equalize(image),
    "contrast": lambda image, level, sign, place: tv.adjust_contrast(image, 1 + sign * level / 10),
    "color": lambda image, level, sign, place: tv.adjust_saturation(image, 1 + sign * level / 10),
    "solarize": lambda image, level, sign, place: tv.solarize(image, 256 - 256 * level / 9),
    "brightness": lambda image, level, sign, place: tv.adjust_brightness(image, 1 + sign * level / 10),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_pil_at_every_strength(name, channels, device):
    cases = [(level, sign) for level in LEVELS for sign in (-1, 1)]
    images = photos(len(cases), channels)
    place = (0.1, 0.7)  # a box there is cut off
    amounts = torch.tensor([[level / 9, sign * level / 9, *place] for level, sign in cases], dtype=torch.float64)
    chosen = torch.full((len(cases),), list(OPERATIONS).index(name))
    found = operate(images.to(device), chosen, amounts).cpu()
    wrong = 0
    for image, (level, sign), mine in zip(images, cases, found, strict=True):
        wanted = tv.pil_to_tensor(BY_PIL[name](picture(image), level, sign, place)).int()
        if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
            wrong += ((wanted - mine.int()).abs().amax(0) > 0).double().mean().item()  # ties between two pixels
        else:
            assert (wanted - mine.int()).abs().max() <= 1, (level, sign)  # truncated after other roundings
            wrong += (wanted != mine).double().mean().item()
    assert wrong / len(cases) < 0.02
    if channels == 3 or name != "color":
        assert (found != images).any()


def test_half_the_operations_are_left_out_and_the_others_are_as_likely_as_each_other():
    u = torch.rand(40_000, OPERATION_DRAWS, generator=generator(0, "draws"))
    chosen, amounts = draw_operations(u)
    counts = chosen.bincount().double() / len(u)
    assert counts[-1] == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(counts[:-1], torch.full((15,), 1 / 30, dtype=torch.float64), rtol=0, atol=0.005)
    levels = (amounts[:, 0] * 9).round().long()
    torch.testing.assert_close(
        levels.bincount().double()[1:] / len(u), torch.full((9,), 1 / 9, dtype=torch.float64), rtol=0, atol=0.01
    )
    assert torch.equal(amounts[:, 1].abs(), amounts[:, 0])
    assert (amounts[:, 1] < 0).double().mean() == pytest.approx(0.5, abs=0.01)


def test_cutout_fills_a_rectangle_of_half_the_sides_with_one_colour():
    images = photos(60, 3, 20, 20)
    u = torch.rand(60, DRAWS, generator=generator(1, "draws"))
    u[:, [5, 11]] = 0.0  # no operation
    for image, numbers, found in zip(images, u.tolist(), cutout_randaugment(images, u), strict=True):
        row, column = int(numbers[0] * 20), int(numbers[1] * 20)
        drawn = picture(image)
        colour = tuple(int(number * 256) for number in numbers[2:5])
        # As the authors: both corners belong to it.
        box = [min(max(side, 0), 20) for side in (column - 5, row - 5, column + 5, row + 5)]
        ImageDraw.Draw(drawn).rectangle(box, fill=colour)
        assert torch.equal(found, tv.pil_to_tensor(drawn))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_happens_to_an_image_does_not_depend_on_its_batch(channels):
    images, rows = photos(50, channels, 24, 31), torch.arange(50)

    def shown(part: Tensor, epoch: int) -> Tensor:
        return cutout_randaugment(images[part], uniform(3, (epoch,), part, DRAWS))

    whole = shown(rows, 7)
    assert (whole.shape, whole.dtype) == (images.shape, torch.uint8)
    order = torch.randperm(50, generator=generator(2))
    for part in order.split(13):
        assert torch.equal(shown(part, 7), whole[part])
    assert not torch.equal(shown(rows, 8), whole)
