"""Views: what is seen of an image is a function of (seed, epoch, row), and nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hf_distill.augmentation.crops import (
    CROP_DRAWS,
    apply_mix,
    crop_resize,
    draw_crops,
    draw_cutmix,
    draw_mixup,
    draw_shuffle,
    shuffle_tiles,
    uniform,
)
from hf_distill.augmentation.crops import partners as draw_partners
from hf_distill.augmentation.views import CROP, MIX, SHUFFLE, Views
from hf_distill.rng import generator

COUNT = 23
ALL = torch.arange(COUNT)
KINDS = [Views(seed=3, crop=crop, mix=mix, alpha=0.8, shuffle=1 + (crop == "resized")) for crop in
         ("resized", "padded", "none") for mix in ("cutmix", "mixup", "none")]  # fmt: skip
IDS = [f"{views.crop}-{views.mix}" for views in KINDS]
IMAGES = torch.rand(COUNT, 3, 12, 10, generator=generator(0, "images"))


def take(rows: Tensor) -> Tensor:
    return IMAGES[rows]


@pytest.mark.parametrize("views", KINDS, ids=IDS)
def test_no_bit_depends_on_order_or_batch(views, device):
    def take(rows: Tensor) -> Tensor:
        return IMAGES[rows].to(device)

    whole = views(take, ALL, 5, COUNT).cpu()
    order = torch.randperm(COUNT, generator=generator(1))
    assert torch.equal(views(take, order, 5, COUNT).cpu(), whole[order])
    for size in (1, 4, 7):
        parts = [views(take, rows, 5, COUNT).cpu() for rows in order.split(size)]
        assert torch.equal(torch.cat(parts), whole[order])


@pytest.mark.parametrize("views", KINDS[:8], ids=IDS[:8])
def test_another_epoch_or_seed_shows_something_else_and_the_same_ones_the_same(views):
    first = views(take, ALL, 0, COUNT)
    assert torch.equal(first, replace(views)(take, ALL, 0, COUNT))
    for other in (views(take, ALL, 1, COUNT), replace(views, seed=4)(take, ALL, 0, COUNT)):
        same = (first == other).flatten(1).all(1)
        assert same.float().mean() < 0.4  # a coin is a coin, and a CutMix box can be empty


def test_the_seed_of_a_view_is_not_that_of_the_global_generators():
    state = torch.get_rng_state()
    KINDS[0](take, ALL, 0, COUNT)
    assert torch.equal(torch.get_rng_state(), state)


def test_resized_crops_are_those_of_the_draws_with_flips(device):
    views = Views(seed=9, scale=(0.3, 0.7), mix="none")
    u = uniform(9, (4, CROP), ALL, CROP_DRAWS)
    params = draw_crops(u, (12, 10), (0.3, 0.7), flip=0.5)
    found = views(lambda rows: IMAGES[rows].to(device), ALL, 4, COUNT).cpu()
    rounding = 0 if device.type == "cpu" else 1e-4
    torch.testing.assert_close(found, crop_resize(IMAGES, params, (12, 10)), atol=rounding, rtol=0)
    shares = params.boxes[:, 2] * params.boxes[:, 3] / 120
    assert 0.25 < shares.min() < shares.max() < 0.75
    assert 0 < params.flip.sum() < COUNT


def test_tiles_are_shuffled_before_the_crop_and_the_crop_is_that_without():
    views = Views(seed=9, scale=(0.3, 0.7), mix="none", shuffle=3)
    orders = draw_shuffle(uniform(9, (4, SHUFFLE), ALL, 6), 3)
    shuffled = shuffle_tiles(IMAGES, orders)
    expected = replace(views, shuffle=1)(lambda rows: shuffled[rows], ALL, 4, COUNT)
    assert torch.equal(views(take, ALL, 4, COUNT), expected)
    assert not torch.equal(views(take, ALL, 4, COUNT), replace(views, shuffle=1)(take, ALL, 4, COUNT))


@pytest.mark.parametrize("background", [0.0, torch.tensor([-1.5, -2.0, -2.5]).view(3, 1, 1)], ids=["zero", "black"])
def test_padded_crops_are_pure_shifts_over_the_background(background):
    views = Views(seed=2, crop="padded", pad=3, flip=0.0, mix="none")
    rows = torch.arange(200) % COUNT
    ids = torch.arange(200)
    found = views(lambda which: IMAGES[which % COUNT], ids, 0, 200, background)
    edge = torch.zeros(3, 1, 1) + background
    shifts = set()
    for image, shown in zip(IMAGES[rows], found, strict=True):
        canvas = edge.expand(3, 18, 16).clone()
        canvas[:, 3:15, 3:13] = image
        fits = [
            (top, left)
            for top in range(7)
            for left in range(7)
            if torch.allclose(shown, canvas[:, top : top + 12, left : left + 10], atol=1e-5)
        ]
        assert len(fits) == 1
        shifts.add(fits[0])
    assert {top for top, _ in shifts} == {left for _, left in shifts} == set(range(7))


def test_padded_crops_mirror_half_of_the_images_and_uncropped_views_only_mirror():
    ids = torch.arange(400)
    images = torch.rand(400, 1, 5, 5, generator=generator(0))
    found = Views(crop="none", mix="none")(lambda rows: images[rows], ids, 0, 400)
    same = torch.isclose(found, images, atol=1e-6).flatten(1).all(1)
    mirrored = torch.isclose(found, images.flip(3), atol=1e-6).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 0.4 < mirrored.float().mean() < 0.6
    still = Views(crop="none", flip=0.0, mix="none")(lambda rows: images[rows], ids, 0, 400)
    torch.testing.assert_close(still, images, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_each_image_is_mixed_with_the_view_of_its_partner_out_of_the_whole_set(kind, device):
    def take(rows: Tensor) -> Tensor:
        return IMAGES[rows].to(device)

    views = Views(seed=6, mix=kind, alpha=0.8)
    alone = replace(views, mix="none")(take, ALL, 2, COUNT)
    u = uniform(6, (2, MIX), ALL, 3)
    other = draw_partners(6, 2, COUNT)
    assert other.sort().values.tolist() == ALL.tolist()
    mix = draw_cutmix(u, (12, 10), 0.8) if kind == "cutmix" else draw_mixup(u, 0.8)
    expected = apply_mix(alone, alone[other.to(device)], mix.to(device))  # a partner has the crop that it has by itself
    assert torch.equal(views(take, ALL, 2, COUNT), expected)
    assert (alone != expected).flatten(1).any(1).float().mean() > 0.5
    assert torch.equal(views(take, ALL[:5], 2, COUNT), expected[:5])


def test_a_mixup_of_two_plain_images_weighs_both():
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    views = Views(crop="none", mix="mixup", alpha=1.0)
    seen = set()
    for epoch in range(40):
        found = views(lambda rows: images[rows], torch.arange(2), epoch, 2)
        other = draw_partners(0, epoch, 2).tolist()
        weights = uniform(0, (epoch, MIX), torch.arange(2), 3)[:, 0]
        for row in range(2):
            expected = weights[row] * row + (1 - weights[row]) * other[row]
            torch.testing.assert_close(found[row], expected.expand(1, 4, 4), atol=1e-6, rtol=0)
            seen.add(round(float(expected), 3))
    assert len(seen) > 20


@pytest.mark.parametrize("views", KINDS, ids=IDS)
def test_gray_and_half_precision_images_keep_shape_and_type(views):
    for dtype in (torch.float32, torch.float16):
        images = IMAGES[:, :1].to(dtype)
        found = views(lambda rows, images=images: images[rows], ALL, 0, COUNT)
        assert found.shape == images.shape
        assert found.dtype == dtype
        assert found.isfinite().all()


def test_views_survive_their_description():
    for views in KINDS:
        config = views.to_config()
        assert isinstance(config["scale"], list)
        assert Views.from_config(config) == views
        again = Views.from_config(config)
        assert torch.equal(again(take, ALL, 1, COUNT), views(take, ALL, 1, COUNT))


def test_a_description_without_a_shuffle_is_that_of_before_and_one_with_it_says_so():
    before = {"seed": 3, "crop": "none", "scale": [0.08, 1.0], "pad": 4, "flip": 0.5, "mix": "cutmix", "alpha": 1.0}
    assert Views(seed=3, crop="none").to_config() == before
    assert Views(seed=3, crop="none", shuffle=2).to_config() == {**before, "shuffle": 2}
    assert Views.from_config(before).shuffle == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": "center"}, "views with crop='center'; expected one of resized, padded, none"),
        ({"mix": "cutout"}, "views with mix='cutout'; expected one of cutmix, mixup, none"),
        ({"shuffle": 0}, "views with shuffle=0; expected the tiles along a side, from 1"),
        ({"shuffle": 1.5}, "views with shuffle=1.5; expected the tiles along a side, from 1"),
    ],
)
def test_a_name_that_is_none_is_refused_in_one_line(values, message):
    with pytest.raises(ValueError, match=message):
        Views(**values)


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "none"])
def test_the_shares_of_a_mix_are_those_of_its_pixels(kind):
    """Images of one colour each: the mean of a mixed one says how much of it is whose."""
    views = Views(seed=5, crop="none", flip=0.0, mix=kind, alpha=0.8)
    flat = torch.arange(COUNT, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 12, 10)
    rows = torch.randperm(COUNT, generator=generator(2))
    seen = views(lambda chosen: flat[chosen], rows, 4, COUNT)
    partners, share = views.mixing(rows, 4, COUNT, (12, 10))
    torch.testing.assert_close(seen.mean((1, 2, 3)), share * rows + (1 - share) * partners)
