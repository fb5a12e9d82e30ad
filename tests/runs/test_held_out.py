"""Images that nothing learns from are said, and what for."""

import re

import pytest

import hf_distill as hd
from hf_distill.runs.held_out import say_held_out, say_learned_from


@pytest.fixture(scope="module")
def digits() -> hd.RealImages:
    return hd.RealImages.train_and_test(hd.DataArguments())[0]


@pytest.mark.parametrize(
    ("fraction", "purposes", "level", "says"),
    [
        (
            0.1,
            ["choose a", "choose b"],
            "INFO",
            r"^142 of 1,437 training images \(9\.9 %\) .*to choose a and to choose b",
        ),
        (0.02, ["choose a"], "INFO", r"^30 of 1,437 training images \(2\.1 %\) are held out \(--validation_fraction\)"),
        (0.02, [], "WARNING", r"^30 of 1,437 .* chooses nothing by them; --validation_fraction 0 learns from all"),
        (0.0, ["choose a"], None, ""),
    ],
)
def test_the_images_that_are_held_out_are_counted_with_their_purpose(digits, caplog, fraction, purposes, level, says):
    with caplog.at_level("INFO", logger="hf_distill"):
        say_held_out(*digits.split(fraction, seed=0), purposes)
    if level is None:
        assert not caplog.records
    else:
        (record,) = caplog.records
        assert record.levelname == level
        assert re.search(says, record.getMessage())


def test_classes_that_are_too_small_for_it_are_counted(digits, caplog):
    rows = [int(digits.class_rows(label)[0]) for label in range(4)]
    rows += [int(row) for label in range(4, 10) for row in digits.class_rows(label)[:2]]
    with caplog.at_level("INFO", logger="hf_distill"):
        say_held_out(*digits.subset(rows).split(0.02, seed=0), ["choose"])
    assert "6 of 16 training images (37.5 %) are held out, none of them of 4 classes that have too few" in caplog.text


@pytest.mark.parametrize(
    ("count", "fraction", "level"),
    [(1295, 0.1, None), (1200, 0.1, "INFO"), (1407, 0.1, "WARNING"), (1407, 0.0, "INFO"), (1437, 0.0, None)],
)
def test_a_network_of_another_split_is_told_of(digits, caplog, count, fraction, level):
    with caplog.at_level("INFO", logger="hf_distill"):
        say_learned_from("the experts", count, *digits.split(fraction, seed=0))
    assert [record.levelname for record in caplog.records] == ([] if level is None else [level])
    assert level is None or f"the experts learned from {count:,} images" in caplog.text
