"""Crops and mixes: functions of (seed, epoch, row) alone, and what cutting and resizing one image at a time gives."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from hf_distill.augmentation import crops
from hf_distill.augmentation.crops import (
    CROP_DRAWS,
    CropParams,
    Mix,
    apply_mix,
    crop_resize,
    draw_crops,
    draw_cutmix,
    draw_mixup,
    draw_roll,
    draw_shuffle,
    edges,
    min_scale,
    partners,
    roll,
    shuffle_tiles,
    uniform,
)
from hf_distill.rng import generator

WORD = 2**64 - 1
PIXEL = 1 / 255


def numbers(n: int, count: int = CROP_DRAWS, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    return uniform(seed, (epoch,), torch.arange(n), count)


def noise(n: int, *size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Images of 3 channels in [0, 1]."""
    return torch.rand(n, 3, *size, generator=generator(0, "images"), dtype=dtype)


def boxes(*rows: tuple[int, int, int, int], flip: bool = False) -> CropParams:
    return CropParams(torch.tensor(rows), torch.full((len(rows),), flip))


def one_by_one(images: torch.Tensor, params: CropParams, size: tuple[int, int]) -> torch.Tensor:
    """Each box cut out, resized and flipped by itself."""
    found = []
    for image, (top, left, tall, wide), flip in zip(images, params.boxes.tolist(), params.flip.tolist(), strict=True):
        part = image[None, :, top : top + tall, left : left + wide]
        part = F.interpolate(part, size, mode="bilinear", align_corners=False, antialias=False)
        found.append(part.flip(3) if flip else part)
    return torch.cat(found)


# Numbers: splitmix64 once more, in Python's integers


def splitmix(state: int, count: int) -> list[int]:
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        found.append(z ^ (z >> 31))
    return found


def finish(z: int) -> int:
    """What splitmix64 makes of a state that already moved."""
    return splitmix((z - 0x9E3779B97F4A7C15) % 2**64, 1)[0]


def test_the_mixing_is_that_of_the_published_splitmix64():
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix(1234567, 5) == published
    assert splitmix(0, 1) == [0xE220A8397B1DCDAF]
    states = [(1234567 + k * 0x9E3779B97F4A7C15) % 2**64 for k in range(1, 6)]
    found = crops._mix(torch.from_numpy(np.array(states, dtype=np.uint64).view(np.int64)))
    assert found.numpy().view(np.uint64).tolist() == published
    assert [crops._mix_word(state) for state in states] == published


