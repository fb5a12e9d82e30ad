"""Folders, results, cards and grids, without torch and without a network."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hf_distill
from hf_distill.hub import files
from hf_distill.hub.cards import Paper, human_bytes, image_grid, render_card, source_context
from hf_distill.hub.files import (
    atomic_write,
    check_format_version,
    folder_aside,
    load_json,
    locked,
    package_versions,
    reserve,
    save_json,
)
from hf_distill.hub.folder import Home, HubFolder
from hf_distill.hub.results import SETS, EvalReport, EvalRow
from tests.helpers import ROOT
from tests.helpers.goldens import check_golden


class Note(HubFolder):
    """The smallest artifact: one text."""

    repo_type = "dataset"
    config_name = "note.json"
    owned = ("README.md", "SHA256SUMS", "part-*.txt", "note.json")
    fetched = owned
    loader = "Note.from_pretrained"

    def __init__(self, text: str, fail: bool = False) -> None:
        self.text, self.fail, self.config = text, fail, {}

    def _write(self, folder: Path, home: Home) -> None:
        (folder / f"part-{self.text}.txt").write_text(self.text)
        if self.fail:
            raise OSError(28, "No space left on device")
        (folder / "README.md").write_text(f"a note in {home.name}")
        save_json(folder / "note.json", {"text": self.text})

    @classmethod
    def _read(cls, folder: Path) -> "Note":
        return cls((folder / f"part-{load_json(folder / 'note.json')['text']}.txt").read_text())


def row(**changes) -> EvalRow:
    fields = {
        "set": "distilled",
        "labels": "hard",
        "student": "convnet_d3",
        "protocol": "quick",
        "images": 10,
        "accuracies": [0.5, 0.6, 0.7],
        "device": "cpu",
    }
    return EvalRow(**{**fields, **changes})


@pytest.mark.slow
def test_hub_can_be_imported_without_torch():
    code = "import sys; sys.modules['torch'] = None; import hf_distill.hub.folder; assert 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_templates_are_found_beside_the_checkout_and_inside_an_installed_package(tmp_path):
    shutil.copytree(ROOT / "hf_distill", tmp_path / "hf_distill", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import hf_distill.hub.cards as hub, jinja2\n"
        f"assert hub.__file__.startswith({str(tmp_path)!r})\n"
        "try: hub.render_card('distilled.md')\n"
        "except jinja2.UndefinedError: pass\n"
    )
    alone = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "FileNotFoundError" in alone.stderr  # so that the next run proves something
    shutil.copytree(ROOT / "model_cards", tmp_path / "hf_distill" / "model_cards")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_no_template_names_a_method():
    for template in (ROOT / "model_cards").glob("*.md"):
        words = set(template.read_text(encoding="utf-8").lower().replace("`", " ").split())
        assert not words & {"mtt", "tesla", "apm", "sre2l", "cda", "hello"}


def test_a_name_that_the_context_lacks_is_an_error():
    with pytest.raises(Exception, match="undefined"):
        render_card("experts.md", metadata="")


def test_an_experts_card_says_what_it_was_given_and_no_more():
    config = {
        "num_experts": 20,
        "num_epochs": 50,
        "student": {"name": "convnet_d3", "img_size": [32, 32]},
        "class_names": ["cat", "dog"],
        "training": {"lr_teacher": 0.01, "dsa_strategy": None, "seed": 0},
        "versions": {"hf_distill": "0.0.0", "torch": "9.9"},
    }
    source = {"name": "pets", "split": "train", "revision": "abc", "license": "cc-by-4.0", "num_images": 7000}
    card = render_card(
        "experts.md",
        metadata="license: cc-by-4.0",
        call='"org/pets-experts"',
        config=config,
        bytes=1_230_000_000,
        results="accuracy 61.2 ± 3.1",
        **source_context(source),
    )
    check_golden("experts.md", card)


# Results


def test_mean_and_deviation_are_those_of_the_sample():
    accuracies = [0.61, 0.58, 0.66, 0.7]
    measured = row(accuracies=accuracies)
    assert measured.mean == pytest.approx(np.mean(accuracies))
    assert measured.std == pytest.approx(np.std(accuracies, ddof=1))
    assert measured.n == 4


def test_a_single_seed_has_no_deviation_and_shows_none():
    single = row(accuracies=[0.612])
    assert math.isnan(single.std)
    assert single.percent() == "61.2 (1)"
    assert EvalReport([single]).to_json()["rows"][0]["std"] is None


@pytest.mark.parametrize(
    "changes", [{"accuracies": []}, {"accuracies": [61.2]}, {"accuracies": [math.nan]}, {"set": "best"}, {"labels": ""}]
)
def test_a_result_that_cannot_be_is_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        row(**changes)


def test_a_report_comes_back_from_json_as_it_was(tmp_path):
    report = EvalReport([row(accuracies=[0.1 + 0.2, 1 / 3]), row(set="random", labels="soft")], {"note": "x"})
    save_json(tmp_path / "results.json", report.to_json())
    assert EvalReport.from_json(load_json(tmp_path / "results.json")) == report


def test_merging_replaces_the_same_measurement_and_keeps_the_others():
    old = EvalReport([row(accuracies=[0.1]), row(set="random", accuracies=[0.2])], {"a": 1, "b": 1})
    new = EvalReport([row(accuracies=[0.9]), row(labels="soft", accuracies=[0.8])], {"b": 2})
    merged = old.merge(new)
    assert [(r.set, r.labels, r.accuracies) for r in merged.rows] == [
        ("distilled", "hard", [0.9]),
        ("random", "hard", [0.2]),
        ("distilled", "soft", [0.8]),
    ]
    assert merged.meta == {"a": 1, "b": 2}


def test_the_terminal_table_has_one_aligned_line_for_each_set():
    report = EvalReport(
        [
            row(set="full data", images=1437, accuracies=[0.98, 0.99]),
            row(labels="soft", accuracies=[0.94, 0.95]),
            row(accuracies=[0.9, 0.9]),
            row(set="random", accuracies=[0.612]),
        ]
    )
    assert report.table().splitlines()[:5] == [
        "set         images   method's labels      hard labels",
        "-----------------------------------------------------",
        "random          10                           61.2 (1)",
        "distilled       10    94.5 ± 0.7 (2)   90.0 ± 0.0 (2)",
        "full data    1,437                     98.5 ± 0.7 (2)",
    ]
    assert "student convnet_d3 · protocol quick" in report.table()


def test_the_table_says_what_greedy_baselines_compare_and_only_where_they_are():
    meta = {"quick, convnet_d3": {"coresets_compare": "pixels"}, "seed": 1, "mtt, convnet_d3": {"seed": 2}}
    report = EvalReport([row(set="k-center"), row(set="random")], meta)
    assert report.table().endswith("device cpu · k-center by pixels")
    other = {"mtt, convnet_d3": {"coresets_compare": "features of it"}}
    both = report.merge(EvalReport([row(set="herding")], other))
    assert " ".join(both.table().split()).endswith("· herding and k-center by pixels or features of it")
    assert both.markdown().endswith("· herding and k-center by pixels or features of it")
    newer = {"mtt, convnet_d3": {"coresets": {"herding": "features of it", "ccs": "margins", "bps": "features of it"}}}
    sets = [row(set=name) for name in ("random", "herding", "k-center", "ccs", "bps")]
    together = EvalReport([row(set="k-center")], meta).merge(EvalReport(sets, newer))
    words = "· herding by pixels or features of it · k-center by pixels · ccs by margins · bps by features of it"
    assert " ".join(together.table().split()).endswith(words)
    assert "pixels" not in EvalReport([row(set="random")], meta).table()


def test_what_differs_between_results_becomes_a_column():
    report = EvalReport([row(set=name, student=student) for student in ("convnet_d3", "resnet18") for name in SETS])
    table = report.table().splitlines()
    assert table[0].split("  ")[0] == "set"
    assert "student" in table[0]
    assert [("convnet_d3" in line, "resnet18" in line) for line in table[2 : 2 + 2 * len(SETS)]] == [
        (True, False)
    ] * len(SETS) + [(False, True)] * len(SETS)
    assert report.markdown().splitlines()[0] == "| set | images | student | hard labels |"


def test_a_report_without_results_says_so():
    assert EvalReport().table() == "no results"
    assert EvalReport().markdown() == ""


def test_results_that_are_none_are_one_clear_error():
    with pytest.raises(ValueError, match="results of an evaluation"):
        EvalReport.from_json({"rows": [{"set": "random"}]})


def test_a_paper_lives_on_the_hub():
    assert Paper("T", "A", 2022, "2203.11932", "@x{}").url == "https://huggingface.co/papers/2203.11932"


# Files and folders


def test_floats_come_back_from_json_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32).tolist()
    save_json(tmp_path / "x.json", {"é": values})
    assert load_json(tmp_path / "x.json") == {"é": values}


@pytest.mark.parametrize("content", ["{", "[1]", b"\xff\xfe", None])
def test_json_that_cannot_be_read_is_one_clear_line(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"x\.json") as error:
        load_json(path)
    assert "\n" not in str(error.value)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    atomic_write(tmp_path / "x", "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        atomic_write(tmp_path / "x", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "old")]


def test_saving_replaces_what_it_owns_and_leaves_the_rest(tmp_path):
    folder = tmp_path / "notes"
    Note("one").save_pretrained(folder)
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "state").write_text("kept")
    (folder / "log.txt").write_text("kept")
    assert Note("two").save_pretrained(folder) == folder
    assert Note.from_pretrained(folder).text == "two"
    assert (folder / "README.md").read_text() == "a note in notes"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        "SHA256SUMS",
        "checkpoint-5/state",
        "log.txt",
        "note.json",
        "part-two.txt",
    ]


def test_a_save_that_fails_leaves_the_old_artifact_and_no_trace(tmp_path):
    Note("one").save_pretrained(tmp_path)
    with pytest.raises(OSError, match="was not saved") as error:
        Note("two", fail=True).save_pretrained(tmp_path)
    assert error.value.errno == 28
    assert "\n" not in str(error.value)
    assert Note.from_pretrained(tmp_path).text == "one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "SHA256SUMS", "note.json", "part-one.txt"]


def test_what_a_killed_save_left_is_cleared_by_the_next(tmp_path):
    (tmp_path / ".saving-abc" / "x").mkdir(parents=True)
    (tmp_path / "README.md").write_text("moved before the kill")
    Note("one").save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "SHA256SUMS", "note.json", "part-one.txt"]


def test_what_a_killed_writer_left_beside_its_file_is_swept_and_what_a_living_one_has_is_not(tmp_path):
    gone, living = tmp_path / ".README.md.4194304.tmp", tmp_path / f".README.md.{os.getppid()}.tmp"
    other = tmp_path / ".notes.4194304.tmp"
    for path in (gone, living, other):
        path.write_text("half")
    Note("one").save_pretrained(tmp_path)
    assert (gone.exists(), living.exists(), other.exists()) == (False, True, True)
    gone.write_text("half")
    atomic_write(tmp_path / "README.md", "a card")
    assert not gone.exists()


def test_a_folder_aside_goes_in_the_end_and_what_killed_processes_left_a_day_ago_goes_with_the_next(tmp_path):
    gone, day = 4194304, time.time() - 2 * 86400
    names = [f".aside-{gone}-old", f".aside-{gone}-new", f".aside-{os.getppid()}-living", ".aside-mine", "notes"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half")
    for name in names[:1] + names[2:]:
        os.utime(tmp_path / name, (day, day))
    with folder_aside(".aside-", tmp_path) as aside:
        (aside / "text").write_text("text")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], aside.name])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = rf"No space left on device: 5 bytes are needed and [0-9,]+ free: '{tmp_path}/x'"
    with pytest.raises(OSError, match=said):
        atomic_write(tmp_path / "x", "µext")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_nobody_can_write_to_needs_no_lock(tmp_path, monkeypatch):
    def refuse(*args, **options) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "WeakFileLock", refuse)
    with locked(tmp_path / ".lock"):
        assert not list(tmp_path.iterdir())


def test_room_is_taken_before_it_is_written_to_and_what_is_there_stays(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(b"old")
    os.truncate(path, 2**20)  # a hole, as older versions left
    reserve(path, 2**21)
    assert path.stat().st_blocks * 512 >= 2**21
    assert path.read_bytes() == b"old" + bytes(2**21 - 3)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_room_that_there_is_not_is_one_line(tmp_path, monkeypatch, code):
    def full(*args) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    path = tmp_path / "images"
    with pytest.raises(OSError, match=f"{os.strerror(code)}: 5,000,000 bytes are needed and [0-9,]+ free: '{path}'"):
        reserve(path, 5_000_000)


def test_a_file_system_that_takes_no_room_beforehand_is_written_to(tmp_path, monkeypatch):
    def unknown(*args) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    path = tmp_path / "images"
    path.write_bytes(b"old")
    reserve(path, 2**20 + 3)
    assert path.read_bytes() == b"old" + bytes(2**20)


def test_names_and_content_are_on_the_disk_before_a_write_ends(tmp_path, monkeypatch):
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("moved"), replace(*paths)))
    atomic_write(tmp_path / "x", "text")
    assert done == [f"{tmp_path}/.x.{os.getpid()}.tmp", "moved", str(tmp_path)]


def test_an_artifact_without_checksums_is_one_of_an_older_version_and_damaged_ones_are_named(tmp_path):
    folder = Note("one").save_pretrained(tmp_path / "note")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    (folder / "part-one.txt").write_text("eno")
    with pytest.raises(ValueError, match=r"part-one\.txt is damaged: its checksum is not that in SHA256SUMS"):
        Note.from_pretrained(folder)
    (folder / "SHA256SUMS").write_text("?")
    with pytest.raises(ValueError, match=r"SHA256SUMS is damaged .*; fetch it again, or delete it to do without"):
        Note.from_pretrained(folder)
    (folder / "SHA256SUMS").unlink()
    assert Note.from_pretrained(folder).text == "eno"


def test_a_folder_with_the_readme_of_something_else_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("my thesis")
    with pytest.raises(ValueError, match=r"README\.md and no note\.json"):
        Note("one").save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "my thesis"


def test_saving_into_a_file_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        Note("one").save_pretrained(tmp_path / "x")


def test_files_have_the_permissions_of_the_user(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    Note("one").save_pretrained(tmp_path / "notes")
    assert {path.stat().st_mode for path in (tmp_path / "notes").iterdir()} == {plain.stat().st_mode}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("not/a/repo/at/all", "is no folder here and cannot be a repository id"),
        ("", "'' is no folder here and cannot be a repository id"),
        ("long" * 1250, "^'longlong(long)*' is no folder here and cannot be a repository id"),
        ("nul\0nul", "is no folder here and cannot be a repository id"),
        ("nobody/nothing", "not in the local cache"),
        ("file", "is a file"),
        ("empty", r"has no note\.json"),
    ],
)
def test_loading_what_is_not_there_is_one_clear_line(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    Path("file").write_text("")
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=says) as error:
        Note.from_pretrained(name, local_files_only=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("version", "says"), [(2, "upgrade hf_distill"), (None, "expected"), ("1", "expected")])
def test_a_format_that_is_not_known_is_refused(version, says):
    check_format_version("x", {"format_version": 1}, 1)
    with pytest.raises(ValueError, match=says):
        check_format_version("x", {"format_version": version}, 1)


def test_versions_are_those_that_are_installed():
    versions = package_versions()
    assert versions["hf_distill"] == hf_distill.__version__
    assert json.dumps(versions)


# What cards say of the source


def test_a_known_licence_is_inherited():
    about = source_context({"name": "pets", "homepage": "https://pets.org", "license": ["cc-by-sa-4.0"]})
    assert about["license"] == "cc-by-sa-4.0"
    assert "[pets](https://pets.org) and carries its licence: cc-by-sa-4.0" in about["licence_note"]
    assert about["gated_note"] is None
    assert source_context({"license": ["mit", "cc0-1.0"]})["license"] == ["mit", "cc0-1.0"]


@pytest.mark.parametrize("stated", [None, "", [], "unknown", "Free for\nresearch only."])
def test_an_unknown_licence_is_other_and_never_a_friendlier_one(stated):
    about = source_context({"name": "pets", "license": stated})
    assert about["license"] == "other"
    assert "not known here" in about["licence_note"]
    assert ("Free for research only." in about["licence_note"]) == (stated == "Free for\nresearch only.")


def test_a_gated_source_is_said_to_be_gated():
    assert "conditional" in source_context({"name": "faces", "gated": "manual"})["gated_note"]


def test_no_path_of_the_author_is_on_a_card():
    about = source_context({"name": "/home/someone/secret/pets"})
    assert about["source_name"] == "pets"
    assert "someone" not in json.dumps(about)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_949, "99.9 kB"), (2_457_600_000, "2.5 GB")]
)
def test_bytes_are_for_people(count, text):
    assert human_bytes(count) == text


# Grids


def test_small_images_are_enlarged_without_smoothing():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    grid = image_grid([Image.fromarray(image) for image in pixels], 2)
    array = np.asarray(grid)
    side = (array.shape[0] - 8) // 8  # two margins of 4
    assert side * 8 >= 64
    for index in range(2):
        left = 4 + index * (8 * side + 4)
        cell = array[4 : 4 + 8 * side, left : left + 8 * side]
        np.testing.assert_array_equal(cell[..., 0], np.kron(pixels[index], np.ones((side, side), np.uint8)))


@pytest.mark.parametrize("side", [1, 8, 28, 32, 64, 96, 128, 224, 512])
def test_every_size_of_image_becomes_a_readable_cell(side):
    grid = image_grid([Image.new("RGB", (side, side))], 1)
    assert 64 <= grid.height - 8 <= 128


def test_labels_and_captions_take_room_only_where_there_are_any():
    image = Image.new("L", (8, 8))
    bare = image_grid([image] * 4, 2)
    named = image_grid([image] * 4, 2, row_labels=["cat", "a name that goes on and on and on and on and on"])
    captioned = image_grid([image, image, image, None], 2, captions=["", "", "cat", "dog"])
    assert (named.height, captioned.width) == (bare.height, bare.width)
    assert bare.width < named.width < bare.width + 190
    assert bare.height < captioned.height < bare.height + 30
