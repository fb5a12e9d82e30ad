"""The distilled set and its folder: what is saved is what was optimised, for every reader and after any accident."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, load_dataset
from huggingface_hub import DatasetCard, constants
from PIL import Image
from safetensors.torch import load_file

import hf_distill.distilled.card as card_module
import hf_distill.distilled.distilled_set as distilled_module
import hf_distill.distilled.tables as tables
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.distilled.card import set_card
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.labels import (
    HardLabels,
    NetworkLabels,
    ProjectorLabels,
    StoredLabels,
    TeacherLabels,
    TeacherReference,
)
from hf_distill.hub.folder import Home
from hf_distill.hub.repository import Repository
from hf_distill.hub.results import EvalReport, LabelRow
from hf_distill.networks.priors import Prior
from hf_distill.networks.projector import LabelProjector, Lora
from hf_distill.networks.teachers import Teacher
from hf_distill.networks.trajectories import ExpertTrajectories
from tests.helpers import ROOT, flips, without_sums
from tests.helpers.clips import PROJECTOR_CONFIG, learn, save_clip
from tests.helpers.goldens import check_golden
from tests.helpers.sets import CONFIG, NAMES, REPORT, change_config, files, make, network, pictures, same

LABELS = [
    LabelRow("hard | <none>", 0, "convnet_d2", "quick", 12, [0.25, 0.5], "cpu"),
    LabelRow("every view", 2_400_000, "convnet_d2", "quick", 12, [0.75, 0.5], "cpu", lr=0.01),
]


def in_child(work) -> int:
    """What `os.waitpid` says of a process that does `work`; its exit code is 1 where `work` raises."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # the threads of the parent's pools do not exist here
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize(("name", "said"), [("run[lr=0.1]", True), ("run*", True), ("run-lr=0.1", False)])
def test_a_folder_that_load_dataset_cannot_read_is_named_when_it_is_saved(tmp_path, caplog, name, said):
    make().save_pretrained(tmp_path / name)
    assert ("in a path for a pattern" in caplog.text) == said
    assert same(DistilledSet.from_pretrained(tmp_path / name), make())


# The same thing for every reader

WITHOUT_US = """
import sys
sys.modules["hf_distill"] = None
import numpy as np
from datasets import load_dataset
for folder in sys.argv[1:]:
    for streaming in (False, True):
        images = load_dataset(folder, split="train", streaming=streaming)
        floats = load_dataset(folder, "tensor", split="train", streaming=streaming)
        image_rows, float_rows = list(images), list(floats.with_format("numpy"))
        assert float_rows[0]["pixel_values"].dtype == np.float32
        np.savez(
            f"{folder}-{streaming}.npz",
            pixels=np.stack([np.asarray(row["image"]) for row in image_rows]),
            floats=np.stack([row["pixel_values"] for row in float_rows]),
            labels=np.array([[row["label"] for row in rows] for rows in (image_rows, float_rows)]),
            names=np.array([rows.features["label"].names for rows in (images, floats)]),
            soft=np.array([[row["soft_label"] for row in rows] for rows in (image_rows, float_rows)], np.float16),
        )
"""


@pytest.mark.slow
def test_load_dataset_gives_the_same_without_this_package(tmp_path):
    sets = {
        "gray": make(channels=1, report=REPORT, config=CONFIG),
        "rgb": make(channels=3, zca=True, teacher=True),
    }
    folders = [str(made.save_pretrained(tmp_path / name)) for name, made in sets.items()]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", WITHOUT_US, *folders], check=True, cwd=tmp_path, env=environment)
    for name, made in sets.items():
        pixels = made.preprocessing.to_uint8(made.pixel_values).permute(0, 2, 3, 1).numpy()
        for streaming in (False, True):
            found = np.load(tmp_path / f"{name}-{streaming}.npz")
            np.testing.assert_array_equal(found["pixels"], pixels[..., 0] if name == "gray" else pixels, strict=True)
            assert found["floats"].tobytes() == made.pixel_values.detach().numpy().tobytes()
            for config in range(2):
                assert found["labels"][config].tolist() == made.labels.tolist()
                assert found["names"][config].tolist() == NAMES
                np.testing.assert_array_equal(found["soft"][config], made.soft_labels.numpy())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channels": 1, "soft": False},
        {"zca": True, "lr": 0.0312, "report": REPORT, "config": CONFIG},
        {"teacher": True, "lr": 1e-7, "ipc": 1},
        {"teacher": True, "soft": False, "zca": True, "config": {"anything": [1, None, {"x": 0.1}]}},
    ],
)
def test_a_saved_set_comes_back_bit_for_bit(tmp_path, options):
    made = make(**options)
    back = DistilledSet.from_pretrained(made.save_pretrained(tmp_path / "set"))
    assert same(back, made)
    assert same(DistilledSet.from_pretrained(back.save_pretrained(tmp_path / "again")), made)


