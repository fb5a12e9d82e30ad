import subprocess
import sys

import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import constants
from sklearn.datasets import load_digits

from hf_distill.data.digits import digits_folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    return tmp_path


def test_the_folder_holds_every_digit_of_scikit_learn_once(home):
    dataset = load_dataset(str(digits_folder()), cache_dir=str(home / "cache"))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 1437, "test": 360}
    stored = sorted(
        (row["label"], np.asarray(row["image"]).tobytes())
        for split in dataset.values()
        for row in split.with_format(None)
    )
    digits = load_digits()
    levels = np.rint(digits.images / 16 * 255).astype(np.uint8)
    assert stored == sorted((int(label), image.tobytes()) for label, image in zip(digits.target, levels, strict=True))


def test_both_splits_have_every_class_in_proportion(home):
    dataset = load_dataset(str(digits_folder()), cache_dir=str(home / "cache"))
    whole = np.bincount(load_digits().target)
    for rows in dataset.values():
        share = len(rows) / 1797
        assert np.abs(np.bincount(rows["label"]) - whole * share).max() <= 1
    assert dataset["train"].features["label"].names == [str(digit) for digit in range(10)]


def test_a_second_call_writes_nothing(home):
    folder = digits_folder()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert digits_folder() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_processes_that_start_together_agree_on_one_folder(tmp_path):
    code = "from hf_distill.data.digits import digits_folder; print(digits_folder())"
    environment = {"HF_HOME": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    printed = {process.communicate()[0].decode().strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert printed == {str(tmp_path / "hf_distill" / "digits")}
    assert [path.name for path in (tmp_path / "hf_distill").iterdir()] == ["digits"]
