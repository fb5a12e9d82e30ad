"""Shifts and samples beside PyTorch's own, and gradients that are gathered beside those that it scatters."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.augmentation.sampling import collected, sampled, shifted
from hf_distill.rng import generator

SIZES = [(8, 8), (6, 11), (9, 4), (2, 2), (32, 32)]


def turns(degrees: list[float]) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], 1).view(-1, 2, 2)


def stretches(pairs: list[tuple[float, float]]) -> Tensor:
    return torch.diag_embed(torch.tensor(pairs, dtype=torch.float64))


MAPS = {
    "rotations of DSA": turns([-15, -7.3, 0, 1e-3, 4, 15]),
    "any rotation": turns([30, -45, 60, 90, 137, 180]),
    "scales of DSA": stretches([(1 / 1.2, 1.2), (1.2, 1 / 1.2), (1, 1), (0.9, 1.1), (1.2, 1.2), (1 / 1.2, 1 / 1.2)]),
    "as far as it goes": stretches([(0.667, 3), (2, 0.667), (5, 5), (0.7, 0.7), (1, 0.667), (0.667, 1)]),
}


def noise(size: tuple[int, int], name: str) -> Tensor:
    return torch.randn(6, 3, *size, generator=generator(0, name), dtype=torch.float64)


def plain(x: Tensor, matrices: Tensor) -> Tensor:
    """`grid_sample` at places that are worked out pixel by pixel."""
    height, width = x.shape[2:]
    down, across = torch.meshgrid(
        *(torch.arange(side, dtype=x.dtype) - (side - 1) / 2 for side in (height, width)), indexing="ij"
    )
    places = torch.einsum("nij,jhw->nhwi", matrices.to(x.dtype), torch.stack([across, down]))  # from the centre
    grid = places / torch.tensor([max(width - 1, 1) / 2, max(height - 1, 1) / 2], dtype=x.dtype)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_samples_and_both_ways_to_their_gradient_are_those_of_grid_sample(name, size):
    matrices, x, y = MAPS[name], noise(size, "x").requires_grad_(), noise(size, "y")
    expected = plain(x, matrices)
    (gradient,) = torch.autograd.grad(expected, x, y)
    ours = sampled(x, matrices)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(ours, x, y)[0], gradient, atol=1e-12, rtol=0)
    torch.testing.assert_close(collected(y, matrices), gradient, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["rotations of DSA", "scales of DSA"])
@pytest.mark.parametrize("size", [(1, 7), (7, 1)], ids=str)
def test_a_single_line_of_pixels_has_the_gradient_of_what_is_sampled_of_it(name, size):
    y, lines = noise(size, "y")[:, :1], torch.eye(7, dtype=torch.float64).view(7, 1, *size)
    for image, matrix in zip(y, MAPS[name], strict=True):
        columns = sampled(lines, matrix.expand(7, 2, 2)).view(7, 7)  # what becomes of each pixel
        x = torch.zeros(1, 1, *size, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(sampled(x, matrix[None]), x, image[None])
        torch.testing.assert_close(gradient.flatten(), columns @ image.flatten(), atol=1e-12, rtol=0)
        along = matrix[0, 0] if size[0] == 1 else matrix[1, 1]
        level = torch.diag(torch.stack([along, torch.ones_like(along)][:: 1 if size[0] == 1 else -1]))
        torch.testing.assert_close(collected(image[None], level[None]), gradient, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", MAPS)
def test_in_single_precision_what_is_gathered_is_within_rounding(name):
    y, matrices = noise((32, 32), "y"), MAPS[name]
    torch.testing.assert_close(
        collected(y.float(), matrices.float()).double(), collected(y, matrices), atol=1e-4, rtol=0
    )


def test_gradients_can_be_differentiated_again():
    x = noise((3, 4), "x")[:2, :1].requires_grad_()
    for name in ("rotations of DSA", "scales of DSA"):
        matrices = MAPS[name][:2]
        assert torch.autograd.gradcheck(lambda x, matrices=matrices: sampled(x, matrices), x)
        assert torch.autograd.gradgradcheck(lambda x, matrices=matrices: sampled(x, matrices).square(), x)
    down, right = torch.tensor([-2, 1]), torch.tensor([1, 0])
    assert torch.autograd.gradcheck(lambda x: shifted(x, down, right), x)
    assert torch.autograd.gradgradcheck(lambda x: shifted(x, down, right).square(), x)


def test_shifts_are_those_of_padded_images():
    x = noise((5, 6), "x")
    offsets = torch.tensor(list(itertools.product([-3, 0, 2], [-2, 4])))
    found = shifted(x, *offsets.T)
    for image, original, (down, right) in zip(found, x, offsets.tolist(), strict=True):
        padded = F.pad(original, (9, 9, 9, 9))
        assert torch.equal(image, padded[:, 9 + down : 14 + down, 9 + right : 15 + right])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type_and_loses_no_place(dtype):
    x, matrices = noise((32, 32), "x").to(dtype), MAPS["rotations of DSA"]
    found = sampled(x, matrices)
    assert found.dtype == dtype
    assert torch.equal(found, sampled(x.float(), matrices).to(dtype))


def test_functional_transforms_differentiate_through_both():
    x, matrices = noise((5, 5), "x"), MAPS["rotations of DSA"]
    ones = torch.ones(6, dtype=torch.int64)

    def total(x: Tensor) -> Tensor:
        return shifted(sampled(x, matrices), ones, -ones).square().sum()

    expected = torch.autograd.grad(total(x.requires_grad_()), x)[0]
    torch.testing.assert_close(torch.func.grad(total)(x.detach()), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MAPS)
def test_an_accelerator_gives_the_same_bits_every_time_and_those_of_the_cpu_but_for_rounding(name, cuda, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    x, y, matrices = noise((32, 32), "x"), noise((32, 32), "y"), MAPS[name]

    def gradient(device: torch.device | str) -> Tensor:
        on = x.to(device).requires_grad_()
        return torch.autograd.grad(sampled(on, matrices.to(device)), on, y.to(device))[0]

    torch.use_deterministic_algorithms(True)
    try:
        first = gradient(cuda)
        assert all(torch.equal(gradient(cuda), first) for _ in range(10))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(first.cpu(), gradient("cpu"), atol=1e-12, rtol=0)
