"""MTT and TESLA: which segments and images a draw takes, and what gradient it leaves."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from hf_distill import DistillationDiverged
from hf_distill.augmentation.dsa import DSA
from hf_distill.config import BASELINES, DataArguments
from hf_distill.data.images import RealImages
from hf_distill.distilled import targets
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.labels import TeacherLabels
from hf_distill.evaluation.trainer import Result, Trainer
from hf_distill.methods import MTT, TESLA, MTTConfig, TESLAConfig
from hf_distill.methods.unroll import MatchingGradient
from hf_distill.networks.architectures import FlatModel, StudentSpec
from hf_distill.networks.trajectories import ExpertTrajectories
from hf_distill.runs.stopping import Stop
from hf_distill.training.experts import ExpertConfig, train_experts
from tests.helpers import without_sums
from tests.helpers.events import Notes
from tests.helpers.graphs import nodes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def train() -> RealImages:
    return RealImages.train_and_test(DataArguments(max_train_samples=100, max_test_samples=20))[0]


@pytest.fixture(scope="module")
def experts(train, tmp_path_factory) -> ExpertTrajectories:
    config = ExpertConfig(
        student="convnet_d1",
        student_width=4,
        num_experts=3,
        lr_teacher=0.05,
        batch_train=50,
        experts_at_once="3",
        dsa_strategy="color_crop_cutout_scale_rotate",
    )
    folder = tmp_path_factory.mktemp("experts") / "experts"
    return train_experts(train, config, folder, epochs=4, seed=0, accelerator=Accelerator(cpu=True), disable_tqdm=True)


FLAGS: dict[str, Any] = {
    "ipc": 2,
    "syn_steps": 3,
    "expert_epochs": 2,
    "max_start_epoch": 3,
    "batch_syn": 8,
    "lr_init": 0.1,
    "lr_img": 1.0,
    "lr_lr": 1e-3,
    "disable_tqdm": True,
}


def mtt(train, experts, folder: Path, **flags: Any) -> MTT:
    return MTT(MTTConfig(**{**FLAGS, "output_dir": str(folder), **flags}), train, experts=experts)


def tesla(train, experts, folder: Path, **flags: Any) -> TESLA:
    config = TESLAConfig(**{**FLAGS, "label": "hard", "output_dir": str(folder), **flags})
    return TESLA(config, train, experts=experts)


def test_in_bfloat16_the_gradient_points_where_that_in_single_precision_does(train, experts, tmp_path, launch):
    def gradient(precision: str) -> torch.Tensor:
        config = TESLAConfig(**{**FLAGS, "output_dir": str(tmp_path), "lr_init": 0.01})
        return gradients(TESLA(config, train, experts=experts, accelerator=launch(precision)), 0)[1].flatten()

    single, half = gradient("no"), gradient("bf16")
    assert not torch.equal(single, half)
    assert F.cosine_similarity(single, half, dim=0) > 0.99


def gradients(method, draw: int) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
    """What one draw logs, ∂L/∂X and ∂L/∂β."""
    method.distilled = method.setup()
    method.begin(draw)  # with one process and no accumulation, a step is a draw
    method._clear()
    logs = method.step(draw)
    return {key: float(value) for key, value in logs.items()}, images_gradient(method), method.distilled.lr.grad


def images_gradient(method) -> torch.Tensor:
    """∂L/∂X of all images, of the step that is under way."""
    optimizer = method.optimizers[0]
    whole = torch.zeros_like(method.distilled.pixel_values)
    return whole.index_copy(0, optimizer.rows, optimizer.gradient)


# Draws


def test_every_round_takes_each_expert_once_and_starts_fill_their_range(train, experts, tmp_path):
    method = mtt(train, experts, tmp_path)
    segments = [method.segment(draw) for draw in range(300)]
    for first in range(0, 300, 3):
        assert {expert for expert, _ in segments[first : first + 3]} == {0, 1, 2}
    assert len({tuple(expert for expert, _ in segments[first : first + 3]) for first in range(0, 300, 3)}) == 6
    counts = Counter(start for _, start in segments)
    assert set(counts) == {0, 1, 2}
    assert all(60 < count < 140 for count in counts.values())
    assert mtt(train, experts, tmp_path).segment(7) == segments[7]
    assert [mtt(train, experts, tmp_path, seed=1).segment(draw) for draw in range(30)] != segments[:30]


@pytest.mark.parametrize("size", [None, 6, 20, 99])
def test_steps_take_blocks_of_a_permutation_and_a_new_one_when_it_is_used_up(train, experts, tmp_path, size):
    method = mtt(train, experts, tmp_path, batch_syn=size, syn_steps=7)
    method.distilled = method.setup()
    taken_by_all, used, steps = method.schedule(5)
    assert torch.equal(taken_by_all, used)
    assert len(steps) == 7
    taken = [used[step.rows].tolist() for step in steps]
    sizes = {6: [6, 6, 6, 2, 6, 6, 6]}.get(size, [20] * 7)
    assert [len(rows) for rows in taken] == sizes
    everything = [row for rows in taken for row in rows]
    for first in range(0, len(everything) - 19, 20):
        assert sorted(everything[first : first + 20]) == list(range(20))
    assert used.tolist() == sorted(set(everything))
    again = method.schedule(5)
    assert torch.equal(again[1], used)
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(again[2], steps, strict=True))
    other = method.schedule(6)
    assert [other[1][step.rows].tolist() for step in other[2]] != taken


@pytest.mark.parametrize("size", [1, 3, 6])
def test_of_a_permutation_no_more_blocks_are_made_than_the_steps_take(train, experts, tmp_path, size):
    made = []

    class Splits(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            made.extend([len(found)] if func.overloadpacket.__name__.startswith("split") else [])
            return found

    method = mtt(train, experts, tmp_path, batch_syn=size, syn_steps=2)
    method.distilled = method.setup()
    with Splits():
        method.schedule(0)
    assert made
    assert max(made) == 2


def test_a_draw_is_augmented_as_the_experts_were_or_not_at_all(train, experts, tmp_path):
    method = mtt(train, experts, tmp_path, syn_steps=30)
    method.distilled = method.setup()
    operations = {step.augment.operation for step in method.schedule(0)[2]}
    assert operations == {"color", "crop", "cutout", "scale", "rotate"}
    assert method.protocol.dsa_strategy == "color_crop_cutout_scale_rotate"
    plain = mtt(train, experts, tmp_path, dsa=False)
    plain.distilled = plain.setup()
    assert {step.augment.operation for step in plain.schedule(0)[2]} == {"none"}


# Gradients


def unrolled(method, draw: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L, ∂L/∂X and ∂L/∂log β by autograd through plain SGD on a module's own parameters."""
    config = method.config
    expert, epoch = method.segment(draw)
    rows = [method.experts.row(expert, epoch + ahead) for ahead in (0, config.expert_epochs)]
    pixels = method.distilled.pixel_values.detach().clone().requires_grad_()
    lr = method.distilled.lr.detach().clone().requires_grad_()
    model = method.experts.flat_model()
    theta = rows[0].clone().requires_grad_()
    _, used, steps = method.schedule(draw)
    for step in steps:
        images = DSA.apply(pixels[used[step.rows]], step.augment)
        loss = F.cross_entropy(model(theta, images), method.distilled.labels[used[step.rows]])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - lr * gradient
    loss = ((theta - rows[1]) ** 2).sum() / ((rows[0] - rows[1]) ** 2).sum()
    return loss.detach(), *torch.autograd.grad(loss, (pixels, lr))


