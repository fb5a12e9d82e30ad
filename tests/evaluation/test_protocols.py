"""Protocols: what follows the set, values that do not fit, and the page that compares every value with its paper."""

import re
from collections import Counter
from dataclasses import fields, replace
from itertools import chain

import pytest
import torch

from hf_distill.data.feed import Pool
from hf_distill.evaluation.protocols import PROTOCOLS, CropProtocol, EvalProtocol, TrainingProtocol, rded_batch
from hf_distill.evaluation.students import _steps
from hf_distill.networks.architectures import StudentSpec
from hf_distill.rng import generator
from tests.helpers import ROOT


class NoViews:
    """Labels of whatever is seen."""

    views = None


PAGE = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")


# What follows the set


@pytest.mark.parametrize("name", ["rded", "hello"])
def test_the_rate_of_rded_ends_at_half(name):
    rates = [PROTOCOLS[name].rate(epoch, 300) for epoch in (0, 100, 200, 299)]
    assert rates == pytest.approx([1, 0.933, 0.75, 0.503], abs=5e-4)  # ½ (1 + cos(π t / 600)), by hand


@pytest.mark.parametrize("name", ["fadrm", "fadrm-cifar"])
def test_the_rate_of_fadrm_ends_at_half_for_few_images_and_at_nothing_for_fifty(name):
    for ipc, end in ((1, 0.5), (10, 0.5), (49, 0.5), (50, 0.0), (200, 0.0)):
        protocol = PROTOCOLS[name].for_set(ipc, 100)
        assert protocol.rate(10**6 - 1, 10**6) == pytest.approx(end, abs=1e-5)
        assert protocol.title == f"{name}, batches of 16, rate to {'a half' if end else '0'}"
        assert protocol.to_config()["accumulate"] == 2
    assert "accumulate" not in PROTOCOLS["cda"].to_config()  # earlier reports say nothing of it


@pytest.mark.parametrize(
    ("ipc", "classes", "batch"),
    [
        *[(1, 1000, 20), (10, 1000, 100), (50, 1000, 200)],  # ImageNet-1K
        *[(1, 100, 20), (10, 100, 100), (50, 100, 200)],  # ImageNet-100, CIFAR-100
        *[(1, 10, 10), (10, 10, 50), (50, 10, 100)],  # CIFAR-10, Imagenette, Imagewoof
        *[(1, 200, 100), (10, 200, 100), (50, 200, 100)],  # Tiny-ImageNet
        *[(5, 10, 10), (20, 10, 50), (200, 1000, 200), (1, 3, 3), (1, 1, 2)],  # others take those of the next smaller
        *[(10, 99, 50), (10, 101, 100), (10, 500, 100), (50, 21841, 200)],
    ],
)
@pytest.mark.parametrize("name", ["rded", "hello"])
def test_the_batches_of_rded_follow_the_images_and_the_classes(name, ipc, classes, batch):
    assert rded_batch(ipc, classes) == batch
    assert PROTOCOLS[name].for_set(ipc, classes).batch_size == batch


@pytest.mark.parametrize("name", ["rded", "hello"])
def test_the_views_of_rded_follow_the_tiles(name):
    images = torch.rand(40, 1, 8, 12, generator=generator(0, "images"))
    whole = PROTOCOLS[name].for_set(10, 10, 1)
    seen = replace(whole.views, mix="none", flip=0.0)(lambda rows: images[rows], torch.arange(40), 0, 40)
    torch.testing.assert_close(seen, images, atol=1e-6, rtol=0)  # neither cropped nor shuffled
    for factor in (2, 3):
        views = PROTOCOLS[name].for_set(10, 10, factor).views
        assert (views.crop, views.scale, views.shuffle) == ("resized", (1 / factor, 1.0), factor)
    assert PROTOCOLS[name].for_set(10, 1000, 2) == PROTOCOLS[name] == whole.for_set(10, 1000, 2)


def test_dc_drops_once_after_500_of_1000_epochs_and_is_never_augmented():
    dc = PROTOCOLS["dc"]
    assert dc.schedule(dc.epochs) == [(1.0, False)] * 500 + [(0.1, False)] * 500
    assert dc.with_augmentation("flip_crop") is dc
    assert PROTOCOLS["mtt"].with_augmentation("flip_crop").dsa_strategy == "flip_crop"


@pytest.mark.parametrize("name", [name for name, known in PROTOCOLS.items() if isinstance(known, CropProtocol)])
def test_views_without_augmentation_are_the_images(name):
    images = torch.rand(40, 3, 8, 12, generator=generator(0, "images"))
    protocol = PROTOCOLS[name].for_set(10, 10, 2)
    bare = protocol.without_augmentation()
    views = bare.views_for(NoViews(), seed=5)
    for epoch in (0, 1):
        seen = views(lambda rows: images[rows], torch.arange(40), epoch, 40)
        torch.testing.assert_close(seen, images, atol=1e-6, rtol=0)
        assert torch.equal(views.mixing(torch.arange(40), epoch, 40, (8, 12))[0], torch.arange(40))
    assert bare.title.startswith(f"{name} without augmentation")
    kept = [(value.epochs, value.batch_size, value.lrs, value.temperature, value.source) for value in (protocol, bare)]
    assert kept[0] == kept[1]


