"""What every method owes: resumed, killed, spread over processes or stopped by bad numbers, a run keeps its promises.

Each run is the method's recipe in processes of its own, which takes a second or two: so tests share what a run left and
go on from copies of it, and what the loop decides, whatever the method, is shown with one of them. A new method is
tested by being in `METHODS`; its recipe has its name, and its demo gives the settings that `TINY` does not.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.engine.loop import Distiller
from hf_distill.methods import METHODS

LOOPED = [method for method in METHODS if issubclass(method, Distiller)]

# What makes a run short, where the method has it.
TINY = {
    "max_train_samples": 200,
    "max_test_samples": 50,
    "student": "convnet_d1",
    "student_width": 8,
    "num_experts": 2,
    "expert_train_epochs": 2,
    "experts_at_once": 2,
    "batch_train": 50,
    "ipc": 1,
    "max_steps": 6,
    "save_steps": 3,
    "eval_steps": 3,
    "eval_nets": 1,
    "eval_seeds": 1,
    "eval_protocol": "tiny",
    "syn_steps": 3,
    "batch_syn": 2,  # some of the ten images are in no step of an iteration
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "level_steps": 2,
    "real_views": 1,
    "batch_real": 50,
    "lr_img": 1,
    "disable_tqdm": True,
}
# Of runs whose table nobody reads.
LEAN = {"eval_full_data": "false", "eval_baselines": "random"}


class Runs:
    """Runs one method with tiny settings, in a folder where its networks are kept between runs."""

    def __init__(self, method: type, recipes: Any, home: Path) -> None:
        self.method, self.name, self.recipes, self.home = method, method.__name__.lower(), recipes, home
        self.known = {field.name for part in recipes.dataclasses(self.name) for field in dataclasses.fields(part)}
        self.count = 0

    def start(self, folder: Path, processes: int = 1, before: str = "", **flags: Any) -> Any:
        tiny = {name: value for name, value in TINY.items() if name in self.known}
        tiny |= {"eval_protocol": "probe-tiny"} if self.method.probes else {}
        flags = {**tiny, **flags, "output_dir": folder}
        return self.recipes(self.name, flags, self.home, processes=processes, before=before)

    def finish(self, folder: Path | None = None, processes: int = 1, **flags: Any) -> Path:
        """The folder of a run that must end well."""
        if folder is None:
            self.count += 1
            folder = self.home / f"run-{self.count}"
        done = self.start(folder, processes, **flags)
        assert done.status == [0] * processes, done.err
        return folder


@pytest.fixture(scope="module", params=LOOPED, ids=lambda method: method.__name__)
def runs(request, recipes, tmp_path_factory) -> Runs:
    return Runs(request.param, recipes, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def once(runs) -> None:
    """For what no method has a part in."""
    if runs.method is not LOOPED[0]:
        pytest.skip(f"shown with {LOOPED[0].__name__}")


@pytest.fixture(scope="module")
def whole(runs) -> Path:
    """A run that nothing interrupted."""
    return runs.finish()


@pytest.fixture(scope="module")
def initial(runs) -> DistilledSet:
    """What a run starts from."""
    return DistilledSet.from_pretrained(runs.finish(max_steps=0, **LEAN))


@pytest.fixture(scope="module")
def half(runs) -> Path:
    """A run that ended after three of six steps; who goes on from it takes a copy."""
    return runs.finish(max_steps=3)


@pytest.fixture(scope="module")
def double(runs) -> Path:
    """A run of two processes that nothing interrupted."""
    return runs.finish(processes=2)


def state(folder: Path, step: int = 6) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    checkpoint = folder / f"checkpoint-{step}"
    return load_file(checkpoint / "state.safetensors"), json.loads((checkpoint / "trainer_state.json").read_text())


def images(folder: Path, step: int = 6) -> torch.Tensor:
    """The images of a checkpoint; those that its steps did not lately take have moves of their momentum to make."""
    tensors, _ = state(folder, step)
    if "optimizer.0.behind" not in tensors:
        return tensors["set.pixel_values"]  # each of its steps takes all of them
    pixels, velocity = tensors["set.pixel_values"], tensors["optimizer.0.momentum_buffer"].clone()
    rate, momentum = tensors["optimizer.0.rates"].tolist()
    behind = tensors["optimizer.0.behind"].view(-1, 1, 1, 1)
    for step in range(int(behind.max())):
        velocity *= momentum
        pixels = torch.where(step < behind, pixels - rate * velocity, pixels)
    return pixels


def check_same_state(folder: Path, other: Path, step: int = 6) -> None:
    """What is learned, the optimizers and what selection remembers are equal bit for bit."""
    (tensors, kept), (tensors_other, kept_other) = state(folder, step), state(other, step)
    assert tensors.keys() == tensors_other.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, tensors_other[name]), name
    for name in ("step", "best_step", "best_accuracy"):
        assert kept[name] == kept_other[name]


def check_same_bits(folder: Path, other: Path) -> None:
    """The state and the artifacts are equal bit for bit."""
    check_same_state(folder, other)
    one, two = DistilledSet.from_pretrained(folder), DistilledSet.from_pretrained(other)
    assert torch.equal(one.pixel_values, two.pixel_values)
    assert torch.equal(one.labels, two.labels)
    assert (one.lr is None) == (two.lr is None)
    assert one.lr is None or torch.equal(one.lr, two.lr)
    assert (one.soft_labels is None) == (two.soft_labels is None)
    assert one.soft_labels is None or torch.equal(one.soft_labels, two.soft_labels)
    assert one.config["selected_step"] == two.config["selected_step"]
    assert one.report.rows == two.report.rows


# What a run leaves


@pytest.mark.slow
def test_a_run_changes_the_images_and_leaves_finite_numbers_and_a_whole_artifact(runs, initial, tmp_path):
    folder = runs.finish(max_steps=2, select="last")
    distilled = DistilledSet.from_pretrained(folder)
    assert not torch.equal(distilled.pixel_values, initial.pixel_values)
    assert distilled.pixel_values.isfinite().all()
    if distilled.lr is not None:
        assert distilled.lr != initial.lr
        assert 0 < distilled.lr < float("inf")
    assert {row.set for row in distilled.report.rows} == {"full data", "random", "herding", "k-center", "distilled"}
    assert json.loads((folder / "results.json").read_text())["rows"] == distilled.report.to_json()["rows"]
    card = (folder / "README.md").read_text()
    assert all(row.percent() in card for row in distilled.report.rows)
    assert (folder / "assets" / "grid.png").stat().st_size > 0
    assert distilled.config["method"] == runs.name
    again = DistilledSet.from_pretrained(distilled.save_pretrained(tmp_path / "copy"))
    assert torch.equal(again.pixel_values, distilled.pixel_values)
    assert again.config == distilled.config


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_set(runs, whole, half):
    check_same_state(half, whole, step=3)
    other, _ = state(runs.finish(seed=1, max_steps=3, **LEAN), step=3)
    assert not torch.equal(other["set.pixel_values"], state(whole, step=3)[0]["set.pixel_values"])


# Interrupted


@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(runs, whole, half, tmp_path):
    folder = shutil.copytree(half, tmp_path / "resumed")
    check_same_bits(runs.finish(folder, resume_from_checkpoint="latest"), whole)


# A cluster's signal, to one of the processes, in the middle of the first step.
SIGNAL = """
import os, signal
from hf_distill.engine.loop import Distiller
known = Distiller.objection
def objection(self, logs):
    self.seen = getattr(self, "seen", 0) + 1
    if self.seen == 1 and self.accelerator.process_index == self.accelerator.num_processes - 1:
        for _ in range(2):
            os.kill(os.getpid(), signal.{name})
    return known(self, logs)
