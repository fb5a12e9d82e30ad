"""Imported labels of every epoch go to a new folder when all of them are believed, and to nowhere before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_distill.data.feed import Pool
from hf_distill.importing import epoch_labels, import_epoch_labels
from hf_distill.importing.epoch_labels import sampler_order

NAMES = ["cat", "dog", "eel"]
CLASSES = torch.arange(60) % 3


def pool() -> Pool:
    images = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Pool(images, CLASSES, keep="floats")


def labels(folder: Path, *, weak: int = 0) -> Path:
    """Three epochs of labels of 60 whole images, by a teacher that knows nothing in the first `weak` and then all."""
    for epoch, own in enumerate(sampler_order(60, 3)):
        (folder / f"epoch_{epoch}").mkdir(parents=True)
        crops = torch.tensor([[0.0, 0, 1, 1]]).repeat(60, 1)
        logits = 5.0 * F.one_hot(CLASSES[own], 3) * (epoch >= weak)
        state = [crops, torch.zeros(60, dtype=torch.bool), None, None, None, logits.half()]
        torch.save(state, folder / f"epoch_{epoch}" / "batch_0.tar")
    return folder


def one_epoch_a_file(monkeypatch) -> None:
    monkeypatch.setattr("hf_distill.distilled.epoch_labels.FILE_VIEWS", 60)


def test_what_a_folder_holds_is_never_replaced(tmp_path):
    theirs = labels(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="ours is not empty; give a new folder"):
        import_epoch_labels(theirs, pool(), NAMES, tmp_path / "ours", disable_tqdm=True)
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["notes.txt"]


def test_after_a_refusal_the_right_seed_is_taken(monkeypatch, tmp_path):
    one_epoch_a_file(monkeypatch)
    theirs = labels(tmp_path / "theirs", weak=1)
    with pytest.raises(ValueError, match="seed 7 did not deal these images in this order"):
        import_epoch_labels(theirs, pool(), NAMES, tmp_path / "ours", order_seed=7, disable_tqdm=True)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    again = import_epoch_labels(theirs, pool(), NAMES, tmp_path / "ours", disable_tqdm=True)
    assert again.num_epochs == 3
    assert again.folder == tmp_path / "ours"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]
    assert len(list((tmp_path / "ours").rglob("*.parquet"))) == 3


NAN, INF = float("nan"), float("inf")
BATCH = {
    "crops": torch.tensor([[0.0, 0, 0.5, 1]] * 3),
    "flips": [0, 1, 1],
    "partners": [1, 2, 0],
    "weight": 0.25,
    "box": None,
    "logits": torch.ones(3, 2),
}


def batch(tmp_path: Path, **changes: Any) -> Any:
    torch.save(list({**BATCH, **changes}.values()), tmp_path / "batch_0.tar")
    return epoch_labels._batch(tmp_path / "batch_0.tar", (8, 8))


@pytest.mark.parametrize("of", [list, tuple, np.array, torch.tensor, lambda v: torch.tensor(v, dtype=torch.bfloat16)])
def test_the_numbers_of_a_batch_are_read_whatever_holds_them(of, tmp_path):
    read = batch(tmp_path, flips=of([0, 1, 1]), partners=of([1, 2, 0]), weight=of([0.25]))
    assert (read.crops.flip.tolist(), read.partners.tolist()) == ([False, True, True], [1, 2, 0])
    assert read.mix.values.tolist() == [0.25] * 3
    assert batch(tmp_path, box=of([0, 1, 4, 5])).mix.values.tolist() == [[0, 1, 4, 4]] * 3
    assert batch(tmp_path, flips=of([False, True, True])).crops.flip.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("flips", [None, "abc", b"abc", {}, 3, ["a"] * 3, [None] * 3, [0, 1], [0, 1, 2], [0, 1, -1], [0, 0.5, 1]]),
        ("flips", [[NAN, 0, 1], [INF, 0, 1], [10**30] * 3, [[0], [1], [1]], torch.tensor([0, 255, 0]).byte()]),
        ("flips", [torch.tensor([0, 1, 1]).cfloat(), torch.tensor([0.0, 1, 1]).to_sparse(), [1j] * 3]),
        ("partners", ["abc", b"abc", {}, 3, [None] * 3, [0, 0, 1], [0, 1, 3], [-1, 0, 1], [1.5, 2, 0], [NAN, 2, 0]]),
        ("partners", [[INF, 2, 0], [10**30, 1, 2], [[1], [2], [0]], torch.tensor([True, False, True])]),
        ("weight", [None, "x", NAN, INF, -0.1, 1.1, 1j, 10**400, torch.rand(2), torch.empty(0), torch.tensor(NAN)]),
        ("box", ["0044", {}, 3, [], [0, 0, 4], [0] * 5, ["a"] * 4, [None] * 4, [[0, 0, 4, 4]] * 4, [1j] * 4]),
        ("box", [[NAN, 0, 4, 4], [0, 0, INF, 4], [0, 0, -INF, 4], [0.5, 0, 4, 4], [-1, 0, 4, 4], [0, 0, 9, 4]]),
        ("box", [[4, 0, 0, 4], [10**30] * 4, torch.tensor(3), torch.tensor([[0, 0, 4, 4]]), torch.full((4,), NAN)]),
        ("crops", [None, "x", {}, BATCH["crops"] * NAN, BATCH["crops"] * INF, BATCH["crops"].int(), torch.rand(2, 4)]),
        ("logits", [None, "x", torch.full((3, 2), NAN), torch.ones(3, 0), torch.ones(3), torch.ones(3, 2).int()]),
        ("logits", [torch.ones(3, 2).to_sparse(), torch.empty(3, 2, device="meta"), torch.ones(3, 2).cdouble()]),
    ],
)
def test_a_batch_of_anything_else_is_one_line_that_names_the_file(name, values, tmp_path):
    for value in values:
        with pytest.raises(ValueError, match=r"batch_0\.tar (has|holds) ") as caught:
            batch(tmp_path, **{name: value})
        assert "\n" not in str(caught.value), value


def test_an_interrupted_import_is_judged_by_all_epochs_when_it_is_begun_again(monkeypatch, tmp_path, caplog):
    one_epoch_a_file(monkeypatch)
    theirs, batch, calls = labels(tmp_path / "theirs"), epoch_labels._batch, []

    def interrupted(path: Path, size: tuple[int, int]):
        calls.append(path.parent.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return batch(path, size)

    monkeypatch.setattr(epoch_labels, "_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_epoch_labels(theirs, pool(), NAMES, tmp_path / "ours", disable_tqdm=True)
    import_epoch_labels(theirs, pool(), NAMES, tmp_path / "ours", disable_tqdm=True)
    assert calls[4:] == ["epoch_0", "epoch_0", "epoch_1", "epoch_2"]  # the first says how many classes there are
    assert "too few or too weak" not in caplog.text