def test_only_protocols_that_augment_lose_something_without_augmentation():
    assert [name for name, protocol in PROTOCOLS.items() if not protocol.augments] == ["dc"]
    assert not any(protocol.without_augmentation().augments for protocol in PROTOCOLS.values())
    assert (
        PROTOCOLS["rded"].for_set(10, 10, 1).augments
    )  # of one tile: neither crops nor a shuffle, but flips and mixes


def test_batches_without_augmentation_are_the_images_for_as_many_steps():
    images = torch.rand(10, 1, 8, 8, generator=generator(0, "images"))
    protocol = EvalProtocol("short", epochs=4, full_data_epochs=1, batch_size=4)
    pool, rows = Pool(images, torch.arange(10)), torch.arange(10)[None]
    known = (pool, pool.labels, rows, StudentSpec("convnet_d1", 10, 1, (8, 8)))
    both = [list(_steps(*known, each, 4, [3])) for each in (protocol, protocol.without_augmentation())]
    assert len(both[0]) == len(both[1]) == 12
    assert all(torch.equal(seen[0], images[labels[0]]) for _, _, seen, labels in both[1])
    assert not any(torch.equal(seen[0], images[labels[0]]) for _, _, seen, labels in both[0])


def test_protocols_that_follow_no_set_are_the_same_for_each():
    for name in sorted(set(PROTOCOLS) - {"rded", "hello", "fadrm", "fadrm-cifar"}):
        assert PROTOCOLS[name].for_set(1, 10, 3) is PROTOCOLS[name]


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (CropProtocol, {"optimizer": "sgd"}, "has momentum=None; sgd needs a momentum, such as 0.9"),
        (CropProtocol, {"momentum": 0.9}, "has momentum=0.9; adamw takes no momentum"),
        (CropProtocol, {"optimizer": "adam"}, "has optimizer='adam'; expected one of adamw, sgd"),
        (CropProtocol, {"loss": "ce"}, "has loss='ce'; expected one of kl, mse"),
        (CropProtocol, {"batchnorm_updates": 0}, "batchnorm_updates is 0; expected at least 1"),
        (CropProtocol, {"accumulate": 0}, "accumulate is 0; expected at least 1"),
        (CropProtocol, {"falls_from": 0}, "falls_from is 0; expected at least 1"),
        (EvalProtocol, {"loss": "kl"}, "has loss='kl'; expected one of ce, l1"),
        (EvalProtocol, {"full_data_batch_size": 1}, "full_data_batch_size is 1; expected at least 2"),
        (EvalProtocol, {"lrs": ()}, "expected some above 0"),
    ],
)
def test_a_protocol_of_values_that_do_not_fit_is_refused_in_one_line(kind, values, words):
    with pytest.raises(ValueError, match=words) as error:
        kind("mine", epochs=1, full_data_epochs=1, **values)
    assert "\n" not in str(error.value)


def test_each_kind_of_protocol_has_no_field_that_it_ignores():
    assert not {"dsa_strategy", "decay", "decay_epochs", "reset_momentum"} & set(CropProtocol.__dataclass_fields__)
    assert not {"views", "optimizer", "temperature", "cosine"} & set(EvalProtocol.__dataclass_fields__)


# The page


def tables() -> list[list[list[str]]]:
    """The cells of all tables of the page, without their heads."""
    texts = re.findall(r"(?:^\|.*\n)+", PAGE, flags=re.MULTILINE)
    return [[[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]] for table in texts]


def text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def values(protocol: TrainingProtocol) -> dict[str, str]:
    """All values of a protocol, as the page has them."""
    every = {field.name: getattr(protocol, field.name) for field in fields(protocol)}
    if "views" in every:
        views = every.pop("views")
        every |= {f"views.{field.name}": getattr(views, field.name) for field in fields(views)}
    apart = ("name", "source", "views.seed", "budget")  # the last two are of a report
    return {name: text(value) for name, value in every.items() if name not in apart}


def test_the_page_has_each_value_of_each_protocol_once_and_as_it_is():
    *compared, _ = tables()
    there = [
        ((name, value.strip("`")), ours.strip("`"))
        for names, value, _, _, ours, _ in chain(*compared)
        for name in names.split(", ")
    ]
    assert [key for key, count in Counter(key for key, _ in there).items() if count > 1] == []
    expected = {(name, value): ours for name, known in PROTOCOLS.items() for value, ours in values(known).items()}
    assert dict(there) == expected


def test_each_value_names_its_source_and_one_that_is_not_as_there_says_why():
    *compared, _ = tables()
    for names, value, source, theirs, ours, why in chain(*compared):
        assert source, (names, value)
        same = re.match(rf"`?{re.escape(ours.strip('`'))}(?![.\w])", theirs)
        assert same or why, (names, value)


def test_the_page_has_the_batches_of_rded():
    *_, batches = tables()
    for row in batches:
        classes, *sizes = map(int, row)
        assert sizes == [rded_batch(ipc, classes) for ipc in (1, 10, 50)]
    assert [int(row[0]) for row in batches] == [10, 100, 200, 1000]
