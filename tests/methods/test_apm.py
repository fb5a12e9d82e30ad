"""APM: the gradient against autograd and finite differences, groups, memory, kills and shards."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from hf_distill.config import DataArguments
from hf_distill.data.feed import Pool
from hf_distill.data.images import RealImages
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.engine.blocks import Block
from hf_distill.engine.memory import SavedBytes, parse_bytes
from hf_distill.engine.shards import join_shards
from hf_distill.evaluation.accuracy import accuracy
from hf_distill.evaluation.students import train_student
from hf_distill.methods import APM, APMConfig
from hf_distill.methods.apm import (
    group_gradient,
    groups,
    kept_epochs,
    learning_rate,
    refreshes,
    segment_gradient,
)
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.teachers import Teacher, expert_teachers
from hf_distill.runs.checkpoints import save_checkpoint
from hf_distill.runs.finish import run_recipe
from hf_distill.training.experts import ExpertConfig, train_experts
from tests.helpers import without_sums
from tests.helpers.events import Signals

SPEC = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 8})
ALPHA = 0.3


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> tuple[RealImages, RealImages]:
    return RealImages.train_and_test(DataArguments(max_train_samples=300, max_test_samples=100))


@pytest.fixture(scope="module")
def teacher(data) -> Teacher:
    """A network that knows the digits somewhat."""
    train, _ = data
    model = SPEC.build(3)
    sgd = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    images = train.images(torch.arange(len(train)))
    for _ in range(60):
        sgd.zero_grad()
        F.cross_entropy(model(images), train.labels).backward()
        sgd.step()
    return Teacher(model, SPEC, train.class_names, train.preprocessing)


def small(activation: type[nn.Module], norm: bool = False, seed: int = 0) -> nn.Module:
    """A frozen network in float64 for 6x6 images of 4 classes."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5) if norm else nn.GroupNorm(5, 5), activation()]
    network = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(45, 4)).double()
    return network.eval().requires_grad_(False)


class Columns(nn.Module):
    """Some columns of a matrix."""

    def __init__(self, columns: list[int]) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.columns]


def problem(activation: type[nn.Module] = nn.ReLU, count: int = 7, norm: bool = False):
    """A teacher, three students, images and labels."""
    random = torch.Generator().manual_seed(9)
    x = torch.randn(count, 2, 6, 6, generator=random, dtype=torch.float64)
    labels = torch.randint(4, (count,), generator=random)
    return small(activation, norm, 1), [small(activation, norm, 2 + i) for i in range(3)], x, labels


def objective(teacher, students, x, labels, alpha: float, weight: float = 1.0) -> torch.Tensor:
    """L as the paper has it, as one expression."""
    logits = teacher(x)
    apart = sum((logits - student(x)).abs().sum() / logits.numel() for student in students)
    return -weight * apart - alpha * logits.log_softmax(1)[torch.arange(len(x)), labels].mean()


# The gradient


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_one_pass_through_the_teacher_gives_what_k_plus_one_separate_ones_give(reduce, norm):
    teacher, students, x, labels = problem(norm=norm)
    found, apart, ce = group_gradient(teacher, students, x, labels, ALPHA, reduce=reduce)
    at, weight = x.clone().requires_grad_(), 1 if reduce == "sum" else 1 / 3
    wanted = torch.zeros_like(x)
    distances = []
    for student in students:
        d = (teacher(at) - student(at)).abs().mean()
        wanted -= weight * torch.autograd.grad(d, at)[0]
        distances.append(weight * d.item())
    entropy = F.cross_entropy(teacher(at), labels)
    wanted += ALPHA * torch.autograd.grad(entropy, at)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    assert apart.item() == pytest.approx(sum(distances), rel=1e-12)
    assert ce.item() == pytest.approx(entropy.item(), rel=1e-12)


def test_of_a_teacher_of_more_classes_students_learn_theirs_and_the_cross_entropy_is_over_all():
    teacher, students, x, labels = problem()
    rows = torch.tensor([3, 1])  # of four
    of_two = [nn.Sequential(student, Columns([0, 2])).eval() for student in students]
    labels = labels % 2
    found, apart, ce = group_gradient(teacher, of_two, x, labels, ALPHA, segment_size=3, rows=rows)
    at = x.clone().requires_grad_()
    distances = [(teacher(at)[:, rows] - student(at)).abs().mean() for student in of_two]
    entropy = F.cross_entropy(teacher(at), rows[labels])
    wanted = torch.autograd.grad(ALPHA * entropy - sum(distances), at)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    assert apart.item() == pytest.approx(sum(distances).item(), rel=1e-12)
    assert ce.item() == pytest.approx(entropy.item(), rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_the_segment_size_changes_nothing(size):
    teacher, students, x, labels = problem(norm=True)
    whole = group_gradient(teacher, students, x, labels, ALPHA)
    parts = group_gradient(teacher, students, x, labels, ALPHA, segment_size=size)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_the_gradient_is_the_slope_of_the_objective():
    teacher, students, x, labels = problem(nn.Softplus)  # no kinks but those of the distance itself
    gradient, *_ = group_gradient(teacher, students, x, labels, ALPHA, segment_size=3)
    for seed in range(3):
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        up, down = (objective(teacher, students, x + step * direction, labels, ALPHA) for step in (1e-6, -1e-6))
        slope = ((up - down) / 2e-6).item()
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6)


def test_students_that_equal_the_teacher_neither_pull_nor_push():
    teacher, _, x, labels = problem()
    gradient, apart, _ = group_gradient(teacher, [teacher, teacher], x, labels, 0.0)
    assert apart.item() == 0
    assert not gradient.any()


