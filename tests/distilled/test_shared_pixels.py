"""Decoded pictures of a large set: decoded once, by one process, and mapped by all."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from hf_distill.data.preprocessing import Preprocessing
from hf_distill.distilled import shared_pixels, tables
from hf_distill.distilled.distilled_set import DistilledSet

NAMES = ["a", "b"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(shared_pixels, "LARGE", 4 * 3 * 8 * 8)
    return tmp_path / "cache" / "hf_distill-pictures"


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """How many images were decoded in each part that was."""
    found, known = [], tables._decode_all
    monkeypatch.setattr(tables, "_decode_all", lambda *args: (found.append(len(args[1])), known(*args))[1])
    return found


def saved(folder: Path, count: int = 4, seed: int = 0, **arguments) -> tuple[Path, torch.Tensor]:
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8))
    preprocessing = Preprocessing(3, (8, 8), (0.5,) * 3, (0.5,) * 3)
    return DistilledSet(pixels, torch.arange(count) % 2, NAMES, preprocessing, **arguments).save_pretrained(
        folder
    ), pixels


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if not path.name.endswith(".lock")]


def test_what_one_has_decoded_all_others_map_and_writing_there_changes_no_file(tmp_path, cache, decoded):
    folder, pixels = saved(tmp_path / "set", soft_labels=torch.arange(8.0).view(4, 2))
    first, second = (DistilledSet.from_pretrained(folder) for _ in range(2))
    assert sum(decoded) == 4
    for found in (first, second):
        assert torch.equal(found.pixel_values, pixels)
        assert found.labels.tolist() == [0, 1, 0, 1]
        assert torch.equal(found.soft_labels.float(), torch.arange(8.0).view(4, 2))
    first.pixel_values[0] = 0
    assert torch.equal(second.pixel_values, pixels)
    assert torch.equal(DistilledSet.from_pretrained(folder).pixel_values, pixels)
    assert sum(decoded) == 4


def test_small_sets_and_other_files_have_nothing_of_it(tmp_path, cache, decoded):
    small, _ = saved(tmp_path / "small", count=3)
    DistilledSet.from_pretrained(small)
    assert not cache.exists()
    for seed in range(2):
        folder, pixels = saved(tmp_path / "set", seed=seed)  # of one name
        assert torch.equal(DistilledSet.from_pretrained(folder).pixel_values, pixels)
    assert len(kept(cache)) == 2
    assert sum(decoded) == 3 + 4 + 4


@pytest.mark.parametrize("damage", ["bit", "short", "long", "empty"])
def test_what_is_damaged_is_decoded_again_and_said(damage, tmp_path, cache, decoded, caplog):
    folder, pixels = saved(tmp_path / "set")
    DistilledSet.from_pretrained(folder)
    (path,) = kept(cache)
    data = bytearray(path.read_bytes())
    data[100] ^= damage == "bit"
    path.write_bytes({"short": data[:-1], "long": data + b"0", "empty": b""}.get(damage, bytes(data)))
    assert torch.equal(DistilledSet.from_pretrained(folder).pixel_values, pixels)
    assert "is damaged; its pictures are decoded again" in caplog.text
    DistilledSet.from_pretrained(folder)
    assert sum(decoded) == 8


def test_a_damaged_set_leaves_nothing(tmp_path, cache):
    folder, _ = saved(tmp_path / "set")
    (shard,) = (folder / "data").iterdir()
    data = bytearray(shard.read_bytes())
    at = data.index(b"IDAT") + 12
    data[at] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"is damaged \(image 0"):
        DistilledSet.from_pretrained(folder)
    assert kept(cache) == []


@pytest.mark.parametrize("where", ["file in the way", "full"])
def test_where_nothing_can_be_kept_each_has_its_own_and_it_is_said(where, tmp_path, cache, monkeypatch, caplog):
    if where == "full":
        monkeypatch.setattr(shared_pixels, "reserve", lambda path, size: (_ for _ in ()).throw(OSError(28, "full")))
    else:
        cache.parent.mkdir()
        cache.write_text("somebody's")
    folder, pixels = saved(tmp_path / "set")
    assert torch.equal(DistilledSet.from_pretrained(folder).pixel_values, pixels)
    assert "decoded pictures are not kept for other processes" in caplog.text
    assert "each decodes 768 bytes of its own" in caplog.text


TOGETHER = """
import sys
from hf_distill.distilled import shared_pixels, tables
from hf_distill.distilled.distilled_set import DistilledSet
shared_pixels.LARGE = 1
known = tables._decode_all
tables._decode_all = lambda *args: (print("decoded", flush=True), known(*args))
found = DistilledSet.from_pretrained(sys.argv[1])
maps = open("/proc/self/maps").read()
print("mapped" if "hf_distill-pictures" in maps else "own", int(found.pixel_values.long().sum()))
"""


@pytest.mark.slow
def test_processes_that_begin_together_decode_once(tmp_path):
    folder, pixels = saved(tmp_path / "set", count=40)
    command = [sys.executable, "-W", "ignore", "-c", TOGETHER, str(folder)]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "common")}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    lines = [line for out, _ in said for line in out.splitlines()]
    assert sorted(set(lines)) == ["decoded", f"mapped {int(pixels.long().sum())}"]
    assert lines.count(f"mapped {int(pixels.long().sum())}") == 2
    assert sum("decoded" in out for out, _ in said) == 1