@pytest.mark.parametrize(("seed", "path"), [(0, ()), (0, (0,)), (2**63 + 5, (3, 2**64 - 1)), (7, (1, 2, 3))])
def test_numbers_are_those_of_plain_integers_to_the_last_bit(seed, path, device):
    ids = torch.tensor([0, 1, 2, 49_999, 2**40 + 3, 2**63 - 1, -1])
    found = uniform(seed, path, ids, 4, device=device)
    key = 0
    for part in (seed, *path):
        key = finish(((key + 0x9E3779B97F4A7C15) ^ part) & WORD)
    for row, number in zip(found.cpu().tolist(), ids.tolist(), strict=True):
        state = finish(finish(number & WORD) ^ key)
        assert row == [bits // 2**40 / 2**24 for bits in splitmix(state, 4)]
    assert found.dtype == torch.float32
    assert found.device.type == device.type


def test_a_row_has_its_numbers_in_any_order_batch_and_length():
    whole = numbers(1000, 8)
    order = torch.randperm(1000, generator=generator(0))
    assert torch.equal(uniform(0, (0,), order, 8), whole[order])
    assert torch.equal(torch.cat([uniform(0, (0,), ids, 8) for ids in torch.arange(1000).split(7)]), whole)
    assert torch.equal(numbers(1000, 3), whole[:, :3])


def _independent(one: np.ndarray, two: np.ndarray) -> None:
    """Pairs fill a table of 16 by 16 evenly: chi-square with 255 degrees of freedom, within five deviations."""
    table, *_ = np.histogram2d(one.ravel(), two.ravel(), bins=16, range=[[0, 1], [0, 1]])
    expected = one.size / 256
    assert abs(((table - expected) ** 2 / expected).sum() - 255) < 5 * math.sqrt(2 * 255)


def test_numbers_are_uniform_and_those_of_neighbours_independent():
    n = 1 << 16
    here = numbers(n, 3).double().numpy()
    assert 0 <= here.min() < 1e-4
    assert 1 - 1e-4 < here.max() < 1
    for column in here.T:
        assert abs(column.mean() - 1 / 2) < 5 / math.sqrt(12 * n)
        assert abs(column.var() - 1 / 12) < 5 / math.sqrt(180 * n)
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    _independent(here[:-1, 0], here[1:, 0])  # ids
    _independent(here[:-1, 0], here[1:, 1])
    _independent(here[:, 0], here[:, 1])  # columns
    _independent(here[:, 0], numbers(n, 1, epoch=1).double().numpy())  # epochs
    _independent(here[:, 0], numbers(n, 1, seed=1).double().numpy())  # seeds
    _independent(here[:-1, 0], numbers(n, 1, epoch=1).double().numpy()[1:])
    _independent(here[:, 0], uniform(0, (0, 0), torch.arange(n), 1).double().numpy())  # a longer path
    low_bits = np.floor(here * 2**24) % 256
    assert stats.chisquare(np.bincount(low_bits[:, 0].astype(int), minlength=256)).pvalue > 1e-3


def test_partners_are_a_permutation_that_depends_on_seed_and_epoch():
    rows = partners(0, 0, 5000)
    assert torch.equal(rows.sort().values, torch.arange(5000))
    assert torch.equal(rows, partners(0, 0, 5000))
    others = [torch.arange(5000), partners(0, 1, 5000), partners(1, 0, 5000)]
    crop = numbers(5000, 1)[:, 0]  # of the same seed and epoch: it must not order the partners, in signed order either
    others += [crop.argsort(), ((crop + 0.5) % 1).argsort()]
    for other in others:
        assert (rows == other).sum() < 10  # one in the mean
    assert partners(0, 0, 1).tolist() == [0]
    places = np.stack([partners(seed, 0, 8).numpy() for seed in range(2000)])
    table = np.stack([np.bincount(column, minlength=8) for column in places.T])
    assert stats.chisquare(table.ravel()).pvalue > 1e-3  # each partner as likely in each place


# Crops


def torchvision_rule(u: list[float], height: int, width: int, scale, ratio) -> tuple[int, int, int, int]:
    """One box, in Python."""
    for area, aspect in zip(u[:10], u[10:20], strict=True):
        target = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


SETTINGS = [
    ((224, 224), (0.08, 1.0), (3 / 4, 4 / 3)),
    ((32, 32), (0.5, 1.0), (3 / 4, 4 / 3)),
    ((60, 100), (0.08, 1.0), (3 / 4, 4 / 3)),
    ((20, 200), (0.3, 1.0), (3 / 4, 4 / 3)),  # often, and then always, the central box
    ((201, 20), (0.9, 1.0), (3 / 4, 4 / 3)),
    ((21, 200), (0.9, 1.0), (3 / 4, 4 / 3)),
    ((8, 8), (0.01, 0.02), (1 / 4, 8.0)),  # sides that round to zero
]


@pytest.mark.parametrize(("size", "scale", "ratio"), SETTINGS)
def test_boxes_are_those_of_the_rule_written_for_one_image(size, scale, ratio, device):
    u = numbers(2000)
    found = draw_crops(u.to(device), size, scale, ratio).boxes
    assert found.dtype == torch.int64
    assert found.tolist() == [list(torchvision_rule(row, *size, scale, ratio)) for row in u.tolist()]


@pytest.mark.parametrize(("size", "scale", "ratio"), [SETTINGS[0], SETTINGS[2], SETTINGS[3]])
def test_boxes_are_distributed_like_those_of_torchvision(size, scale, ratio):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.zeros(1, *size)
        theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(3000)])
    ours = draw_crops(numbers(20_000), size, scale, ratio).boxes.numpy()
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert stats.ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3
    assert stats.ks_2samp(ours[:, 0] + 2 * ours[:, 1], theirs[:, 0] + 2 * theirs[:, 1]).pvalue > 1e-3


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (1.0, 1.0)])
def test_boxes_of_images_of_different_shapes_follow_the_rule_of_each(ratio, device):
    sizes = torch.tensor([(375, 500), (50, 300), (64, 64), (9, 2), (1, 1), (201, 20)]).repeat(100, 1)
    u = numbers(len(sizes))
    found = draw_crops(u.to(device), sizes.to(device), ratio=ratio).boxes
    expected = [
        torchvision_rule(row, *size, (0.08, 1.0), ratio) for row, size in zip(u.tolist(), sizes.tolist(), strict=True)
    ]
    assert found.tolist() == [list(box) for box in expected]