def test_networks_keep_no_gradients_and_the_images_are_left_alone():
    teacher, students, x, labels = problem(norm=True)
    before, state = x.clone(), {k: v.clone() for k, v in teacher.state_dict().items()}
    group_gradient(teacher, students, x, labels, ALPHA, segment_size=2)
    assert all(p.grad is None for network in (teacher, *students) for p in network.parameters())
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    assert torch.equal(x, before)
    assert x.grad is None
    assert not x.requires_grad


def test_a_small_step_raises_the_disagreement_and_with_a_large_weight_lowers_the_cross_entropy():
    teacher, students, x, labels = problem()
    gradient, apart, _ = group_gradient(teacher, students, x, labels, 0.0)
    _, moved, _ = group_gradient(teacher, students, x - 1e-3 * gradient, labels, 0.0)
    assert moved > apart
    gradient, _, ce = group_gradient(teacher, students, x, labels, 1e6)
    _, _, lower = group_gradient(teacher, students, x - 1e-9 * gradient, labels, 1e6)
    assert lower < ce


def test_one_student_at_a_time_is_in_memory():
    def peak(count: int, images: int) -> int:
        teacher, students, x, labels = problem(count=images)
        with SavedBytes() as saved:
            segment_gradient(teacher, (students * 3)[:count], x, labels, ALPHA, len(x), 1.0)
        assert saved.now == 0
        return saved.peak

    one = peak(1, 64)
    assert peak(9, 64) < 1.02 * one
    assert 1.9 < (peak(1, 128) - one) / (one - peak(1, 32)) < 2.1


# The schedule


def test_students_are_kept_at_evenly_spaced_epochs_and_at_the_last():
    assert kept_epochs(250, 5) == [51, 101, 151, 201, 251]  # after the epochs 50, 100, ... of 0 to 250
    assert kept_epochs(7, 3) == [3, 6, 8]
    assert kept_epochs(4, 4) == [2, 3, 4, 5]


def test_the_rate_of_a_student_drops_as_torchs_multi_step_rate_and_keeps_its_momentum(data, teacher, tmp_path):
    training = make(data, teacher, tmp_path, student_epochs=250, num_students=5).training
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [250 // 2 + 1], gamma=0.1)
    schedule = training.schedule(training.epochs)
    assert len(schedule) == kept_epochs(250, 5)[-1] == 251
    for factor, reset in schedule:
        assert (factor, reset) == (pytest.approx(scheduler.get_last_lr()[0]), False)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("steps", "period", "expected"),
    [
        (2500, 3, list(range(0, 2497, 3))),  # 833 students: those of 2,496 serve in 2,499 too
        (13, 3, [0, 3, 6, 9]),  # 4 and not 5 trainings: ImageNet-1K at 100 images per class
        (12, 3, [0, 3, 6, 9]),
        (7, 5, [0]),
        (2, 3, [0]),
        (1, 1, [0]),
    ],
)
def test_students_are_trained_for_whole_periods_only(steps, period, expected):
    assert [t for t in range(steps) if refreshes(t, steps, period)] == expected


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({}, [0, 3, 6]),
        ({"refresh_every": 1}, list(range(9))),
        ({"refresh_every": 2}, [0, 2, 4, 6]),  # those of 6 serve in the ninth iteration too
        ({"refresh_every": 10}, [0]),
    ],
)
def test_students_begin_anew_after_so_many_iterations(data, teacher, tmp_path, flags, wanted):
    apm = make(data, teacher, tmp_path, max_steps=9, **flags)
    (block,) = apm.blocks()
    seen = []

    def students(x, network, seed, known=apm.train_students):
        seen.append(len(steps))
        return known(x, network, seed)

    steps: list[int] = []
    apm.train_students = students
    apm.make(block, lambda iteration, values: steps.append(iteration))
    assert seen == wanted


def test_each_group_has_students_of_its_own(data, teacher, tmp_path):
    apm = make(data, teacher, tmp_path, batch_syn=4, max_steps=4, refresh_every=2)
    seeds: list[int] = []

    def students(x, network, seed, known=apm.train_students):
        seeds.append(seed)
        return known(x, network, seed)

    apm.train_students = students
    blocks = list(apm.blocks())
    for block in blocks:
        apm.make(block, lambda *_: None)
    assert len(blocks) > 1
    assert len(set(seeds)) == len(seeds) == 2 * len(blocks)


def test_the_rate_falls_to_three_tenths_in_the_second_half():
    assert [learning_rate(t, 4, 10.0) for t in range(4)] == [10, 10, 3, 3]


# What a group goes through


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_images_move_against_the_objective_with_momentum_and_a_rate_that_falls(data, teacher, tmp_path, reduce):
    flags = {"alpha": 0.7, "mom_img": 0.6, "lr_img": 0.5, "reduce_k": reduce, "segment_size": 7, "max_steps": 4}
    apm = make(data, teacher, tmp_path, refresh_every=2, **flags)
    students = [SPEC.build(seed).eval().requires_grad_(False) for seed in (5, 6)]
    apm.train_students = lambda x, network, seed: students
    (block,) = apm.blocks()
    found = apm.make(block, lambda *_: None)
    x, v = apm.initial(block), 0.0
    for rate in (0.5, 0.5, 0.15, 0.15):
        x.requires_grad_()
        weight = 1 if reduce == "sum" else 0.5
        (slope,) = torch.autograd.grad(objective(teacher.model, students, x, block.labels, 0.7, weight), x)
        v = 0.6 * v + slope
        x = x.detach() - rate * v
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, apm.initial(block), atol=1e-3)


