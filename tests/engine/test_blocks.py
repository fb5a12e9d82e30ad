"""What every method owes whose images are made in blocks: killed, resumed or spread, a run leaves the same bytes.

Each run is the method's recipe in processes of its own, with a teacher that is trained once. A new method is tested by
being in `METHODS`; its recipe has its name.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.labels import ProjectorLabels
from hf_distill.engine.blocks import BlockDistiller
from hf_distill.methods import METHODS
from hf_distill.networks.teachers import Teacher

BLOCKED = [method for method in METHODS if issubclass(method, BlockDistiller)]
TEACHER = {
    "max_train_samples": 200,
    "max_test_samples": 50,
    "student": "convnet_d1",
    "student_width": 8,
    "student_norm": "batch",
    "teacher_epochs": 2,
    "batch_train": 50,
    "teacher_augment": "none",
    "disable_tqdm": True,
}
# What makes a run short, where the method has it.
TINY = {
    **{name: TEACHER[name] for name in ("max_train_samples", "max_test_samples", "disable_tqdm")},
    "ipc": 2,
    "max_steps": 4,
    "batch_classes": 4,
    "batch_syn": 5,
    "student_epochs": 3,
    "num_students": 2,
    "jitter": 1,
    "logging_steps": 2,
    "eval_seeds": 1,
    "eval_protocol": "crops-tiny",
    "prior_epochs": 1,
    "projector_epochs": 2,
    "adapt_epochs": 1,
    "compare_labels": "pruned",
    "report_to": "tensorboard",
    "save_frames": 2,
}


class Runs:
    """Runs one method with tiny settings."""

    def __init__(self, method: type, recipes: Any, home: Path, teacher: Path) -> None:
        self.method, self.name = method, method.__name__.lower()
        self.recipes, self.home, self.teacher = recipes, home, teacher
        self.known = {field.name for part in recipes.dataclasses(self.name) for field in dataclasses.fields(part)}
        self.count = 0

    def start(self, folder: Path, processes: int = 1, before: str = "", **flags: Any) -> Any:
        tiny = {name: value for name, value in TINY.items() if name in self.known}
        flags = {"teachers": self.teacher, **tiny, **flags, "output_dir": folder}
        return self.recipes(self.name, flags, self.home, processes=processes, before=before)

    def finish(self, folder: Path | None = None, processes: int = 1, **flags: Any) -> Path:
        """The folder of a run that must end well."""
        if folder is None:
            self.count += 1
            folder = self.home / f"run-{self.count}"
        done = self.start(folder, processes, **flags)
        assert done.status == [0] * processes, done.err
        return folder


def train_teacher(recipes: Any, folder: Path) -> Path:
    done = recipes("teacher", {**TEACHER, "output_dir": folder / "teacher"}, folder)
    assert done.status == [0], done.err
    return folder / "teacher"


@pytest.fixture(scope="module")
def teacher(recipes, tmp_path_factory) -> Path:
    return train_teacher(recipes, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module", params=BLOCKED, ids=lambda method: method.__name__)
def runs(request, recipes, tmp_path_factory, teacher) -> Runs:
    return Runs(request.param, recipes, tmp_path_factory.mktemp("runs"), teacher)


@pytest.fixture(scope="module")
def whole(runs) -> Path:
    """A run that nothing interrupted."""
    return runs.finish()


def check_same_bytes(folder: Path, other: Path) -> None:
    """The images are the same files, byte for byte, and the students on them reach the same."""
    names = [sorted(path.name for path in (each / "data").iterdir()) for each in (folder, other)]
    assert names[0] == names[1]
    check_same_images(folder, other)
    reports = [DistilledSet.from_pretrained(each).report for each in (folder, other)]
    assert reports[0].rows == reports[1].rows


def check_same_images(folder: Path, other: Path) -> None:
    """The files of the images are the same byte for byte; a name also tells of what labels them."""
    files = [sorted((each / "data").iterdir()) for each in (folder, other)]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_a_run_leaves_a_whole_artifact_with_random_images_and_hard_labels_beside_it(runs, whole, teacher, tmp_path):
    distilled = DistilledSet.from_pretrained(whole)
    assert distilled.is_bytes == (runs.method.pixels == "uint8")
    assert len(distilled) == 20
    assert distilled.labels.bincount().tolist() == [2] * 10
    assert distilled.config["method"] == runs.name
    assert distilled.config["teachers"][-1]["digest"] == Teacher.from_pretrained(teacher).digest
    rows = {(row.set, row.labels) for row in distilled.report.rows}
    assert {(name, labels) for name in ("random", "distilled") for labels in ("soft", "hard")} <= rows
    card = (whole / "README.md").read_text()
    assert all(row.percent() in card for row in distilled.report.rows)
    assert list(whole.rglob("*tfevents*"))
    if "save_frames" in runs.known:
        assert sorted(path.name for path in (whole / "frames").glob("*.png")) == [
            f"step-000000{step}.png" for step in (0, 2, 4)
        ]
        if runs.name != "apm":  # whose first group are images of any classes
            with Image.open(whole / "frames" / "step-0000004.png") as picture:
                first = np.asarray(picture)[4:52:6, 4:52:6, 0]  # eight by eight pixels six times as large
            assert np.array_equal(first, distilled.images_uint8(slice(0, 1))[0, 0].numpy())
    again = DistilledSet.from_pretrained(distilled.save_pretrained(tmp_path / "copy"))
    assert torch.equal(again.pixel_values, distilled.pixel_values)
    assert again.config == distilled.config


def test_another_seed_gives_another_set(runs, whole):
    other = DistilledSet.from_pretrained(runs.finish(seed=1))
    assert not torch.equal(other.pixel_values, DistilledSet.from_pretrained(whole).pixel_values)


@pytest.mark.slow
def test_two_processes_make_the_same_bytes(runs, whole):
    two = runs.finish(processes=2)
    if not isinstance(DistilledSet.from_pretrained(whole).teacher, ProjectorLabels):
        check_same_bytes(two, whole)
    else:  # a network that is trained for the labels has the rounding of the sums of two processes
        check_same_images(two, whole)


# Dies when the third block is done and before that is written down, or in the middle of its images.
KILL = """
import os, signal
from hf_distill.engine import blocks
known = blocks.save_json
written = []
def save_json(path, value):
    if path.name.startswith("block-"):
        written.append(path)
        if len(written) == 3:
            {damage}
            os.kill(os.getpid(), signal.SIGKILL)
    known(path, value)