@pytest.mark.parametrize("side", [1, 4, 7, 32, 64, 224, 333])
def test_the_whole_area_of_a_square_is_the_whole_square(side):
    found = draw_crops(numbers(500), side, (1.0, 1.0)).boxes
    assert torch.equal(found, torch.tensor([0, 0, side, side]).expand(500, 4))


def test_half_of_the_crops_are_mirrored_or_the_share_that_is_asked_for():
    u = numbers(10_000)
    assert abs(draw_crops(u, 32).flip.float().mean() - 0.5) < 5 * 0.5 / 100
    assert abs(draw_crops(u, 32, flip=0.1).flip.float().mean() - 0.1) < 5 * 0.3 / 100
    assert not draw_crops(u, 32, flip=0).flip.any()
    assert draw_crops(u, 32, flip=1).flip.all()
    flipped = draw_crops(u, 32).flip
    _, p = stats.ttest_ind(u[flipped, 0].numpy(), u[~flipped, 0].numpy())
    assert p > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"u": torch.zeros(5, CROP_DRAWS - 1)}, r"shape \(5, 22\); a crop takes \(n, 23\) or more"),
        ({"u": torch.zeros(CROP_DRAWS)}, r"shape \(23,\)"),
        ({"scale": (0.5, 0.2)}, r"scale=\(0.5, 0.2\); expected 0 < smallest <= largest"),
        ({"scale": (0.0, 1.0)}, r"scale=\(0.0, 1.0\)"),
        ({"ratio": (2.0, 1.0)}, r"ratio=\(2.0, 1.0\)"),
    ],
)
def test_a_draw_that_cannot_be_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        draw_crops(**{"u": torch.zeros(5, CROP_DRAWS), "image_size": 8, **arguments})
    assert "\n" not in str(caught.value)


# Cropped images


@pytest.mark.parametrize(
    ("shape", "size"), [((224, 224), (224, 224)), ((32, 32), (32, 32)), ((30, 47), (50, 21)), ((64, 64), (96, 96))]
)
def test_crops_of_a_batch_are_those_of_each_image_cut_and_resized_alone(shape, size, device):
    images = noise(24, *shape)
    params = draw_crops(numbers(24), shape)
    found = crop_resize(images.to(device), params.to(device), size).cpu()
    assert 0 < params.flip.sum() < 24
    assert (found - one_by_one(images, params, size)).abs().max() < 1e-2 * PIXEL
    exact = crop_resize(images.double(), params, size)
    reference = one_by_one(images.double(), params, size)
    # PyTorch's own weights are single where the images are double.
    assert (exact - reference).abs().max() < 1e-2 * PIXEL


def test_boxes_at_the_borders_and_of_one_pixel_are_cut_out_too():
    images = noise(5, 16, 16)
    params = boxes((0, 0, 16, 16), (15, 15, 1, 1), (0, 3, 1, 13), (5, 0, 11, 1), (15, 0, 1, 16))
    for size in ((16, 16), (3, 40)):
        found = crop_resize(images, params, size)
        torch.testing.assert_close(found, one_by_one(images, params, size), atol=1e-5, rtol=0)
    assert torch.equal(found[1], images[1, :, 15:, 15:].expand(3, 3, 40))


