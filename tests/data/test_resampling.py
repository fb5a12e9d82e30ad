"""Resizing by matrices beside PyTorch's interpolation."""

import pytest
import torch
import torch.nn.functional as F

from hf_distill.data.resampling import resized, shrinking
from hf_distill.rng import generator


@pytest.mark.parametrize(("full", "size"), [(224, 112), (17, 8), (8, 8), (9, 5), (6, 1)])
def test_cuts_are_resized_as_interpolation_with_antialiasing_does(full, size):
    pairs = [(first, length) for length in range(1, full + 1, max(full // 12, 1)) for first in (0, full - length)]
    first, length = torch.tensor(pairs).T
    found = shrinking(first, length, full, size)
    for matrix, (start, count) in zip(found, pairs, strict=True):
        lines = torch.eye(full, dtype=torch.double)[:, None, start : start + count, None].repeat(1, 1, 1, 3)
        wanted = F.interpolate(lines, (size, 3), mode="bilinear", align_corners=False, antialias=True)[:, 0, :, 0].T
        torch.testing.assert_close(matrix.double(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 24), (32, 32), (5, 9), (13, 40), (12, 8)], ids=str)
def test_whole_images_are_resized_as_interpolation_with_antialiasing_does_and_so_are_their_gradients(size):
    draw = generator(0, "images")
    images = torch.randn(3, 2, 12, 16, generator=draw, dtype=torch.float64).requires_grad_()
    weights = torch.randn(3, 2, *size, generator=draw, dtype=torch.float64)
    expected = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    found = resized(images, size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # the matrices are float32
    gradients = [torch.autograd.grad(each, images, weights)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)
    assert resized(images.float(), size).dtype == torch.float32
