"""The evaluation: schedules, students, coresets, and a report that is honest about all of them."""

import errno
import itertools
import json
import runpy
import subprocess
import sys
import weakref
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from torch import nn

from hf_distill.augmentation.dsa import DSA
from hf_distill.augmentation.views import Views
from hf_distill.config import BASELINES, DataArguments
from hf_distill.data.feed import Pool
from hf_distill.data.images import RealImages
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.labels import NetworkLabels, TeacherLabels
from hf_distill.distilled.targets import loss_targets
from hf_distill.evaluation import evaluate as evaluation_module
from hf_distill.evaluation import students as students_module
from hf_distill.evaluation import trainer as trainer_module
from hf_distill.evaluation.accuracy import accuracy
from hf_distill.evaluation.coresets import coresets, herding, k_center, random_rows
from hf_distill.evaluation.evaluate import (
    PROTOCOLS,
    EvalProtocol,
    evaluate,
    protocol_for,
    real_pool,
    validation_accuracy,
)
from hf_distill.evaluation.metrics import Accuracy, TopKAccuracy
from hf_distill.evaluation.protocols import CropProtocol, TrainingProtocol
from hf_distill.evaluation.students import train_along, train_student, train_students
from hf_distill.hub.results import EvalReport, EvalRow
from hf_distill.networks.architectures import FlatModel, StudentSpec, features_and_logits
from hf_distill.networks.teachers import Teacher
from hf_distill.networks.trajectories import ExpertTrajectories
from hf_distill.rng import derive_seed, generator
from hf_distill.training.experts import ExpertConfig, train_experts
from tests.helpers import ROOT

RECIPE = ROOT / "recipes" / "evaluate.py"
SPEC = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 8})
RESNET = StudentSpec("test_resnet", 10, 1, (8, 8), {"drop_rate": 0.3})
TINY = EvalProtocol("tiny", epochs=6, full_data_epochs=2, lrs=(0.1, 0.02))
SETS = ("distilled", "random")
CROPS = CropProtocol("crops", epochs=6, full_data_epochs=2, batch_size=8, lrs=(0.01,))


# Threads are slower than none on networks this small, and a process that is forked must have none.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def data() -> tuple[RealImages, RealImages, RealImages]:
    train, test = RealImages.train_and_test(DataArguments(max_train_samples=200, max_test_samples=50))
    train, held_out = train.split(0.2, seed=0)
    return train, held_out, test


@pytest.fixture(scope="module")
def teacher() -> TeacherLabels:
    return TeacherLabels(SPEC, FlatModel.from_spec(SPEC).init(5))


def distilled_set(train: RealImages, teacher: TeacherLabels | None = None, **config) -> DistilledSet:
    """Two real images of each class, as if they had been distilled for `SPEC`."""
    rows = random_rows(train, [2] * 10, 3)
    images, labels = train.images(rows), train.labels[rows]
    soft = None if teacher is None else teacher(images, labels, rows)
    config = {"student": SPEC.to_dict(), "source": {"name": "digits"}, **config}
    names, preprocessing = train.class_names, train.preprocessing
    return DistilledSet(images, labels, names, preprocessing, lr=0.05, soft_labels=soft, teacher=teacher, config=config)


def small_set(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 8, 8, generator=random), torch.randint(10, (n,), generator=random)