def test_each_student_has_a_teacher_that_was_drawn_and_the_first_one_labels(data, teacher, tmp_path):
    other = Teacher(SPEC.build(8), SPEC, data[0].class_names, teacher.preprocessing)
    apm = make(data, [teacher, other], tmp_path, max_steps=12, refresh_every=1, lr_img=0.0)
    drawn: list[int] = []
    trained = apm.train_students

    def students(x, network, seed):
        said = [torch.equal(network(x), each.logits(x)) for each in (teacher, other)]
        drawn.append(said.index(True))
        return trained(x, network, seed)

    apm.train_students = students
    distilled = apm.run()
    assert set(drawn) == {0, 1}
    said = teacher.logits(distilled.pixel_values.detach())
    torch.testing.assert_close(distilled.soft_labels.float(), said, atol=1e-2, rtol=1e-3)


def test_students_see_augmented_images(data, teacher, tmp_path):
    def parameters(strategy: str) -> torch.Tensor:
        apm = make(data, teacher, tmp_path, strategy=strategy)
        (block,) = apm.blocks()
        seen: list[nn.Module] = []
        apm._frozen = seen.append
        apm.train_students(apm.initial(block), teacher.logits, 7)
        return torch.cat([parameter.flatten() for parameter in seen[-1].parameters()])

    assert not torch.allclose(parameters(""), parameters("scale"))


@pytest.mark.parametrize("changed", ["teachers", "student", "dsa_strategy", "mixed_precision"])
def test_a_run_is_not_continued_with_another(data, teacher, tmp_path, launch, changed):
    make(data, teacher, tmp_path, max_steps=1).run()
    other = {
        "teachers": {"teacher": Teacher(SPEC.build(8), SPEC, data[0].class_names, teacher.preprocessing)},
        "student": {"student": replace(SPEC, kwargs={"width": 4})},
        "dsa_strategy": {"strategy": "scale"},
        "mixed_precision": {"accelerator": launch("bf16") if changed == "mixed_precision" else None},
    }
    with pytest.raises(ValueError, match=rf"is of another run: its {changed}(\.kwargs\.width|\[0\])? is"):
        make(data, **{"teacher": teacher, "folder": tmp_path, "max_steps": 1, **other[changed]}).run()


def test_a_run_that_was_begun_with_students_of_another_schedule_is_not_continued(data, teacher, tmp_path):
    make(data, teacher, tmp_path, max_steps=1).run()
    path = tmp_path / "blocks" / "run.json"
    run = json.loads(path.read_text())
    schedule = run.pop("student_schedule")
    for before, changed in (
        ({}, "student_schedule is None and here it is"),  # as runs of before wrote it
        ({"student_schedule": {**schedule, "students": 2}}, "student_schedule.students is 2 and here it is 1"),
        ({"student_schedule": {**schedule, "reset_momentum": True}}, "student_schedule.reset_momentum is True"),
    ):
        path.write_text(json.dumps({**run, **before}))
        with pytest.raises(ValueError, match=rf"is of another run: its {changed}") as refused:
            make(data, teacher, tmp_path, max_steps=1).run()
        assert "\n" not in str(refused.value)


# Precision


