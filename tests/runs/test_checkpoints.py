"""Checkpoints are whole or not there; a run's folder is never somebody else's."""

import dataclasses
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import Accelerator

from hf_distill.config import DistillConfig
from hf_distill.runs import checkpoints, claims
from hf_distill.runs.checkpoints import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    pack_optimizers,
    save_checkpoint,
    unpack_optimizers,
)
from hf_distill.runs.claims import FolderInUse, claim, claimed
from hf_distill.runs.folder import check_same_run, prepare_output_dir


def save(folder: Path, step: int, limit: int | None = None, value: float = 0.5) -> Path:
    return save_checkpoint(folder, {"x": torch.full((3,), value)}, {"step": step, "score": 0.1}, limit)


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_tensors_and_state_come_back_bit_for_bit(tmp_path):
    tensors = {
        "a": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),
        "b": torch.tensor(1 / 3, dtype=torch.float64),
        "c": torch.arange(6).view(2, 3).T,  # not contiguous
        "d": torch.tensor([float("inf"), -0.0]),
    }
    state = {"step": 12, "best_accuracy": 0.1 + 0.2, "config": {"name": None}}
    folder = save_checkpoint(tmp_path, tensors, state, None)
    assert folder == tmp_path / "checkpoint-12"
    found, found_state = load_checkpoint(folder)
    assert found_state == state
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_checkpoints_are_in_the_order_of_their_steps_and_the_newest_are_kept(tmp_path):
    for step in (2, 10, 9, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for other in ("checkpoint-x", "checkpoint-1-old", ".checkpoint-7.partial"):
        (tmp_path / other).mkdir()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-9", "checkpoint-10", "checkpoint-100"]
    save(tmp_path, 200, limit=3)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100", "checkpoint-200"]
    assert (tmp_path / "checkpoint-x").exists()
    save(tmp_path, 300)
    assert len(names(tmp_path)) == 4


def test_going_on_from_an_earlier_checkpoint_replaces_the_later_ones(tmp_path):
    for step in (3, 6, 9):
        save(tmp_path, step)
    save(tmp_path, 4, limit=2)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-4"


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 3, limit=1, value=1)
    save(tmp_path, 3, limit=1, value=2)
    assert load_checkpoint(tmp_path / "checkpoint-3")[0]["x"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("part", ["save_file", "save_json"])
def test_a_full_disk_leaves_the_checkpoints_before_and_no_trace(tmp_path, monkeypatch, part):
    save(tmp_path, 3)

    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, part, full)
    with pytest.raises(
        OSError, match=r"checkpoint-6 could not be written .*No space left.*are needed and.*--resume_from_checkpoint"
    ):
        save(tmp_path, 6)
    assert os.listdir(tmp_path) == ["checkpoint-3"]
    load_checkpoint(tmp_path / "checkpoint-3")


def test_a_kill_between_the_two_names_of_a_checkpoint_leaves_the_old_one(tmp_path, monkeypatch):
    save(tmp_path, 5, value=1.0)
    replace = os.replace

    def dies(source, target):
        if str(source).endswith("-5.partial"):
            raise SystemExit
        replace(source, target)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(SystemExit):
        save(tmp_path, 5, value=2.0)
    assert names(tmp_path) == []
    monkeypatch.undo()
    assert load_checkpoint(find_checkpoint(tmp_path, "latest"))[0]["x"].tolist() == [1.0] * 3


def test_what_a_killed_write_left_is_no_checkpoint_and_is_written_over(tmp_path):
    save(tmp_path, 3)
    (tmp_path / ".checkpoint-6.partial").mkdir()
    (tmp_path / ".checkpoint-6.partial" / "state.safetensors").write_bytes(b"half")
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-3"
    save(tmp_path, 6)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-3", "checkpoint-6"]