def parameters(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


# Schedules


def test_mtt_trains_epochs_0_to_1000_and_drops_to_a_tenth_after_501_with_empty_momentum():
    mtt = PROTOCOLS["mtt"]
    schedule = mtt.schedule(mtt.epochs)
    assert (mtt.momentum, mtt.weight_decay, mtt.batch_size) == (0.9, 5e-4, 256)
    assert mtt.dsa_strategy == "color_crop_cutout_flip_scale_rotate"
    assert [factor for factor, _ in schedule] == [1.0] * 502 + [0.1] * 499  # epochs 0..501, epochs 502..1000
    assert [epoch for epoch, (_, reset) in enumerate(schedule) if reset] == [502]


@pytest.mark.parametrize(("name", "full"), [("apm", 501), ("apm-600", 301)])
def test_apm_drops_in_the_middle_as_torchs_multi_step_rate_and_keeps_the_momentum(name, full):
    apm = PROTOCOLS[name]
    last = apm.epochs - 1  # epochs are 0 to E, in the authors' code as here
    schedule = apm.schedule(apm.epochs)
    assert not any(reset for _, reset in schedule)
    assert [factor for factor, _ in schedule] == pytest.approx(multi_step([last // 2 + 1], 0.1, apm.epochs))
    assert sum(factor == 1 for factor, _ in schedule) == full


def multi_step(milestones: list[int], gamma: float, epochs: int) -> list[float]:
    """The rate of each epoch, of 1 before any drop, by torch's scheduler, which steps after each epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma)
    rates = []
    for _ in range(epochs):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("last", [1, 2, 9, 10, 300, 999])
def test_of_epochs_0_to_e_the_one_after_half_of_e_and_one_is_the_first_slow_one(last):
    factors = [factor for factor, _ in TINY.schedule(last + 1)]
    assert len(factors) == last + 1
    assert factors == [1.0 if epoch <= last // 2 + 1 else 0.1 for epoch in range(last + 1)]


def test_two_drops_multiply_and_keep_the_momentum_when_told():
    protocol = replace(TINY, decay_epochs=(0.3, 0.6), decay=0.5, reset_momentum=False)
    schedule = protocol.schedule(11)
    assert [factor for factor, _ in schedule] == multi_step([4, 7], 0.5, 11) == [1.0] * 4 + [0.5] * 3 + [0.25] * 4
    assert not any(reset for _, reset in schedule)


# Students


@pytest.mark.parametrize("norm", ["instance", "batch"])  # the two ways to train
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("soft", [False, True])
def test_a_student_is_trained_as_a_plain_loop_over_torch_sgd_trains_it(norm, reset, soft, device):
    images, labels = small_set()
    targets = torch.randn(len(images), 10) if soft else labels
    spec = replace(SPEC, kwargs={"width": 8, "norm": norm})
    protocol = replace(TINY, epochs=7, reset_momentum=reset)

    expected = spec.build(derive_seed(11, "init")).train()
    stream, dsa = generator(11, "train"), DSA(protocol.dsa_strategy)
    settings = {"momentum": 0.9, "weight_decay": 5e-4}
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.05, **settings)
    for epoch in range(7):
        if epoch == 4 + reset:  # after epoch ⌊6/2⌋ + 1 = 4 with a new optimizer, from it on without
            optimizer.param_groups[0]["lr"] = 0.05 * 0.1
            if reset:
                optimizer = torch.optim.SGD(expected.parameters(), lr=0.05 * 0.1, **settings)
        batch = DSA.apply(images, dsa.sample(len(images), stream, (8, 8)))
        loss = F.cross_entropy(expected(batch), targets.softmax(1) if soft else targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    found = train_student(images, targets, spec, protocol, lr=0.05, seed=11, device=device)
    rounding = {"rtol": 1e-4, "atol": 1e-5} if device.type == "cpu" else {"rtol": 1e-3, "atol": 2e-4}
    for one, other in zip(parameters(found), parameters(expected), strict=True):
        assert one.device.type == device.type
        torch.testing.assert_close(one.cpu(), other, **rounding)


@pytest.mark.parametrize("spec", [SPEC, RESNET], ids=lambda spec: spec.name)
def test_the_same_seed_gives_the_same_bits_and_another_seed_another_student(spec):
    images, labels = small_set()
    states = []
    for seed in (1, 1, 2):
        torch.rand(3)  # the state of the global generator is no part of a seed
        states.append(train_student(images, labels, spec, TINY, lr=0.05, seed=seed).state_dict())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_students_side_by_side_become_what_each_becomes_alone():
    images, labels = small_set(30)
    pool, protocol = Pool(images, labels), replace(TINY, batch_size=8)
    rows = torch.stack([torch.arange(20), torch.arange(10, 30)])
    lrs, seeds = [0.05, 0.01], [1, 2]
    together = train_students(pool, labels, rows, SPEC, protocol, 3, lrs, seeds)
    for number, student in enumerate(together):
        own = slice(number, number + 1)
        (alone,) = train_students(pool, labels, rows[own], SPEC, protocol, 3, lrs[own], seeds[own])
        for one, other in zip(parameters(student), parameters(alone), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spec", [SPEC, RESNET], ids=lambda spec: spec.name)
def test_a_source_of_labels_is_asked_about_the_images_in_use_alone_and_teaches_what_it_says(spec):
    images, labels = small_set(30)
    pool, protocol = Pool(images, labels), replace(TINY, batch_size=8, loss="l1", epochs=2)
    logits = torch.randn(30, 10, generator=torch.Generator().manual_seed(3)).half()
    asked: list[int] = []

    class Says:
        def __call__(self, x, classes, rows):
            assert torch.equal(x, images[rows])
            assert torch.equal(classes, labels[rows])
            asked.extend(rows.tolist())
            return logits[rows].float()

    rows = torch.tensor([[28, 3, 5, 7, 9, 4], [9, 1, 2, 3, 4, 5]])
    found = train_students(pool, Says(), rows, spec, protocol, 2, [0.05] * 2, [1, 2])
    expected = train_students(pool, logits, rows, spec, protocol, 2, [0.05] * 2, [1, 2])
    assert asked == sorted({*rows.flatten().tolist()})
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(parameters(one), parameters(other), strict=True))


@pytest.mark.parametrize("norm", ["instance", "batch"], ids=["side by side", "alone"])
def test_a_running_mean_of_the_parameters_is_what_is_tested_as_a_loop_by_hand_gives_it(norm):
    images, labels = small_set()
    spec = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": norm})
    protocol = EvalProtocol("mean", 14, 1, lrs=(0.1,), dsa_strategy="none", reset_momentum=False, ema=0.4)
    pool = Pool(images, labels)
    found = train_students(pool, labels, torch.arange(12).expand(2, -1), spec, protocol, 14, [0.1, 0.2], [3, 4])
    for lr, seed, student in zip([0.1, 0.2], [3, 4], found, strict=True):
        model = spec.build(derive_seed(seed, "init")).train()
        mean = {name: tensor.double() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        for step, (factor, _) in enumerate(protocol.schedule(14), start=1):
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            decay = {1: 2 / 11, 2: 3 / 12, 3: 4 / 13, 4: 5 / 14}.get(step, 0.4)
            for name in mean:
                mean[name] = decay * mean[name] + (1 - decay) * model.state_dict()[name]
        assert any("running_var" in name for name in mean) == (norm == "batch")
        for name, value in mean.items():
            torch.testing.assert_close(student.state_dict()[name], value.float(), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(student.state_dict()[name], model.state_dict()[name], rtol=1e-3, atol=1e-4)
    whole = replace(protocol, ema=None)
    along = list(train_along(images, labels, spec, protocol, [7, 14], lr=0.1, seed=3))
    assert all(
        map(
            torch.equal, parameters(along[1]), parameters(train_student(images, labels, spec, protocol, lr=0.1, seed=3))
        )
    )
    last = train_student(images, labels, spec, whole, lr=0.1, seed=3)
    assert not torch.allclose(parameters(along[1])[0], parameters(last)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"protocol 'mean' has ema=1; expected a decay between 0 and 1"):
        replace(protocol, ema=1)


def test_one_image_teaches_a_network_that_needs_no_statistics_of_others():
    images, labels = small_set(1)
    before = SPEC.build(derive_seed(7, "init"))
    after = train_student(images, labels, SPEC, TINY, lr=0.1, seed=7)
    assert not any(torch.equal(*pair) for pair in zip(parameters(before), parameters(after), strict=True))


def test_every_epoch_shows_each_student_each_of_its_images_once_in_a_new_order(monkeypatch):
    images = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 1, 8, 8)
    pool, protocol = Pool(images, torch.zeros(20, dtype=torch.long)), replace(TINY, batch_size=4, dsa_strategy="")
    rows = torch.stack([torch.arange(10), torch.arange(10, 20)])
    steps = list(students_module._steps(pool, torch.arange(20), rows, SPEC, protocol, 3, [1, 2]))
    sizes = [batch.shape[1] for _, _, batch, _ in steps]
    assert sizes == [4, 4, 2] * 3
    orders = []
    for student, epoch in itertools.product(range(2), range(3)):
        seen = torch.cat([batch[student, :, 0, 0, 0] for _, _, batch, _ in steps[3 * epoch : 3 * epoch + 3]])
        wanted = torch.cat([targets[student] for *_, targets in steps[3 * epoch : 3 * epoch + 3]])
        assert torch.equal(seen.long(), wanted)
        assert sorted(seen.tolist()) == rows[student].tolist()
        orders.append(tuple((seen % 10).tolist()))
    assert len(set(orders)) == 6


def test_augmenting_many_steps_at_once_changes_no_bit(monkeypatch):
    images, labels = small_set(10)
    pool, rows = Pool(images, labels), torch.arange(10).expand(2, -1)
    protocol = replace(TINY, batch_size=6)

    def batches() -> list[torch.Tensor]:
        steps = students_module._steps(pool, labels, rows, SPEC, protocol, 20, [1, 2])
        return [batch for _, _, batch, _ in steps]

    at_once = batches()
    monkeypatch.setattr(students_module, "PREPARED_VALUES", 1)
    assert all(torch.equal(one, other) for one, other in zip(at_once, batches(), strict=True))


def test_training_leaves_the_global_generator_alone():
    images, labels = small_set()
    before = torch.get_rng_state()
    for spec in (SPEC, RESNET):
        train_student(images, labels, spec, TINY, lr=0.05, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_student_with_batch_norm_and_dropout_trains_in_training_mode_and_is_tested_in_evaluation_mode():
    images, labels = small_set()
    student = train_student(images, labels, RESNET, TINY, lr=0.05, seed=1)
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(module.num_batches_tracked == TINY.epochs for module in norms)
    assert not any(module.training for module in student.modules())


def test_the_one_image_that_is_left_of_an_epoch_is_no_batch_for_batch_norm():
    images, labels = small_set(9)
    train_student(images, labels, RESNET, replace(TINY, batch_size=4, epochs=2), lr=0.05, seed=1)


def test_a_wrong_student_is_one_clear_line(data, accelerator):
    train, held_out, test = data
    distilled, options = distilled_set(train), {"held_out": held_out, "protocol": TINY, "accelerator": accelerator}
    for name, words in (
        ("convnet_d33", "no timm model; did you mean convnet_d3"),
        ("convnet_d4", "use convnet_d3 or less"),
        ("vit_tiny_patch16_224", "cannot take 1x8x8 images"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            evaluate(distilled, train, test, **options, students=[name])
        assert "\n" not in str(error.value)


# What a number means


def test_logits_of_certainty_cost_what_classes_cost():
    logits, labels = torch.randn(7, 10), torch.randint(10, (7,))
    certain = 1e4 * F.one_hot(labels, 10).float()
    expected = F.cross_entropy(logits, loss_targets(labels))
    torch.testing.assert_close(F.cross_entropy(logits, loss_targets(certain)), expected)


class Answers(nn.Module):
    """The logits of each image, which is known by its one pixel."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[images.flatten().long()]


def test_top_k_counts_classes_among_the_k_largest_logits_over_all_batches():
    logits, labels = torch.randn(2500, 10), torch.randint(10, (2500,))
    pool = Pool(torch.arange(2500.0).view(2500, 1, 1, 1), labels)
    ranks = np.argsort(-logits.numpy(), axis=1)
    for k in (1, 5, 10, 99):
        hits = sum(label in rank[:k] for label, rank in zip(labels.tolist(), ranks, strict=True))
        assert accuracy(Answers(logits), pool, k) == hits / 2500


class Forgetful(Answers):
    """Answers as long as nobody keeps its answers."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__(logits)
        self.given: list[weakref.ref] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert sum(known() is not None for known in self.given) <= 1
        logits = super().forward(images)
        self.given.append(weakref.ref(logits))
        return logits


@pytest.mark.parametrize("k", [1, 5])
def test_no_logits_are_kept_while_hits_are_counted(k):
    network = Forgetful(torch.randn(5000, 10))
    pool = Pool(torch.arange(5000.0).view(5000, 1, 1, 1), torch.zeros(5000, dtype=torch.long))
    accuracy(network, pool, k)
    assert len(network.given) > 4


class Fixed(nn.Module):
    """Answers with what it is given for each image, which is known by its first pixel."""

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.one_hot(self.answers[images[:, 0, 0, 0].long()], 10).float()


def test_a_perfect_classifier_gets_one_and_a_constant_one_the_share_of_its_class():
    labels = torch.tensor([0, 1, 1, 2, 1])
    pool = Pool(torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 8, 8), labels)
    assert accuracy(Fixed(labels), pool) == 1.0
    assert accuracy(Fixed(torch.ones_like(labels)), pool) == pytest.approx(3 / 5)


def test_metrics_of_evaluate_count_hits_over_all_batches_and_need_neither_network_nor_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    metric, among = (kind(keep_in_memory=True, cache_dir=str(tmp_path)) for kind in (Accuracy, TopKAccuracy))
    for predictions, references in (([3, 1, 4], [3, 1, 0]), ([5], [6])):
        metric.add_batch(predictions=predictions, references=references)
        among.add_batch(predictions=[[guess, guess + 1] for guess in predictions], references=references)
    assert metric.compute() == {"accuracy": 2 / 4}
    assert among.compute() == {"accuracy": 3 / 4}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_reads_flags_and_trains_does_not_import_the_package_of_metrics():
    code = "import sys, hf_distill.evaluation.evaluate; print('evaluate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# Subsets


def herding_by_hand(features: np.ndarray, count: int) -> list[int]:
    taken: list[int] = []
    for _ in range(count):
        gaps = {
            i: np.linalg.norm(features[[*taken, i]].mean(axis=0) - features.mean(axis=0))
            for i in range(len(features))
            if i not in taken
        }
        taken.append(min(gaps, key=gaps.get))
    return taken


def k_center_by_hand(features: np.ndarray, count: int, first: int) -> list[int]:
    taken = [first]
    while len(taken) < count:
        rest = [i for i in range(len(features)) if i not in taken]
        taken.append(max(rest, key=lambda i: min(np.linalg.norm(features[i] - features[j]) for j in taken)))
    return taken


def test_herding_takes_the_image_that_brings_the_mean_nearest():
    features = np.random.default_rng(0).normal(size=(20, 5))
    assert herding(torch.from_numpy(features), 8).tolist() == herding_by_hand(features, 8)


def test_k_center_takes_the_image_that_is_farthest_from_all_taken():
    features = np.random.default_rng(1).normal(size=(20, 5))
    assert k_center(torch.from_numpy(features), 8, 3).tolist() == k_center_by_hand(features, 8, 3)


def test_equal_images_are_taken_once_each():
    same = torch.ones(6, 3)
    assert sorted(k_center(same, 6, 2).tolist()) == sorted(herding(same, 6).tolist()) == list(range(6))


def test_coresets_take_as_many_of_each_class_as_asked_and_compare_features_within_it(data):
    train, _, _ = data
    counts = [3, 0, 1] + [2] * 7
    pool = Pool(train, train.labels, preprocessing=train.preprocessing)
    student = SPEC.build(0).eval()
    chosen = coresets(train, pool, counts, ["herding", "k-center"], partial(features_and_logits, student))
    for rows in chosen.values():
        assert train.labels[rows].bincount(minlength=10).tolist() == counts
    own = train.class_rows(0)
    with torch.no_grad():
        features = student.features(train.images(own)).flatten(1)  # what the linear layer sees
    assert chosen["herding"][:3].tolist() == own[herding(features, 3)].tolist()


def test_random_images_are_balanced_distinct_and_new_for_each_seed(data):
    train, _, _ = data
    draws = [random_rows(train, [2] * 10, 0, number) for number in range(4)]
    for rows in draws:
        assert train.labels[rows].bincount(minlength=10).tolist() == [2] * 10
        assert len(rows.unique()) == 20
    assert len({tuple(rows.tolist()) for rows in draws}) == 4
    assert torch.equal(draws[1], random_rows(train, [2] * 10, 0, 1))


def test_a_class_with_too_few_images_is_one_clear_line(data, accelerator):
    train, held_out, test = data
    fewer = train.subset(torch.cat([train.class_rows(0)[:1], *(train.class_rows(label) for label in range(1, 10))]))
    with pytest.raises(ValueError, match=r"baselines take .* lack training images: '0' has 1 of 2; leave") as error:
        evaluate(distilled_set(train), fewer, test, held_out=held_out, protocol=TINY, accelerator=accelerator)
    assert "\n" not in str(error.value)


def test_data_of_other_classes_or_sizes_are_refused(data, accelerator):
    train, held_out, test = data
    other, _ = RealImages.train_and_test(DataArguments(max_train_samples=20, classes=[str(9 - k) for k in range(10)]))
    with pytest.raises(ValueError, match="its classes in the same order"):
        evaluate(distilled_set(train), other, test, held_out=held_out, protocol=TINY, accelerator=accelerator)


# The report


def evaluated(data, teacher=None, **kwargs) -> EvalReport:
    train, held_out, test = data
    kwargs = {"num_seeds": 2, "disable_tqdm": True, "held_out": held_out, "protocol": TINY, **kwargs}
    return evaluate(distilled_set(train, teacher), train, test, **kwargs)


def rates(report: EvalReport) -> dict[str, float]:
    (context,) = report.meta.values()
    return context["learning_rates"]


@pytest.mark.slow
def test_a_teacher_labels_every_set_and_every_set_is_there_with_hard_labels_too(data, teacher, accelerator):
    deeper = replace(SPEC, name="convnet_d2", kwargs={"width": 4})
    report = evaluated(data, teacher, students=["convnet_d1", deeper], accelerator=accelerator)
    sets = ("random", "herding", "k-center", "full data", "distilled")
    names = ("convnet_d1 width=8", "convnet_d2 width=4")
    expected = set(itertools.product(sets, ("soft", "hard"), names))
    assert Counter((row.set, row.labels, row.student) for row in report.rows) == Counter(expected)
    assert {row.images for row in report.rows if row.set != "full data"} == {20}
    assert {row.n for row in report.rows} == {2}
    assert {row.protocol for row in report.rows} == {"tiny"}
    assert json.loads(json.dumps(report.to_json())) == report.to_json()


def test_without_soft_labels_there_are_hard_ones_alone(data, accelerator):
    report = evaluated(data, accelerator=accelerator)
    assert len(report.rows) == 5
    assert {row.labels for row in report.rows} == {"hard"}


def test_full_data_and_baselines_can_be_left_out(data, accelerator):
    report = evaluated(data, accelerator=accelerator, full_data=False, baselines=["herding"])
    assert {row.set for row in report.rows} == {"herding", "distilled"}


@pytest.mark.slow
def test_the_learned_rate_is_kept_for_the_labels_and_student_it_was_learned_with(data, teacher, accelerator):
    train, held_out, test = data
    protocol = replace(TINY, epochs=40)
    other = replace(SPEC, kwargs={"width": 4})

    def chosen(distilled: DistilledSet) -> dict[tuple[str, str], float]:
        report = evaluate(
            distilled,
            train,
            test,
            held_out=held_out,
            protocol=protocol,
            students=[SPEC, other],
            num_seeds=1,
            accelerator=accelerator,
            baselines=[],
            full_data=False,
            disable_tqdm=True,
        )
        of_student = {name.split("width=")[1]: context["learning_rates"] for name, context in report.meta.items()}
        return {(width, labels): lr for width, lrs in of_student.items() for labels, lr in lrs.items()}

    # A rate that trains nothing: used where it was learned, and beaten where it is one candidate of many.
    made_with = {"hyperparameters": {"eval_protocol": "tiny"}}
    hard, soft = distilled_set(train, **made_with), distilled_set(train, teacher, **made_with)
    for distilled in (hard, soft):
        distilled.lr.data.fill_(1e-13)
    useless = hard.lr.item()
    found = chosen(hard)
    assert found["8", "distilled, hard labels"] == useless
    assert found["4", "distilled, hard labels"] in protocol.lrs
    found = chosen(soft)
    assert found["8", "distilled, soft labels"] == useless
    assert found["8", "distilled, hard labels"] in protocol.lrs


def test_the_learned_rate_is_the_only_one_where_all_is_as_in_the_distillation(data, accelerator):
    train, _, _ = data

    def tried(protocol: TrainingProtocol, **config) -> tuple[float, ...]:
        distilled = distilled_set(train, **{"hyperparameters": {"eval_protocol": "tiny"}, **config})
        cases = evaluation_module._distilled_cases(distilled, [SPEC], protocol, 1, accelerator.device)
        return tuple(round(lr, 6) for lr in cases[0].lrs)

    assert tried(TINY) == tried(replace(TINY, epochs=3)) == (0.05,)
    assert tried(TINY, hyperparameters=None) == (0.05, 0.1, 0.02)  # which means mtt
    assert tried(replace(TINY, name="mtt"), hyperparameters={}) == (0.05,)
    assert tried(replace(TINY, name="other")) == (0.05, 0.1, 0.02)
    assert tried(TINY, changes=[{"select": {"ipc": 1}}]) == (0.05, 0.1, 0.02)
    # A rate of SGD on whole images says nothing of one for views.
    assert tried(CROPS) == tried(CROPS, hyperparameters={"eval_protocol": "crops"}) == CROPS.lrs
    assert tried(replace(CROPS, optimizer="sgd", momentum=0.9)) == CROPS.lrs


@pytest.mark.slow
def test_the_rate_with_the_best_held_out_accuracy_is_chosen(data, accelerator):
    train, held_out, test = data
    swapped = held_out.subset(torch.arange(len(held_out)))
    swapped.labels = 9 - held_out.labels  # here a student that learned nothing does better than one that learned
    nothing, much = 1e-9, 0.1

    def chosen(held_out: RealImages | None, *lrs: float) -> float:
        protocol = replace(TINY, epochs=60, lrs=lrs)
        options = {"accelerator": accelerator, "full_data": False, "baselines": ["random"], "num_seeds": 1}
        report = evaluate(distilled_set(train), train, test, held_out=held_out, protocol=protocol, **options)
        return rates(report)["random, hard labels"]

    assert chosen(held_out, nothing, much) == chosen(held_out, much, nothing) == much
    assert chosen(swapped, much, nothing) == nothing
    assert chosen(None, nothing, much) == nothing


@pytest.mark.slow
def test_no_learning_rate_depends_on_the_test_images(data, teacher, accelerator):
    train, held_out, test = data
    honest = evaluated(data, teacher, accelerator=accelerator)
    # Images of one class with labels of another: whoever looked would choose otherwise.
    poison = test.subset(test.class_rows(3).repeat(5))
    poison.labels = torch.zeros_like(poison.labels)
    poisoned = evaluated((train, held_out, poison), teacher, accelerator=accelerator)
    assert rates(poisoned) == rates(honest)
    assert [row.accuracies for row in poisoned.rows] != [row.accuracies for row in honest.rows]


def test_the_same_seed_gives_the_same_report_and_another_seed_another(data, accelerator):
    options = {"accelerator": accelerator, "full_data": False, "baselines": ["random"]}
    first, again, other = (evaluated(data, seed=seed, **options) for seed in (0, 0, 1))
    assert first == again
    assert first.rows != other.rows


def test_rows_do_not_depend_on_the_other_rows(data, accelerator):
    alone = evaluated(data, accelerator=accelerator, full_data=False, baselines=[])
    beside = evaluated(data, accelerator=accelerator, full_data=False, baselines=["random"])
    assert alone.rows[0] in beside.rows


def test_without_augmentation_the_set_and_random_images_are_there_once_more_with_its_own_labels(
    data, teacher, accelerator
):
    options = {"accelerator": accelerator, "full_data": False, "baselines": ["random"]}
    report = evaluated(data, teacher, unaugmented=True, **options)
    plain, more = report.rows[:4], report.rows[4:]
    assert [(row.set, row.labels, row.protocol) for row in more] == [
        ("distilled", "soft", "tiny without augmentation"),
        ("random", "soft", "tiny without augmentation"),
    ]
    (score,) = report.scores
    augmented, unaugmented = (
        np.subtract(*({row.set: row.accuracies for row in rows if row.labels == "soft"}[name] for name in SETS))
        for rows in (plain, more)
    )
    expected = (np.exp(augmented / 2 + unaugmented / 2) - np.exp(-1)) / (np.e - np.exp(-1))
    assert score.score.values.values == pytest.approx(expected)
    context = report.meta["tiny without augmentation, convnet_d1 width=8"]
    assert context["dsa_strategy"] == ""
    assert context["learning_rates"]["distilled, soft labels"] in (0.05, *TINY.lrs)


def test_without_augmentation_a_teacher_is_asked_about_the_images_themselves(data, accelerator, monkeypatch):
    train, held_out, test = data
    network, asked = Teacher(SPEC.build(0), SPEC, train.class_names, train.preprocessing), []
    rows = random_rows(train, [2] * 10, 3)
    distilled = DistilledSet(train.uint8(rows), train.labels[rows], train.class_names, train.preprocessing)
    distilled.teacher = NetworkLabels(network)

    def ask(self, x: torch.Tensor, *rest: torch.Tensor | int) -> torch.Tensor:
        asked.append(x)
        return torch.zeros(len(x), 10)

    monkeypatch.setattr(NetworkLabels, "__call__", ask)
    options = {"students": [SPEC], "baselines": ["random"], "full_data": False, "num_seeds": 1, "disable_tqdm": True}
    options |= {"accelerator": accelerator, "protocol": replace(CROPS, epochs=1)}
    evaluate(distilled, train, test, held_out=held_out, **options)
    augmented = len(asked)
    evaluate(distilled, train, test, held_out=held_out, unaugmented=True, **options)
    bare, real = torch.cat(asked[2 * augmented :]), train.images(torch.arange(len(train)))
    assert len(bare) == 40
    far = [(seen[:, None] - real).abs().amax(dim=(2, 3, 4)).amin(dim=1).max() for seen in (bare, asked[0])]
    assert far[0] < 1e-5 < 0.1 < far[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"baselines": []}, "--unaugmented compares with random images; add random to the baselines"),
        ({"labels": "stored"}, "those given are of augmented views, or of this set alone; leave --labels or"),
        ({"soft": True}, "are not known without a teacher; leave it out"),
    ],
)
def test_what_has_no_augmentation_robust_score_is_one_line(options, words, data, accelerator):
    train, held_out, test = data
    distilled = distilled_set(train)
    if options.pop("soft", False):
        distilled.soft_labels = torch.zeros(20, 10)
    options = {"accelerator": accelerator, "protocol": TINY, "full_data": False, "unaugmented": True, **options}
    with pytest.raises(ValueError, match=words) as error:
        evaluate(distilled, train, test, held_out=held_out, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "asked", "words"),
    [
        ({"baselines": ["herding"]}, None, "add random"),
        ({"protocol": replace(TINY, epochs=1, name="bare", dsa_strategy="none")}, None, "bare augments nothing"),
        ({"protocol": replace(TINY, epochs=1, name="bare", dsa_strategy="none")}, True, "bare augments nothing"),
        ({"baselines": ["herding"]}, False, ""),
        ({}, False, ""),
    ],
)
def test_what_the_distillation_had_unaugmented_is_left_out_where_it_cannot_be(
    options, asked, words, data, accelerator, caplog
):
    train, held_out, test = data
    distilled = distilled_set(train, hyperparameters={"eval_unaugmented": True})
    options = {"protocol": replace(TINY, epochs=1), "baselines": ["random"], "unaugmented": asked, **options}
    options |= {"accelerator": accelerator, "full_data": False, "num_seeds": 1, "disable_tqdm": True}
    report = evaluate(distilled, train, test, held_out=held_out.subset([]), **options)
    assert [row.set for row in report.rows] == ["distilled", *options["baselines"]]
    assert not any("without augmentation" in row.protocol for row in report.rows)
    assert words in caplog.text
    assert bool(words) == ("no rows without augmentation" in caplog.text)


@pytest.mark.parametrize(
    ("flags", "expected"), [((), None), (("--unaugmented",), True), (("--unaugmented", "false"), False)]
)
def test_the_recipe_can_leave_unaugmented_rows_out(flags, expected, data, tmp_path, monkeypatch):
    folder = distilled_set(data[0]).save_pretrained(tmp_path / "set")
    given = []

    def remember(*args, unaugmented, **options) -> EvalReport:
        given.append(unaugmented)
        return EvalReport()

    monkeypatch.setattr(evaluation_module, "evaluate", remember)
    run_recipe(monkeypatch, "--distilled_dataset", str(folder), "--max_train_samples", "100", *flags)
    assert given == [expected]


@pytest.mark.parametrize("protocol", [TINY, CROPS], ids=lambda protocol: protocol.name)
def test_students_of_a_number_start_alike_and_look_alike_at_every_set(protocol, data, accelerator):
    train, held_out, test = data
    rows = random_rows(train, [2] * 10, 0, 0)  # the first of the random subsets, as if it had been distilled
    images, labels = train.images(rows), train.labels[rows]
    distilled = DistilledSet(images, labels, train.class_names, train.preprocessing, config={"student": SPEC.to_dict()})
    options = {"accelerator": accelerator, "full_data": False, "baselines": ["random"], "num_seeds": 2}
    report = evaluate(distilled, train, test, held_out=held_out, protocol=protocol, disable_tqdm=True, **options)
    own, random = (row.accuracies for row in report.rows)
    assert own[0] == random[0]
    assert own[1] != random[1]


@pytest.mark.slow
def test_the_set_s_own_student_chooses_the_coresets_whichever_students_are_tested(data, accelerator, monkeypatch):
    guides = []

    def spy(*args, **kwargs) -> dict[str, torch.Tensor]:
        made = coresets(*args, **kwargs)
        if made:
            guides.append(args[-1])
            chosen.append(made)
        return made

    monkeypatch.setattr(evaluation_module, "coresets", spy)
    deeper = replace(SPEC, name="convnet_d2", kwargs={"width": 4})
    chosen: list[dict[str, torch.Tensor]] = []
    for students in ([SPEC], [SPEC, deeper], [deeper, SPEC], [deeper]):
        report = evaluated(data, accelerator=accelerator, students=students)
        assert {row.student.split()[0] for row in report.rows} == {spec.name for spec in students}
        assert len(report.rows) == 5 * len(students)
        for context in report.meta.values():
            words = "features of convnet_d1 width=8, trained on full data"
            assert context["coresets"] == {"herding": words, "k-center": words}
    assert len(guides) == 4
    shapes = [p.shape for p in SPEC.build(0).parameters()]
    assert all([p.shape for p in guide.args[0].parameters()] == shapes for guide in guides)
    for subset in chosen[1:]:
        assert all(torch.equal(subset[name], chosen[0][name]) for name in ("herding", "k-center"))


def test_without_full_data_or_a_teacher_the_report_says_that_coresets_compare_pixels(data, accelerator, untrained):
    report = evaluated(data, accelerator=accelerator, full_data=False)
    (context,) = report.meta.values()
    assert context["coresets"] == {"herding": "pixels", "k-center": "pixels"}
    assert " · herding and k-center by pixels" in " ".join(report.table().split())
    check_rows(untrained, data[0], data[0].images(range(len(data[0]))).flatten(1))


@pytest.fixture
def untrained(monkeypatch) -> list[trainer_module.Case]:
    """The cases that evaluations ask for, which nobody trains."""
    cases: list[trainer_module.Case] = []

    def measure(self, asked) -> list[trainer_module.Result]:
        cases.extend(asked)
        return [trainer_module.Result(case, case.lrs[0], [0.5]) for case in asked]

    monkeypatch.setattr(trainer_module.Trainer, "measure", measure)
    return cases


def check_rows(cases: list[trainer_module.Case], train: RealImages, features: torch.Tensor) -> None:
    """Two images of each class, as NumPy chooses them by `features` (R, D) of all images."""
    chosen = {case.set: case.rows[0].tolist() for case in cases}
    herded: list[int] = []
    spread: list[int] = []
    for label in range(train.num_classes):
        own = train.class_rows(label)
        within = features[own].double().numpy()
        first = np.linalg.norm(within - within.mean(axis=0), axis=1).argmin()
        herded += own[herding_by_hand(within, 2)].tolist()
        spread += own[k_center_by_hand(within, 2, first)].tolist()
    assert (chosen["herding"], chosen["k-center"]) == (herded, spread)


@pytest.mark.parametrize("kind", ["parameters", "network", "given", "given beside another", "loaded"])
def test_without_full_data_the_features_of_a_network_at_hand_choose_the_coresets(
    kind, data, accelerator, untrained, tmp_path
):
    train, held_out, test = data
    guide, other = (Teacher(SPEC.build(seed), SPEC, train.class_names, train.preprocessing) for seed in (5, 6))
    theta = FlatModel.from_spec(SPEC).flatten(guide.model)
    labels = {
        "parameters": TeacherLabels(SPEC, torch.stack([theta, theta + 1])),
        "given": None,
        "given beside another": NetworkLabels(other),
    }.get(kind, NetworkLabels(guide))
    distilled = distilled_set(train, labels)
    if kind == "loaded":
        distilled = DistilledSet.from_pretrained(distilled.save_pretrained(tmp_path / "set"))
    report = evaluate(
        distilled,
        train,
        test,
        held_out=held_out,
        protocol=TINY,
        full_data=False,
        guide=guide if "given" in kind else None,
        accelerator=accelerator,
    )
    layers = dict(guide.model.named_parameters())
    x = train.images(range(len(train)))
    x = F.conv2d(x, layers["features.0.weight"], layers["features.0.bias"], padding=1)
    x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    x = x * layers["features.1.weight"].view(-1, 1, 1) + layers["features.1.bias"].view(-1, 1, 1)
    x = x.clamp(min=0).unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    check_rows(untrained, train, x.flatten(1))
    words = f"features of the teacher convnet_d1 ({guide.digest})"
    assert [context["coresets"] for context in report.meta.values()] == [{"herding": words, "k-center": words}]
    assert f" · herding and k-center by {words}" in " ".join(report.table().split())


def test_networks_that_do_not_know_an_image_alone_and_those_of_other_classes_choose_nothing(
    data, accelerator, untrained
):
    train, _, _ = data
    batchwise = replace(SPEC, kwargs={"width": 8, "norm": "batch"})
    labels = TeacherLabels(batchwise, FlatModel.from_spec(batchwise).init(0))
    (context,) = evaluated(data, labels, accelerator=accelerator, full_data=False).meta.values()
    assert context["coresets"] == {"herding": "pixels", "k-center": "pixels"}
    other = Teacher(SPEC.build(0), SPEC, [f"other {k}" for k in range(10)], train.preprocessing)
    with pytest.raises(ValueError, match="use a teacher of these classes") as refused:
        evaluated(data, accelerator=accelerator, full_data=False, guide=other)
    assert "\n" not in str(refused.value)
    assert "coresets" not in str(
        evaluated(data, accelerator=accelerator, full_data=False, baselines=["random"], guide=other).meta
    )


@pytest.mark.slow
def test_the_rows_and_the_meta_say_what_a_protocol_that_follows_the_set_came_to(data, teacher, accelerator):
    rded = replace(PROTOCOLS["rded"], epochs=1, full_data_epochs=1, full_data_batch_size=64).for_set(2, 10, 2)
    report = evaluated(data, teacher, protocol=rded, accelerator=accelerator, num_seeds=1, baselines=["random"])
    titles = {
        "distilled": "rded, batches of 10, 2x2 tiles",
        "random": "rded, batches of 10, crops as of 2x2 tiles",
        "full data": "rded, batches of 64, crops as of 2x2 tiles",
    }
    assert {row.set: row.protocol for row in report.rows} == titles
    contexts = {name.removesuffix(", convnet_d1 width=8"): context for name, context in report.meta.items()}
    assert contexts.keys() == set(titles.values())
    for name, batch, shuffle in (("distilled", 10, 2), ("random", 10, 1), ("full data", 64, 1)):
        context = contexts[titles[name]]
        assert (context["batch_size"], context["full_data_batch_size"]) == (batch, 64)
        assert (context["cosine"], context["batchnorm_updates"], context["optimizer"]) == (2.0, 2, "adamw")
        assert context["views"] == Views(scale=(0.5, 1.0), shuffle=shuffle).to_config()
        assert context["epochs"].keys() == {f"{name}, hard labels", f"{name}, soft labels"}
        assert "momentum" not in context


@pytest.mark.slow
def test_tiles_alone_are_shuffled(data, teacher, accelerator, monkeypatch):
    shuffles: dict[int, set[int]] = {}

    def remember(pool, targets, rows, spec, protocol, **rest) -> list[nn.Module]:
        shuffles.setdefault(len(pool), set()).add(protocol.views.shuffle)
        return train_students(pool, targets, rows, spec, protocol, **rest)

    monkeypatch.setattr(trainer_module, "train_students", remember)
    rded = replace(PROTOCOLS["rded"], epochs=1, full_data_epochs=1).for_set(2, 10, 2)
    evaluated(data, teacher, protocol=rded, accelerator=accelerator, num_seeds=1)
    assert shuffles == {20: {2}, len(data[0]): {1}}  # the images of the set, and the real ones that others are of


def test_the_report_says_what_students_were_trained_with(data, accelerator):
    options = {"accelerator": accelerator, "full_data": False, "baselines": []}
    (context,) = evaluated(data, **options).meta.values()
    assert (context["batch_size"], context["momentum"], context["weight_decay"]) == (256, 0.9, 5e-4)
    assert (context["decay_epochs"], context["reset_momentum"], context["loss"]) == ([0.5], True, "ce")


def test_the_report_says_how_long_each_row_trained(data, accelerator):
    (context,) = evaluated(data, accelerator=accelerator, baselines=["random"]).meta.values()
    assert context["epochs"] == {
        "full data, hard labels": 2,
        "random, hard labels": 6,
        "distilled, hard labels": 6,
    }


def _evaluate_on_each(data, teacher, folder: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # the parent's, which the fork brought along
    accelerator = Accelerator(cpu=True)
    report = evaluated(data, teacher, accelerator=accelerator, output_dir=folder)
    kept = sorted(Path(folder, "students").iterdir())
    accelerator.wait_for_everyone()
    for path in kept[accelerator.process_index :: 3]:  # two of three are lost
        path.unlink()
    accelerator.wait_for_everyone()
    again = evaluated(data, teacher, accelerator=accelerator, output_dir=folder)
    measured = validation_accuracy(distilled_set(data[0], teacher), data[1], TINY, 3, 0, accelerator)
    content = {"processes": accelerator.num_processes, "report": report.to_json(), "validation": measured}
    content["again"] = again.to_json()
    Path(folder, f"{accelerator.process_index}.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_two_processes_report_what_one_reports(data, teacher, accelerator, tmp_path):
    debug_launcher(_evaluate_on_each, (data, teacher, str(tmp_path)), num_processes=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [content["processes"] for content in found] == [2, 2]
    report = evaluated(data, teacher, accelerator=accelerator)
    measured = validation_accuracy(distilled_set(data[0], teacher), data[1], TINY, 3, 0, accelerator)
    for content in found:
        assert EvalReport.from_json(content["report"]) == report
        assert EvalReport.from_json(content["again"]) == report
        assert content["validation"] == measured


@pytest.mark.slow
def test_a_set_evaluates_identically_after_it_was_saved_and_loaded(data, teacher, accelerator, tmp_path):
    train, held_out, test = data
    distilled = distilled_set(train, teacher)
    again = DistilledSet.from_pretrained(distilled.save_pretrained(tmp_path))
    first, second = (
        evaluate(one, train, test, held_out=held_out, protocol=TINY, num_seeds=2, accelerator=accelerator)
        for one in (distilled, again)
    )
    assert first == second


def test_validation_is_the_mean_over_fresh_students_of_the_set(data, teacher, accelerator, monkeypatch):
    train, held_out, _ = data
    said, heard = iter([0.2, 0.4, 0.9]), []

    def measure(student: nn.Module, pool: Pool) -> float:
        heard.append((torch.cat([p.flatten() for p in parameters(student)]), pool))
        return next(said)

    monkeypatch.setattr(trainer_module, "accuracy", measure)
    found = validation_accuracy(distilled_set(train, teacher), held_out, TINY, 3, 0, accelerator)
    assert found == pytest.approx(0.5)
    students = torch.stack([theta for theta, _ in heard])
    assert students.shape == (3, sum(p.numel() for p in SPEC.build(0).parameters()))
    assert len(students.unique(dim=0)) == 3
    assert all(torch.equal(pool.labels, held_out.labels) for _, pool in heard)


def test_held_out_images_that_are_on_the_device_already_are_not_read_again(data, accelerator, monkeypatch):
    train, held_out, _ = data
    distilled = distilled_set(train)
    pool = real_pool(distilled, held_out, accelerator)
    expected = validation_accuracy(distilled, held_out, TINY, 2, 0, accelerator)
    monkeypatch.delattr(RealImages, "resident")
    monkeypatch.delattr(RealImages, "uint8")
    assert validation_accuracy(distilled, pool, TINY, 2, 0, accelerator) == expected


def test_a_set_that_names_no_student_needs_one(data, accelerator):
    train, held_out, _ = data
    distilled = distilled_set(train)
    del distilled.config["student"]
    with pytest.raises(ValueError, match="name one with --student"):
        validation_accuracy(distilled, held_out, TINY, 1, 0, accelerator)


# As at the distillation


def test_without_a_word_the_protocol_is_that_of_the_distillation_with_its_augmentation_and_rates(data):
    apm = {"hyperparameters": {"eval_protocol": "apm"}, "dsa_strategy": "flip", "eval_lrs": [0.5, 0.25]}
    own = protocol_for(distilled_set(data[0], **apm))
    assert (own.name, own.loss, own.dsa_strategy, own.lrs) == ("apm", "l1", "flip", (0.5, 0.25))
    assert protocol_for(distilled_set(data[0], **apm), "apm") == own
    other = protocol_for(distilled_set(data[0], **apm), "quick")  # learning rates of apm mean nothing to it
    assert (other.name, other.dsa_strategy, other.lrs) == ("quick", "flip", PROTOCOLS["quick"].lrs)
    assert protocol_for(distilled_set(data[0], **apm), TINY) is TINY
    assert protocol_for(distilled_set(data[0])) == PROTOCOLS["mtt"]


@pytest.mark.parametrize(
    ("made_with", "factor", "tiles"),
    [({}, None, 1), ({"factor": 2}, None, 2), ({"factor": 2}, 1, 1), ({}, 4, 4), ({"factor": "2"}, None, 1)],
)
def test_a_protocol_that_follows_the_set_is_given_its_images_classes_and_tiles(made_with, factor, tiles, data):
    distilled = distilled_set(data[0], hyperparameters=made_with)  # two images of each of ten classes
    protocol = protocol_for(distilled, "rded", factor)
    assert protocol == PROTOCOLS["rded"].for_set(2, 10, tiles)
    assert (protocol.batch_size, protocol.views.shuffle, protocol.views.scale) == (10, tiles, (1 / tiles, 1.0))
    assert (protocol.views.crop == "none") == (tiles == 1)
    own = {"hyperparameters": {**made_with, "eval_protocol": "rded"}}
    assert protocol_for(distilled_set(data[0], **own), factor=factor) == protocol


@pytest.mark.parametrize("factor", [0, 9, 1.5])
def test_tiles_that_an_image_cannot_have_are_one_line(factor, data):
    with pytest.raises(ValueError, match=rf"^--factor is {factor}; expected the tiles along a side .*from 1 to 8$"):
        protocol_for(distilled_set(data[0]), "rded", factor)


def test_the_augmentation_of_a_set_means_nothing_to_a_protocol_of_crops(data):
    distilled = distilled_set(data[0], dsa_strategy="flip")
    assert protocol_for(distilled, "cda") == PROTOCOLS["cda"]
    assert not hasattr(PROTOCOLS["cda"], "dsa_strategy")


@pytest.mark.parametrize(
    ("made_with", "given", "words"),
    [
        ({}, "quik", "there is no protocol 'quik'; did you mean 'quick'? expected one of mtt, quick, "),
        ({"eval_protocol": "mine"}, None, "made for a protocol that is unknown here, 'mine'; expected one of mtt"),
        ({"eval_protocol": ["mtt"]}, None, r"unknown here, \['mtt'\]; "),
    ],
)
def test_a_protocol_that_there_is_not_is_one_line_with_the_nearest(made_with, given, words, data, accelerator):
    train, _, test = data
    distilled = distilled_set(train, hyperparameters=made_with)
    with pytest.raises(ValueError, match=words.replace("?", r"\?")) as error:
        evaluate(distilled, train, test, protocol=given, accelerator=accelerator)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", [{"students": "convnet_d1"}, {"baselines": "random"}])
def test_one_name_where_a_list_belongs_is_one_line(given, data, accelerator):
    train, _, test = data
    with pytest.raises(ValueError, match=r"^(students|baselines) is '\w+'; expected a list, such as \['\w+'\]$"):
        evaluate(distilled_set(train), train, test, protocol=TINY, accelerator=accelerator, **given)


def test_without_a_word_baselines_and_full_data_are_those_of_the_distillation(data, accelerator):
    train, _, test = data

    def sets(made_with: dict, **given) -> set[str]:
        options = {"protocol": TINY, "num_seeds": 1, "accelerator": accelerator, "disable_tqdm": True, **given}
        distilled = distilled_set(train, hyperparameters=made_with)
        return {row.set for row in evaluate(distilled, train, test, **options).rows}

    made_with = {"eval_full_data": False, "eval_baselines": ["random"]}
    assert sets(made_with) == {"distilled", "random"}
    assert sets(made_with, full_data=True, baselines=["herding"]) == {"distilled", "herding", "full data"}
    assert sets({}) == {"distilled", "random", "herding", "k-center", "full data"}


# The recipe


def run_recipe(monkeypatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--num_seeds", "2", "--disable_tqdm", *flags])
    monkeypatch.setitem(PROTOCOLS, "tiny", TINY)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    runpy.run_path(str(RECIPE), run_name="__main__")


@pytest.mark.slow
def test_the_recipe_adds_its_results_to_the_folder_and_its_card(data, teacher, tmp_path, monkeypatch, capsys):
    made_with = {"hyperparameters": {"eval_protocol": "tiny"}}
    folder = distilled_set(data[0], teacher, **made_with).save_pretrained(tmp_path / "set")
    few = ("--distilled_dataset", str(folder), "--max_train_samples", "200", "--max_test_samples", "50")
    run_recipe(monkeypatch, *few, "--unaugmented")
    said = capsys.readouterr().out
    assert "k-center" in said
    assert "augmentation robust score" in said
    run_recipe(monkeypatch, *few, "--student", "test_resnet")
    report = DistilledSet.from_pretrained(folder).report
    assert len(report.rows) == 2 * 5 * 2 + 2
    assert {row.protocol for row in report.rows} == {"tiny", "tiny without augmentation"}
    written = json.loads((folder / "results.json").read_text())
    assert [score["name"].split()[0] for score in written["scores"]] == ["label", "augmentation", "label"]
    assert all(score["shortened"] is not False and score["epochs"] in (6, None) for score in written["scores"])
    assert len(written["differences"]) == 2 * 2 * 2 + 1
    card = (folder / "README.md").read_text()
    row = next(row for row in report.rows if row.set == "herding" and row.student == "test_resnet")
    assert row.percent() in card
    assert "2 epochs, shortened: the set has 6" in card


@pytest.mark.slow
def test_the_recipe_takes_experts_and_a_teacher_for_all_coresets(data, tmp_path, monkeypatch, capsys):
    train, _, _ = data
    config = ExpertConfig(student="convnet_d1", student_width=8, num_experts=1, experts_at_once="1")
    experts = train_experts(train, config, tmp_path / "experts", epochs=2, disable_tqdm=True)
    guide = Teacher.from_expert(experts, 0).save_pretrained(tmp_path / "guide")
    made_with = {"hyperparameters": {"eval_protocol": "tiny", "eval_full_data": False}}
    folder = distilled_set(train, **made_with).save_pretrained(tmp_path / "set")
    few = ("--distilled_dataset", str(folder), "--max_train_samples", "200", "--max_test_samples", "50")
    few = (*few, "--validation_fraction", "0.2", "--num_seeds", "1", "--experts", str(tmp_path / "experts"))
    run_recipe(monkeypatch, *few, "--teacher", str(guide), "--baselines", "all")
    told = " ".join(capsys.readouterr().out.split())
    assert "el2n by errors after epoch 2 of 1 expert of convnet_d1 · forgetting by counts in 2 epochs of" in told
    assert [row.set for row in DistilledSet.from_pretrained(folder).report.rows] == ["distilled", *BASELINES]
    with pytest.raises(SystemExit, match="--baselines has bps, which needs a network"):
        run_recipe(monkeypatch, *few[:-2], "--baselines", "bps")


def test_experts_are_fetched_from_where_the_set_has_them_if_a_baseline_needs_them(data, monkeypatch):
    recipe = runpy.run_path(str(RECIPE))
    asked: list[tuple] = []
    monkeypatch.setattr(ExpertTrajectories, "from_pretrained", lambda *args, **given: asked.append((args, given)))
    home = {"source": "org/experts", "revision": "a" * 40}
    for names, experts, fetched in (
        (["random", "bps"], home, []),
        (["all"], {**home, "revision": None}, []),
        (["all"], None, []),
        (["ccs"], home, [(("org/experts",), {"revision": "a" * 40, "token": None})]),
    ):
        distilled = distilled_set(data[0], **({"experts": experts} if experts else {}))
        args = recipe["EvaluateArguments"](distilled_dataset="x", baselines=names)
        recipe["find_experts"](distilled, args, None)
        assert asked == fetched


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--distilled_dataset is missing"),
        (("--distilled_dataset", "x", "--baselines", "kmeans"), "--baselines is 'kmeans'; expected one of random,"),
        (("--distilled_dataset", "nowhere/at all"), "cannot be a repository id"),
        (("--distilled_dataset", "x", "--protocol", "slow"), "expected one of mtt, quick"),
    ],
)
def test_the_recipe_says_in_one_line_what_is_wrong(flags, words, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_recipe(monkeypatch, *flags)
    message = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert words in message
    assert len(message.strip().splitlines()) == 1


def test_a_set_made_of_a_local_folder_asks_where_the_folder_is(data, tmp_path, monkeypatch):
    folder = distilled_set(data[0], source={"name": "my_folder"}).save_pretrained(tmp_path / "set")
    with pytest.raises(SystemExit, match="'my_folder', no Hub name; say where it is: --dataset_name PATH"):
        run_recipe(monkeypatch, "--distilled_dataset", str(folder))


def read_again(distilled: DistilledSet, **given) -> DataArguments:
    return runpy.run_path(str(RECIPE))["source_arguments"](distilled, DataArguments(**given))


MADE_WITH = {
    "dataset_config": None,
    "dataset_revision": "main",
    "dataset_train_split": "train",
    "dataset_test_split": "validation",
    "image_column_name": "img",
    "label_column_name": "fine_label",
    "resolution": [8],
    "color": "auto",
    "classes": None,
    "max_train_samples": 150,
    "max_test_samples": None,
    "normalization": "zca",
    "mean": None,
    "std": None,
    "zca_eps": 0.2,
    "validation_fraction": 0.2,
}


def test_the_source_is_read_as_it_was_for_the_set_and_flags_win(data):
    source = {"name": "org/images", "config": None, "split": "train", "revision": "abc", "arguments": MADE_WITH}
    distilled = distilled_set(data[0], source=source)
    found = read_again(distilled)
    assert (found.dataset_name, found.dataset_revision, found.dataset_test_split) == ("org/images", "abc", "validation")
    assert (found.image_column_name, found.label_column_name) == ("img", "fine_label")
    assert (found.max_train_samples, found.validation_fraction) == (150, 0.2)
    assert (found.normalization, found.resolution, found.color) == ("none", [8, 8], "gray")
    flags = {
        "label_column_name": "coarse_label",
        "dataset_train_split": "all",
        "dataset_revision": "v2",
        "validation_fraction": 0.3,
    }
    found = read_again(distilled, **flags)
    assert {key: getattr(found, key) for key in flags} == flags
    assert found.image_column_name == "img"


def test_a_copy_of_the_source_elsewhere_has_its_columns_and_not_its_revision(data):
    source = {"name": "org/images", "config": None, "split": "train", "revision": "abc", "arguments": MADE_WITH}
    found = read_again(distilled_set(data[0], source=source), dataset_name="/data/images")
    assert (found.dataset_name, found.dataset_revision) == ("/data/images", None)
    assert (found.label_column_name, found.dataset_test_split) == ("fine_label", "validation")


def test_a_set_of_before_the_arguments_were_recorded_is_read_by_name_and_revision(data):
    source = {"name": "org/images", "config": "small", "split": "all", "revision": "abc"}
    found = read_again(distilled_set(data[0], source=source), max_train_samples=90)
    assert (found.dataset_name, found.dataset_config, found.dataset_revision) == ("org/images", "small", "abc")
    assert (found.dataset_train_split, found.max_train_samples, found.validation_fraction) == ("all", 90, 0.1)


def test_the_recipe_holds_out_the_images_that_the_set_was_selected_on(tmp_path, monkeypatch):
    arguments = DataArguments(max_train_samples=150, max_test_samples=50, validation_fraction=0.2)
    rest, held_out = RealImages.train_and_test(arguments)[0].split(0.2, seed=0)
    source = {"name": "digits", "arguments": {"max_train_samples": 150, "validation_fraction": 0.2}}
    folder = distilled_set(rest, source=source).save_pretrained(tmp_path / "set")
    given = []

    def remember(distilled, train, test, *, held_out, **kwargs) -> EvalReport:
        given.extend([train, held_out])
        return EvalReport()

    monkeypatch.setattr(evaluation_module, "evaluate", remember)
    run_recipe(monkeypatch, "--distilled_dataset", str(folder))
    for found, expected in zip(given, (rest, held_out), strict=True):
        rows = torch.arange(len(expected))
        assert len(found) == len(expected)
        assert torch.equal(found.uint8(rows), expected.uint8(rows))


def test_a_disk_that_cannot_be_written_is_one_clear_line(data, tmp_path, monkeypatch):
    folder = distilled_set(data[0]).save_pretrained(tmp_path / "set")

    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation_module, "evaluate", lambda *args, **kwargs: EvalReport())
    monkeypatch.setattr(DistilledSet, "save_pretrained", full)
    with pytest.raises(SystemExit, match=r"error: .*No space left on device"):
        run_recipe(monkeypatch, "--distilled_dataset", str(folder))


def test_results_are_saved_before_they_are_shown_and_shown_where_they_cannot_be_saved(
    data, tmp_path, monkeypatch, capsys
):
    folder = distilled_set(data[0]).save_pretrained(tmp_path / "set")
    report = EvalReport([EvalRow("distilled", "hard", "convnet_d1", "quick", 10, [0.614], "cpu")])
    monkeypatch.setattr(evaluation_module, "evaluate", lambda *args, **kwargs: report)

    def closed(self, *args) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "print", closed)
        with pytest.raises(SystemExit, match="Broken pipe"):
            run_recipe(monkeypatch, "--distilled_dataset", str(folder))
    assert DistilledSet.from_pretrained(folder).report.rows == report.rows
    monkeypatch.setattr(DistilledSet, "save_pretrained", full)
    with pytest.raises(SystemExit, match="No space left"):
        run_recipe(monkeypatch, "--distilled_dataset", str(folder))
    assert "61.4" in capsys.readouterr().out


# Students of logits


def test_a_student_with_the_loss_l1_descends_the_mean_distance_from_the_logits_themselves():
    images, _ = small_set(12)
    logits = torch.randn(12, 10, generator=torch.Generator().manual_seed(3))
    plain = replace(TINY, loss="l1", epochs=1, dsa_strategy="", weight_decay=0.0)
    for name, kwargs in (("convnet_d1", {"width": 4}), ("convnet_d1", {"width": 4, "norm": "batch"})):
        spec = StudentSpec(name, 10, 1, (8, 8), kwargs)
        before = spec.build(derive_seed(7, "init")).train()
        gradients = torch.autograd.grad((before(images) - logits).abs().sum() / 120, list(before.parameters()))
        after = train_student(images, logits, spec, plain, lr=0.1, seed=7)
        for was, gradient, now in zip(before.parameters(), gradients, after.parameters(), strict=True):
            torch.testing.assert_close(now, was - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    classes = torch.arange(12) % 10
    hard = [train_student(images, classes, SPEC, replace(TINY, loss=loss), lr=0.1, seed=7) for loss in ("l1", "ce")]
    assert all(torch.equal(*pair) for pair in zip(*(parameters(each) for each in hard), strict=True))


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_student_along_its_training_is_what_the_same_schedule_gives_when_it_stops_there(norm):
    images, _ = small_set(12)
    logits = torch.randn(12, 10, generator=torch.Generator().manual_seed(3))
    spec = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": norm})
    protocol = replace(TINY, loss="l1", batch_size=5, decay_epochs=())
    along = train_along(images, logits, spec, protocol, [1, 3, 4], lr=0.05, seed=2)
    for epochs, found in zip((1, 3, 4), along, strict=True):
        alone = train_student(images, logits, spec, replace(protocol, epochs=epochs), lr=0.05, seed=2)
        assert not found.training
        assert found.state_dict().keys() == alone.state_dict().keys()
        for name, value in alone.state_dict().items():
            assert torch.equal(found.state_dict()[name], value), name