Distiller.objection = objection
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), [("SIGTERM", 1), ("SIGUSR1", 2)])
def test_a_run_that_a_cluster_ends_keeps_its_next_step_and_goes_on_as_it_says(runs, whole, double, name, processes):
    if processes == 1 and runs.method is not LOOPED[0]:
        pytest.skip("two processes are ended as one is, and more")
    folder = runs.home / f"ended by {name}"
    ended = runs.start(folder, processes, before=SIGNAL.format(name=name))
    assert ended.status == [1] * processes
    (line,) = [line for line in ended.err.splitlines() if "interrupted" in line]
    assert line.startswith("interrupted: the same command with --resume_from_checkpoint latest goes on")
    assert "Traceback" not in ended.err
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (folder / ".claim").exists()
    uninterrupted = whole if processes == 1 else double
    check_same_bits(runs.finish(folder, processes, resume_from_checkpoint="latest"), uninterrupted)


# Dies while the second checkpoint, that of step 6, is being written.
KILL = """
import os, signal, types
from hf_distill.runs import checkpoints

def dies_the_second_time(function, calls=[]):
    def call(*args):
        calls.append(args)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return call

"""
MOMENTS = {
    "before the tensors": "checkpoints.save_file = dies_the_second_time(checkpoints.save_file)",
    "between the tensors and the rest": "checkpoints.save_json = dies_the_second_time(checkpoints.save_json)",
    "before it gets its name": "checkpoints.os = types.SimpleNamespace(**vars(os))\n"
    "checkpoints.os.replace = dies_the_second_time(os.replace)",
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_while_it_writes_a_checkpoint_leaves_the_last_whole_one(runs, whole, once, moment):
    folder = runs.home / f"killed {moment}"
    assert runs.start(folder, before=KILL + MOMENTS[moment]).status == [-9]
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-3"]
    assert (folder / ".checkpoint-6.partial").is_dir()
    check_same_state(folder, whole, step=3)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_last_whole_checkpoint(runs, whole):
    folder = runs.home / "killed"
    assert runs.start(folder, before=KILL + MOMENTS["before it gets its name"]).status == [-9]
    check_same_state(folder, whole, step=3)
    check_same_bits(runs.finish(folder, resume_from_checkpoint="latest"), whole)
    assert not list(folder.glob(".*partial"))


# Spread


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_twice_the_accumulation(runs, whole, double):
    one = runs.finish(gradient_accumulation_steps=2, select="last", **LEAN)
    (found, _), (wanted, _) = state(double), state(one)
    assert {name for name in found if not name.startswith("best.")} == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(wanted["set.pixel_values"], state(whole)[0]["set.pixel_values"], rtol=1e-3, atol=1e-4)


# Diverging


@pytest.mark.parametrize("flag", ["lr_img", "lr_lr"])
def test_a_run_that_diverges_says_what_to_lower_and_keeps_the_last_good_state(runs, initial, flag):
    if flag not in runs.known:
        pytest.skip(f"{runs.name} has no --{flag}")
    rate = 1e30
    folder = runs.home / f"diverged {flag}"
    stopped = runs.start(folder, **{flag: rate})
    assert stopped.status == [1]
    (line,) = [line for line in stopped.err.splitlines() if line.startswith("error:")]
    assert f"--{flag} {rate:g}" in line
    assert "Traceback" not in stopped.err
    (checkpoint,) = folder.glob("checkpoint-*")
    assert f"{checkpoint}." in line
    tensors = load_file(checkpoint / "state.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    if checkpoint.name == "checkpoint-0":
        # The step that failed changed nothing: neither the images, nor what the optimizer remembers.
        assert torch.equal(tensors["set.pixel_values"], initial.pixel_values)
        assert not any(tensor.any() for name, tensor in tensors.items() if name.endswith("momentum_buffer"))
    assert not (folder / "README.md").exists()


def test_a_diverging_learning_rate_stops_a_run_without_momentum_too(runs):
    if not {"lr_lr", "mom_img"} <= runs.known:
        pytest.skip(f"{runs.name} has no --lr_lr or no --mom_img")
    folder = runs.home / "diverged without momentum"
    stopped = runs.start(folder, lr_lr=10, mom_img=0)
    assert stopped.status == [1]
    assert "learned learning rate went" in stopped.err
    assert "Traceback" not in stopped.err
    assert list(folder.glob("checkpoint-*"))


# Continuing what cannot be continued


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"normalization": "none"}, ("preprocessing",)),
        ({"validation_fraction": 0.3}, ("images",)),
        ({"max_train_samples": 150}, ("images",)),
        ({"student_width": 4}, ("student",)),
        ({"num_experts": 3}, ("experts",)),
    ],
    ids=lambda value: "-".join(value),
)
def test_a_checkpoint_of_other_images_or_experts_is_refused(runs, half, flags, named):
    if not flags.keys() <= runs.known:
        pytest.skip(f"{runs.name} has no such flag")
    if flags.keys() & {"normalization", "validation_fraction"} and runs.method is not LOOPED[0]:
        pytest.skip("one way to have other images is enough")
    kept = sorted(path.name for path in half.iterdir())
    stopped = runs.start(half, resume_from_checkpoint="latest", **flags)
    assert stopped.status == [1], stopped.err
    (line,) = [line for line in stopped.err.splitlines() if line.startswith("error:")]
    assert any(word in line for word in named)
    assert sorted(path.name for path in half.iterdir()) == kept