def test_a_plain_affine_grid_would_let_neighbours_in():
    side = 64
    images = noise(24, side, side).round()
    params = draw_crops(numbers(24), side, flip=0)
    top, left, tall, wide = params.boxes.double().unbind(1)
    zero = torch.zeros_like(top)
    matrix = [wide / side, zero, (2 * left + wide) / side - 1, zero, tall / side, (2 * top + tall) / side - 1]
    grid = F.affine_grid(torch.stack(matrix, 1).view(-1, 2, 3), [24, 3, side, side], align_corners=False)
    plain = F.grid_sample(images, grid.float(), padding_mode="border", align_corners=False)
    wrong = (plain - one_by_one(images, params, (side, side))).abs()
    assert wrong.max() > 50 * PIXEL
    assert wrong[:, :, 8:-8, 8:-8].max() < 1e-2 * PIXEL  # it is right inside: only borders tell the two apart
    found = crop_resize(images, params, side)
    assert (found - one_by_one(images, params, (side, side))).abs().max() < 1e-2 * PIXEL


def test_what_grows_is_what_pillow_makes_of_it_but_for_its_rounding():
    images = (noise(8, 64, 64) * 255).round().to(torch.uint8)
    params = draw_crops(numbers(8), 64, flip=0)
    found = crop_resize(images, params, 64)
    assert found.dtype == torch.float32
    for image, (top, left, tall, wide), ours in zip(images, params.boxes.tolist(), found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + wide, top + tall))
        picture = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR))
        difference = np.abs(ours.permute(1, 2, 0).numpy() * 255 - picture)
        assert difference.max() < 1.01  # it rounds after rows and after columns
        assert difference.mean() < 0.5


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(3, 5, 20, 11), (0, 0, 32, 32)])
def test_one_box_for_all_is_that_box_for_each(box, flip):
    images = noise(6, 32, 32)
    shared = crop_resize(images, boxes(box, flip=flip), 32)
    assert torch.equal(shared, one_by_one(images, boxes(*[box] * 6, flip=flip), (32, 32)))
    torch.testing.assert_close(shared, crop_resize(images, boxes(*[box] * 6, flip=flip), 32), atol=1e-5, rtol=0)


def test_no_bit_of_a_crop_depends_on_the_batch_it_is_in():
    images, epoch = noise(40, 33, 33), 3

    def show(rows: torch.Tensor) -> torch.Tensor:
        params = draw_crops(uniform(0, (epoch,), rows, CROP_DRAWS), 33)
        mix = draw_cutmix(uniform(0, (epoch, 1), rows, 3), 33)
        with_rows = partners(0, epoch, 40)[rows]
        others = crop_resize(images[with_rows], draw_crops(uniform(0, (epoch,), with_rows, CROP_DRAWS), 33), 33)
        return apply_mix(crop_resize(images[rows], params, 33), others, mix)

    whole = show(torch.arange(40))
    order = torch.randperm(40, generator=generator(0))
    assert torch.equal(show(order), whole[order])
    for size in (1, 7, 39):  # the last batch may be one image
        assert torch.equal(torch.cat([show(rows) for rows in order.split(size)]), whole[order])


@pytest.mark.parametrize("params", [boxes((1, 0, 3, 4)), boxes((1, 0, 3, 4), (0, 2, 5, 2), flip=True)])
def test_gradients_reach_the_pixels_of_the_box(params):
    images = noise(2, 5, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: crop_resize(x, params, (6, 5)), images)
    (gradient,) = torch.autograd.grad(crop_resize(images, params, (6, 5)).sum(), images)
    outside = torch.ones(5, 4, dtype=torch.bool)
    outside[1:4] = False
    assert (gradient[0, :, outside] == 0).all()
    torch.testing.assert_close(gradient.sum().item(), 2 * 3 * 6 * 5.0)