blocks.save_json = save_json
"""
DAMAGE = {
    "before it is written down": "pass",
    "with bytes missing in a block that was done": "next(path.parent.glob('images.*')).open('r+b').write(b'x' * 100)",
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", DAMAGE)
def test_a_killed_run_goes_on_with_the_blocks_that_are_not_whole(runs, whole, moment):
    if DAMAGE[moment] != "pass" and runs.method is not BLOCKED[0]:
        pytest.skip("a file that was damaged is one, whatever the method")
    folder = runs.home / f"killed {moment}"
    killed = runs.start(folder, before=KILL.format(damage=DAMAGE[moment]))
    assert killed.status == [-9], killed.err
    assert not (folder / "README.md").exists()
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("blocks/block-*.json")}
    assert len(done) == 2
    check_same_bytes(runs.finish(folder, resume_from_checkpoint="latest"), whole)
    kept = [name for name, when in done.items() if (folder / "blocks" / name).stat().st_mtime_ns == when]
    assert len(kept) == (2 if DAMAGE[moment] == "pass" else 1)


@pytest.mark.parametrize(
    "flags", [{"seed": 5}, {"max_train_samples": 150}, {"ipc": 1}], ids=lambda flags: "".join(flags)
)
def test_blocks_of_another_run_are_refused(runs, whole, flags):
    before = sorted(path.name for path in whole.rglob("*"))
    stopped = runs.start(whole, resume_from_checkpoint="latest", **flags)
    assert stopped.status == [1]
    (line,) = [line for line in stopped.err.splitlines() if line.startswith("error:")]
    # Other images can have another mean, with which a projector's given teachers do not agree: that is seen before.
    assert "is of another run" in line or "another preprocessing" in line
    assert sorted(path.name for path in whole.rglob("*")) == before
    taken = runs.start(whole)
    assert "already holds a run" in taken.err


def test_a_damaged_description_of_the_blocks_is_one_line_and_they_stay(runs, whole):
    index = whole / "blocks" / "run.json"
    text = index.read_text()
    index.write_text(text[:-2])
    try:
        stopped = runs.start(whole, resume_from_checkpoint="latest")
        assert stopped.status == [1]
        (line,) = [line for line in stopped.err.splitlines() if line.startswith("error:")]
        assert "run.json is not valid JSON" in line
        assert f"remove {index.parent}, and the run begins anew" in line
        assert list(index.parent.glob("block-*.json"))
    finally:
        index.write_text(text)


@pytest.mark.slow
def test_two_processes_that_are_refused_say_why_once(runs, whole):
    stopped = runs.start(whole, processes=2, resume_from_checkpoint="latest", seed=5)
    assert stopped.status == [1, 1]
    (line,) = [line for line in stopped.err.splitlines() if line.startswith("error:")]
    assert "is of another run: its seed is 0 and here it is 5" in line


def test_blocks_lie_where_the_images_of_their_classes_belong(runs, whole):
    run = json.loads((whole / "blocks" / "run.json").read_text())
    assert run["shape"][0] == 20
    distilled = DistilledSet.from_pretrained(whole)
    assert torch.equal(distilled.labels, torch.arange(10).repeat_interleave(2))


def test_labels_of_every_view_are_stored_and_trained_on_without_the_teacher(runs, whole, recipes, tmp_path):
    flags = {"distilled_dataset": whole, "disable_tqdm": True}
    batches = {"teachers": runs.teacher, "batch_statistics": 6} if runs.name == "fadrm" else {}  # as its authors label
    stored = {**flags, **batches, "kept": 3, "label_epochs": 2, "output_dir": tmp_path / "labels"}
    done = recipes("relabel", stored, tmp_path)
    assert done.status == [0], done.err
    few = {"max_train_samples": 200, "max_test_samples": 50, "num_seeds": 1, "full_data": False}
    out = {"labels": tmp_path / "labels", "output_dir": tmp_path / "evaluated"}
    done = recipes("evaluate", {**flags, **few, **out}, tmp_path)
    assert done.status == [0], done.err
    rows = DistilledSet.from_pretrained(tmp_path / "evaluated").report.rows
    stored = [row for row in rows if "stored labels" in row.protocol]
    assert [(row.set, row.labels) for row in stored] == [("distilled", "soft")]
    mtt = recipes("evaluate", {**flags, **few, **out, "protocol": "quick"}, tmp_path)
    assert "looks at no views" in mtt.err


# On an accelerator


@pytest.fixture(scope="module")
def accelerated_teacher(accelerated_recipes, tmp_path_factory) -> Path:
    return train_teacher(accelerated_recipes, tmp_path_factory.mktemp("teacher"))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("method", BLOCKED, ids=lambda method: method.__name__)
def test_on_an_accelerator_a_run_leaves_finite_numbers_and_a_whole_artifact_whose_views_can_be_labelled(
    method, accelerated_recipes, accelerated_teacher, tmp_path
):
    runs = Runs(method, accelerated_recipes, tmp_path, accelerated_teacher)
    whole = runs.finish()
    distilled = DistilledSet.from_pretrained(whole)
    assert len(distilled) == 20
    assert distilled.pixel_values.isfinite().all()
    assert distilled.pixel_values.flatten(1).float().std(1).min() > 0
    assert {row.labels for row in distilled.report.rows if row.set == "distilled"} >= {"soft", "hard"}
    assert all(row.device != "cpu" for row in distilled.report.rows)
    again = DistilledSet.from_pretrained(distilled.save_pretrained(tmp_path / "copy"))
    assert torch.equal(again.pixel_values, distilled.pixel_values)
    flags = {"distilled_dataset": whole, "label_epochs": 2, "disable_tqdm": True, "output_dir": tmp_path / "labels"}
    done = accelerated_recipes("relabel", flags, tmp_path)
    assert done.status == [0], done.err


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("method", BLOCKED, ids=lambda method: method.__name__)
def test_on_an_accelerator_a_resumed_run_keeps_the_blocks_that_were_done(
    method, accelerated_recipes, accelerated_teacher, tmp_path
):
    runs = Runs(method, accelerated_recipes, tmp_path, accelerated_teacher)
    folder = tmp_path / "killed"
    killed = runs.start(folder, before=KILL.format(damage="pass"))
    assert killed.status == [-9], killed.err
    done = {path: path.stat().st_mtime_ns for path in folder.glob("blocks/block-*.json")}
    assert len(done) == 2
    runs.finish(folder, resume_from_checkpoint="latest")
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(DistilledSet.from_pretrained(folder)) == 20