# Selecting

# What selection is told, in turn.
SAID = """
import hf_distill.engine.loop
said = iter({accuracies})
hf_distill.engine.loop.validation_accuracy = lambda *args: next(said)
"""


@pytest.mark.parametrize(
    ("accuracies", "step"),
    [([0.1, 0.3, 0.2, 0.3], 2), ([0.5, 0.4, 0.3, 0.2], 0), ([0.1, 0.2, 0.3, 0.4], 6)],
)
def test_the_first_of_the_best_steps_on_held_out_images_is_kept(runs, accuracies, step, tmp_path):
    if step != 2 and runs.method is not LOOPED[0]:
        pytest.skip("one step to put back is enough")
    flags = {"eval_steps": 2, "save_steps": 2, "save_total_limit": 9, **LEAN}
    done = runs.start(tmp_path, before=SAID.format(accuracies=accuracies), **flags)
    assert done.status == [0], done.err
    distilled = DistilledSet.from_pretrained(tmp_path)
    assert distilled.config["selected_step"] == step
    if step:
        torch.testing.assert_close(distilled.pixel_values.detach(), images(tmp_path, step), rtol=1e-5, atol=1e-5)
    else:
        assert not torch.allclose(distilled.pixel_values, images(tmp_path, 2), rtol=1e-3, atol=1e-3)