@pytest.mark.parametrize("count", [1, 4])
def test_coordinates_keep_their_precision_in_half_precision(count):
    params = draw_crops(numbers(count), 224)
    images = noise(4, 224, 224)
    plain = crop_resize(images, params, 224)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(crop_resize(images, params, 224), plain)
    half = images.bfloat16()
    found = crop_resize(half, params, 224)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, crop_resize(half.float(), params, 224).bfloat16())


@pytest.mark.parametrize("count", [1, 4])
def test_memory_format_and_the_meaning_of_bytes_are_kept(count):
    images = noise(4, 20, 20)
    params = draw_crops(numbers(count), 20)
    last = crop_resize(images.to(memory_format=torch.channels_last), params, 24)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    first = crop_resize(images, params, 24)
    assert first.is_contiguous()
    torch.testing.assert_close(last, first, atol=1e-6, rtol=0)
    pixels = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(crop_resize(pixels, params, 24), crop_resize(pixels / 255, params, 24))


def test_crops_for_another_number_of_images_are_refused():
    with pytest.raises(ValueError, match="3 crops for 4 images; expected one for each, or one for all"):
        crop_resize(noise(4, 8, 8), draw_crops(numbers(3), 8), 8)


def test_nothing_waits_for_the_device():
    # A tensor on "meta" has no values: whatever would read one on the host raises.
    ids = torch.arange(6, device="meta")
    params = draw_crops(uniform(0, (1,), ids, CROP_DRAWS), 32)
    images = crop_resize(torch.empty(6, 3, 32, 32, device="meta"), params, 32)
    rows = partners(0, 1, 6, device="meta")
    for mix in (
        draw_cutmix(uniform(0, (2,), ids, 3), 32, partners=rows),
        draw_cutmix(uniform(0, (2,), ids, 3), 32, alpha=0.5),
        draw_mixup(uniform(0, (3,), ids, 1)),
    ):
        assert apply_mix(images, images[rows], mix).shape == (6, 3, 32, 32)
    with pytest.raises(RuntimeError):
        params.boxes[0, 0].item()


# The curriculum


@pytest.mark.parametrize(
    ("curve", "milestone", "values"),
    [
        ("cosine", 1000, {0: 1.0, 250: 0.865269, 500: 0.54, 750: 0.214731, 999: 0.080002}),
        ("linear", 1000, {0: 1.0, 250: 0.77, 500: 0.54, 999: 0.08092}),
        ("cosine", 500, {0: 1.0, 250: 0.54, 500: 0.08, 501: 0.08, 999: 0.08}),
        ("step", 500, {0: 1.0, 499: 1.0, 500: 0.08, 999: 0.08}),
        ("cosine", 0, {0: 0.08, 999: 0.08}),
        ("linear", 0, {0: 0.08}),
        ("step", 0, {0: 0.08}),
        ("none", 1000, {0: 0.08, 500: 0.08}),
    ],
)
def test_the_smallest_crop_follows_the_curve(curve, milestone, values):
    for t, value in values.items():
        assert min_scale(t, milestone, curve) == pytest.approx(value, abs=5e-7)


def test_a_curve_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="curriculum 'exp'; expected none, step, linear or cosine"):
        min_scale(0, 10, "exp")


# Rolls


@pytest.mark.parametrize(("symmetric", "low"), [(False, 0), (True, -4)])
def test_rolls_reach_both_ends_each_as_often(symmetric, low):
    offsets = draw_roll(numbers(20_000, 2), 4, symmetric).numpy()
    assert offsets.dtype == np.int64
    for column in offsets.T:
        found, counts = np.unique(column, return_counts=True)
        assert found.tolist() == list(range(low, 5))
        assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 5 / math.sqrt(20_000)