def test_latest_is_nothing_where_there_is_none_and_a_path_must_exist(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    folder = save(tmp_path, 3)
    assert find_checkpoint(tmp_path / "elsewhere", str(folder)) == folder
    with pytest.raises(ValueError, match="is no folder; expected `latest` or a checkpoint folder"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize("damage", ["no tensors", "no state", "short tensors", "short state"])
def test_a_damaged_checkpoint_is_one_line_that_names_it(tmp_path, damage):
    folder = save(tmp_path, 3)
    file = folder / ("state.safetensors" if "tensors" in damage else "trainer_state.json")
    if damage.startswith("no"):
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"checkpoint-3 is no whole checkpoint .*resume from another one") as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["state.safetensors", "trainer_state.json", "SHA256SUMS"])
def test_a_flipped_bit_in_any_byte_of_a_checkpoint_is_refused(tmp_path, file):
    folder = save(tmp_path, 3)
    whole = (folder / file).read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (folder / file).write_bytes(flipped)
        with pytest.raises(ValueError, match="is no whole checkpoint"):
            load_checkpoint(folder)


def test_latest_is_the_newest_whole_checkpoint_and_says_what_it_passes_over(tmp_path, caplog):
    for step in (3, 6, 9):
        save(tmp_path, step)
    (tmp_path / "checkpoint-9" / "trainer_state.json").unlink()
    tensors = tmp_path / "checkpoint-6" / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4] + b"\0\0\0@")
    with caplog.at_level("WARNING"):
        assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-3"
    assert [text.split(" ", 1)[0] for text in caplog.messages] == [str(tmp_path / f"checkpoint-{n}") for n in (9, 6)]
    with pytest.raises(ValueError, match=r"checkpoint-6 is no whole checkpoint \(.* is damaged: its checksum"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-6"))
    (tmp_path / "checkpoint-3" / "state.safetensors").unlink()
    with pytest.raises(ValueError, match=r"none of the 3 checkpoint\(s\) in .* is whole; remove them to begin anew"):
        find_checkpoint(tmp_path, "latest")


def test_a_checkpoint_without_checksums_is_one_of_an_older_version(tmp_path):
    (save(tmp_path, 3) / "SHA256SUMS").unlink()
    assert load_checkpoint(tmp_path / "checkpoint-3")[1]["step"] == 3


# Optimizers


def stepped(parameters: list[torch.Tensor], optimizers: list[torch.optim.Optimizer], steps: int) -> None:
    """Take steps with gradients that are functions of the parameters alone."""
    for _ in range(steps):
        for number, parameter in enumerate(parameters, 1):
            parameter.grad = number * parameter.detach().sin()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_one_optimizer_of_two_groups_goes_on_as_two_of_one_group_and_back(kind):
    def make(together: bool) -> tuple[list[torch.Tensor], list[torch.optim.Optimizer]]:
        parameters = [torch.arange(1.0, 4), torch.full((2, 2), 0.3), torch.tensor(2.0)]
        groups = [{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": 0.02}]
        cls, options = (torch.optim.Adam, {}) if kind == "adam" else (torch.optim.SGD, {"momentum": 0.9})
        shares = [groups] if together else [[group] for group in groups]
        return parameters, [cls(share, lr=0.5, **options) for share in shares]

    whole, whole_optimizers = make(True)
    stepped(whole, whole_optimizers, 5)
    for together in (True, False):
        parameters, optimizers = make(together)
        stepped(parameters, optimizers, 2)
        tensors = {"set.pixels": torch.ones(1), **pack_optimizers(optimizers)}
        names = ("exp_avg", "exp_avg_sq", "step") if kind == "adam" else ("momentum_buffer",)
        assert tensors.keys() - {"set.pixels"} == {f"optimizer.{index}.{name}" for index in range(3) for name in names}
        others, other_optimizers = make(not together)
        for parameter, value in zip(others, parameters, strict=True):
            parameter.copy_(value)
        unpack_optimizers(other_optimizers, {key: value.clone() for key, value in tensors.items()})
        stepped(others, other_optimizers, 3)
        assert all(torch.equal(a, b) for a, b in zip(whole, others, strict=True))


def test_an_optimizer_without_a_state_yet_goes_on_without_one():
    optimizer = torch.optim.SGD([torch.ones(2)], lr=0.1, momentum=0.5)
    assert pack_optimizers([optimizer]) == {}
    unpack_optimizers([optimizer], {"set.pixels": torch.ones(1)})
    assert not optimizer.state


# Whose run it is

NAMES = [f"class number {index}" for index in range(1000)]
RUN = {"seed": 0, "student": {"name": "convnet_d3", "kwargs": {"width": 128}}, "class_names": NAMES, "revision": None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "its seed is 0 and here it is 1; use"),
        (
            {"student": {"name": "convnet_d3", "kwargs": {"width": 64}}},
            "its student.kwargs.width is 128 and here it is 64;",
        ),
        (
            {"class_names": [*NAMES[:700], "dog", *NAMES[701:]]},
            "its class_names[700] is class number 700 and here it is dog;",
        ),
        ({"class_names": NAMES[:-1]}, "its number of class_names is 1000 and here it is 999;"),
        ({"revision": "a" * 300 + "b"}, f"its revision is None and here it is {'a' * 80}…;"),
        ({"seed": {"deep": [1]}}, "its seed is 0 and here it is {'deep': [1]};"),
        ({"new": 5}, "its new is None and here it is 5;"),
    ],
)
def test_another_run_is_one_line_with_what_differs_and_both_values(changes, says):
    with pytest.raises(ValueError, match="is of another run") as error:
        check_same_run(Path("outputs/x"), RUN, {**RUN, **changes})
    assert f"outputs/x is of another run: {says}" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_of_many_differences_three_are_shown_and_the_others_counted():
    with pytest.raises(ValueError, match=r"its a is 0 and here it is 1, its b .*, its c .*, and 2 more differ; use"):
        check_same_run(Path("x"), dict.fromkeys("abcde", 0), dict.fromkeys("abcde", 1))


def test_two_long_texts_are_shown_where_they_differ():
    with pytest.raises(ValueError, match=r"its source is …(a{39})one and here it is …(\1)other;"):
        check_same_run(Path("x"), {"source": "a" * 500 + "one"}, {"source": "a" * 500 + "other"})


def test_the_same_run_is_the_same_and_may_say_more_only_where_it_may():
    check_same_run(Path("x"), json.loads(json.dumps(RUN)), RUN)
    check_same_run(Path("x"), {key: value for key, value in RUN.items() if key != "revision"}, RUN)
    check_same_run(Path("x"), {**RUN, "more": 1}, RUN, may_say_more=True)
    with pytest.raises(ValueError, match="its more is 1 and here it is None"):
        check_same_run(Path("x"), {**RUN, "more": 1}, RUN)
    for nothing in (None, [], {}):
        with pytest.raises(ValueError, match="its seed is None and here it is 0"):
            check_same_run(Path("x"), nothing, RUN)


# The folder of a run


def prepare(**flags) -> Path:
    config = DistillConfig(**{k: str(v) if isinstance(v, Path) else v for k, v in flags.items()})
    with ExitStack() as held:
        return prepare_output_dir(config, "x", held)


@pytest.mark.parametrize("holds", ["an artifact", "a checkpoint"])
def test_a_folder_with_a_run_needs_a_word_about_it(tmp_path, holds):
    if holds == "an artifact":
        (tmp_path / "distill_config.json").write_text("{}")
    else:
        save(tmp_path, 3)
    with pytest.raises(ValueError, match=r"already holds a run; use --resume_from_checkpoint latest .*overwrite"):
        prepare(output_dir=tmp_path)
    assert prepare(output_dir=tmp_path, resume_from_checkpoint="latest") == tmp_path
    assert len(os.listdir(tmp_path)) == 1
    prepare(output_dir=tmp_path, overwrite_output_dir=True)
    assert not names(tmp_path)


def test_a_folder_with_other_things_keeps_them(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    prepare(output_dir=tmp_path)
    save(tmp_path, 3)
    (tmp_path / "students").mkdir()
    for name in ("theirs.json", f"{'0' * 32}.json"):  # the second is what students of the run reached
        (tmp_path / "students" / name).write_text("{}")
    prepare(output_dir=tmp_path, overwrite_output_dir=True)
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "students"]
    assert os.listdir(tmp_path / "students") == ["theirs.json"]


def test_without_a_name_each_run_gets_the_next_free_folder_and_resuming_means_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepare(resume_from_checkpoint="latest") == Path("outputs/x")
    assert not Path("outputs").exists()  # a claim leaves no empty folder
    assert [prepare() for _ in range(3)] == [Path("outputs/x"), Path("outputs/x-2"), Path("outputs/x-3")]
    assert prepare(resume_from_checkpoint="latest") == Path("outputs/x-3")
    assert all(path.is_dir() for path in Path("outputs").iterdir())


def test_a_checkpoint_that_is_not_there_is_said_before_the_long_work(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder; expected `latest` or a checkpoint folder"):
        prepare(output_dir=tmp_path, resume_from_checkpoint="nowhere")


def test_leftovers_of_a_killed_run_are_swept_and_a_file_is_no_folder(tmp_path):
    (tmp_path / ".checkpoint-6.partial").mkdir()
    prepare(output_dir=tmp_path)
    assert not os.listdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        prepare(output_dir=tmp_path / "file")


def test_the_state_is_readable_by_people(tmp_path):
    folder = save_checkpoint(tmp_path, {}, {"step": 1, "config": dataclasses.asdict(DistillConfig())}, None)
    assert json.loads((folder / "trainer_state.json").read_text())["config"]["ipc"] == 1


# Who works in a folder


@contextmanager
def owner(folder: Path, *flags: str) -> Iterator[int]:
    """The number of a process that is at work in a folder until it is killed, at the end at the latest."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        sys.argv = ["recipe.py", *flags]
        with ExitStack() as held:
            claim(folder, held)
            os.write(tell, b"!")
            signal.pause()
    assert os.read(ready, 1) == b"!"
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_folder_belongs_to_the_run_that_is_at_work_there_until_it_is_gone(tmp_path, caplog):
    folder, secret = tmp_path / "run", ["--hub_token", "hf_secret", "--hub_token=hf_other"]
    with owner(folder, "--ipc", "1", *secret) as process:
        save(folder, 3)
        for flags in ({}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "latest"}):
            with pytest.raises(FolderInUse, match=rf"run is in use by process {process} on .* since 2") as error:
                prepare(output_dir=folder, **flags)
            assert "(recipe.py --ipc 1)" in str(error.value)
        assert names(folder) == ["checkpoint-3"]
        assert "hf_" not in (folder / ".claim").read_text()
    assert (folder / ".claim").exists()
    with caplog.at_level("INFO"):
        prepare(output_dir=folder, overwrite_output_dir=True)
    assert f"was in use by process {process} on" in caplog.text
    assert not os.listdir(folder)


def test_a_run_that_may_wait_goes_on_when_the_other_one_is_gone(tmp_path, monkeypatch):
    looks: list[bool] = []

    def wait(seconds: float) -> None:
        looks.append(True)
        if len(looks) == 3:
            stack.close()

    monkeypatch.setattr(claims.time, "sleep", wait)
    with ExitStack() as stack:
        stack.enter_context(owner(tmp_path))
        with claimed(tmp_path, Accelerator(), wait=True):
            assert len(looks) == 3


def test_where_a_file_system_knows_no_locks_the_claim_tells_who_lives(tmp_path, monkeypatch):
    def unknown(*args) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claims.fcntl, "lockf", unknown)
    parent = psutil.Process(os.getppid())
    here = {"host": socket.gethostname(), "pid": parent.pid, "started": parent.create_time(), "command": "x"}
    for owned, lives in (
        (here, True),
        ({**here, "started": parent.create_time() - 60}, False),
        ({**here, "pid": 4194304}, False),
        ({**here, "host": "elsewhere"}, True),
        ({"pid": [], "host": here["host"]}, False),
    ):
        (tmp_path / ".claim").write_text(json.dumps(owned))
        with pytest.raises(FolderInUse) if lives else nullcontext():
            prepare(output_dir=tmp_path)


def test_where_nobody_can_write_there_is_nothing_to_claim(tmp_path, monkeypatch):
    def refuse(*args) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch, ExitStack() as held:
        patch.setattr(claims.os, "open", refuse)
        claim(tmp_path, held)
    assert not os.listdir(tmp_path)


def test_runs_without_a_name_that_begin_at_once_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: prepare(), range(8)))
    assert len(set(folders)) == 8