@pytest.mark.parametrize("make", [mtt, tesla])
def test_a_step_leaves_the_gradient_of_the_matching_loss(train, experts, tmp_path, make):
    method = make(train, experts, tmp_path)
    for draw in range(3):
        logs, pixels, lr = gradients(method, draw)
        loss, wanted, wanted_lr = unrolled(method, draw)
        assert logs["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert logs["start_epoch"] == method.segment(draw)[1]
        torch.testing.assert_close(pixels, wanted, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(lr, wanted_lr, rtol=1e-4, atol=1e-6)


def test_published_labels_are_asked_for_in_parts(train, experts, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "TEST_BATCH", 8)
    method = tesla(train, experts, tmp_path, label="expert")
    method.distilled = method.setup()
    pixels, teacher = method.distilled.pixel_values.detach(), method.distilled.teacher
    expected = torch.cat([teacher(part, None, None) for part in pixels.split(8)]).half()
    asked, known = [], TeacherLabels.__call__

    def ask(self, images, *rest):
        asked.append(len(images))
        return known(self, images, *rest)

    monkeypatch.setattr(TeacherLabels, "__call__", ask)
    method.relabel(method.distilled)
    assert asked == [8, 8, 4]
    assert torch.equal(method.distilled.soft_labels, expected)


@pytest.mark.parametrize("make", [mtt, tesla])
def test_the_normalisation_of_the_student_is_the_one_to_differentiate_twice(train, experts, tmp_path, make):
    method = make(train, experts, tmp_path)
    logits = method.student.model(experts.row(0, 0).clone().requires_grad_(), torch.zeros(2, *train.shape))
    assert any("Normalised" in name for name in nodes(logits))
    assert not any("GroupNorm" in name for name in nodes(logits))


@pytest.mark.parametrize("make", [mtt, tesla])
def test_an_expert_that_did_not_move_is_refused(train, experts, tmp_path, make):
    method = make(train, experts, tmp_path)
    expert, epoch = method.segment(0)
    row = method.experts.row(expert, epoch)
    method.experts = SimpleNamespace(num_experts=experts.num_experts, segment=lambda *where: (row, row.clone()))
    where = f"expert {expert} are the same after {epoch} and {epoch + 2} epochs"
    with pytest.raises(ValueError, match=f"{where}; expected a segment over which it moves"):
        method.begin(0)


def test_images_that_a_draw_does_not_take_have_no_gradient_and_draws_add_up(train, experts, tmp_path):
    method = tesla(train, experts, tmp_path, syn_steps=1)
    _, one, one_lr = gradients(method, 0)
    _, used, _ = method.schedule(0)
    assert {row for row in range(20) if one[row].abs().sum() > 0} <= set(used.tolist())
    assert len(used) == 8
    _, two, two_lr = gradients(method, 1)
    both = tesla(train, experts, tmp_path, syn_steps=1, gradient_accumulation_steps=2)
    both.distilled = both.setup()
    both._gradients(0, Stop())
    torch.testing.assert_close(images_gradient(both), (one + two) / 2)
    torch.testing.assert_close(both.distilled.lr.grad, (one_lr + two_lr) / 2)


# Images that an iteration does not take


def by_sgd(train, experts, folder: Path, **flags: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The images after each iteration of TESLA, by PyTorch's SGD of all of them, and β in the end."""
    method = tesla(train, experts, folder, **flags)
    config, found = method.config, []
    gradients(method, 0)
    images = torch.nn.Parameter(method.distilled.pixel_values.detach().clone())
    rates = {"momentum": config.mom_img}
    optimizers = [torch.optim.SGD([images], lr=config.lr_img, **rates)]
    optimizers += [torch.optim.SGD([method.distilled.lr], lr=config.lr_lr, **rates)]
    for step in range(config.max_steps):
        method.begin(step)
        with torch.no_grad():
            method.distilled.pixel_values.copy_(images)
        method._clear()
        method.step(step)
        images.grad = images_gradient(method)
        for optimizer in optimizers:
            optimizer.step()
        method.constrain()
        found.append(images.detach().clone())
    return found, method.distilled.lr.detach()


FEW = {"batch_syn": 3, "syn_steps": 2, "lr_img": 5.0, "lr_lr": 1e-4, "max_steps": 9}  # six of 20 images in an iteration


def test_images_move_as_by_sgd_of_all_of_them_and_whoever_looks_sees_that(train, experts, tmp_path):
    expected, lr = by_sgd(train, experts, tmp_path, **FEW)
    looked: list[torch.Tensor] = []

    class Looks(Notes):
        def on_step(self, state) -> None:
            looked.append(state.artifact.pixel_values.detach().clone())

    config = TESLAConfig(**{**FLAGS, **FEW, "label": "hard", "output_dir": str(tmp_path / "run"), "select": "last"})
    method = TESLA(config, train, experts=experts, callbacks=[Looks()])
    distilled = method.run()
    assert len(looked) == len(expected) == 9
    for one, other in zip(looked, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert torch.equal(distilled.pixel_values, looked[-1])
    torch.testing.assert_close(distilled.lr.detach(), lr)
    state = load_file(tmp_path / "run" / "checkpoint-9" / "state.safetensors")
    assert state["optimizer.0.behind"].max() > 0
    assert not torch.equal(state["set.pixel_values"], distilled.pixel_values)


def test_at_an_evaluation_the_labels_are_those_of_the_images_as_they_are(train, experts, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_distill.engine.loop.validation_accuracy", lambda *_: 0.5)
    rest, held_out = train.split(0.2, seed=0)
    experts.check_matches = lambda train: None  # of all the images
    apart: list[float] = []

    class Looks(Notes):
        def on_evaluate(self, state) -> None:
            seen = state.artifact
            labels = seen.teacher(seen.pixel_values.detach(), seen.labels, torch.arange(len(seen)))
            apart.append((labels.half() - seen.soft_labels).abs().max().item())

    config = TESLAConfig(**{**FLAGS, **FEW, "output_dir": str(tmp_path), "eval_steps": 1, "max_steps": 4})
    TESLA(config, rest, experts=experts, held_out=held_out, callbacks=[Looks()]).run()
    assert len(apart) == 5
    assert max(apart) < 1e-2


@pytest.mark.parametrize("make", [mtt, tesla])
def test_neither_saving_nor_evaluating_nor_going_on_changes_a_bit(make, train, experts, tmp_path, monkeypatch):
    accuracies = iter([0.1, 0.2, 0.9, 0.3, 0.4] * 3)
    monkeypatch.setattr("hf_distill.engine.loop.validation_accuracy", lambda *_: next(accuracies))
    train, held_out = train.split(0.2, seed=0)

    def run(name: str, **flags: Any) -> tuple[Path, torch.Tensor]:
        config = make(train, experts, tmp_path / name, **{**FEW, "save_total_limit": None, **flags}).config
        method = type(make(train, experts, tmp_path))(config, train, experts=experts, held_out=held_out)
        return tmp_path / name, method.run().pixel_values.detach()

    experts.check_matches = lambda train: None  # of all the images
    last, plain = run("plain", select="last", save_steps=9)
    often, busy = run("busy", select="best", save_steps=1, eval_steps=3)
    run("stopped", select="last", save_steps=2, max_steps=4)
    again, resumed = run("stopped", select="last", save_steps=5, resume_from_checkpoint="latest")
    assert torch.equal(plain, resumed)
    tensors = load_file(last / "checkpoint-9" / "state.safetensors")
    for other in (often, again):
        found = load_file(other / "checkpoint-9" / "state.safetensors")
        for name, tensor in tensors.items():
            assert torch.equal(found[name], tensor), name
    # What was best is kept as it was at that step, with all images where they were then.
    best = run("best", select="last", max_steps=6)[1]
    assert torch.equal(busy, best)


def test_a_run_gone_on_with_at_another_rate_moves_what_was_behind_at_the_first_one(train, experts, tmp_path):
    def run(**flags: Any) -> torch.Tensor:
        return tesla(train, experts, tmp_path, **{**FEW, "select": "last", **flags}).run().pixel_values.detach()

    before = run(max_steps=4)
    after = run(max_steps=5, lr_img=0.0, resume_from_checkpoint="latest")
    torch.testing.assert_close(after, before)


def test_the_unroll_of_mtt_says_that_it_is_not_compiled(train, experts, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("hf_distill.engine.loop.say_uncompiled", lambda accelerator, work: said.append(work))
    tesla(train, experts, tmp_path / "tesla", max_steps=1, select="last").run()
    mtt(train, experts, tmp_path / "none", max_steps=0).run()
    assert said == []
    mtt(train, experts, tmp_path / "mtt", max_steps=1, select="last").run()
    assert said == ["the unroll of MTT (that of TESLA, which has the same gradient, it does)"]


# Batches that processes share


@pytest.mark.parametrize("draw", range(3))
@pytest.mark.parametrize("size", [7, 19])  # of 20 images: a second batch of one, of which two processes have nothing
def test_the_parts_of_a_batch_are_all_of_it_and_their_gradients_add_up(train, experts, tmp_path, size, draw):
    flags = {"batch_syn": size, "syn_momentum": 0.5}
    whole, wanted, wanted_lr = gradients(tesla(train, experts, tmp_path, **flags), draw)
    world, found = 3, []
    methods = [tesla(train, experts, tmp_path, **flags) for _ in range(world)]
    meeting, given = threading.Barrier(world), {}

    def total(own: int, values: torch.Tensor) -> torch.Tensor:  # as processes would
        given[own] = values
        meeting.wait()
        summed = sum(given[other] for other in range(world))
        meeting.wait()
        return summed

    def work(own: int) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
        method = methods[own]
        method.config.shard_steps = True
        method.accelerator = SimpleNamespace(num_processes=world, process_index=own, device=method.device)
        method.student = replace(method.student, total=lambda values: total(own, values))
        return gradients(method, draw)

    with ThreadPoolExecutor(world) as threads:
        found = list(threads.map(work, range(world)))
    for logs, _, lr in found:
        assert logs["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        torch.testing.assert_close(lr, wanted_lr, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sum(pixels for _, pixels, _ in found) / world, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "more"), [("tesla", {}), ("datm", {"max_loss": 100, "lr_y": 20})])
def test_two_processes_that_share_each_batch_end_where_one_process_does(recipe, more, recipes, tmp_path):
    tiny = "max_train_samples=100 max_test_samples=20 student=convnet_d1 student_width=4 num_experts=1 ipc=1"
    tiny += " expert_train_epochs=4 batch_syn=5 syn_steps=2 lr_img=2 max_steps=4 select=last"
    tiny += " eval_seeds=1 eval_protocol=tiny eval_full_data=false eval_baselines=random"
    flags = {**FLAGS, **dict(part.split("=") for part in tiny.split())}
    sets = []
    for processes, own in ((1, {}), (2, {"shard_steps": True})):
        folder = tmp_path / str(processes)
        done = recipes(recipe, {**flags, **more, **own, "output_dir": folder}, tmp_path, processes=processes)
        assert done.status == [0] * processes, done.err
        sets.append(DistilledSet.from_pretrained(folder))
    one, two = sets
    torch.testing.assert_close(two.pixel_values, one.pixel_values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(two.lr, one.lr, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(two.soft_labels, one.soft_labels, rtol=1e-3, atol=5e-3)  # stored as float16
    assert not torch.allclose(one.pixel_values, one.pixel_values.roll(1, 0))


@pytest.mark.parametrize(
    ("processes", "flags", "says"),
    [
        (1, {}, "--shard_steps shares the images of a step among processes, and there is one; expected several"),
        (4, {"batch_syn": 3}, "shares the 3 image.s. of a step .--batch_syn. among 4 processes; expected at least one"),
        (30, {"batch_syn": None}, "shares the 20 image.s. of a step"),
    ],
)
def test_steps_that_cannot_be_shared_are_refused(train, tmp_path, processes, flags, says):
    config = TESLAConfig(**{**FLAGS, "shard_steps": True, "output_dir": str(tmp_path), **flags})
    accelerator = SimpleNamespace(num_processes=processes, mixed_precision="no", is_main_process=True)
    with pytest.raises(ValueError, match=says):
        TESLA.check(config, train.outline, accelerator)


@pytest.mark.parametrize("flags", [{"micro_batch_size": 2}, {"shard_steps": True}])
def test_with_batchnorm_a_batch_is_not_shown_in_parts(flags, train, experts, tmp_path, monkeypatch):
    monkeypatch.setattr(TESLA, "check", lambda *_: None)  # of processes
    spec = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": "batch"})
    monkeypatch.setattr(experts, "flat_model", lambda: FlatModel.from_spec(spec))
    with pytest.raises(ValueError, match=f"--{next(iter(flags))} shows the images .* in parts, and .* BatchNorm"):
        tesla(train, experts, tmp_path, **flags)


def test_with_batchnorm_that_is_said_before_experts_are_trained(train, tmp_path):
    config = TESLAConfig(**{**FLAGS, "micro_batch_size": 2, "output_dir": str(tmp_path)})
    settings = ExpertConfig(student="convnet_d1", student_width=4, student_norm="batch")
    with pytest.raises(ValueError, match="--micro_batch_size shows the images of a step in parts"):
        TESLA.check(config, train.outline, Accelerator(cpu=True), [settings])


def test_what_a_checkpoint_knows_nothing_of_is_no_other_setting_where_it_is_not_asked_for(
    train, experts, tmp_path, caplog
):
    tesla(train, experts, tmp_path, **{**FEW, "select": "last", "max_steps": 2}).run()
    folder = without_sums(tmp_path / "checkpoint-2")
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["config"].pop("shard_steps") is False
    (folder / "trainer_state.json").write_text(json.dumps(state))
    flags = {**FEW, "select": "last", "max_steps": 3, "resume_from_checkpoint": "latest"}
    tesla(train, experts, tmp_path, **flags).run()
    assert "other settings" not in caplog.text


class Quadratic(TESLA):
    """The images do not matter, and L = c (β − β*)² / 2."""

    curvature, optimum = 1.0, 0.03

    def matching_gradient(self, start, target, pixels, labels, steps, lr) -> MatchingGradient:
        apart = lr - self.optimum
        return MatchingGradient(
            self.curvature * apart.square() / 2, torch.zeros_like(pixels), self.curvature * apart, lr.new_zeros(())
        )


def quadratic(train, experts, folder: Path, curvature: float, *, callbacks: Any = (), **flags: Any) -> Quadratic:
    config = TESLAConfig(**{**FLAGS, "label": "hard", "output_dir": str(folder), "select": "last", **flags})
    method = Quadratic(config, train, experts=experts, callbacks=callbacks)
    method.curvature = curvature
    return method


@pytest.mark.parametrize("ratio", [1e-3, 1.0, 10.0])  # lr_lr / lr_init²; that of CIFAR-10 at IPC 10 and 50 is 10
def test_the_learning_rate_goes_the_way_of_sgd_with_momentum_to_a_known_optimum(train, experts, tmp_path, ratio):
    first = 0.005
    lr_lr, curvature = ratio * first**2, 0.2 / (ratio * first**2)  # so that a step goes a fifth of the way
    flags = {"lr_init": first, "lr_lr": lr_lr, "max_steps": 40}
    notes = Notes()
    method = quadratic(train, experts, tmp_path, curvature, callbacks=[notes], logging_steps=1, **flags)
    distilled = method.run()
    states = [state.values["student_lr"] for event, state in notes.events if event == "step"]
    lr, velocity, expected = first, 0.0, []
    for _ in range(40):
        velocity = 0.5 * velocity + curvature * (lr - 0.03)
        lr -= lr_lr * velocity
        expected.append(lr)
    assert states == pytest.approx(expected, rel=1e-4)
    assert distilled.lr.item() == pytest.approx(0.03, rel=1e-3)


def test_a_learning_rate_that_is_to_fall_below_zero_stays_at_a_hundredth_and_it_is_said_once(
    train, experts, tmp_path, caplog
):
    method = quadratic(train, experts, tmp_path, 1e6, lr_init=0.5, lr_lr=1e-6, max_steps=45)
    method.optimum = -1.0
    assert method.run().lr.item() == pytest.approx(0.005)
    (said,) = [record.getMessage() for record in caplog.records if "lower end" in record.getMessage()]
    assert "0.005, for 20 steps" in said
    assert "--lr_lr (1e-06)" in said
    caplog.clear()
    method = quadratic(train, experts, tmp_path / "short", 1e6, lr_init=0.5, lr_lr=1e-6, max_steps=19)
    method.optimum = -1.0
    method.run()
    assert "lower end" not in caplog.text


@pytest.mark.parametrize(("curvature", "optimum"), [(1.0, 1e9), (float("nan"), 0.0)])
def test_a_learning_rate_that_leaves_all_bounds_ends_the_run_before_the_step(
    train, experts, tmp_path, curvature, optimum
):
    method = quadratic(train, experts, tmp_path, curvature, lr_init=0.5, lr_lr=1e-6)
    method.optimum = optimum
    with pytest.raises(DistillationDiverged, match=r"step 1 of quadratic: the (loss|learned learning rate went)"):
        method.run()
    assert method.distilled.lr.item() == 0.5


def test_a_checkpoint_in_which_the_logarithm_was_learned_goes_on(train, experts, tmp_path, caplog):
    flags = {"lr_init": 0.02, "lr_lr": 1e-4, "max_steps": 3}
    quadratic(train, experts, tmp_path, 50.0, **flags).run()
    folder = without_sums(tmp_path / "checkpoint-3")
    state = load_file(folder / "state.safetensors")
    rate, velocity = state["set.lr"], state["optimizer.1.momentum_buffer"]
    older = {key: value for key, value in state.items() if key != "set.lr"}
    older |= {"set.log_lr": rate.log(), "optimizer.1.momentum_buffer": velocity * rate}
    save_file(older, folder / "state.safetensors")
    again = quadratic(train, experts, tmp_path, 50.0, **{**flags, "max_steps": 5}, resume_from_checkpoint="latest")
    plain = quadratic(train, experts, tmp_path / "plain", 50.0, **{**flags, "max_steps": 5})
    assert again.run().lr.item() == pytest.approx(plain.run().lr.item(), rel=1e-5)
    assert "learned the logarithm" in caplog.text


def test_without_rates_nothing_moves_and_the_first_images_are_real_ones_of_their_class(train, experts, tmp_path):
    distilled = mtt(train, experts, tmp_path, lr_img=0, lr_lr=0, max_steps=2, select="last").run()
    assert distilled.lr.item() == pytest.approx(0.1)
    for image, label in zip(distilled.pixel_values, distilled.labels.tolist(), strict=True):
        real = train.images(train.class_rows(label))
        assert any(torch.equal(image, candidate) for candidate in real)
    assert len(distilled.pixel_values.flatten(1).unique(dim=0)) == 20


def test_noise_is_noise(train, experts, tmp_path):
    pixels = mtt(train, experts, tmp_path, init="noise").setup().pixel_values
    assert abs(pixels.mean()) < 0.15
    assert abs(pixels.std() - 1) < 0.1


def test_experts_with_too_few_epochs_are_refused(train, experts, tmp_path):
    with pytest.raises(ValueError, match=r"hold 4 epochs and --max_start_epoch 4 with --expert_epochs 2 reads 5"):
        mtt(train, experts, tmp_path, max_start_epoch=4)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"syn_steps": 0}, "--syn_steps is 0; expected at least 1"),
        ({"lr_init": 0}, "--lr_init is 0; expected a learning rate above 0"),
        ({"lr_img": -1}, "--lr_img is -1; expected at least 0"),
        ({"mom_img": 1.5}, "--mom_img is 1.5; expected a number from 0 to 1"),
        ({"curvature": 2}, "--curvature is 2; expected 0"),
        ({"label": "none"}, "--label is 'none'; expected one of"),
        ({"micro_batch_size": 0}, "--micro_batch_size is 0; expected at least 1"),
    ],
)
def test_a_wrong_hyper_parameter_is_named(flags, says):
    with pytest.raises(ValueError, match=says):
        TESLAConfig(**flags)


# Labels


@pytest.mark.parametrize("make", [mtt, tesla])
def test_without_full_data_the_last_state_of_the_first_expert_chooses_the_coresets(
    make, train, experts, tmp_path, monkeypatch
):
    monkeypatch.setattr(Trainer, "measure", lambda self, cases: [Result(case, 0.1, [0.5]) for case in cases])
    flags = {"max_steps": 0, "select": "last", "eval_full_data": False, "eval_seeds": 1}
    method = make(train, experts, tmp_path / "run", **flags)
    method.run()
    report = method.evaluate(train)
    guide, (context,) = method.guide(), report.meta.values()
    assert context["coresets"]["herding"] == f"features of the teacher convnet_d1 ({guide.digest})"
    x = train.images(range(5))
    torch.testing.assert_close(guide.logits(x), experts.flat_model()(experts.row(0, experts.num_epochs), x))


@pytest.mark.parametrize("full_data", [False, True])
def test_a_run_with_experts_can_be_compared_with_all_coresets(full_data, train, experts, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "measure", lambda self, cases: [Result(case, 0.1, [0.5]) for case in cases])
    flags = {"max_steps": 0, "select": "last", "eval_full_data": full_data, "eval_seeds": 1, "eval_protocol": "quick"}
    method = mtt(train, experts, tmp_path / "run", eval_baselines=["all"], **flags)
    method.run()
    report = method.evaluate(train)
    last = ["full data"] if full_data else []
    assert [row.set for row in report.rows] == [*last, "distilled", *BASELINES]
    (context,) = report.meta.values()
    comparing = ["herding", "k-center", "centroid", "neighbour", "bps"]
    assert list(context["coresets"]) == [*comparing, "el2n", "forgetting", "ccs"]
    assert len(list(experts.folder.glob("scores-*.safetensors"))) == 1


def test_published_labels_are_those_of_experts_and_none_with_hard_labels(train, experts, tmp_path):
    soft = tesla(train, experts, tmp_path / "soft", label="expert", label_experts=2, max_steps=1, select="last")
    distilled = soft.run()
    assert len(distilled.teacher.tensors()["thetas"]) == 2
    model, final = experts.flat_model(), experts.num_epochs
    logits = [model(experts.row(expert, final), distilled.pixel_values.detach()) for expert in (0, 2)]
    wanted = torch.stack(logits).mean(dim=0)
    torch.testing.assert_close(distilled.soft_labels.float(), wanted, rtol=1e-2, atol=1e-2)
    hard = tesla(train, experts, tmp_path / "hard", max_steps=0).run()
    assert hard.teacher is None
    assert hard.soft_labels is None