def test_a_roll_moves_all_images_down_and_right():
    images = noise(3, 7, 9)
    found = roll(images, torch.tensor([[2, -1]]))
    for i in range(7):
        for j in range(9):
            assert torch.equal(found[:, :, (i + 2) % 7, (j - 1) % 9], images[:, :, i, j])
    assert torch.equal(roll(images, draw_roll(torch.zeros(1, 2), 0)), images)


# Tiles


@pytest.mark.parametrize(("side", "factor"), [(224, 2), (9, 2), (11, 3), (10, 4), (5, 1), (3, 3)])
def test_tiles_share_a_side_as_evenly_as_pixels_allow(side, factor):
    parts = torch.arange(side).tensor_split(factor)
    assert edges(side, factor) == [*(int(part[0]) for part in parts), side]


@pytest.mark.parametrize(("size", "factor"), [((8, 8), 2), ((6, 9), 3), ((7, 11), 3), ((5, 5), 5), ((9, 4), 2)])
def test_a_shuffle_puts_whole_rows_and_columns_of_tiles_into_other_orders(size, factor, device):
    images = noise(30, *size)
    orders = draw_shuffle(numbers(30, 2 * factor), factor)
    shuffled = shuffle_tiles(images.to(device), orders.to(device)).cpu()
    for image, (down, across), after in zip(images, orders.tolist(), shuffled, strict=True):
        rows = torch.cat([image.tensor_split(factor, dim=1)[tile] for tile in down], dim=1)
        expected = torch.cat([rows.tensor_split(factor, dim=2)[tile] for tile in across], dim=2)
        assert torch.equal(after, expected)


def test_two_tiles_along_an_even_side_are_rolled_by_half_of_it_or_not_each_as_often():
    images, orders = noise(4000, 4, 6), draw_shuffle(numbers(4000, 4), 2)
    shuffled = shuffle_tiles(images, orders)
    counts = []
    for down in (0, 2):
        for right in (0, 3):
            rolled = torch.roll(images, (down, right), dims=(2, 3))
            counts.append((shuffled == rolled).flatten(1).all(1).sum().item())
    assert sum(counts) == 4000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_three_tiles_come_in_each_of_six_orders_each_as_often():
    orders = draw_shuffle(numbers(6000, 6), 3)
    pairs = (orders[:, 0] @ torch.tensor([9, 3, 1])) * 27 + orders[:, 1] @ torch.tensor([9, 3, 1])
    _, counts = pairs.unique(return_counts=True)
    assert len(counts) == 36  # rows and columns apart
    assert stats.chisquare(counts).pvalue > 1e-3


def test_more_tiles_than_pixels_are_refused_in_one_line():
    with pytest.raises(ValueError, match="5 tiles along a side of 4 pixels; expected at most 4"):
        shuffle_tiles(noise(1, 8, 4), draw_shuffle(numbers(1, 10), 5))
    with pytest.raises(ValueError, match=r"a shuffle of 3x3 tiles takes \(n, 6\) or more columns"):
        draw_shuffle(numbers(1, 5), 3)


# Mixes


