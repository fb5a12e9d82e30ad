"""Students on crops: the loss by hand, the schedule, and labels that are those of the very views that are seen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor, nn

from hf_distill.augmentation.views import Views
from hf_distill.data.feed import Pool
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.distilled.labels import LabelSource, NetworkLabels
from hf_distill.evaluation.accuracy import accuracy
from hf_distill.evaluation.crop_students import (
    classes_loss,
    distillation_loss,
    matching_loss,
    parameter_groups,
    repeat_updates,
    train_on_crops,
)
from hf_distill.evaluation.protocols import PROTOCOLS, CropProtocol
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import derive_seed, generator

SPEC = StudentSpec("convnet_d1", 4, 1, (8, 8), {"width": 6, "norm": "batch"})
RESNET = StudentSpec("test_resnet", 4, 1, (8, 8), {"drop_rate": 0.3})
PREPROCESSING = Preprocessing(1, (8, 8), (0.4,), (0.3,))
PROTOCOL = CropProtocol("tiny", epochs=3, full_data_epochs=1, batch_size=5, weight_decay=0.01, temperature=4.0)
COUNT = 17


pytestmark = pytest.mark.usefixtures("one_thread")


def make_pool(device: torch.device | str = "cpu") -> Pool:
    draw = generator(0, "images")
    images = torch.randint(0, 256, (COUNT, 1, 8, 8), dtype=torch.uint8, generator=draw)
    return Pool(images, torch.arange(COUNT) % 4, preprocessing=PREPROCESSING, device=device)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return make_pool()


@pytest.fixture(scope="module")
def teacher() -> NetworkLabels:
    return make_teacher()


def make_teacher() -> NetworkLabels:
    model = SPEC.build(7)
    model.features[1].running_mean.normal_(generator=generator(0, "mean"))
    return NetworkLabels(Teacher(model, SPEC, list("abcd"), PREPROCESSING))


def train(
    pool: Pool, targets: Tensor | LabelSource, protocol=PROTOCOL, rows=None, spec=SPEC, seed=1, accelerator=None
) -> nn.Module:
    rows = torch.arange(COUNT) if rows is None else rows
    return train_on_crops(pool, targets, rows, spec, protocol, protocol.epochs, 0.01, seed, accelerator)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# The loss


def test_the_loss_of_two_classes_by_hand():
    student, teacher = torch.tensor([[0.0, 2 * math.log(3.0)]]), torch.tensor([[2 * math.log(2.0), 0.0]])
    # At temperature 2: softmax is (1/4, 3/4) for the student and (2/3, 1/3) for the teacher.
    expected = 2 / 3 * math.log((2 / 3) / (1 / 4)) + 1 / 3 * math.log((1 / 3) / (3 / 4))
    assert distillation_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_mean_relative_entropy_that_scipy_computes(temperature, smoothing):
    draw = generator(0, "logits")
    student, teacher = (5 * torch.randn(9, 7, generator=draw) for _ in range(2))
    wanted = softmax(teacher.double().numpy() / temperature, axis=1)
    wanted = (1 - smoothing) * wanted + smoothing / 7
    given = np.exp(log_softmax(student.double().numpy() / temperature, axis=1))
    expected = rel_entr(wanted, given).sum(1).mean()
    found = distillation_loss(student, teacher, temperature, smoothing=smoothing)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_squared_multiplies_by_the_square_of_the_temperature_and_equal_logits_cost_nothing():
    draw = generator(0, "logits")
    student, teacher = (torch.randn(9, 7, generator=draw) for _ in range(2))
    for temperature in (2.0, 20.0):
        plain, squared = (distillation_loss(student, teacher, temperature, flag) for flag in (False, True))
        assert torch.equal(squared, plain * temperature**2)
    assert distillation_loss(teacher + 3, teacher, 4.0).abs() < 1e-6


def test_half_precision_logits_are_compared_in_single_precision():
    draw = generator(0, "logits")
    student, teacher = (torch.randn(9, 7, generator=draw) for _ in range(2))
    found = distillation_loss(student.bfloat16(), teacher.half(), 20.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, distillation_loss(student.bfloat16().float(), teacher.half().float(), 20.0))


def test_matching_is_the_variance_of_the_difference_and_plain_matching_its_mean_square():
    student, teacher = (
        torch.tensor([[1.0, 5.0, 0.0], [2.0, 2.0, 2.0]]),
        torch.tensor([[0.0, 1.0, 2.0], [7.0, 7.0, 7.0]]),
    )
    # Differences (1, 4, -2) and (-5, -5, -5): less their means (1 and -5) they are (0, 3, -3) and nothing.
    assert matching_loss(student, teacher).tolist() == pytest.approx([6.0, 0.0])
    assert matching_loss(student, teacher, centred=False).tolist() == pytest.approx([7.0, 25.0])
    draw = generator(0, "logits")
    one, other = (torch.randn(9, 7, generator=draw) for _ in range(2))
    torch.testing.assert_close(matching_loss(one, other), (one - other).var(1, unbiased=False))
    found = matching_loss(one.bfloat16(), other.half())
    assert found.dtype == torch.float32
    assert torch.equal(found, matching_loss(one.bfloat16().float(), other.half().float()))


def test_a_mixed_view_belongs_to_two_classes_each_by_its_share():
    logits = torch.tensor([[0.0, math.log(3.0), 0.0]] * 3)  # probabilities 1/5, 3/5 and 1/5
    own, partners, share = torch.tensor([1, 1, 0]), torch.tensor([0, 0, 0]), torch.tensor([1.0, 0.25, 0.5])
    expected = [math.log(5 / 3), 0.25 * math.log(5 / 3) + 0.75 * math.log(5), math.log(5)]
    assert classes_loss(logits, own, partners, share).tolist() == pytest.approx(expected)


# The optimizer and its schedule


@pytest.mark.parametrize("spec", [SPEC, RESNET], ids=lambda spec: spec.name)
def test_only_weights_of_two_dimensions_or_more_decay(spec):
    model = spec.build(0)
    decayed, rest = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert len(decayed["params"]) + len(rest["params"]) == len(names)
    layers = dict(model.named_modules())
    expected = {f"{name}.weight" for name, layer in layers.items() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    assert {names[id(parameter)] for parameter in decayed["params"]} == expected
    assert len(expected) >= 2


def test_the_rate_warms_up_from_a_hundredth_and_ends_near_nothing():
    plain = PROTOCOL
    assert plain.rate(0, 300) == 1
    assert plain.rate(150, 300) == pytest.approx(0.5)
    assert plain.rate(299, 300) == pytest.approx((1 - math.cos(math.pi / 300)) / 2)  # 2.7e-5
    assert plain.rate(299, 300) < 3e-5
    warm = replace(plain, warmup_epochs=5)
    assert [warm.rate(epoch, 100) for epoch in range(6)] == pytest.approx([0.01, 0.208, 0.406, 0.604, 0.802, 1.0])
    assert warm.rate(5 + 95 // 2, 100) == pytest.approx(0.5, abs=0.01)
    assert 0 < warm.rate(99, 100) < 3e-4


def test_a_cosine_of_twice_the_training_ends_at_half_the_rate():
    long = replace(PROTOCOL, cosine=2.0)
    assert long.rate(0, 300) == 1
    assert long.rate(150, 300) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert long.rate(299, 300) == pytest.approx(0.5, abs=0.003)
    assert 0.5 < long.rate(299, 300) < long.rate(298, 300)
    warm = replace(long, warmup_epochs=5)
    assert [warm.rate(epoch, 100) for epoch in (0, 5)] == [0.01, 1.0]
    assert warm.rate(99, 100) == pytest.approx(0.5, abs=0.01)


# What batches leave behind


@pytest.mark.parametrize("spec", [SPEC, replace(RESNET, kwargs={})], ids=lambda spec: spec.name)
def test_a_batch_that_counts_twice_is_one_that_is_looked_at_once_more_in_training_mode(spec):
    once, twice = (spec.build(3).train() for _ in range(2))
    repeat_updates(once, 2)
    for seed in (0, 1, 2):
        x = torch.randn(6, 1, 8, 8, generator=generator(seed, "batch"))
        once(x)
        for _ in range(2):
            twice(x)
    statistics = {name: tensor for name, tensor in twice.state_dict().items() if "running" in name}
    assert statistics
    for name, tensor in statistics.items():
        torch.testing.assert_close(once.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [7, 8, 13])  # of the last one: too few for two halves, halves, and an odd number
def test_a_batch_in_halves_has_the_gradient_of_the_whole_and_the_statistics_of_each_half(pool, teacher, count):
    protocol, rows = replace(PROTOCOL, accumulate=2, epochs=1, optimizer="sgd", momentum=0.9), torch.arange(count)
    found = train(pool, teacher, protocol, rows)

    model = SPEC.build(derive_seed(1, "init")).train()
    stepper = torch.optim.SGD(parameter_groups(model, 0.01), lr=0.01, momentum=0.9, foreach=False)
    views, draw = replace(protocol.views, seed=derive_seed(1, "views")), generator(1, "order")
    halves = {5: (3, 2), 2: (2,), 3: (3,)}
    for places in torch.randperm(count, generator=draw).split(5):
        x = views(lambda chosen: pool.images(rows[chosen]), places, 0, count)
        wanted = (teacher.teacher.logits(x) / 4).softmax(1)
        given = (torch.cat([model(part) for part in x.split(halves[len(places)])]) / 4).log_softmax(1)
        stepper.zero_grad()
        ((wanted * (wanted.log() - given)).sum() / len(places)).backward()
        stepper.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def test_a_second_look_changes_running_statistics_alone(pool, teacher):
    plain, twice = (train(pool, teacher, replace(PROTOCOL, batchnorm_updates=times)) for times in (1, 2))
    before, after = plain.state_dict(), twice.state_dict()
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert differing == {name for name in before if "running" in name}


@pytest.mark.parametrize("name", ["hello", "hello-quick"])
def test_students_of_hello_match_logits_and_a_little_of_the_classes_on_views_of_at_least_half_the_image(name):
    protocol = PROTOCOLS[name]
    assert (protocol.loss, protocol.ce_weight, protocol.views.scale) == ("mse", 0.025, (0.5, 1.0))
    assert protocol.views.mix == "cutmix"
    assert PROTOCOLS["hello"].rate(299, 300) == pytest.approx(0.5, abs=0.003)
    assert PROTOCOLS["hello"].lrs == (0.001,)


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_training_by_matching_is_a_plain_loop_too(pool, teacher, mix, device):
    sgd = {"optimizer": "sgd", "momentum": 0.9, "decay_all": True}
    protocol = replace(PROTOCOL, loss="mse", ce_weight=0.3, cosine=2.0, views=Views(mix=mix), **sgd)
    rows = torch.tensor([16, 3, 8, 0, 11, 12, 5])
    found = train(make_pool(device), make_teacher().to(device), protocol, rows).cpu()

    model = SPEC.build(derive_seed(1, "init")).train()
    stepper = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01, foreach=False)
    views = replace(protocol.views, seed=derive_seed(1, "views"))
    draw = generator(1, "order")
    for epoch in range(3):
        for group in stepper.param_groups:
            group["lr"] = 0.01 * math.cos(math.pi * epoch / 12) ** 2  # half a cosine, over six epochs
        for places in torch.randperm(7, generator=draw).split(5):
            x = views(lambda chosen: pool.images(rows[chosen]), places, epoch, 7)
            given, wanted = model(x), teacher.teacher.logits(x).detach()
            partners, share = views.mixing(places, epoch, 7, (8, 8))
            classes = torch.zeros(len(places), 4)
            for row, (one, two, part) in enumerate(zip(places, partners, share.tolist(), strict=True)):
                classes[row, pool.labels[rows[one]]] += part
                classes[row, pool.labels[rows[two]]] += 1 - part
            matched = (given - wanted).var(1, unbiased=False).mean()
            loss = matched - 0.3 * (classes * given.log_softmax(1)).sum(1).mean()
            stepper.zero_grad()
            loss.backward()
            stepper.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("decay_all", [False, True], ids=["matrices", "all"])
def test_training_is_a_plain_loop_over_the_views(pool, teacher, optimizer, hard, decay_all):
    options = {"momentum": 0.9 if optimizer == "sgd" else None, "decay_all": decay_all, "weight_decay": 0.3}
    options |= {"warmup_epochs": 1, "label_smoothing": 0.1, "squared": not hard}
    protocol = replace(PROTOCOL, optimizer=optimizer, **options)
    rows = torch.tensor([16, 3, 8, 0, 11, 12, 5])
    targets = pool.labels if hard else teacher
    found = train(pool, targets, protocol, rows)

    model = SPEC.build(derive_seed(1, "init")).train()
    names = dict(model.named_parameters())
    groups = [{"params": [p], "weight_decay": 0.3 if decay_all or p.ndim > 1 else 0.0} for p in names.values()]
    if optimizer == "adamw":
        stepper = torch.optim.AdamW(groups, lr=0.01, foreach=False)
    else:
        stepper = torch.optim.SGD(groups, lr=0.01, momentum=0.9, foreach=False)
    views = replace(protocol.views, seed=derive_seed(1, "views"), mix="none" if hard else "cutmix")
    draw = generator(1, "order")
    for epoch, factor in enumerate((0.01, 1.0, 0.5)):
        for group in stepper.param_groups:
            group["lr"] = 0.01 * factor
        for places in torch.randperm(7, generator=draw).split(5):
            x = views(lambda chosen: pool.images(rows[chosen]), places, epoch, 7)
            if hard:
                loss = F.cross_entropy(model(x), pool.labels[rows[places]], label_smoothing=0.1)
            else:
                wanted = (teacher.teacher.logits(x) / 4).softmax(1) * 0.9 + 0.1 / 4
                given = (model(x) / 4).log_softmax(1)
                loss = 16 * (wanted * (wanted.log() - given)).sum() / len(places)
            stepper.zero_grad()
            loss.backward()
            stepper.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, atol=2e-4, rtol=1e-3)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_student(pool, teacher):
    for spec in (SPEC, RESNET):
        state = torch.get_rng_state()
        first = train(pool, teacher, spec=spec)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        assert same(first, train(pool, teacher, spec=spec))
        assert not same(first, train(pool, teacher, spec=spec, seed=2))
        assert not first.training


def test_a_last_batch_of_one_image_is_no_batch_for_batch_norm(pool, teacher):
    rows = torch.arange(6)  # batches of five and of one
    model = train(pool, teacher, rows=rows)
    (counted,) = (tensor for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked"))
    assert counted == PROTOCOL.epochs
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


# Labels and views


class Watching(LabelSource):
    """Labels as `source`, and a note of what was asked for."""

    kind = "watching"

    def __init__(self, source: LabelSource) -> None:
        self.source = source
        self.asked: list[tuple[Tensor, Tensor, Tensor, int]] = []

    @property
    def num_bytes(self) -> int:
        return self.source.num_bytes

    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        self.asked.append((images, labels, rows, epoch))
        return self.source(images, labels, rows, epoch)


class Beforehand(LabelSource):
    """The logits of every view of every epoch, made before anybody trains on them."""

    kind = "beforehand"

    def __init__(self, pool: Pool, teacher: LabelSource, views: Views, epochs: int) -> None:
        self.views = views
        rows = torch.arange(len(pool)).flip(0)  # another order than training's
        self.logits = torch.zeros(epochs, len(pool), 4)
        for epoch in range(epochs):
            for part in rows.split(4):
                seen = views(pool.images, part, epoch, len(pool), pool.black)
                self.logits[epoch, part] = teacher(seen, pool.labels[part], part, epoch)

    @property
    def num_bytes(self) -> int:
        return self.logits.numel() * 4

    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        return self.logits[epoch, rows]


def test_each_epoch_asks_once_for_each_image_with_its_class_its_row_and_the_epoch(pool, teacher):
    watching = Watching(teacher)
    rows = torch.tensor([16, 3, 8, 0, 11, 12, 5])
    train(pool, watching, rows=rows)
    for epoch in range(PROTOCOL.epochs):
        asked = [(labels, which) for _, labels, which, when in watching.asked if when == epoch]
        assert sorted(torch.cat([which for _, which in asked]).tolist()) == sorted(rows.tolist())
        assert all(torch.equal(labels, which % 4) for labels, which in asked)


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
@pytest.mark.parametrize("crop", ["resized", "padded"])
def test_labels_that_were_made_beforehand_are_those_of_a_teacher_that_looks_on(pool, teacher, mix, crop):
    protocol = replace(PROTOCOL, views=Views(crop=crop, pad=2, mix=mix))
    views = protocol.views_for(teacher, 1)
    assert views == replace(protocol.views, seed=derive_seed(1, "views"))
    watching, stored = Watching(teacher), Watching(Beforehand(pool, teacher, views, protocol.epochs))
    stored.views = stored.source.views
    online, offline = train(pool, watching, protocol), train(pool, stored, protocol)
    for one, other in zip(watching.asked, stored.asked, strict=True):
        assert torch.equal(one[0], other[0])
        torch.testing.assert_close(teacher(*one), stored.source(*other), atol=1e-5, rtol=1e-5)
    # AdamW turns the smallest gradients, which are rounding, into whole steps: logits, not weights, are compared.
    x = pool.images(torch.arange(COUNT))
    torch.testing.assert_close(online(x), offline(x), atol=0.02, rtol=0)


def test_stored_labels_bring_the_views_that_they_were_made_for(pool, teacher):
    views = Views(seed=99, crop="none", flip=0.0, mix="none")
    stored = Watching(Beforehand(pool, teacher, views, PROTOCOL.epochs))
    stored.views = views
    train(pool, stored)
    for images, _, rows, epoch in stored.asked:
        assert torch.equal(images, views(pool.images, rows, epoch, COUNT))
        torch.testing.assert_close(images, pool.images(rows), atol=1e-5, rtol=0)
    assert PROTOCOL.views_for(stored, 1) is views
    assert PROTOCOL.views_for(teacher, 1).seed != PROTOCOL.views_for(teacher, 2).seed


def test_hard_labels_are_never_mixed(pool, teacher):
    for mix in ("cutmix", "mixup"):
        protocol = replace(PROTOCOL, views=Views(mix=mix))
        assert protocol.views_for(pool.labels, 1) == Views(seed=derive_seed(1, "views"), mix="none")
        assert protocol.views_for(teacher, 1).mix == mix
        unmixed = replace(PROTOCOL, views=Views(mix="none"))
        assert same(train(pool, pool.labels, protocol), train(pool, pool.labels, unmixed))


def test_padding_is_black_as_the_network_sees_it(pool, teacher):
    (mean,), (std,) = PREPROCESSING.mean, PREPROCESSING.std
    protocol = replace(PROTOCOL, views=Views(crop="padded", pad=2, mix="none"))
    watching = Watching(teacher)
    train(pool, watching, protocol)
    lowest = min(images.min().item() for images, *_ in watching.asked)
    assert lowest == pytest.approx(-mean / std, abs=1e-5)
    shifted = torch.cat([images for images, *_ in watching.asked])
    edges = torch.stack([shifted[:, 0, 0], shifted[:, 0, -1], shifted[:, 0, :, 0], shifted[:, 0, :, -1]], dim=1)
    assert torch.isclose(edges, torch.tensor(-mean / std), atol=1e-5).all(2).any(1).float().mean() > 0.7


# Other precisions, and what comes of it


def test_students_train_in_bfloat16_where_the_launcher_asks_for_it(pool, teacher, launch):
    plain, watching = train(pool, teacher), Watching(teacher)
    model = train(pool, watching, accelerator=launch("bf16"))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(images.dtype == torch.float32 for images, *_ in watching.asked)
    assert not same(model, plain)
    x = pool.images(torch.arange(COUNT))
    torch.testing.assert_close(model(x), plain(x), atol=0.3, rtol=0)


@pytest.mark.slow
def test_students_learn_what_they_are_told():
    images = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    labels = torch.arange(40) % 4
    for row, label in enumerate(labels.tolist()):  # four brightnesses, which no crop hides
        images[row] = 30 + 60 * label
    pool = Pool(images, labels, preprocessing=PREPROCESSING)
    protocol = replace(PROTOCOL, batch_size=10, views=Views(mix="none"), temperature=1.0)
    rows = torch.arange(40)
    teacher_model = train_on_crops(pool, labels, rows, SPEC, protocol, 30, 0.02, 0)
    assert accuracy(teacher_model, pool) > 0.9
    teacher = NetworkLabels(Teacher(teacher_model, SPEC, list("abcd"), PREPROCESSING))
    assert accuracy(train_on_crops(pool, teacher, rows, SPEC, protocol, 30, 0.02, 1), pool) > 0.9
    wrong = (labels + 1) % 4
    assert accuracy(train_on_crops(pool, wrong, rows, SPEC, protocol, 30, 0.02, 0), pool) < 0.2