def test_the_launchers_precision_gives_nearly_the_same_students_and_gradient(data, teacher, tmp_path, launch):
    def look(precision: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        flags = {"student_epochs": 40, "num_students": 2, "lr_net": 0.1, "accelerator": launch(precision)}
        apm = make(data, teacher, tmp_path, **flags)
        (block,) = apm.blocks()
        x, network = apm.initial(block), apm._logits(teacher.model)
        students = apm.train_students(x, network, 7)
        gradient, *_ = group_gradient(network, students, x, block.labels, 0.1)
        return network(x), students[1](x), gradient

    target, student, gradient = look("no")
    target_half, student_half, gradient_half = look("bf16")
    assert target_half.dtype == student_half.dtype == gradient_half.dtype == torch.float32
    assert not torch.equal(target_half, target)
    # A student that were stuck at its first weights would be as far away as one that was never trained.
    assert (student_half - student).abs().mean() < 0.1 * (student - target).abs().mean()
    assert F.cosine_similarity(gradient.flatten(), gradient_half.flatten(), dim=0) > 0.95


# Groups


@pytest.mark.parametrize(("classes", "ipc", "size"), [(10, 5, None), (10, 5, 20), (7, 3, 4), (4, 2, 100), (3, 3, 1)])
def test_groups_hold_each_image_once_and_all_classes_about_equally(classes, ipc, size):
    found = groups(classes, ipc, size, 0)
    assert torch.equal(torch.cat(found).sort().values, torch.arange(classes * ipc))
    sizes = [len(rows) for rows in found]
    assert max(sizes) <= (size or classes * ipc)
    assert max(sizes) - min(sizes) <= 1
    for rows in found:
        counts = (rows // ipc).bincount(minlength=classes)
        assert counts.max() - counts.min() <= 2
        assert torch.equal(rows, rows.sort().values)
    assert all(torch.equal(*pair) for pair in zip(found, groups(classes, ipc, size, 0), strict=True))


def make(
    data,
    teacher: Teacher | list[Teacher],
    folder: Path,
    student: StudentSpec | None = None,
    strategy: str = "",
    accelerator: Accelerator | None = None,
    **flags,
) -> APM:
    tiny = {"ipc": 2, "max_steps": 6, "student_epochs": 4, "num_students": 2, "lr_net": 0.05, "logging_steps": 1}
    config = APMConfig(**{**tiny, "output_dir": str(folder), "disable_tqdm": True, **flags})
    teachers = teacher if isinstance(teacher, list) else [teacher]
    return APM(config, data[0], teachers=teachers, student=student, dsa_strategy=strategy, accelerator=accelerator)


def test_groups_start_from_different_real_images_whatever_the_groups_are(data, teacher, tmp_path):
    def start(name: str, **flags) -> torch.Tensor:
        apm = make(data, teacher, tmp_path / name, ipc=3, **flags)
        images = torch.empty(30, 1, 8, 8)
        for block in apm.blocks():
            images[apm.rows[block.rows]] = apm.initial(block)
            assert torch.equal(block.labels, apm.rows[block.rows] // 3)
        return images

    whole = start("whole")
    assert torch.equal(start("parts", batch_syn=7), whole)
    real = data[0].images(torch.arange(len(data[0])))
    same = (whole[:, None] == real[None]).flatten(2).all(2)  # (30, N)
    assert (same.sum(1) >= 1).all()
    assert [set(data[0].labels[row].tolist()) for row in same] == [{i // 3} for i in range(30)]
    assert len(whole.flatten(1).unique(dim=0)) == 30


def test_the_bar_and_the_trackers_count_the_iterations_of_all_groups(data, teacher, tmp_path, capfd, monkeypatch):
    apm = make(data, teacher, tmp_path, batch_syn=10, max_steps=5, logging_steps=2, disable_tqdm=False)
    seen: list[int] = []
    monkeypatch.setattr(apm.accelerator, "log", lambda values, step: seen.append(step))
    apm.run()
    assert seen == [2, 4, 5, 7, 9, 10]
    assert re.search(r"distil \(apm, 2 blocks\): 100%.* 10/10 \[.*it.*disagreement=.*ce=", capfd.readouterr().err)


@pytest.mark.parametrize(("shard", "first"), [("1/2", 0), ("2/2", 5)])
def test_trackers_are_never_told_of_a_step_before_the_last_one(data, teacher, tmp_path, monkeypatch, shard, first):
    flags = {"batch_syn": 10, "max_steps": 5, "save_frames": 2, "shard": shard}
    apm = make(data, teacher, tmp_path, **flags)
    seen: list[tuple[str, int]] = []

    def record(values: dict[str, Any], step: int, **_: Any) -> None:
        seen.append((min(values), step - first))

    monkeypatch.setattr(apm.accelerator, "log", record)
    apm.accelerator.trackers = [SimpleNamespace(name="wandb", log_images=record, finish=lambda: None)]
    monkeypatch.setattr(apm.accelerator, "init_trackers", lambda *_, **__: None)
    apm.run()
    steps = [step for _, step in seen]
    own = [0, 2, 4, 5]
    assert [step for name, step in seen if name == "images"] == own
    assert steps == sorted(steps)
    assert set(steps) == set(range(6))
    assert sorted(path.stem for path in (tmp_path / "frames").glob("*.png")) == [f"step-000000{i}" for i in own]


def test_a_group_is_the_same_alone_as_among_others(data, teacher, tmp_path):
    every = make(data, teacher, tmp_path / "all", batch_syn=7).run()
    last = make(data, teacher, tmp_path / "last", batch_syn=7, shard="3/3")
    (block,) = last.blocks()
    assert block.number == 2
    assert torch.equal(last.make(block, lambda *_: None), every.pixel_values[last.rows])


def test_the_result_hardly_depends_on_the_segment_size(data, teacher, tmp_path):
    whole, parts = (make(data, teacher, tmp_path / str(size), segment_size=size).run() for size in (None, 3))
    start = make(data, teacher, tmp_path / "start").initial(
        Block(0, torch.arange(20), torch.arange(10).repeat_interleave(2))
    )
    moved = (whole.pixel_values - start).norm()
    assert moved > 0
    assert (whole.pixel_values - parts.pixel_values).norm() < 1e-3 * moved


# Labels, teachers and students


def test_labels_are_the_teachers_logits_and_travel_with_the_images(data, teacher, tmp_path):
    apm = make(data, teacher, tmp_path / "run", batch_syn=7)
    distilled = apm.run()
    wanted = teacher.logits(distilled.pixel_values.detach())
    torch.testing.assert_close(distilled.soft_labels.float(), wanted, rtol=2e-3, atol=2e-3)
    again = DistilledSet.from_pretrained(distilled.save_pretrained(tmp_path / "set"))
    assert torch.equal(again.pixel_values, distilled.pixel_values)
    assert torch.equal(again.soft_labels, distilled.soft_labels)
    assert again.label_source.kind == "soft"
    assert again.teacher.digest == teacher.digest
    assert apm.protocol.lrs[0] == apm.config.lr_net
    assert apm.protocol.loss == "l1"


def test_a_teacher_of_more_classes_is_narrowed_for_students_and_labels(data, teacher, tmp_path):
    two = RealImages.train_and_test(DataArguments(max_train_samples=40, classes=["7", "3"]))
    apm = make(two, teacher, tmp_path / "run")
    assert apm.student.num_classes == 2
    distilled = apm.run()
    seen, rows = distilled.floats(), torch.arange(4)
    expected = teacher.logits(seen)[:, [7, 3]]
    torch.testing.assert_close(distilled.soft_labels.float(), expected, rtol=2e-3, atol=2e-3)  # kept as float16
    back = DistilledSet.from_pretrained(distilled.save_pretrained(tmp_path / "set"))
    torch.testing.assert_close(back.teacher(seen, back.labels, rows), expected, rtol=1e-5, atol=1e-5)


def test_the_network_of_students_can_be_named(data, teacher, tmp_path):
    apm = make(data, teacher, tmp_path, student_net="convnet_d2")
    assert (apm.student.name, apm.student.num_classes, apm.student.img_size) == ("convnet_d2", 10, (8, 8))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_students_may_be_of_another_architecture_with_running_statistics_or_none(data, teacher, tmp_path, norm):
    spec = replace(SPEC, kwargs={"width": 6, "norm": norm})
    apm = make(data, teacher, tmp_path, student=spec, max_steps=2)
    assert apm.run().pixel_values.isfinite().all()
    assert apm.distilled.config["student"]["kwargs"]["norm"] == norm


def test_last_states_of_experts_are_teachers(data, tmp_path):
    train, test = data
    config = ExpertConfig(
        student="convnet_d1", student_width=4, num_experts=2, expert_train_epochs=2, experts_at_once="2"
    )
    experts = train_experts(
        train, config, tmp_path / "experts", epochs=2, seed=0, accelerator=Accelerator(cpu=True), disable_tqdm=True
    )
    found = expert_teachers(str(tmp_path / "experts"))
    assert len(found) == 2
    images = test.images(torch.arange(20))
    for number, each in enumerate(found):
        each.check_matches(train)
        logits = experts.flat_model()(experts.row(number, 2), images)
        assert torch.equal(each.logits(images), logits)
    assert found[0].digest != found[1].digest
    again = Teacher.from_pretrained(found[1].save_pretrained(tmp_path / "teacher"))
    assert again.digest == found[1].digest
    assert again.results["train_accuracy"] == experts.config["results"]["train_accuracy"][1]


def test_experts_with_running_statistics_are_no_teachers(data, tmp_path):
    flags = {"student": "convnet_d1", "student_width": 4, "student_norm": "batch", "num_experts": 1}
    config = ExpertConfig(**flags, experts_at_once="1")
    train_experts(data[0], config, tmp_path, epochs=1, seed=0, accelerator=Accelerator(cpu=True), disable_tqdm=True)
    with pytest.raises(ValueError, match="have BatchNorm, whose running statistics are not stored; expected experts"):
        expert_teachers(str(tmp_path))


def test_what_does_not_fit_is_one_line(data, teacher, tmp_path):
    with pytest.raises(ValueError, match=r"convnet_d1 .* has 3 classes, and 7 of these 10 are not among them"):
        make(data, teacher.narrowed(["0", "1", "2"]), tmp_path)
    with pytest.raises(ValueError, match=r"--shard 2/4 of 3 group\(s\); expected no more shards than groups"):
        make(data, teacher, tmp_path, batch_syn=7, shard="2/4")
    for flags, says in (
        ({"shard": "3/2"}, "--shard is '3/2'; expected i/n with i from 1 to n"),
        ({"memory_budget": "much"}, "--memory_budget is 'much'; expected a number of bytes above 0, such as 6GB"),
        ({"memory_budget": "1GB", "segment_size": 3}, "--segment_size and --memory_budget say the same in two ways"),
        ({"num_students": 9}, "--student_epochs is 4 for --num_students 9; expected an epoch for each"),
        ({"lr_img": 1e300}, "--lr_img is 1e+300; expected a number up to 1e+06"),
        ({"lr_net": 1e300}, "--lr_net is 1e+300; expected a learning rate above 0, up to 1e+06"),
        ({"mom_img": 1.0}, "--mom_img is 1.0; expected a number from 0, and below 1"),
        ({"student_net": "convnet_d9"}, "the network 'convnet_d9' is no timm model; did you mean convnet_d"),
        ({"student_net": "convnet_d4"}, "convnet_d4 halves its images 4 times and they are 8x8"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            make(data, teacher, tmp_path, **flags)


def test_half_precision_without_a_scaler_is_refused(data, teacher, tmp_path):
    class Half:
        mixed_precision = "fp16"

    with pytest.raises(ValueError, match=r"^mixed precision fp16 needs a loss scaler, .*; use bf16, or none$"):
        APM.check(APMConfig(ipc=2, output_dir=str(tmp_path)), data[0].outline, Half())


# Memory


def test_a_budget_gives_a_segment_that_fits_in_it_and_a_larger_one_that_does_not(data, teacher, tmp_path):
    apm = make(data, teacher, tmp_path, ipc=20, batch_net=8)
    budgets = {budget: apm.fitting_segment(budget) for budget in (700_000, 1_000_000, 10**9)}
    assert 1 <= budgets[700_000] < budgets[1_000_000] < 200 == budgets[10**9]
    # Each further image costs the same: the teacher's and one student's activations.
    per_image = 300_000 / (budgets[1_000_000] - budgets[700_000])
    held = 2 * 4 * 8 * 64 * 3  # two networks keep about three maps of 8 channels for each image
    assert held / 3 < per_image < held * 3


@pytest.mark.parametrize("budget", ["20KB", "1", "0.5B", "20 kib"])
def test_a_budget_that_nothing_fits_in_is_one_line_and_what_it_says_of_one_image_is_enough(
    data, teacher, tmp_path, budget
):
    flags = {"batch_net": 2, "ipc": 10}
    says = r"takes (\S+ \S+), and one image at a time (\S+ \S+); give more than both, or lower .*"
    with pytest.raises(
        ValueError, match=rf"^--memory_budget {budget} is too little for groups of \d+ .*{says}$"
    ) as error:
        make(data, teacher, tmp_path / "little", memory_budget=budget, **flags).run()
    amounts = re.search(says, str(error.value)).groups()
    enough = max(parse_bytes("memory_budget", amount) for amount in amounts)
    apm = make(data, teacher, tmp_path / "enough", **flags)
    assert 1 <= apm.fitting_segment(int(1.05 * enough)) < 100
    with pytest.raises(ValueError, match="is too little"):
        apm.fitting_segment(int(0.95 * enough))


def test_the_segment_size_is_remembered_by_a_run_that_is_continued(data, teacher, tmp_path):
    apm = make(data, teacher, tmp_path, memory_budget="500KB", batch_net=8, ipc=20, max_steps=1)
    first = apm.run()
    assert json.loads((tmp_path / "blocks" / "segment_size.json").read_text())["segment_size"] == apm.segment_size
    assert 1 <= apm.segment_size < 200
    again = make(data, teacher, tmp_path, memory_budget="500KB", batch_net=8, ipc=20, max_steps=1)
    again.fitting_segment = None  # it measures no more
    assert torch.equal(again.run().pixel_values, first.pixel_values)
    (tmp_path / "blocks" / "segment_size.json").write_text('{"memory_budget": 500000}')
    damaged = make(data, teacher, tmp_path, memory_budget="500KB", batch_net=8, ipc=20, max_steps=1)
    damaged.run()
    assert damaged.segment_size == apm.segment_size


def test_a_run_may_go_on_with_other_segments_or_another_budget_and_keeps_what_is_done(data, teacher, tmp_path):
    flags = {"batch_syn": 10, "max_steps": 3}
    first = make(data, teacher, tmp_path, **flags).run().pixel_values.detach().clone()
    (tmp_path / "blocks" / "block-000001.json").unlink()
    with pytest.raises(ValueError, match="--memory_budget 20KB is too little"):
        make(data, teacher, tmp_path, memory_budget="20KB", **flags).run()
    again = make(data, teacher, tmp_path, segment_size=3, **flags)
    second = again.run().pixel_values.detach()
    assert torch.equal(second[again.blocks()[0].rows], first[again.blocks()[0].rows])
    torch.testing.assert_close(second, first, atol=1e-4, rtol=0)


# Stopped

# Dies when a group has kept its state twice, in the middle of the third time.
KILL = """
import os, signal
from hf_distill.runs import checkpoints
known, calls = checkpoints.save_file, []
def save_file(tensors, path):
    known(tensors, path)
    calls.append(path)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save_file = save_file
"""
TINY = {
    "max_train_samples": 200,
    "max_test_samples": 50,
    "ipc": 1,
    "max_steps": 12,
    "refresh_every": 1,
    "save_steps": 3,
    "student_epochs": 2,
    "num_students": 2,
    "lr_net": 0.04,
    "eval_protocol": "tiny",
    "eval_seeds": 1,
    "eval_full_data": False,
    "eval_baselines": "random",
    "disable_tqdm": True,
}


def test_a_run_that_was_killed_in_the_middle_of_a_group_ends_with_the_same_bytes(recipes, teacher, tmp_path):
    flags = {**TINY, "teachers": teacher.save_pretrained(tmp_path / "teacher")}
    whole = recipes("apm", {**flags, "output_dir": "whole"}, tmp_path)
    assert whole.status == [0], whole.err
    assert "distilled" in whole.out
    killed = recipes("apm", {**flags, "output_dir": "killed"}, tmp_path, before=KILL)
    assert killed.status == [-9], killed.err
    kept = tmp_path / "killed" / "blocks" / "unfinished-000000"
    assert sorted(path.name for path in kept.iterdir()) == [".checkpoint-9.partial", "checkpoint-6"]
    done = recipes("apm", {**flags, "output_dir": "killed", "resume_from_checkpoint": "latest"}, tmp_path)
    assert done.status == [0], done.err
    assert not kept.exists()
    one, other = (DistilledSet.from_pretrained(tmp_path / name) for name in ("whole", "killed"))
    assert torch.equal(one.pixel_values, other.pixel_values)
    assert torch.equal(one.soft_labels, other.soft_labels)
    assert one.report.rows == other.report.rows


def test_recipes_make_shards_join_and_evaluate_them_and_say_in_one_line_what_they_cannot(recipes, teacher, tmp_path):
    flags = {**TINY, "teachers": teacher.save_pretrained(tmp_path / "teacher"), "batch_syn": 5}
    for number in (1, 2):
        done = recipes("apm", {**flags, "shard": f"{number}/2", "output_dir": f"part-{number}"}, tmp_path)
        assert done.status == [0], done.err
        assert "Put all of them together with recipes/join.py" in done.out
    done = recipes("join", ["--shards", "part-2", "part-1", "--output_dir", "joined"], tmp_path)
    assert done.status == [0], done.err
    few = {"num_seeds": 1, "full_data": False, "max_train_samples": 200, "max_test_samples": 50}
    done = recipes("evaluate", {"distilled_dataset": "joined", "validation_fraction": 0, **few}, tmp_path)
    assert done.status == [0], done.err
    report = DistilledSet.from_pretrained(tmp_path / "joined").report
    assert {row.set for row in report.rows} >= {"random", "distilled"}
    (context,) = report.meta.values()
    assert context["learning_rates"]["distilled, soft labels"] == TINY["lr_net"]
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "train-00000-of-00001.parquet").write_bytes(b"mine")
    alone = {name: value for name, value in flags.items() if name != "teachers"}
    for recipe, words, says in (
        ("join", ["--shards", "part-1", "--output_dir", "x"], "5 of 10 images lack; give the shards 2/2 too"),
        ("join", ["--shards", "part-1", "joined", "--output_dir", "x"], "joined is no shard of a set"),
        ("join", ["--shards", "part-1", "part-2", "--output_dir", "part-2"], "part-2 is one of the shards"),
        (
            "join",
            ["--shards", "part-1", "part-2", "--output_dir", "joined"],
            "joined already holds a set; use --overwr",
        ),
        ("join", ["--shards", "part-1", "part-2", "--output_dir", "mine"], "so it holds something else"),
        ("apm", {**flags, "output_dir": "mine"}, "holds the data/train-00000-of-00001.parquet of something else"),
        ("apm", {**alone, "output_dir": "y", "shard": "1/2"}, "--shard 1/2 without --teachers"),
        (
            "apm",
            {**flags, "output_dir": "y", "memory_budget": "1KB"},
            "--memory_budget 1KB is too little for groups of 5",
        ),
        ("apm", {**flags, "output_dir": "y", "shard": "1/2", "push_to_hub": True}, "--push_to_hub with --shard 1/2"),
    ):
        stopped = recipes(recipe, words, tmp_path)
        assert stopped.status == [1], stopped.err
        assert "Traceback" not in stopped.err
        (line,) = [line for line in stopped.err.splitlines() if "error" in line.lower()]
        assert line.startswith("error: ")
        assert says in line
        assert not (tmp_path / "x").exists()
        assert not (tmp_path / "y" / "blocks").exists()  # so that the next try is no other run
    assert [path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()] == [b"mine"]
    done = recipes(
        "join", ["--shards", "part-1", "part-2", "--output_dir", "joined", "--overwrite_output_dir"], tmp_path
    )
    assert done.status == [0], done.err


def test_a_group_that_was_stopped_goes_on_from_what_was_kept_with_the_same_bits(data, teacher, tmp_path):
    flags = {"max_steps": 15, "save_steps": 4, "refresh_every": 3}
    whole = make(data, teacher, tmp_path / "whole", **flags).run()
    stopped = make(data, teacher, tmp_path / "stopped", **flags)

    class Stop(Exception):
        pass

    def students(x, network, seed, known=stopped.train_students, calls=[]):  # noqa: B006
        calls.append(seed)
        if len(calls) == 5:  # the student of iteration 12
            raise Stop
        return known(x, network, seed)

    stopped.train_students = students
    with pytest.raises(Stop):
        stopped.run()
    kept = tmp_path / "stopped" / "blocks" / "unfinished-000000"
    assert [path.name for path in kept.iterdir()] == ["checkpoint-12"]
    goes_on = make(data, teacher, tmp_path / "stopped", **flags)
    begun = []

    def from_there(x, network, seed, known=goes_on.train_students):
        begun.append(seed)
        return known(x, network, seed)

    goes_on.train_students = from_there
    assert torch.equal(goes_on.run().pixel_values, whole.pixel_values)
    assert len(begun) == 1
    assert not kept.exists()


def test_a_group_that_was_kept_where_no_student_begins_any_more_goes_on_with_new_ones(data, teacher, tmp_path):
    apm = make(data, teacher, tmp_path, max_steps=5, refresh_every=3)
    (block,) = apm.blocks()
    x = apm.initial(block)
    save_checkpoint(apm.folder / "unfinished-000000", {"x": x, "velocity": torch.zeros_like(x)}, {"step": 3}, limit=1)
    steps: list[int] = []
    assert not torch.equal(apm.make(block, lambda iteration, values: steps.append(iteration)), x)
    assert steps[-1] == 5


@pytest.mark.parametrize("damage", ["a step", "a bit", "tensors", "their shape"])
def test_a_group_whose_state_is_damaged_begins_anew_and_says_so(data, teacher, tmp_path, damage, caplog):
    whole, apm = (make(data, teacher, tmp_path / name, max_steps=4) for name in ("whole", "damaged"))
    (block,) = apm.blocks()
    aside = apm.folder / "unfinished-000000"
    x = torch.zeros(20 if damage != "their shape" else 3, 1, 8, 8)
    tensors = {"x": x, "velocity": x.clone()} if damage != "tensors" else {"y": x}
    save_checkpoint(aside, tensors, {"step": 3}, limit=1)
    if damage == "a step":
        (aside / "checkpoint-3" / "trainer_state.json").write_text("{}")
    if damage == "a bit":
        file = aside / "checkpoint-3" / "state.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert torch.equal(apm.make(block, lambda *_: None), whole.make(block, lambda *_: None))
    assert "block 0 begins without what was kept of it" in caplog.text


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_group_that_a_cluster_ends_is_kept_where_students_begin_and_goes_on_from_there(data, teacher, tmp_path, step):
    flags = {"max_steps": 7, "save_steps": 500, "refresh_every": 3, "logging_steps": 1}
    whole = make(data, teacher, tmp_path / "whole", **flags).run()
    ended = make(data, teacher, tmp_path / "ended", **flags)
    ended.callbacks.callbacks.append(Signals(step))
    with pytest.raises(SystemExit, match="interrupted: go on"):
        run_recipe(ended.run, "go on")
    kept = tmp_path / "ended" / "blocks" / "unfinished-000000"
    if step == 5:  # behind which no student begins
        assert not kept.exists()
        assert (tmp_path / "ended" / "blocks" / "block-000000.json").exists()
    else:
        assert [path.name for path in kept.iterdir()] == ["checkpoint-3"]
    assert torch.equal(make(data, teacher, tmp_path / "ended", **flags).run().pixel_values, whole.pixel_values)
    assert not kept.exists()


@pytest.mark.parametrize("damage", ["images are gone", "a block is no JSON"])
def test_what_is_lost_of_the_blocks_is_made_again(data, teacher, tmp_path, damage):
    flags = {"batch_syn": 10, "max_steps": 3}
    first = make(data, teacher, tmp_path, **flags).run().pixel_values.detach().clone()
    if damage == "images are gone":
        (tmp_path / "blocks" / "images.float32").unlink()
    else:
        (tmp_path / "blocks" / "block-000001.json").write_text("{")
    assert torch.equal(make(data, teacher, tmp_path, **flags).run().pixel_values, first)


def test_a_disk_without_room_for_the_images_is_one_line_before_the_first_block(data, teacher, tmp_path, monkeypatch):
    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(
            ValueError, match=r"images\.float32 cannot be written .*: [0-9,]+ bytes are needed and"
        ) as error:
            make(data, teacher, tmp_path, max_steps=3).run()
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# Shards


@pytest.fixture(scope="module")
def shards(data, teacher, tmp_path_factory) -> tuple[Path, list[Path]]:
    """A whole run, and the shards that it is made of."""
    home = tmp_path_factory.mktemp("shards")
    flags = {"batch_syn": 5, "max_steps": 3}
    whole = make(data, teacher, home / "run", **flags).run().save_pretrained(home / "whole")
    parts = [make(data, teacher, home / f"run-{i}", shard=f"{i}/3", **flags) for i in (1, 2, 3)]
    return whole, [part.run().save_pretrained(home / f"shard-{i}") for i, part in enumerate(parts, start=1)]


def test_shards_say_which_rows_they_have_and_join_to_the_set_of_one_run_byte_for_byte(shards, tmp_path):
    whole, parts = shards
    about = [json.loads((part / "distill_config.json").read_text())["shard"] for part in parts]
    assert [(each["number"], each["count"], each["images"]) for each in about] == [(1, 3, 20), (2, 3, 20), (3, 3, 20)]
    for order in (parts, parts[::-1]):
        joined = join_shards(order).save_pretrained(tmp_path / "joined")
        for folder in ("data", "tensor"):
            (one,), (other,) = (list((each / folder).iterdir()) for each in (whole, joined))
            assert one.name == other.name
            assert one.read_bytes() == other.read_bytes()
        assert (whole / "distill_config.json").read_bytes() == (joined / "distill_config.json").read_bytes()
        images, labels, rows = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), torch.arange(2)
        logits = [DistilledSet.from_pretrained(each).teacher(images, labels, rows) for each in (whole, joined)]
        assert torch.equal(*logits)


def test_shards_may_have_found_their_teacher_elsewhere_and_be_meant_for_other_evaluations(data, teacher, tmp_path):
    parts = []
    for number in (1, 2):
        more = {"teachers": [f"/machine-{number}/teacher"], "eval_seeds": number, "segment_size": number}
        apm = make(data, teacher, tmp_path / f"run-{number}", batch_syn=10, shard=f"{number}/2", **more)
        parts.append(apm.run().save_pretrained(tmp_path / f"shard-{number}"))
    assert len(join_shards(parts)) == 20


def test_shards_that_overlap_lack_or_do_not_belong_together_are_refused_in_one_line(data, teacher, shards, tmp_path):
    whole, (one, two, three) = shards
    other = make(data, teacher, tmp_path / "run", batch_syn=5, max_steps=3, shard="3/3", lr_img=2.0).run()
    other = other.save_pretrained(tmp_path / "other")
    before = shutil.copytree(three, tmp_path / "before")  # as a shard of before the schedule was in it
    config = json.loads((before / "distill_config.json").read_text())
    del config["student_schedule"]
    (without_sums(before) / "distill_config.json").write_text(json.dumps(config))
    for paths, says in (
        ([one, two], r"images lack; give the shards 3/3 too"),
        ([one, two, one], r"shard-1 and .*shard-1 both have image \d+; give each shard once"),
        ([one, two, other], r"other and .*shard-1 are of different runs: hyperparameters.lr_img is 2.0 and 1.0; join"),
        ([one, two, before], r"before and .*shard-1 are of different runs: student_schedule is None and "),
        ([one, two, whole], r"whole is no shard of a set; expected the folder of a run with --shard"),
        ([], r"there are no shards to join"),
    ):
        with pytest.raises(ValueError, match=says):
            join_shards(paths)


# What it is for


@pytest.mark.slow
def test_distilled_images_teach_more_than_the_real_ones_that_they_were_with_the_same_labels(data, teacher, tmp_path):
    flags = {"max_steps": 45, "student_epochs": 60, "num_students": 3, "lr_net": 0.1, "lr_img": 0.3}
    apm = make(data, teacher, tmp_path, **flags, strategy="color_crop_cutout_scale_rotate")
    distilled = apm.run()
    (block,) = apm.blocks()
    test = Pool(data[1], data[1].labels, preprocessing=teacher.preprocessing)
    found = []
    for images in (apm.initial(block), distilled.pixel_values.detach()):
        logits = teacher.logits(images)
        protocol = replace(apm.protocol, epochs=150)
        students = [train_student(images, logits, SPEC, protocol, lr=0.1, seed=seed) for seed in range(4)]
        found.append(sum(accuracy(student, test) for student in students) / 4)
    assert found[1] > found[0] + 0.02, found
