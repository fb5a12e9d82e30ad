"""How many images there are is known before one is decoded, or nobody knows and that is said."""

import pytest

import hf_distill as hd
from hf_distill.data.outlines import outlines_of


def test_outlines_are_those_of_the_images_that_are_read_afterwards():
    args = hd.DataArguments(max_train_samples=100, max_test_samples=50, validation_fraction=0.2)
    known = outlines_of(args)
    train, test = hd.RealImages.train_and_test(args)
    rest, held_out = train.split(0.2, seed=0)
    assert known.train == rest.outline
    assert known.held_out == held_out.outline.counts
    assert known.test == test.outline.counts
    assert known.here


def test_well_known_datasets_are_planned_without_being_fetched():
    args = hd.DataArguments(dataset_name="uoft-cs/cifar10", classes=["cat", "dog"], validation_fraction=0.1)
    known = outlines_of(args)
    assert known.train.shape == (3, 32, 32)
    assert known.train.class_names == ["cat", "dog"]
    assert (known.train.counts, known.held_out, known.test) == ([4500] * 2, [500] * 2, [1000] * 2)
    assert not known.here


def test_outlines_of_some_classes_are_theirs_or_where_no_name_is_known_of_as_many():
    every = outlines_of(hd.DataArguments())
    some = every.of_classes(["7", "2"])
    assert (some.train.class_names, some.train.counts) == (["7", "2"], [every.train.counts[7], every.train.counts[2]])
    assert (some.held_out, some.test) == ([every.held_out[i] for i in (7, 2)], [every.test[i] for i in (7, 2)])
    far = outlines_of(hd.DataArguments(dataset_name="uoft-cs/cifar10", validation_fraction=0.1))
    assert far.of_classes(["dog", "cat"]).train.counts == [4500] * 2


def test_sizes_of_other_datasets_are_asked_for(monkeypatch):
    args = hd.DataArguments(dataset_name="nobody/images", resolution=[64], color="gray")
    known = outlines_of(args, [100, 20], 7)
    assert known.train.shape == (1, 64, 64)
    assert (len(known.train) + sum(known.held_out), sum(known.test)) == (100, 20)

    def nobody(*args, **kwargs):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr("datasets.load_dataset_builder", nobody)
    with pytest.raises(ValueError, match=r"^--plan knows no sizes of nobody/images; give them, such as --plan_images"):
        outlines_of(args)
    with pytest.raises(ValueError, match="--plan_images and --plan_classes go together"):
        outlines_of(args, [100, 20])
    with pytest.raises(ValueError, match=r"--plan_images is \[100\] for --plan_classes 7; expected how many"):
        outlines_of(args, [100], 7)
    with pytest.raises(ValueError, match="and no --resolution says which; give one"):
        outlines_of(hd.DataArguments(dataset_name="ILSVRC/imagenet-1k"))
