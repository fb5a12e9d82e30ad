"""DSA: drawn once, replayed exactly, and what the papers' code does, pixel by pixel."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from hf_distill.augmentation.dsa import DEFAULT_STRATEGY, DSA, DsaParams
from hf_distill.rng import generator

OPERATIONS = DEFAULT_STRATEGY.split("_")
N = 5


def images(size: tuple[int, int], channels: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(N, channels, *size, generator=generator(0, "images")).to(dtype)


def draw(operation: str, size: tuple[int, int], n: int = N, seed: int = 0) -> DsaParams:
    return DSA(operation).sample(n, generator(seed, operation), size)


# Each operation once more, for one image (C, H, W), in NumPy


def color(x, brightness, saturation, contrast):
    x = x + (brightness - 0.5) * 1.0
    gray = x.mean(axis=0)
    x = gray + (x - gray) * 2 * saturation
    return x.mean() + (x - x.mean()) * (contrast + 0.5)


def crop(x, down, right):
    _, height, width = x.shape
    pad = 20
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    return padded[:, pad + down : pad + down + height, pad + right : pad + right + width]


def cutout(x, row, column):
    x = x.copy()
    tall, wide = (int(length / 2 + 0.5) for length in x.shape[1:])
    for i in range(row - tall // 2, row - tall // 2 + tall):
        for j in range(column - wide // 2, column - wide // 2 + wide):
            if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
                x[:, i, j] = 0
    return x


def flip(x, flip):
    return x[:, :, ::-1] if flip else x


def bilinear(x, where):
    """The image whose pixel at (dy, dx) from the centre is that of `x` at `where(dy, dx)`; zero beyond the border."""
    _, height, width = x.shape
    result = np.zeros_like(x)
    for i in range(height):
        for j in range(width):
            dy, dx = where(i - (height - 1) / 2, j - (width - 1) / 2)
            y, x_ = dy + (height - 1) / 2, dx + (width - 1) / 2
            for near_y in (math.floor(y), math.floor(y) + 1):
                for near_x in (math.floor(x_), math.floor(x_) + 1):
                    if 0 <= near_y < height and 0 <= near_x < width:
                        weight = (1 - abs(y - near_y)) * (1 - abs(x_ - near_x))
                        result[:, i, j] += weight * x[:, near_y, near_x]
    return result


def scale(x, horizontal, vertical):
    return bilinear(x, lambda dy, dx: (vertical * dy, horizontal * dx))


def rotate(x, angle):
    cosine, sine = math.cos(angle), math.sin(angle)
    return bilinear(x, lambda dy, dx: (sine * dx + cosine * dy, cosine * dx - sine * dy))


TRUTH = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_is_that_of_a_plain_loop_over_images(operation, device):
    for size, channels in itertools.product([(8, 8), (6, 11), (9, 7)], [1, 3]):
        x, params = images(size, channels), draw(operation, size)
        found = DSA.apply(x.to(device), params.to(device)).cpu()
        assert found.dtype == torch.float64
        for i in range(N):
            wanted = TRUTH[operation](x[i].numpy(), **{name: value[i].item() for name, value in params.values.items()})
            # Angles and factors are drawn in float32.
            np.testing.assert_allclose(found[i].numpy(), wanted, atol=1e-6, err_msg=f"{size}, {channels} channels")


def test_a_quarter_turn_by_hand():
    # 90 degrees is beyond what is drawn, but shows the direction: what was on the right comes to the top, for a
    # rotation matrix (cos, -sin; sin, cos) on (x to the right, y down) says where each pixel is taken from.
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    turned = DSA.apply(x, DsaParams("rotate", {"angle": torch.tensor([math.pi / 2])}))
    torch.testing.assert_close(turned.view(2, 2), torch.tensor([[2.0, 4.0], [1.0, 3.0]]), atol=1e-6, rtol=0)


# Many batches at once


@pytest.mark.parametrize("strategy", [*OPERATIONS, "_".join(OPERATIONS), "flip_cutout", "none"])
@pytest.mark.parametrize("sizes", [[6] * 9, [4, 4, 1, 4, 4, 1], [3]], ids=str)
def test_batches_are_augmented_together_as_each_would_be_alone(sizes, strategy):
    dsa, draws = DSA(strategy), generator(0, "test")
    x = torch.rand(sum(sizes), 3, 10, 12, generator=draws)
    params = [dsa.sample(size, draws, (10, 12)) for size in sizes]
    expected = [DSA.apply(batch, drawn) for batch, drawn in zip(x.split(sizes), params, strict=True)]
    before = x.clone()
    augmented = DSA.apply_each(x, params, sizes)
    assert torch.equal(augmented, torch.cat(expected))
    assert augmented.is_contiguous()  # a crop alone is not: networks would take other kernels
    assert torch.equal(x, before)


def test_batches_of_several_operations_pass_gradients_to_their_own_images():
    dsa, draws, sizes = DSA(), generator(3, "test"), [2, 1, 2, 1]
    x = torch.rand(6, 1, 4, 5, generator=draws, dtype=torch.float64, requires_grad=True)
    params = [dsa.sample(size, draws, (4, 5)) for size in sizes]
    assert len({drawn.operation for drawn in params}) > 1
    assert torch.autograd.gradcheck(lambda x: DSA.apply_each(x, params, sizes), x)


# What was drawn


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_was_drawn_can_be_replayed_sliced_and_differentiated(operation):
    size = (6, 8)
    x, params = images(size), draw(operation, size)
    once = DSA.apply(x, params)
    assert torch.equal(DSA.apply(x, params), once)
    torch.testing.assert_close(DSA.apply(x[1:4], params[1:4]), once[1:4], rtol=0, atol=1e-15)
    assert torch.autograd.gradcheck(lambda x: DSA.apply(x, params[:2]), x[:2].clone().requires_grad_())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_is_kept_and_single_precision_is_near_double(operation, dtype):
    x, params = images((8, 8)), draw(operation, (8, 8))
    found = DSA.apply(x.to(dtype), params)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), DSA.apply(x, params), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("operation", "neutral"),
    [
        ("color", {"brightness": 0.5, "saturation": 0.5, "contrast": 0.5}),
        ("crop", {"down": 0, "right": 0}),
        ("flip", {"flip": False}),
        ("scale", {"horizontal": 1.0, "vertical": 1.0}),
        ("rotate", {"angle": 0.0}),
    ],
)
@pytest.mark.parametrize("size", [(8, 8), (5, 12)])
def test_neutral_parameters_change_nothing(operation, neutral, size):
    x = images(size)
    params = DsaParams(operation, {name: torch.full((N,), value) for name, value in neutral.items()})
    torch.testing.assert_close(DSA.apply(x, params), x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_image_has_parameters_of_its_own_that_follow_the_generator(operation):
    params, same, other = (draw(operation, (32, 32), 50, seed) for seed in (0, 0, 1))
    for name, values in params.values.items():
        assert values.shape == (50,)
        assert len(values.unique()) > 1
        assert torch.equal(values, same.values[name])
        assert not torch.equal(values, other.values[name])


@pytest.mark.parametrize(
    ("operation", "name", "size", "low", "high", "every"),
    [
        ("color", "brightness", (32, 32), 0, 1, False),
        ("color", "saturation", (32, 32), 0, 1, False),
        ("color", "contrast", (32, 32), 0, 1, False),
        ("crop", "down", (32, 64), -4, 4, True),
        ("crop", "right", (32, 64), -8, 8, True),
        ("crop", "down", (28, 28), -4, 4, True),  # 3.5 pixels and a half, rounded down
        ("crop", "down", (8, 8), -1, 1, True),
        ("cutout", "row", (32, 20), 0, 32, True),  # an even box: one position more than pixels
        ("cutout", "column", (32, 18), 0, 17, True),  # an odd one
        ("flip", "flip", (32, 32), 0, 1, True),
        ("scale", "horizontal", (32, 32), 1 / 1.2, 1.2, False),
        ("scale", "vertical", (32, 32), 1 / 1.2, 1.2, False),
        ("rotate", "angle", (32, 32), -math.radians(15), math.radians(15), False),
    ],
)
def test_parameters_fill_the_ranges_of_the_papers(operation, name, size, low, high, every):
    values = draw(operation, size, 4000).values[name].double()
    assert values.min() >= low - 1e-6
    assert values.max() <= high + 1e-6
    assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low)
    if every:
        assert sorted(values.unique().tolist()) == list(range(low, high + 1))
    else:
        assert values.min() < low + 0.01 * (high - low)
        assert values.max() > high - 0.01 * (high - low)


def test_the_two_directions_are_drawn_independently():
    for operation in ("crop", "cutout", "scale"):
        one, two = (values.double() for values in draw(operation, (32, 32), 4000).values.values())
        assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 0.05


def test_one_operation_is_drawn_per_batch_each_as_often():
    dsa, random = DSA(), generator(0)
    counts = Counter(dsa.sample(2, random, (8, 8)).operation for _ in range(3000))
    assert set(counts) == set(OPERATIONS)
    assert all(abs(count - 500) < 100 for count in counts.values())  # five deviations


# The strategy


@pytest.mark.parametrize("strategy", ["", "none", "None"])
def test_an_empty_strategy_changes_nothing_and_draws_nothing(strategy):
    random = generator(0)
    before = random.get_state()
    x = images((8, 8))
    params = DSA(strategy).sample(N, random, (8, 8))
    assert DSA.apply(x, params) is x
    assert torch.equal(random.get_state(), before)
    assert DSA.apply(x[:2], params[:2]).shape == (2, 3, 8, 8)


def test_an_operation_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"--dsa_strategy names 'blur'; expected operations out of color, crop,"):
        DSA("color_blur")


@pytest.mark.parametrize("operation", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_batches_without_images_are_passed_over(operation):
    random, dsa = generator(0), DSA(operation)
    sizes = [0, 3, 0, 2]
    x = torch.rand(5, 1, 8, 8, generator=random)
    params = [dsa.sample(size, random, (8, 8)) for size in sizes]
    expected = torch.cat([DSA.apply(x[:3], params[1]), DSA.apply(x[3:], params[3])])
    torch.testing.assert_close(DSA.apply_each(x, params, sizes), expected)
    nothing = x[:0].requires_grad_()
    found = DSA.apply_each(nothing, [params[0], params[2]], [0, 0])
    assert found.shape == (0, 1, 8, 8)
    assert torch.autograd.grad(found, nothing, found)[0].shape == nothing.shape
