"""What labels cost by formula: the figures that papers print, and those of files that are there."""

import numpy as np
import pytest
import torch

from hf_distill.distilled.epoch_labels import Codec
from hf_distill.distilled.label_costs import fkd, label_bytes, label_costs, mr_k, parameters, per_image, stored

GB, GIB = 1e9, 2**30


@pytest.mark.parametrize(
    ("ipc", "gigabytes", "gibibytes"),
    [(1, 0.6, 0.56), (10, 6, 5.59), (50, 30, 27.9), (100, 60, 55.9), (200, 120, 111.8)],
)
def test_300_epochs_of_imagenet_cost_what_the_papers_say(ipc, gigabytes, gibibytes):
    logits = stored(1000 * ipc, 300, 1000)
    assert logits / GB == pytest.approx(gigabytes, rel=1e-9)
    assert logits / GIB == pytest.approx(gibibytes, abs=0.05 if ipc > 10 else 0.005)
    assert fkd(1000 * ipc, 300, 1000) / GB == pytest.approx(1.0125 * gigabytes, rel=1e-9)  # 25 bytes beside 2000


@pytest.mark.parametrize(("ipc", "listed"), [(10, 5.67), (50, 28.33), (200, 113.33)])
def test_fkd_with_its_crops_is_what_the_prunings_are_compared_with(ipc, listed):
    assert fkd(1000 * ipc, 300, 1000) / GIB == pytest.approx(listed, rel=0.003)


@pytest.mark.parametrize(("ipc", "gigabytes"), [(10, 655), (20, 1310)])
def test_300_epochs_of_imagenet_21k_cost_what_the_papers_say(ipc, gigabytes):
    assert round(stored(10_450 * ipc, 300, 10_450) / GB) == pytest.approx(gigabytes, abs=0.6)
    assert fkd(10_450 * ipc, 300, 10_450) / GB == pytest.approx(gigabytes, rel=0.002)


def test_pruned_labels_and_the_largest_logits_cost_what_the_papers_say():
    assert fkd(50_000, 300, 1000, share=0.025) / GB == pytest.approx(0.76, abs=0.005)
    assert mr_k(50_000, 300, 100, share=0.1) / GB == pytest.approx(0.62, abs=0.0051)


def test_a_projector_of_847360_parameters_is_three_thousandths_of_a_percent():
    assert parameters(847_360) / 1e6 == pytest.approx(1.69, abs=0.005)
    assert parameters(847_360, parameter_bytes=4) / 1e6 == pytest.approx(3.39, abs=0.005)
    for images, size in ((100_000, 2), (200_000, 4)):
        costs = label_costs(images, 300, 1000, projector_params=847_360, parameter_bytes=size)
        (row,) = (row for row in costs.rows if row.what == "projector")
        assert row.share == pytest.approx(2.82e-5, abs=0.005e-5)
        assert "0.00282 %" in costs.table()


@pytest.mark.parametrize(("classes", "kept"), [(6, None), (6, 1), (6, 6), (1000, 100), (65_536, 2), (65_537, 2)])
def test_a_label_of_this_library_is_as_long_as_its_columns(classes, kept):
    columns = Codec(kept).encode(torch.randn(3, classes))
    columns = {name: column.numpy() for name, column in columns.items()}
    if kept is not None:
        columns["ids"] = columns["ids"].astype(np.uint16 if classes <= 65_536 else np.int32)
        assert columns["ids"].max() < classes
    assert label_bytes(classes, kept) == Codec(kept).label_bytes(classes)
    assert 3 * label_bytes(classes, kept) == sum(column.nbytes for column in columns.values())


def test_one_label_per_image_is_a_matrix_in_half_precision():
    assert per_image(30, 7) == torch.zeros(30, 7).half().nbytes


def test_the_table_of_a_run_names_all_that_was_asked_for_with_its_share():
    costs = label_costs(
        50_000,
        300,
        1000,
        share=0.1,
        kept=100,
        projector_params=847_360,
        text_head_bytes=4_096_000,
        prior_bytes=153_000_000,
        teacher_bytes=46_800_000,
    )
    assert [(row.what, row.num_bytes) for row in costs.rows] == [
        ("every view, logits and seeds", 30_000_000_000),
        ("every view, as FKD stores it", 30_375_000_000),
        ("FKD, 10 % of the epochs", 3_037_500_000),
        ("logits and seeds, 10 % of the epochs", 3_000_000_000),
        ("MR-100, 10 % of the epochs", 615_000_000),
        ("the 100 largest and seeds, 10 % of the epochs", 606_000_000),
        ("one per image", 100_000_000),
        ("projector", 1_694_720),
        ("projector with its text head", 5_790_720),
        ("projector with all that is shared", 158_790_720),
        ("teacher, online", 46_800_000),
        ("classes", 0),
    ]
    assert costs.rows[2].share == pytest.approx(0.10125)
    lines = costs.table().splitlines()
    assert lines[0].split() == ["labels", "bytes", "share"]
    assert len({len(line) for line in lines[:14]}) == 1
    assert "| projector | 1.7 MB | 0.00565 % |" in costs.markdown().splitlines()
    assert "50,000 images, 300 epochs, 1,000 classes" in costs.markdown()


def test_only_what_was_asked_for_is_in_the_table():
    costs = label_costs(10, 2, 3)
    assert [row.num_bytes for row in costs.rows] == [120, 620, 60, 0]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"images": 0}, "images is 0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"classes": 0}, "classes is 0"),
        ({"share": 0.0}, "share of the labels"),
        ({"share": 1.5}, "at most 1"),
        ({"kept": 4}, "4 logits of 3 classes"),
    ],
)
def test_what_cannot_be_counted_is_one_clear_line(wrong, words):
    with pytest.raises(ValueError, match=words) as error:
        label_costs(**{"images": 10, "epochs": 2, "classes": 3, **wrong})
    assert "\n" not in str(error.value)