def test_the_same_set_makes_the_same_files(tmp_path):
    for name in ("one/set", "two/set"):
        make(zca=True, teacher=True, lr=0.1, config=CONFIG, report=REPORT).save_pretrained(tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_to_dataset_is_what_load_dataset_gives(tmp_path):
    made = make()
    folder = str(made.save_pretrained(tmp_path / "set"))
    for name in ("default", "tensor"):
        here, there = made.to_dataset(name), load_dataset(folder, name, split="train")
        assert here.features == there.features
        assert here.with_format("arrow")[:] == there.with_format("arrow")[:]
    with pytest.raises(ValueError, match="no config 'x'"):
        made.to_dataset("x")


def test_large_sets_are_written_in_shards_that_read_as_one(tmp_path, monkeypatch):
    made = make(ipc=25)
    row_bytes = made.pixel_values[0].numel() * 4
    monkeypatch.setattr(tables, "SHARD_BYTES", 30 * row_bytes)
    monkeypatch.setattr(tables, "GROUP_BYTES", 7 * row_bytes)
    folder = made.save_pretrained(tmp_path / "set")
    shards = sorted(path.name for path in (folder / "tensor").iterdir())
    assert len(shards) == 4
    assert shards[0].startswith("train-00000-of-00004")
    assert pq.ParquetFile(folder / "tensor" / shards[0]).num_row_groups == 4
    assert same(DistilledSet.from_pretrained(folder), made)
    floats = load_dataset(str(folder), "tensor", split="train").with_format("numpy")
    np.testing.assert_array_equal(floats["pixel_values"][:], made.pixel_values.detach().numpy())
    images = load_dataset(str(folder), split="train")
    assert images["label"][:] == made.labels.tolist()


def test_a_set_without_soft_labels_has_no_such_column():
    assert make(soft=False).to_dataset().column_names == ["image", "label"]
    assert make(soft=False).to_dataset("tensor").column_names == ["pixel_values", "label"]


# The object


def test_the_learning_rate_is_a_parameter():
    made = make(lr=0.02)
    assert made.lr.item() == pytest.approx(0.02)
    assert made.lr.is_leaf
    assert {name for name, _ in made.named_parameters()} == {"pixel_values", "lr"}
    assert make().lr is None


@pytest.mark.parametrize("lr", [0.0, -1.0, 1e-60, float("inf"), float("nan")])
def test_a_learning_rate_that_trains_nothing_is_refused(lr):
    with pytest.raises(ValueError, match="expected a number above 0"):
        make(lr=lr)


def test_a_set_does_not_share_memory_with_what_it_was_made_from():
    pixels = torch.zeros(1, 1, 2, 2)
    made = DistilledSet(pixels, torch.tensor([0]), ["x"], Preprocessing(1, (2, 2), (0.0,), (1.0,)))
    with torch.no_grad():
        made.pixel_values += 1
    assert not pixels.any()


def test_the_labels_to_train_with_are_the_best_there_are():
    assert isinstance(make().label_source, StoredLabels)
    assert isinstance(make(teacher=True).label_source, StoredLabels)
    assert isinstance(make(teacher=True, soft=False).label_source, TeacherLabels)
    assert isinstance(make(soft=False).label_source, HardLabels)


def test_a_set_is_described_in_one_line():
    plain, made = make(1, channels=1, soft=False), make(config=CONFIG)
    assert repr(plain) == "DistilledSet(4 images 1x6x8, 1 per class, 4 classes, hard labels)"
    assert repr(made) == "DistilledSet(12 images 3x6x8, 3 per class, 4 classes, some-method, soft labels)"


def test_ipc_is_that_of_the_largest_class():
    preprocessing = Preprocessing(1, (2, 2), (0.0,), (1.0,))
    uneven = DistilledSet(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 1, 2]), list("abcd"), preprocessing)
    assert (uneven.ipc, uneven.num_classes, len(uneven)) == (2, 4, 4)
    assert uneven.grid().width > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pixel_values": torch.zeros(2, 3, 4, 4)}, "pixel_values have shape"),
        ({"pixel_values": torch.zeros(0, 1, 4, 4)}, "pixel_values have shape"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels have shape"),
        ({"labels": torch.tensor([0, 2])}, "labels go from 0 to 2"),
        ({"soft_labels": torch.zeros(2, 3)}, "soft_labels have shape"),
        ({"lr": 0.0}, "lr is 0.0"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes, says):
    parts = {
        "pixel_values": torch.zeros(2, 1, 4, 4),
        "labels": torch.tensor([0, 1]),
        "class_names": ["a", "b"],
        "preprocessing": Preprocessing(1, (4, 4), (0.0,), (1.0,)),
    }
    DistilledSet(**parts)
    with pytest.raises(ValueError, match=says):
        DistilledSet(**{**parts, **changes})


# Accidents


@pytest.mark.slow
def test_a_save_that_stops_between_any_two_moves_leaves_the_old_or_the_new_set(tmp_path, monkeypatch):
    old = make(seed=1, zca=True, teacher=True, config=CONFIG)
    new = make(seed=2, ipc=2, zca=True, teacher=True, config={**CONFIG, "seed": 8}, lr=0.5)
    replace, seen = os.replace, []
    for moves in range(20):
        folder = tmp_path / str(moves) / "set"
        old.save_pretrained(folder)
        left = moves

        def stop(source, target, folder=folder):
            nonlocal left
            if ".saving-" not in str(target):  # a move into place, not a file that is written aside
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            replace(source, target)

        def save(folder=folder, stop=stop):
            monkeypatch.setattr(os, "replace", stop)
            new.save_pretrained(folder)

        status = in_child(save)
        found = DistilledSet.from_pretrained(folder)
        assert same(found, old) or same(found, new)
        floats = load_dataset(str(folder), "tensor", split="train", streaming=True).with_format("numpy")
        pixels = np.stack([row["pixel_values"] for row in floats]).tobytes()
        assert pixels in [part.pixel_values.detach().numpy().tobytes() for part in (old, new)]
        seen.append(same(found, new))
        if os.WIFEXITED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    # The config is moved behind 4 new and 3 old names, and shows the new set, before there are checksums and behind.
    assert seen == [False] * 7 + [True] * 2
    assert len(list((folder / "tensor").iterdir())) == 1


def test_a_kill_while_writing_leaves_the_old_set_alone(tmp_path):
    folder = make(seed=1).save_pretrained(tmp_path / "set")
    before = files(folder)

    def save():
        card_module.image_grid = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        make(seed=2).save_pretrained(folder)

    assert os.WTERMSIG(in_child(save)) == signal.SIGKILL
    after = files(folder)
    assert {name: data for name, data in after.items() if not name.startswith(".saving-")} == before
    assert len(after) > len(before)
    make(seed=2).save_pretrained(folder)
    assert not any(name.startswith(".saving-") for name in files(folder))
    assert same(DistilledSet.from_pretrained(folder), make(seed=2))


@pytest.mark.parametrize("limit", [1000, 10_000, 30_000])
def test_a_write_that_the_system_refuses_leaves_the_old_set_whole(tmp_path, limit):
    make(seed=1).save_pretrained(tmp_path / "set")
    before = files(tmp_path / "set")

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(OSError, match="was not saved") as error:
            make(seed=2, ipc=20, teacher=True, zca=True).save_pretrained(tmp_path / "set")
        assert error.value.errno == errno.EFBIG
        assert "\n" not in str(error.value)

    assert os.waitstatus_to_exitcode(in_child(save)) == 0
    assert files(tmp_path / "set") == before


def test_a_full_disk_leaves_the_old_set_whole(small_disk):
    disk = small_disk(400)
    make(seed=1).save_pretrained(disk)
    before = files(disk)
    for ipc in (400, 200, 100):
        with pytest.raises(OSError, match=r"was not saved .*[0-9,]+ (bytes are )?free") as error:
            make(seed=2, ipc=ipc, zca=True).save_pretrained(disk)
        assert error.value.errno == errno.ENOSPC
        assert "\n" not in str(error.value)
        assert files(disk) == before
    assert same(DistilledSet.from_pretrained(disk), make(seed=1))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_file_of_tensors_for_which_there_is_no_room_is_named_with_what_it_needs(tmp_path):
    (tmp_path / f".set.pt.{os.getpid()}.tmp").symlink_to("/dev/full")
    distilled = make()
    least = distilled.pixel_values.nbytes
    with pytest.raises(OSError, match=rf": ([0-9,]+) bytes are needed and [0-9,]+ free: '{tmp_path}/set\.pt'") as error:
        distilled.export_pt(tmp_path / "set.pt")
    assert error.value.errno == errno.ENOSPC
    assert int(re.search(r"([0-9,]+) bytes", str(error.value))[1].replace(",", "")) >= least
    assert not list(tmp_path.iterdir())


def damage_config(folder: Path) -> None:
    (folder / "distill_config.json").write_text('{"format_version": 1,')


def truncate(folder: Path, pattern: str) -> None:
    (path,) = folder.glob(pattern)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_shape(folder: Path) -> None:
    (path,) = folder.glob("tensor/*.parquet")
    pq.write_table(make(size=(8, 6)).to_dataset("tensor").with_format("arrow")[:], path)


def lists_for_pixels(folder: Path) -> None:
    (path,) = folder.glob("tensor/*.parquet")
    pq.write_table(pa.table({"pixel_values": [[1.0]], "label": [0]}), path)


def fewer_rows(folder: Path) -> None:
    (path,) = folder.glob("tensor/*.parquet")
    pq.write_table(pq.read_table(path).slice(0, 5), path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_config, r"distill_config\.json is not valid JSON"),
        (lambda f: change_config(f, format_version=4), "upgrade hf_distill"),
        (lambda f: change_config(f, preprocessing={}), "does not describe a distilled set"),
        (lambda f: change_config(f, images=99), "holds 12 images .* expected 99"),
        (lambda f: change_config(f, images=7), "expected 7"),
        (lambda f: (f / "distill_config.json").write_text('{"format_version": 1}'), "lacks data_id"),
        (lambda f: (f / "distill_config.json").unlink(), r"has no distill_config\.json"),
        (lambda f: truncate(f, "tensor/*.parquet"), "parquet is damaged"),
        (lambda f: next(f.glob("tensor/*.parquet")).unlink(), "holds 0 images"),
        (lambda f: truncate(f, "preprocessing-*.safetensors"), "safetensors is damaged"),
        (lambda f: truncate(f, "teacher-*.safetensors"), "safetensors is damaged"),
        (lambda f: next(f.glob("preprocessing-*.safetensors")).unlink(), "lacks them"),
        (lambda f: next(f.glob("teacher-*.safetensors")).unlink(), "a teacher of 2 networks"),
        (other_shape, r"expected float32 \(3, 6, 8\)"),
        (lists_for_pixels, r"expected float32 \(3, 6, 8\)"),
        (fewer_rows, "holds 5 images"),
        (lambda f: (f / "results.json").write_text("{"), r"results\.json is not valid JSON"),
        (lambda f: (f / "results.json").write_text("{}"), "not the results of an evaluation"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(tmp_path, damage, says):
    folder = make(zca=True, teacher=True, report=REPORT).save_pretrained(tmp_path / "set")
    damage(folder)
    with pytest.raises(ValueError, match=says) as error:
        DistilledSet.from_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("floats", [True, False])
def test_a_flipped_bit_of_any_file_of_a_set_is_refused(tmp_path, floats):
    whole = make(zca=True, teacher=True, report=REPORT) if floats else pictures(teacher=NetworkLabels(network()))
    folder = whole.save_pretrained(tmp_path / "set")
    # Not README.md, which people edit, nor the picture on it; a name in SHA256SUMS changes nothing that is loaded.
    for path in flips(folder, "[!RgS]*", 40 if floats else 20):
        with pytest.raises(ValueError, match=str(folder)) as error:
            DistilledSet.from_pretrained(folder)
        assert "\n" not in str(error.value), path
    assert same(DistilledSet.from_pretrained(folder), whole)


def test_results_of_other_images_are_left_out(tmp_path, caplog):
    folder = without_sums(make(report=REPORT).save_pretrained(tmp_path / "set"))
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "data_id": "00000000"}))
    assert DistilledSet.from_pretrained(folder).report is None
    assert "other images" in caplog.text


