"""Sets made of sets: what belongs to an image or to a class follows it, by its name."""

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import torch

from hf_distill.distilled.arranging import changes_classes
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.epoch_labels import EpochLabels, relabel
from hf_distill.distilled.labels import NetworkLabels, TeacherLabels
from hf_distill.evaluation.evaluate import check_labels, distilled_pool
from hf_distill.evaluation.protocols import PROTOCOLS
from tests.helpers.sets import CONFIG, NAMES, REPORT, make, network, pictures, same

STUDENT = {"name": "convnet_d2", "num_classes": 4, "in_chans": 3, "img_size": [6, 8], "kwargs": {}}


def by_image(distilled: DistilledSet) -> dict[bytes, tuple[str, dict[str, float]]]:
    """The name of each image's class and its logits by the names of classes, by the bytes of its pixels."""
    pixels = distilled.pixel_values.detach().numpy()
    soft = distilled.soft_labels.numpy() if distilled.soft_labels is not None else np.zeros((len(pixels), 0))
    return {
        image.tobytes(): (distilled.class_names[label], dict(zip(distilled.class_names, logits.tolist(), strict=False)))
        for image, label, logits in zip(pixels, distilled.labels.tolist(), soft, strict=True)
    }


def logits(distilled: DistilledSet, images: torch.Tensor) -> dict[str, np.ndarray]:
    """What the set's teacher says of some images, by the name of the class."""
    every = torch.arange(len(images))
    return dict(zip(distilled.class_names, distilled.teacher(images, every, every).numpy().T, strict=True))


@pytest.mark.parametrize("kind", [make, pictures])
def test_images_of_some_classes_keep_their_names_and_logits(kind):
    whole = kind(ipc=3, soft=True, lr=0.02, config={**CONFIG, "student": STUDENT}, report=REPORT)
    known = by_image(whole)
    part = whole.select(ipc=2, classes=["a/b | c", "cat", "Hund"])
    assert part.class_names == ["a/b | c", "cat", "Hund"]
    assert part.labels.bincount().tolist() == [2, 2, 2]
    for image, (name, soft) in by_image(part).items():
        assert known[image][0] == name
        assert soft == {other: known[image][1][other] for other in part.class_names}
    first = [row for row, label in enumerate(whole.labels.tolist()) if label != 2 and row % 3 < 2]
    assert torch.equal(part.pixel_values.detach(), whole.pixel_values.detach()[first])
    assert part.is_bytes == whole.is_bytes
    assert part.lr.item() == whole.lr.item()
    assert part.report is None
    assert part.config["student"] == {**STUDENT, "num_classes": 3}
    assert whole.config["student"]["num_classes"] == 4


def test_a_set_of_all_images_and_classes_is_the_same_but_for_the_note():
    whole = pictures(teacher=NetworkLabels(network()), config=CONFIG)
    again = whole.select(ipc=3)
    assert again.pixel_values.data_ptr() == whole.pixel_values.data_ptr()
    assert again.config.pop("changes")[0]["ipc"] == 3
    assert same(again, whole)
    assert again.teacher is whole.teacher


def test_shuffled_classes_are_a_permutation_that_the_seed_decides():
    whole = make(soft=True)
    shuffled = whole.shuffle_classes(seed=3)
    assert by_image(shuffled) == by_image(whole)
    assert shuffled.class_names == whole.shuffle_classes(seed=3).class_names
    orders = {tuple(whole.shuffle_classes(seed).class_names) for seed in range(200)}
    assert orders == set(itertools.permutations(NAMES))
    assert shuffled.config["changes"][0]["classes"] == [NAMES.index(name) for name in shuffled.class_names]