def test_without_selection_or_held_out_images_the_last_step_is_kept_and_nothing_is_asked(runs, half, once, tmp_path):
    resumed = shutil.copytree(half, tmp_path / "resumed")  # it selected, and what it remembers is in its checkpoint
    flags = {"select": "last", "resume_from_checkpoint": "latest"}
    done = runs.start(resumed, before=SAID.format(accuracies=[]), **LEAN, **flags)
    assert done.status == [0], done.err
    assert DistilledSet.from_pretrained(resumed).config["selected_step"] == 6
    warned = "--select is best, and no training image is held out to choose by: the last step is kept; expected"
    assert warned not in done.err
    folder = tmp_path / "none held out"
    done = runs.start(folder, before=SAID.format(accuracies=[]), validation_fraction=0, **LEAN)
    assert done.status == [0], done.err
    assert warned in done.err
    distilled = DistilledSet.from_pretrained(folder)
    assert distilled.config["selected_step"] == 6
    torch.testing.assert_close(distilled.pixel_values.detach(), images(folder), rtol=1e-5, atol=1e-5)


# On an accelerator


@pytest.fixture(scope="module", params=LOOPED, ids=lambda method: method.__name__)
def accelerated(request, accelerated_recipes, tmp_path_factory) -> Runs:
    return Runs(request.param, accelerated_recipes, tmp_path_factory.mktemp("accelerated"))


@pytest.mark.gpu
@pytest.mark.slow
def test_on_an_accelerator_a_run_leaves_finite_numbers_and_a_whole_artifact(accelerated, tmp_path):
    initial = DistilledSet.from_pretrained(accelerated.finish(max_steps=0))
    folder = accelerated.finish(max_steps=2, select="last")
    distilled = DistilledSet.from_pretrained(folder)
    assert not torch.equal(distilled.pixel_values, initial.pixel_values)
    assert distilled.pixel_values.isfinite().all()
    assert distilled.lr is None or 0 < distilled.lr < float("inf")
    assert {row.set for row in distilled.report.rows} == {"full data", "random", "herding", "k-center", "distilled"}
    assert all(row.device != "cpu" for row in distilled.report.rows)
    assert (folder / "assets" / "grid.png").stat().st_size > 0
    again = DistilledSet.from_pretrained(distilled.save_pretrained(tmp_path / "copy"))
    assert torch.equal(again.pixel_values, distilled.pixel_values)


@pytest.mark.gpu
@pytest.mark.slow
def test_on_an_accelerator_a_resumed_run_ends_near_one_that_was_not_stopped(accelerated):
    """Sums of some kernels have no fixed order there, so the bits may differ; where the images went may not."""
    start = DistilledSet.from_pretrained(accelerated.finish(max_steps=0)).pixel_values
    whole = DistilledSet.from_pretrained(accelerated.finish(select="last")).pixel_values
    folder = accelerated.finish(max_steps=3, select="last")
    accelerated.finish(folder, select="last", resume_from_checkpoint="latest")
    resumed = DistilledSet.from_pretrained(folder).pixel_values
    assert (resumed - whole).norm() < 0.02 * (whole - start).norm()


@pytest.mark.gpu
@pytest.mark.slow
def test_an_accelerator_takes_images_where_a_cpu_takes_them(accelerated, recipes, tmp_path):
    if not accelerated.method.learns_experts:
        pytest.skip(f"{accelerated.name} learns from no experts, which both could have")
    cpu = Runs(accelerated.method, recipes, tmp_path)
    start = DistilledSet.from_pretrained(cpu.finish(max_steps=0)).pixel_values
    expected = DistilledSet.from_pretrained(cpu.finish(max_steps=2, select="last")).pixel_values
    (experts,) = tmp_path.glob("outputs/experts-*")  # the same ones, so that only the distillation differs
    folder = accelerated.finish(max_steps=2, select="last", experts=experts)
    found = DistilledSet.from_pretrained(folder).pixel_values
    assert (found - expected).norm() < 0.02 * (expected - start).norm()