# Images that are pictures


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channels": 1, "soft": True},
        {"zca": True, "lr": 0.0312, "report": REPORT, "config": CONFIG},
        {"soft": True, "teacher": True},
    ],
)
def test_saved_pictures_come_back_byte_for_byte(tmp_path, options):
    if options.get("teacher"):
        options = {**options, "teacher": NetworkLabels(network())}
    made = pictures(**options)
    folder = made.save_pretrained(tmp_path / "set")
    back = DistilledSet.from_pretrained(folder)
    assert back.is_bytes
    assert back.pixel_values.dtype == torch.uint8
    assert same(back, made)
    assert same(DistilledSet.from_pretrained(back.save_pretrained(tmp_path / "again")), made)
    assert files(tmp_path / "again").keys() == files(folder).keys()
    assert not (folder / "tensor").exists()
    config = json.loads((folder / "distill_config.json").read_text())
    assert (config["format_version"], config["pixels"]) == (2, "uint8")


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_load_without_this_package(tmp_path, channels):
    made = pictures(channels=channels, soft=True, teacher=NetworkLabels(network(channels)))
    folder = str(made.save_pretrained(tmp_path / "set"))
    code = """
import sys
sys.modules["hf_distill"] = None
import numpy as np
from datasets import get_dataset_config_names, load_dataset
assert get_dataset_config_names(sys.argv[1]) == ["default"]
for streaming in (False, True):
    rows = list(load_dataset(sys.argv[1], split="train", streaming=streaming))
    np.savez(
        f"{sys.argv[1]}-{streaming}.npz",
        pixels=np.stack([np.asarray(row["image"]) for row in rows]),
        labels=[row["label"] for row in rows],
        soft=np.array([row["soft_label"] for row in rows], np.float16),
    )
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code, folder], check=True, cwd=tmp_path, env=environment)
    expected = made.pixel_values.permute(0, 2, 3, 1).numpy()
    for streaming in (False, True):
        found = np.load(f"{folder}-{streaming}.npz")
        np.testing.assert_array_equal(found["pixels"], expected[..., 0] if channels == 1 else expected, strict=True)
        assert found["labels"].tolist() == made.labels.tolist()
        np.testing.assert_array_equal(found["soft"], made.soft_labels.numpy())


def test_sets_of_floats_are_still_what_older_readers_know(tmp_path):
    folder = without_sums(make(teacher=True).save_pretrained(tmp_path / "set"))
    config = json.loads((folder / "distill_config.json").read_text())
    assert (config["format_version"], config.pop("pixels")) == (1, "float32")
    (folder / "distill_config.json").write_text(json.dumps(config))  # as they wrote it
    assert same(DistilledSet.from_pretrained(folder), make(teacher=True))


def test_pictures_are_never_trained_copied_or_in_the_state(tmp_path):
    stored = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=(4, 3, 6, 8))
    stored[:] = np.random.default_rng(0).integers(0, 256, stored.shape)
    pixels = torch.from_numpy(stored)
    made = DistilledSet(pixels, torch.arange(4), NAMES, pictures().preprocessing, lr=0.1)
    assert made.pixel_values.data_ptr() == pixels.data_ptr()
    assert made.images_uint8().data_ptr() == pixels.data_ptr()
    assert made.images_uint8(slice(2, 3)).data_ptr() == pixels[2].data_ptr()
    assert {name for name, _ in made.named_parameters()} == {"lr"}
    assert set(made.state_dict()) == {"lr", "labels"}
    moved = made.to("cpu", torch.float64)
    assert moved.pixel_values.data_ptr() == pixels.data_ptr()
    made.save_pretrained(tmp_path / "set")
    assert torch.equal(DistilledSet.from_pretrained(tmp_path / "set").pixel_values, pixels)


@pytest.mark.parametrize("zca", [False, True])
@pytest.mark.parametrize("rows", [slice(None), slice(2, 7), torch.tensor([9, 0, 9])])
def test_a_network_sees_the_preprocessed_bytes_or_the_floats_themselves(zca, rows):
    made = pictures(zca=zca)
    shown = made.pixel_values[rows].numpy().astype(np.float32) / 255
    found = made.floats(rows)
    if not zca:
        np.testing.assert_allclose(found.numpy(), (shown - 0.4) / 0.3, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(made.preprocessing.inverse(found).numpy(), shown, atol=1e-3)
    assert found.dtype == torch.float32
    optimised = make(zca=zca)
    assert torch.equal(optimised.floats(rows), optimised.pixel_values.detach()[rows])
    assert not optimised.floats(rows).requires_grad


def test_the_dataset_of_pictures_has_one_config(tmp_path):
    made = pictures(soft=True)
    here, there = made.to_dataset(), load_dataset(str(made.save_pretrained(tmp_path / "set")), split="train")
    assert here.features == there.features
    assert here.with_format("arrow")[:] == there.with_format("arrow")[:]
    with pytest.raises(ValueError, match="no config 'tensor'; expected one of default"):
        made.to_dataset("tensor")


def test_pictures_are_exported_as_they_are(tmp_path):
    made = pictures(lr=0.02, soft=True)
    content = torch.load(made.export_pt(tmp_path / "set.pt"), weights_only=True)
    assert torch.equal(content["images"], made.pixel_values)
    assert "pixel_values" not in content
    assert torch.equal(content["soft_labels"], made.soft_labels)
    assert [path.name for path in tmp_path.iterdir()] == ["set.pt"]
    folder = made.export_image_folder(tmp_path / "folder")
    with Image.open(folder / "train" / "cat" / "00002.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), made.pixel_values[2].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("channels", [2, 4])
def test_pictures_are_gray_or_rgb(channels):
    with pytest.raises(ValueError, match=f"{channels} channel.*expected 1 or 3"):
        pictures(channels=channels)


def test_pictures_are_written_in_shards_and_small_groups_that_read_as_one(tmp_path, monkeypatch):
    made = pictures(ipc=25, soft=True)
    row_bytes = made.pixel_values[0].numel()
    monkeypatch.setattr(tables, "SHARD_BYTES", 30 * (row_bytes + 8))
    monkeypatch.setattr(tables, "GROUP_BYTES", 7 * row_bytes)
    folder = made.save_pretrained(tmp_path / "set")
    shards = sorted((folder / "data").iterdir())
    assert len(shards) == 4
    assert pq.ParquetFile(shards[0]).num_row_groups == 4
    assert same(DistilledSet.from_pretrained(folder), made)
    assert load_dataset(str(folder), split="train")["label"][:] == made.labels.tolist()


def test_data_ids_are_those_of_whole_tensors_whatever_the_parts(monkeypatch):
    wanted = [made._content_id() for made in (pictures(), make(zca=True, teacher=True))]
    assert len(set(wanted)) == 2
    monkeypatch.setattr(distilled_module, "GROUP_BYTES", 1)
    assert [made._content_id() for made in (pictures(), make(zca=True, teacher=True))] == wanted
    changed = pictures()
    changed.pixel_values[11, 2, 5, 7] ^= 1
    assert changed._content_id() != wanted[0]
    networks = [pictures(teacher=NetworkLabels(network(seed=seed)))._content_id() for seed in (0, 1)]
    assert len({wanted[0], *networks}) == 3


MEMORY = """
import resource, sys
import numpy as np, torch
import hf_distill.distilled.distilled_set, hf_distill.distilled.tables as tables
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.data.preprocessing import Preprocessing
tables._threads = lambda: 1  # each has a stack
tables.GROUP_BYTES = hf_distill.distilled.distilled_set.GROUP_BYTES = 1_000_000
stored = np.memmap(sys.argv[1], np.uint8, "r", shape=(2000, 3, 64, 64))
preprocessing = Preprocessing(3, (64, 64), (0.5,) * 3, (0.5,) * 3)
made = DistilledSet(torch.from_numpy(stored), torch.arange(2000) % 10, list("abcdefghij"), preprocessing)
next(made._rows("default").tables(0, 100))
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + 16_000_000,) * 2)
made.save_pretrained(sys.argv[2])
try:
    list(made._rows("default").tables(0, 2000))