@pytest.mark.parametrize("kind", ["network", "experts"])
def test_a_teacher_says_of_each_class_what_it_said(kind):
    whole = make(soft=False, teacher=True) if kind == "experts" else pictures(teacher=NetworkLabels(network()))
    images = torch.randn(5, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    before = logits(whole, images)
    for other in (whole.shuffle_classes(1), whole.select(classes=[NAMES[2], NAMES[0]])):
        assert isinstance(other.teacher, TeacherLabels if kind == "experts" else NetworkLabels)
        for name, values in logits(other, images).items():
            np.testing.assert_allclose(values, before[name], rtol=1e-5, atol=1e-6)


def test_tasks_of_shuffled_classes_are_the_whole_again():
    whole = make(soft=True, lr=0.1, config={**CONFIG, "student": STUDENT}).shuffle_classes(seed=5)
    tasks = [whole.select(classes=whole.class_names[at : at + 2]) for at in (0, 2)]
    assert [task.labels.unique().tolist() for task in tasks] == [[0, 1], [0, 1]]
    seen = DistilledSet.concatenate(tasks)
    assert seen.class_names == whole.class_names
    assert {key: name for key, (name, _) in by_image(seen).items()} == {
        key: name for key, (name, _) in by_image(whole).items()
    }
    assert seen.soft_labels is None, "nobody knows what one task says of the classes of another"
    assert seen.lr.item() == whole.lr.item()
    assert seen.config["student"]["num_classes"] == 4
    assert (seen.config["method"], seen.config["source"]) == (CONFIG["method"], CONFIG["source"])


def test_more_images_of_the_same_classes_keep_their_labels(caplog):
    one, two = make(seed=0, lr=0.1, config=CONFIG), make(seed=1, lr=0.2, config={**CONFIG, "seed": 8})
    with caplog.at_level(logging.WARNING):
        both = DistilledSet.concatenate([one, two])
    assert by_image(both) == by_image(one) | by_image(two)
    assert len(both) == 24
    assert both.lr is None
    assert "left out: learned learning rates" in caplog.text
    assert "seed" not in both.config
    assert both.config["hyperparameters"] == CONFIG["hyperparameters"]
    taught = [pictures(seed=seed, teacher=NetworkLabels(network())) for seed in range(2)]
    assert DistilledSet.concatenate(taught).teacher.digest == taught[0].teacher.digest


def test_a_label_projector_is_left_out_where_the_classes_change(caplog, monkeypatch):
    whole = pictures(soft=True, teacher=NetworkLabels(network()), config={"projector": {"kl": 0.1}})
    monkeypatch.setattr("hf_distill.distilled.arranging.ProjectorLabels", NetworkLabels)
    with caplog.at_level(logging.WARNING):
        other = whole.shuffle_classes(2)
    assert (other.teacher, "projector" in other.config) == (None, False)
    assert "the label projector is for all classes in their old order, and is left out" in caplog.text
    assert other.config["changes"][0]["dropped"] == ["label projector"]
    assert whole.select(ipc=1).config["projector"] == {"kl": 0.1}


def test_what_was_done_is_kept_and_on_the_card(tmp_path):
    whole = make(config=CONFIG)
    saved = DistilledSet.from_pretrained(whole.save_pretrained(tmp_path / "whole"))
    part = saved.select(ipc=2).shuffle_classes(4)
    again = DistilledSet.from_pretrained(part.save_pretrained(tmp_path / "part"))
    assert same(again, part)
    done = [change["operation"] for change in again.config["changes"]]
    assert done == ["select", "shuffle_classes"]
    of = again.config["changes"][0]["of"]
    assert of == [{"data_id": saved.stored_id, "images": 12, "classes": 4, "method": "some-method"}]
    card = (tmp_path / "part" / "README.md").read_text()
    assert "After that the first 2 images of each of all classes were taken of 12 images of 4 classes" in card
    assert "an order that the seed 4 drew" in card


def test_stored_labels_of_views_are_refused_once_the_classes_changed(tmp_path):
    whole = pictures(teacher=NetworkLabels(network()), config=CONFIG)
    cropped = PROTOCOLS["cda"]

    def check(of: DistilledSet, labels: EpochLabels) -> None:
        check_labels(labels, of, distilled_pool(of, torch.device("cpu")), cropped)

    def label(name: str, **options: Any) -> EpochLabels:
        pool = distilled_pool(whole, torch.device("cpu"))
        return relabel(whole.teacher, pool, cropped.views, 1, tmp_path / name, disable_tqdm=True, **options)

    named, unnamed = label("named", class_names=whole.class_names), label("unnamed")
    reordered = [whole.shuffle_classes(1), whole.select(classes=NAMES[::-1]), whole.shuffle_classes(1).select(ipc=3)]
    for labels, says in ((named, "calls class "), (unnamed, "do not name their classes")):
        check(whole, labels)
        check(whole.select(ipc=3), labels)
        for other in reordered:
            with pytest.raises(ValueError, match=says):
                check(other, labels)


def test_whether_classes_changed_is_known_of_sets_in_sets():
    one, two = (make(seed=seed, config=CONFIG) for seed in range(2))
    parts = [one.select(classes=NAMES[:2]), one.select(classes=NAMES[2:])]
    of = {
        False: [one, one.select(ipc=1), DistilledSet.concatenate([one, two]).select(ipc=2)],
        True: [
            *parts,
            DistilledSet.concatenate(parts),
            DistilledSet.concatenate([each.shuffle_classes(1) for each in (one, two)]).select(ipc=2),
        ],
    }
    for expected, sets in of.items():
        assert [changes_classes(each.config.get("changes")) for each in sets] == [expected] * len(sets)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "expected a number, names in a list, or both"),
        ({"classes": "cat"}, "expected a number, names in a list, or both"),
        (
            {"classes": ["cat", "cow"]},
            "classes has 'cow', which it lacks; expected two or more different ones of 'cat'",
        ),
        ({"classes": ["cat", "cat"]}, "2 names, 1 of them different"),
        ({"classes": ["cat"]}, "1 names, 1 of them different"),
        ({"ipc": 0}, "ipc is 0; expected 1 to 3, the number of images of class 'cat'"),
        ({"ipc": 4}, "ipc is 4; expected 1 to 3"),
        ({"ipc": 1.0}, r"ipc is 1\.0; expected"),
    ],
)
def test_what_cannot_be_selected_is_one_line(given, says):
    with pytest.raises(ValueError, match=says) as caught:
        make().select(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 1.5, None, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match=r"^seed is .*; expected a whole number from 0$"):
        make().shuffle_classes(seed)


