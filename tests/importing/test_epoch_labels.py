"""Imported labels of every epoch go to a new folder when all of them are believed, and to nowhere before."""

from pathlib import Path

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