except MemoryError:
    print("there is no room for all of it")
"""


@pytest.mark.slow
def test_writing_holds_a_few_row_groups_and_not_the_whole(tmp_path):
    """24.6 MB of noise, which no PNG makes smaller, in 16 MB of memory."""
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3, 64, 64), dtype=np.uint8)
    noise.tofile(tmp_path / "pixels")
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-W", "ignore", "-c", MEMORY, str(tmp_path / "pixels"), str(tmp_path / "set")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "there is no room for all of it\n"), done.stderr
    assert np.array_equal(DistilledSet.from_pretrained(tmp_path / "set").pixel_values.numpy(), noise)


# Networks that label


def test_the_network_labels_pictures_and_stored_labels_floats():
    teacher = NetworkLabels(network())
    seen = pictures(soft=True, teacher=teacher)
    assert seen.label_source is teacher
    assert torch.equal(seen.stored_labels.logits, seen.soft_labels)
    assert isinstance(make(soft=True).label_source, StoredLabels)
    floats = make(soft=False)
    with_network = DistilledSet(floats.pixel_values, floats.labels, NAMES, floats.preprocessing, teacher=teacher)
    assert with_network.label_source is teacher
    assert with_network.stored_labels is None
    assert isinstance(pictures(soft=True).label_source, StoredLabels)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"names": NAMES[::-1]}, "class 0 .*teacher.narrowed"),
        ({"names": NAMES[:3]}, "has 3 classes"),
        ({"size": (8, 8)}, "use the teacher's preprocessing"),
    ],
)
def test_a_network_of_other_classes_or_preprocessing_is_refused(changes, says):
    with pytest.raises(ValueError, match=says) as error:
        pictures(teacher=NetworkLabels(network(**changes)))
    assert "\n" not in str(error.value)


def test_a_network_that_is_nobodys_travels_with_the_images(tmp_path):
    teacher = network(config={"source": {"name": "org/pets"}, "results": {"test_accuracy": 0.5}})
    made = pictures(teacher=NetworkLabels(teacher))
    folder = made.save_pretrained(tmp_path / "set")
    (inside,) = (folder / "teacher").iterdir()
    # No card, for `load_dataset` reads cards, and no results of another repository.
    assert sorted(files(inside)) == ["config.json", "model.safetensors", "teacher_config.json"]
    assert Teacher.from_pretrained(inside).digest == teacher.digest
    back = DistilledSet.from_pretrained(folder)
    x = made.floats()
    assert torch.equal(back.teacher(x, made.labels, torch.arange(12)), made.teacher(x, made.labels, torch.arange(12)))
    assert not back.teacher.shared
    assert len(load_dataset(str(folder), split="train")) == 12
    other = pictures(teacher=NetworkLabels(network(seed=1)))
    other.save_pretrained(folder)
    assert DistilledSet.from_pretrained(folder).teacher.digest == network(seed=1).digest
    assert len([name for name in files(folder) if name.startswith("teacher/")]) == 3


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: truncate(f, "teacher/*/model.safetensors"), "no whole safetensors file"),
        (lambda f: next(f.glob("teacher/*/model.safetensors")).unlink(), "model.safetensors"),
        (lambda f: next(f.glob("teacher/*")).rename(f / "elsewhere"), "teacher is missing"),
        (lambda f: network(seed=1).save_pretrained(next(f.glob("teacher/*"))), "holds the weights"),
        (lambda f: network(size=(8, 8)).save_pretrained(next(f.glob("teacher/*"))), "use the teacher's preprocessing"),
        (lambda f: network(names=NAMES[::-1]).save_pretrained(next(f.glob("teacher/*"))), "the order alone differs"),
        (lambda f: truncate(f, "data/*.parquet"), "parquet is damaged"),
        (lambda f: next(f.glob("data/*.parquet")).unlink(), "holds 0 images"),
        (lambda f: change_config(f, images=99), "expected 99"),
    ],
)
def test_a_damaged_folder_of_pictures_is_one_clear_line(tmp_path, damage, says):
    folder = pictures(teacher=NetworkLabels(network())).save_pretrained(tmp_path / "set")
    for path in folder.glob("teacher/*"):
        (path / "README.md").unlink(missing_ok=True)
    damage(folder)
    with pytest.raises(ValueError, match=says) as error:
        DistilledSet.from_pretrained(folder)
    assert "\n" not in str(error.value)


# Projectors that label


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> Prior:
    return Prior.from_pretrained(save_clip("vit", tmp_path_factory.mktemp("prior")))


def projector(prior: Prior, size=(6, 8), names=NAMES, strength=0.05) -> LabelProjector:
    seen = Preprocessing(3, size, (0.4,) * 3, (0.3,) * 3)
    made = LabelProjector(prior, names, seen, templates="simple", lora=Lora(r=2), config=PROJECTOR_CONFIG)
    return learn(made, strength)


LABEL = """
import sys
import torch
from safetensors.torch import save_file
from hf_distill import DistilledSet
torch.set_num_threads(1)
distilled = DistilledSet.from_pretrained(sys.argv[1])
distilled.teacher.check_fits(distilled.class_names, distilled.preprocessing)
images = distilled.floats()
labels = distilled.label_source(images, distilled.labels, torch.arange(len(distilled)))
save_file({"images": images, "labels": labels}, sys.argv[2])
print(distilled.label_source.kind, distilled.teacher.digest, distilled.teacher.shared)
"""


def test_a_projector_travels_with_the_images_and_labels_them_alike_in_another_process(tmp_path, prior, online):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = pictures(teacher=ProjectorLabels(projector(prior)))
    folder = made.save_pretrained(tmp_path / "set")
    finished = online(LABEL, folder, tmp_path / "found", env={"HF_HUB_OFFLINE": "1"})
    assert finished.status == [0], finished.err
    assert finished.out.split() == ["projector", made.teacher.digest, "False"]
    found = load_file(tmp_path / "found")
    assert torch.equal(found["images"], made.floats())
    assert torch.equal(found["labels"], made.teacher(made.floats(), made.labels, torch.arange(12)))
    torch.set_num_threads(threads)
    config = json.loads((folder / "distill_config.json").read_text())
    assert (config["format_version"], config["label_source"]["kind"]) == (3, "projector")
    assert config["label_source"]["teacher"]["shared"] is None
    (inside,) = (folder / "projector").iterdir()
    assert inside.name == config["data_id"]
    assert "README.md" not in files(inside)  # for `load_dataset` reads cards
    assert LabelProjector.from_pretrained(inside).digest == made.teacher.digest
    plain = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert plain["label"][:] == made.labels.tolist()
    np.testing.assert_array_equal(np.asarray(plain[5]["image"]), made.pixel_values[5].permute(1, 2, 0).numpy())


@pytest.mark.slow
def test_a_folder_that_is_saved_again_holds_one_projector_and_no_empty_folder(tmp_path, prior):
    folder = tmp_path / "set"
    for seed, strength in ((0, 0.05), (1, 0.05), (1, 0.1)):
        made = pictures(seed=seed, teacher=ProjectorLabels(projector(prior, strength=strength)))
        made.save_pretrained(folder)
        assert [path.name for path in (folder / "projector").iterdir()] == [made._content_id()]
        assert same(DistilledSet.from_pretrained(folder), made)
    # A set that was read from here can be saved here again, though its own files move.
    loaded = DistilledSet.from_pretrained(folder)
    for row in range(2):
        loaded.pixel_values[row] = 0
        loaded.save_pretrained(folder)
        assert DistilledSet.from_pretrained(folder).teacher.digest == made.teacher.digest
    (folder / "projector" / "notes").write_text("mine")
    pictures(teacher=NetworkLabels(network())).save_pretrained(folder)
    assert [path.name for path in (folder / "projector").iterdir()] == ["notes"]
    (folder / "projector" / "notes").unlink()
    pictures().save_pretrained(folder)
    assert not (folder / "teacher").exists()
    assert (folder / "projector").exists()  # the notes were not of the set, so neither is what held them


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: truncate(f, "projector/*/adapter_model.safetensors"), "no whole safetensors file"),
        (lambda f: truncate(f, "projector/*/projector_config.json"), "is not valid JSON"),
        (lambda f: next(f.glob("projector/*/adapter_model.safetensors")).unlink(), r"adapter_model\.safetensors"),
        (lambda f: next(f.glob("projector/*/text_head.safetensors")).unlink(), "text_head.* is missing"),
        (lambda f: shutil.rmtree(next(f.glob("projector/*/base"))), "lacks the folder base"),
        (lambda f: truncate(f, "projector/*/base/open_clip_model.safetensors"), "no whole safetensors file"),
        (lambda f: save_clip("vit", next(f.glob("projector/*/base")), 0.5), "was trained on"),
        (lambda f: shutil.rmtree(next(f.glob("projector/*"))), "projector is missing"),
        (lambda f: change_config(f, format_version=4), "upgrade hf_distill"),
        (lambda f: change_config(f, projector={"prior_bytes": "many"}), "projector.prior_bytes"),
    ],
)
def test_a_damaged_projector_in_a_set_is_one_clear_line(labelled, tmp_path, damage, says):
    folder = shutil.copytree(labelled, tmp_path / "set")
    damage(folder)
    with pytest.raises(ValueError, match=says) as error:
        DistilledSet.from_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, prior) -> Path:
    return pictures(teacher=ProjectorLabels(projector(prior))).save_pretrained(
        tmp_path_factory.mktemp("labelled") / "s"
    )


def test_another_projector_in_the_folder_of_a_set_is_refused(labelled, tmp_path, prior):
    folder = shutil.copytree(labelled, tmp_path / "set")
    for other, says in (
        (projector(prior, strength=0.1), "holds the weights .* use the weights that the labels were made with"),
        (projector(prior, names=NAMES[::-1]), "holds the weights|calls class 0"),
    ):
        other.save_pretrained(next(folder.glob("projector/*")))
        with pytest.raises(ValueError, match=says) as error:
            DistilledSet.from_pretrained(folder)
        assert "\n" not in str(error.value)


def test_the_picture_of_an_audit_goes_with_it(tmp_path):
    made = pictures(teacher=NetworkLabels(network()))
    made.report = EvalReport(REPORT.rows, audit={"copies": {}}, audit_picture=b"training images")
    made.label_with(NetworkLabels(network(seed=1)))
    assert (made.report.audit, made.report.audit_picture) == ({}, None)
    made.report.audit_picture = b"training images"
    folder = made.save_pretrained(tmp_path / "set")
    assert not (folder / "assets" / "audit.png").exists()
    assert "audit.png" not in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_set_takes_another_labeller_of_its_classes_and_drops_the_results_of_the_old_one(prior):
    made = pictures(teacher=NetworkLabels(network()), report=EvalReport(REPORT.rows, {}, LABELS))
    labels = ProjectorLabels(projector(prior))
    for wrong, says in (
        (projector(prior, names=NAMES[::-1]), "calls class 0"),
        (projector(prior, names=NAMES[:3]), "has 3 classes"),
        (projector(prior, size=(8, 8)), "use the projector's preprocessing"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            made.label_with(ProjectorLabels(wrong))
        assert "\n" not in str(error.value)
    assert made.teacher.kind == "teacher"
    assert made.report.rows == REPORT.rows
    made.label_with(labels)
    assert made.label_source is labels
    assert [row.labels for row in made.report.rows] == ["hard"]
    assert not made.report.labels
    assert made.config["projector"] == {**labels.projector.about()}
    made.report = REPORT
    made.label_with(ProjectorLabels(projector(prior)))  # the same one
    assert made.report is REPORT
    made.label_with(NetworkLabels(network()))
    assert "projector" not in made.config
    with pytest.raises(ValueError, match="calls class 0"):
        pictures(teacher=ProjectorLabels(projector(prior, names=NAMES[::-1])))


# Over the Hub


def test_only_the_images_that_are_needed_come_down(hub):
    for name, made, kept, left in (
        ("floats", make(soft=False), "tensor", "data"),
        ("pictures", pictures(), "data", "tensor"),
    ):
        repo = f"{hub.namespace}/{name}"
        made.push_to_hub(repo, tag="v1", token=hub.token)
        loaded = DistilledSet.from_pretrained(repo, revision="v1")
        assert same(loaded, made)
        snapshot = Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}" / "snapshots"
        (folder,) = snapshot.iterdir()
        assert (folder / kept).is_dir()
        assert not (folder / left).exists()
        assert not (folder / "assets").exists()
        assert loaded.origin.revision == hub.head("dataset", repo)


def test_a_network_of_a_repository_is_named_and_fetched_when_it_is_used(hub, tmp_path):
    home, repo = f"{hub.namespace}/teacher", f"{hub.namespace}/pictures"
    network().push_to_hub(home, tag="v1", token=hub.token)
    teacher = Teacher.from_pretrained(home)
    made = pictures(teacher=NetworkLabels(teacher))
    assert made.teacher.shared
    made.push_to_hub(repo, token=hub.token)
    assert not any(name.startswith("teacher") for name in hub.files("dataset", repo))
    card = hub.files("dataset", repo)["README.md"].decode()
    assert f"shared with everybody who has {home}" in card
    network(seed=1).push_to_hub(home, token=hub.token)  # what is newest there does not matter
    shutil.rmtree(Path(constants.HF_HUB_CACHE) / f"models--{home.replace('/', '--')}")
    back = DistilledSet.from_pretrained(repo)
    assert not (Path(constants.HF_HUB_CACHE) / f"models--{home.replace('/', '--')}").exists()
    assert (back.teacher.digest, back.teacher.num_bytes) == (teacher.digest, teacher.num_bytes)
    assert back.teacher.to_config() == made.teacher.to_config()
    assert DistilledSet.from_pretrained(back.save_pretrained(tmp_path / "copy")).teacher.shared
    x, rows = made.floats(), torch.arange(12)
    assert torch.equal(back.teacher(x, made.labels, rows), made.teacher(x, made.labels, rows))


@pytest.mark.parametrize(
    ("there", "says"),
    [
        (lambda: network(seed=1), "holds the weights .* use the weights that the labels were made with"),
        (lambda: network(names=NAMES[::-1]), "calls class 0 .* in its order"),
        (lambda: network(size=(8, 8)), "use the teacher's preprocessing"),
    ],
)
def test_a_repository_of_another_network_is_refused_where_it_is_used(hub, tmp_path, there, says):
    home = f"{hub.namespace}/teacher"
    network().push_to_hub(home, token=hub.token)
    made = pictures(teacher=NetworkLabels(Teacher.from_pretrained(home)))
    folder = made.save_pretrained(tmp_path / "set")
    there().push_to_hub(home, token=hub.token)
    about = json.loads((folder / "distill_config.json").read_text())["label_source"]
    about["teacher"]["shared"]["revision"] = hub.head("model", home)
    change_config(folder, label_source=about)
    back = DistilledSet.from_pretrained(folder)
    with pytest.raises(ValueError, match=says) as error:
        back.teacher(back.floats(), back.labels, torch.arange(12))
    assert "\n" not in str(error.value)


# For people


def test_an_image_folder_loads_with_the_names_of_the_classes(tmp_path):
    names = ["train", "test tube", "n/a", "犬"]
    made = make(names=names)
    folder = str(made.export_image_folder(tmp_path / "folder"))
    with_builder = load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=str(tmp_path / "cache"))
    assert with_builder.features["label"].names == sorted(name.replace("/", "_") for name in names)
    loaded = load_dataset(folder, cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert isinstance(loaded["train"].features["label"], ClassLabel)
    expected = {
        (names[label].replace("/", "_"), image.permute(1, 2, 0).numpy().tobytes())
        for label, image in zip(made.labels, made.images_uint8(), strict=True)
    }
    names_there = loaded["train"].features["label"].names
    found = {(names_there[row["label"]], np.asarray(row["image"]).tobytes()) for row in loaded["train"]}
    assert found == expected


def test_classes_that_would_share_a_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one folder each"):
        make(names=["a/b", "a_b"]).export_image_folder(tmp_path)


def test_an_image_folder_never_mixes_with_other_files(tmp_path):
    make().export_image_folder(tmp_path / "folder")
    with pytest.raises(ValueError, match="is not empty"):
        make().export_image_folder(tmp_path / "folder")


@pytest.mark.parametrize("zca", [False, True])
def test_one_file_of_plain_tensors_has_everything(tmp_path, zca):
    made = make(zca=zca, lr=0.02)
    content = torch.load(made.export_pt(tmp_path / "sub" / "set.pt"), weights_only=True)
    assert torch.equal(content["pixel_values"], made.pixel_values)
    assert torch.equal(content["labels"], made.labels)
    assert torch.equal(content["soft_labels"], made.soft_labels)
    assert content["lr"].item() == pytest.approx(0.02)
    assert content["class_names"] == NAMES
    images = content["images"]
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal((images * 255).round().to(torch.uint8), made.images_uint8())
    inside = (images > 0) & (images < 1)
    if not zca:
        again = (images - content["mean"].view(-1, 1, 1)) / content["std"].view(-1, 1, 1)
        torch.testing.assert_close(again[inside], made.pixel_values.detach()[inside])


def golden_sets() -> dict[str, DistilledSet]:
    sha256, home = "0123456789abcdef" * 4, Repository("org/teacher", "model", "0123456789" * 4)
    shared = NetworkLabels(TeacherReference("resnet18", 46_800_000, sha256, home))
    embedded = NetworkLabels(TeacherReference("resnet18", 46_800_000, sha256, None))
    many = make(1, names=[f"class {k}" for k in range(60)], size=(4, 4), zca=True, soft=False, teacher=True)
    many.config = {
        "source": {"name": "/home/x/faces", "license": "Ask us first.", "gated": "auto"},
        "experts": {"source": "faces-experts", "num_experts": 20, "training": {"lr_teacher": 0.01, "seed": 0}},
    }
    sizes = {"prior": "org/clip", "num_params": 900_000, "num_bytes": 1_800_000, "text_head_bytes": 16_384}
    about = {**sizes, "prior_bytes": 153_400_000, "agreement": 0.8034, "kl": 0.12345, "asked_about": "distilled images"}
    at = Repository("org/pets-3-projector", "model", "0123456789" * 4)
    projectors = [ProjectorLabels(TeacherReference("on org/clip", 1_800_000, sha256, home)) for home in (at, None)]
    projected = {"config": {**CONFIG, "projector": about}}
    matched = make(config={**CONFIG, "label_loss": "l1"}, report=REPORT)
    matched.teacher = embedded
    return {
        "distilled_matched.md": matched,
        "distilled_projector.md": pictures(
            teacher=projectors[0], report=EvalReport(REPORT.rows, {}, LABELS), **projected
        ),
        "distilled_projector_inside.md": pictures(teacher=projectors[1]),
        "distilled.md": make(lr=0.0312, config=CONFIG, report=REPORT),
        "distilled_bare.md": make(channels=1, soft=False),
        "distilled_labels.md": make(soft=False, config=CONFIG, report=EvalReport(labels=LABELS)),
        "distilled_many.md": many,
        "distilled_pictures.md": pictures(soft=True, teacher=embedded, config=CONFIG, report=REPORT),
        "distilled_shared.md": pictures(2, channels=1, size=(224, 224), teacher=shared),
    }


@pytest.mark.parametrize("name", golden_sets())
def test_the_card_says_what_the_set_knows(name):
    home = Home("org/faces-1", "v1.0.0", on_hub=True) if name == "distilled_many.md" else Home("pets-3")
    check_golden(name, set_card(golden_sets()[name], home, "0123abcd", 1234))


def test_the_card_counts_the_images_that_were_left_out():
    source = {**CONFIG["source"], "num_images": 1437, "num_corrupt": 3}
    card = set_card(make(config={**CONFIG, "source": source}), Home("pets-3"), "0123abcd", 1234)
    assert "(1,437 images, 3 of which cannot be decoded and were left out)" in card


@pytest.mark.parametrize(
    ("kind", "name"),
    [(ExpertTrajectories, "experts-float32"), (Teacher, "teacher"), (LabelProjector, "projector")],
)
def test_cards_of_networks_count_the_images_that_were_left_out(kind, name, tmp_path):
    artifact = kind.from_pretrained(ROOT / "tests" / "artifacts-0.1" / name)
    for count in (None, 3):
        artifact.config["source"] = {**artifact.config["source"], "num_corrupt": count}
        card = (artifact.save_pretrained(tmp_path / "saved") / "README.md").read_text()
        assert ("3 of its images cannot be decoded and were left out." in card) is bool(count)


def test_the_card_is_valid_metadata_and_speaks_of_images_first(tmp_path):
    folder = make(config=CONFIG, report=REPORT).save_pretrained(tmp_path / "pets-3")
    card = DatasetCard.load(folder / "README.md")
    shown = re.sub("<!--.*-->", "", card.content.split("---\n", 2)[2])
    assert "images" in shown.strip().splitlines()[0].lower()
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["tags"] == ["dataset-distillation", "some-method", "ipc-3", "hf_distill"]
    assert data["task_categories"] == ["image-classification"]
    assert data["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in data["configs"]] == ["default", "tensor"]


@pytest.mark.parametrize(
    ("name", "sources"), [("org/pets", ["org/pets"]), *((name, None) for name in ("pets", "/home/x/faces", None))]
)
def test_the_metadata_names_a_source_that_is_on_the_hub(name, sources, tmp_path):
    folder = make(config={"source": {"name": name}}).save_pretrained(tmp_path / "set")
    assert DatasetCard.load(folder / "README.md").data.source_datasets == sources


def test_tables_are_cut_into_pages_and_indexed_as_datasets_writes_them(tmp_path):
    ours = make().save_pretrained(tmp_path / "set")
    for name, (path,) in {name: ours.glob(f"{name}/*.parquet") for name in ("data", "tensor")}.items():
        dataset = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / name))
        dataset.to_parquet(str(tmp_path / "theirs.parquet"))
        written, expected = (pq.ParquetFile(file).metadata for file in (path, tmp_path / "theirs.parquet"))
        assert b"content_defined_chunking" in expected.metadata
        assert written.metadata[b"content_defined_chunking"] == expected.metadata[b"content_defined_chunking"]
        for file in (written, expected):
            columns = [file.row_group(0).column(place) for place in range(file.num_columns)]
            assert all(column.has_offset_index and column.has_column_index for column in columns), path


def test_the_snippets_of_the_card_load_the_set(tmp_path, monkeypatch):
    made = make(config=CONFIG)
    folder = made.save_pretrained(tmp_path / "pets-3")
    text = (folder / "README.md").read_text()
    snippets = [textwrap.dedent(part.split("```")[0]) for part in text.split("```python\n")[1:]]
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(snippets[0], scope)
    assert len(scope["images"]) == 12
    assert scope["floats"].with_format("torch")["pixel_values"][:].equal(made.pixel_values)


def test_every_number_on_the_card_comes_from_results_json(tmp_path):
    folder = make(report=REPORT).save_pretrained(tmp_path / "set")
    text = (folder / "README.md").read_text()
    assert "31.7 ± 2.4 (2)" in text  # mean and deviation of 0.3 and 1/3, by hand
    assert "25.0 (1)" in text
    assert "Not evaluated yet" in (make().save_pretrained(tmp_path / "bare") / "README.md").read_text()


@pytest.mark.parametrize(
    ("classes", "ipc", "caption"),
    [
        (10, 1, "All images"),
        (10, 50, "\n10 of 50 images of each class,"),
        (60, 1, "\n50 of 60 classes,"),
        (60, 30, "\n10 of 60 classes and 10 of 30 images of each class,"),
    ],
)
def test_a_picture_is_never_larger_than_a_page(tmp_path, classes, ipc, caption):
    made = make(ipc, names=[f"class {k}" for k in range(classes)], size=(8, 8), soft=False)
    assert max(made.grid().size) <= 1600
    assert min(made.grid().size) >= 64
    assert caption in set_card(made, Home("x"), "0", 0)


@pytest.mark.parametrize(
    ("count", "category"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (50_000, "10K<n<100K"), (10**6, "1M<n<10M")],
)
def test_the_size_is_in_the_words_of_the_hub(count, category):
    assert card_module._size_category(count) == category