@pytest.mark.parametrize(
    ("given", "says"), [(["a", "b"], "str, str"), ([], "nothing"), ("ab", "str"), (make(), "DistilledSet")]
)
def test_only_sets_in_a_list_are_put_together(given, says):
    with pytest.raises(ValueError, match=rf"^concatenate was given {says}; expected a list of two or more sets$"):
        DistilledSet.concatenate(given)


@pytest.mark.parametrize(
    ("one", "two", "says"),
    [
        ({}, {}, "a set is given twice"),
        ({}, {"names": NAMES[::-1], "seed": 1}, "classes of a set before it in another order"),
        (
            {},
            {"names": [*NAMES[:2], "x", "y"], "seed": 1},
            "classes of a set before it and others beside 'cat', 'Hund'",
        ),
        ({}, {"size": (8, 8), "seed": 1}, "set 2 has another preprocessing or size"),
        ({}, {"soft": False, "seed": 1}, "labels of different kinds"),
        ({}, {"teacher": True, "seed": 1}, "labels of different kinds, or of different networks"),
        ({"config": CONFIG}, {"seed": 1}, "another source or terms of use"),
        (
            {"config": CONFIG},
            {"seed": 1, "config": {**CONFIG, "imported_from": {"files": [], "license": "cc-by-nc-4.0"}}},
            "another source or terms of use",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(one, two, says):
    with pytest.raises(ValueError, match=says) as caught:
        DistilledSet.concatenate([make(**one), make(**two)])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="another kind of images"):
        DistilledSet.concatenate([make(**one), pictures()])