@pytest.mark.parametrize("size", [(224, 224), (9, 30)])
def test_cutmix_boxes_are_those_of_the_formula_clipped(size):
    u = numbers(3000, 3)
    found = draw_cutmix(u, size)
    assert found.kind == "cutmix"
    for (mixing, y, x), box in zip(u.tolist(), found.values.tolist(), strict=True):
        wanted = []
        for length, place in zip(size, (y, x), strict=True):
            cut, centre = int(length * math.sqrt(1 - mixing)), int(place * length)
            wanted.append((max(centre - cut // 2, 0), min(centre + cut // 2, length)))
        (top, bottom), (left, right) = wanted
        assert box == [top, left, bottom - top, right - left]
        assert (bottom - top) * (right - left) <= (1 - mixing) * size[0] * size[1]
        assert 0 <= top <= bottom <= size[0]


def test_a_cutmix_of_nothing_changes_nothing_and_one_of_all_leaves_nothing():
    images, others = noise(1, 8, 8), noise(2, 8, 8)[1:]
    nothing = draw_cutmix(torch.tensor([[1.0, 0.5, 0.5]]), 8)
    assert nothing.values[0, 2:].tolist() == [0, 0]
    assert torch.equal(apply_mix(images, others, nothing), images)
    everything = draw_cutmix(torch.tensor([[0.0, 0.5, 0.5]]), 8)
    assert torch.equal(apply_mix(images, others, everything), others)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.8, 1.0, 3.0, 20.0])
def test_mixup_weights_are_the_quantiles_of_the_beta_distribution(alpha):
    u = torch.cat([numbers(5000, 1), torch.tensor([[0.0], [0.5], [0.25], [1 - 2**-24]])])
    found = draw_mixup(u, alpha)
    assert found.kind == "mixup"
    assert found.values.dtype == torch.float32
    wanted = stats.beta.ppf(u[:, 0].double().numpy(), alpha, alpha)
    np.testing.assert_allclose(found.values.numpy(), wanted, atol=1e-5)


def test_cutmix_takes_its_share_from_the_same_distribution():
    u = numbers(5000, 3)
    share = stats.beta.ppf(u[:, 0].double().numpy(), 0.3, 0.3)
    centred = torch.stack([u[:, 0], *torch.full((2, 5000), 0.5)], dim=1)
    found = draw_cutmix(centred, 1000, alpha=0.3).values[:, 2].numpy()
    # The root magnifies errors of the quantile where the box is small.
    assert np.abs(found - 1000 * np.sqrt(1 - share)).max() < 2 + 1000 * math.sqrt(1e-5)


@pytest.mark.parametrize("alpha", [0, -1, math.nan, math.inf])
def test_a_beta_distribution_that_is_none_is_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha=.*; expected a positive number"):
        draw_mixup(torch.zeros(1, 1), alpha)


def test_mixing_is_that_of_a_plain_loop_and_keeps_type_and_gradients():
    images, others = noise(4, 6, 7), noise(8, 6, 7)[4:]
    cut = Mix("cutmix", torch.tensor([[0, 0, 2, 3], [4, 5, 2, 2], [1, 1, 0, 4], [0, 0, 6, 7]]))
    wanted = images.clone()
    for i, (top, left, tall, wide) in enumerate(cut.values.tolist()):
        for y in range(top, top + tall):
            wanted[i, :, y, left : left + wide] = others[i, :, y, left : left + wide]
    assert torch.equal(apply_mix(images, others, cut), wanted)
    weights = Mix("mixup", torch.tensor([0.0, 0.25, 0.5, 1.0]))
    for i, weight in enumerate(weights.values.tolist()):
        found = apply_mix(images, others, weights)[i]
        torch.testing.assert_close(found, weight * images[i] + (1 - weight) * others[i])
    one = Mix("mixup", torch.tensor([0.25]))
    torch.testing.assert_close(apply_mix(images, others, one), 0.25 * images + 0.75 * others)
    one = Mix("cutmix", torch.tensor([[1, 2, 3, 4]]))
    assert torch.equal(apply_mix(images, others, one)[:, :, 1:4, 2:6], others[:, :, 1:4, 2:6])
    for mix in (cut, weights):
        x, y = (part[:, :1, :, :].double().requires_grad_() for part in (images, others))
        assert torch.autograd.gradcheck(lambda x, y, mix=mix: apply_mix(x, y, mix), (x, y))
        assert apply_mix(images.bfloat16(), others.bfloat16(), mix).dtype == torch.bfloat16
        last = images.to(memory_format=torch.channels_last)
        mixed = apply_mix(last, others.to(memory_format=torch.channels_last), mix)
        assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_what_was_drawn_moves_whole():
    mix = draw_mixup(numbers(3, 1), partners=torch.tensor([2, 0, 1])).to("cpu")
    assert mix.partners.tolist() == [2, 0, 1]
    assert draw_cutmix(numbers(3, 3), 8).to("meta").values.device.type == "meta"
    params = draw_crops(numbers(3), 8).to("meta")
    assert {params.boxes.device.type, params.flip.device.type} == {"meta"}
