"""Training projectors: the loss of the paper by hand, the same bits after any accident, and one line for a mistake."""

import copy
import json
import math
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor
from torch.func import functional_call

from hf_distill.augmentation.crops import draw_cutmix, uniform
from hf_distill.augmentation.views import MIX, Views
from hf_distill.config import DataArguments
from hf_distill.data import feed
from hf_distill.data.feed import Pool
from hf_distill.data.images import RealImages
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.hub.files import SUMS
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.priors import Prior
from hf_distill.networks.projector import INDEX, LabelProjector, Lora
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import derive_seed, generator
from hf_distill.runs.checkpoints import STATE_FILE
from hf_distill.runs.processes import make_accelerator
from hf_distill.training.projectors import ProjectorConfig, ProjectorStep, fidelity, train_projector
from hf_distill.training.small_clip import PriorArguments, find_prior, small_clip_folder, train_small_clip
from tests.helpers.clips import save_clip

VIEWS = Views(scale=(0.5, 1.0), flip=0.0)
LORA = Lora(r=2, alpha=4, head_r=3)
SMALL = {"prompts": "simple", "lora_r": 2, "lora_head_r": 3, "projector_epochs": 2, "batch_projector": 30}


pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture(scope="module")
def digits() -> tuple[RealImages, RealImages]:
    return RealImages.train_and_test(DataArguments(max_train_samples=70, max_test_samples=30))


@pytest.fixture(scope="module")
def prior(digits, tmp_path_factory) -> Prior:
    folder, options = tmp_path_factory.mktemp("prior") / "clip", {"seed": 0, "accelerator": make_accelerator()}
    return train_small_clip(digits[0], folder, PriorArguments(prior_epochs=1), disable_tqdm=True, **options)


@pytest.fixture(scope="module")
def teachers(digits) -> list[Teacher]:
    """Two networks that disagree."""
    return [random_teacher(digits[0], seed) for seed in (1, 2)]


def random_teacher(real: RealImages, seed: int, preprocessing: Preprocessing | None = None) -> Teacher:
    spec = StudentSpec("convnet_d1", real.num_classes, 1, (8, 8), {"width": 8, "norm": "batch"})
    model = spec.build(seed)
    with torch.no_grad():
        model.classifier.weight.mul_(5)
    return Teacher(model, spec, real.class_names, preprocessing or real.preprocessing)


@pytest.fixture(scope="module")
def synthetic(digits) -> Pool:
    """Other images, in another number."""
    rows = torch.arange(0, 46, 2)
    images = 255 - digits[0].uint8(rows)
    return Pool(images, digits[0].labels[rows], preprocessing=digits[0].preprocessing)


def pool_of(real: RealImages) -> Pool:
    return Pool(real, real.labels, preprocessing=real.preprocessing)


def train(
    digits, prior, teachers, folder: Path, *, resume: str | None = None, synthetic=None, views=VIEWS, **changes: Any
):
    config = ProjectorConfig(**{**SMALL, **changes})
    where = {"resume_from_checkpoint": resume, "synthetic": synthetic, "disable_tqdm": True}
    real, test = digits
    return train_projector(
        real, test, prior, teachers, views, config, folder, seed=3, accelerator=make_accelerator(), **where
    )


def matrices(projector: LabelProjector) -> dict[str, Tensor]:
    return {name: value for name, value in projector.model.named_parameters() if ".lora_" in name}


def by_hand(projector: LabelProjector, known: Preprocessing, x: Tensor, lora: dict[str, Tensor]) -> Tensor:
    """The projector's logits in double precision, with the products of its matrices added to CLIP's weights."""
    prior, sizes = projector.prior, projector.lora
    tower = copy.deepcopy(prior.visual).double()
    base = {f"visual.{name}": value for name, value in tower.named_parameters()}
    base["classifier.weight"] = projector.text_head.double()
    own: dict[str, Tensor] = {}
    for name, down in lora.items():
        if ".lora_A." in name:
            module = name.removeprefix("base_model.model.").split(".lora_")[0]
            head = module == "classifier"
            factor = sizes.head_alpha / sizes.head_r if head else sizes.alpha / sizes.r
            own[f"{module}.weight"] = base[f"{module}.weight"] + factor * lora[name.replace("_A.", "_B.")] @ down
    (mean,), (std,) = known.mean, known.std
    pixels = (x.double() * std + mean).expand(-1, 3, -1, -1)
    seen = (pixels - torch.tensor(prior.mean)[:, None, None]) / torch.tensor(prior.std)[:, None, None]
    changed = {name.removeprefix("visual."): value for name, value in own.items() if name != "classifier.weight"}
    features = functional_call(tower, changed, (seen,))
    cosines = features @ own["classifier.weight"].T / features.norm(dim=1, keepdim=True)
    return prior.logit_scale * cosines


def loss_by_hand(found: Tensor, wanted: Tensor, classes: tuple[Tensor, Tensor, Tensor], kind: str, weight: float):
    """The losses (n,) of the equation, with the classes of a mixed view as a distribution."""
    difference = found - wanted
    if kind == "centred":
        difference = found - found.mean(1, keepdim=True) - (wanted - wanted.mean(1, keepdim=True))
    own, other, share = classes
    hot = [F.one_hot(labels, found.shape[1]) for labels in (own, other)]
    target = share[:, None] * hot[0] + (1 - share)[:, None] * hot[1]
    return (difference**2).mean(1) - weight * (target * found.log_softmax(1)).sum(1)


# The loss


@pytest.mark.parametrize("kind", ["centred", "plain"])
@pytest.mark.parametrize(("weight", "size"), [(0.0, 1), (0.7, 1), (0.7, 10**4)], ids=["mse", "ce", "short gradient"])
def test_a_step_has_the_gradient_of_the_loss_by_hand_no_longer_than_one(digits, prior, teachers, kind, weight, size):
    real, draw = digits[0], generator(0, "step")
    projector = LabelProjector(prior, real.class_names, real.preprocessing, templates="simple", lora=LORA)
    with torch.no_grad():
        for value in matrices(projector).values():
            value.copy_(0.1 * torch.randn(value.shape, generator=draw))
    config = ProjectorConfig(**SMALL, projector_loss=kind, ce_projector=weight)
    step = ProjectorStep(projector.train(), config, make_accelerator())
    rows = torch.arange(14)
    x = VIEWS(pool_of(real).images, rows, 0, len(real))
    classes = (real.labels[rows], real.labels[rows + 20], torch.rand(14, generator=draw))

    lora = {name: value.detach().double().requires_grad_(True) for name, value in matrices(projector).items()}
    found = by_hand(projector, real.preprocessing, x, lora)
    torch.testing.assert_close(projector(x).double(), found, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        wanted = sum(teacher.model(x).double() for teacher in teachers) / 2
    losses = loss_by_hand(found, wanted, classes, kind, weight)
    flat = torch.cat([part.flatten() for part in torch.autograd.grad(losses.sum() / size, list(lora.values()))])
    assert (flat.norm() > 1) == (size == 1)
    before = torch.cat([value.detach().flatten() for value in step.parameters])
    total, agreed = step(x, teachers, classes, 0.01, size).tolist()

    assert total == pytest.approx(losses.sum().item(), rel=1e-4)
    assert agreed == (found.argmax(1) == wanted.argmax(1)).sum()
    taken = torch.cat([value.grad.flatten() for value in step.parameters])
    wanted = flat / max(1, flat.norm().item())
    assert (taken - wanted).abs().max() < 1e-4 * wanted.norm()
    after = torch.cat([value.detach().flatten() for value in step.parameters])
    torch.testing.assert_close(before - after, 0.01 * taken / (taken.abs() + 1e-8), rtol=1e-3, atol=1e-6)


def epochs_by_hand(projector, teachers, pools: list[Pool], weight: float, shuffles: list[int] | None = None):
    """The mean loss of CLIP's own classifier, in each epoch, of one batch in its order."""
    losses = []
    for epoch, (pool, shuffle) in enumerate(zip(pools, shuffles or [1] * len(pools), strict=True)):
        views = Views(scale=(0.5, 1.0), flip=0.0, shuffle=shuffle, seed=derive_seed(3, "projector", "views"))
        rows = torch.randperm(len(pool), generator=generator(3, "projector", "order", epoch))
        partners = rows.roll(-1)
        with torch.no_grad():
            own, other = (replace(views, mix="none")(pool.images, each, epoch, len(pool)) for each in (rows, partners))
            mix = draw_cutmix(uniform(views.seed, (epoch, MIX), rows, 3), (8, 8))
            x = own.clone()
            for i, (top, left, tall, wide) in enumerate(mix.values.tolist()):
                x[i, :, top : top + tall, left : left + wide] = other[i, :, top : top + tall, left : left + wide]
            wanted = torch.stack([teacher.model(x) for teacher in teachers]).mean(0)
        classes = (pool.labels[rows], pool.labels[partners], mix.own_share((8, 8)))
        found = projector.zero_shot(x)
        losses.append(loss_by_hand(found.double(), wanted.double(), classes, "centred", weight).mean().item())
    return losses


def test_each_epoch_is_of_its_own_views_of_the_real_images_and_then_of_the_synthetic_ones(
    digits, prior, teachers, synthetic, tmp_path
):
    flags = {"lr_projector": 0, "batch_projector": 1000, "adapt_epochs": 2, "ce_projector": 0.3}
    projector = train(digits, prior, teachers, tmp_path, synthetic=synthetic, **flags)
    wanted = epochs_by_hand(projector, teachers, [pool_of(digits[0])] * 2 + [synthetic] * 2, 0.3)
    assert projector.results["epoch_loss"] == pytest.approx(wanted, rel=1e-4)
    assert len(set(wanted)) == 4
    assert projector.results["asked_about"] == "distilled images"
    # Without learning it stays CLIP's own classifier, and what is reported of it can be counted.
    shown = pool_of(digits[1])
    with torch.no_grad():
        right = [
            (answer(shown.images(torch.arange(30))).argmax(1) == digits[1].labels).double().mean().item()
            for answer in (projector, projector.zero_shot, teachers[-1].model)
        ]
    names = ("test_accuracy", "zero_shot_accuracy", "teacher_accuracy")
    assert [projector.results[name] for name in names] == pytest.approx(right)
    assert right[0] == right[1]


def test_tiles_are_shuffled_and_real_images_have_none(digits, prior, teachers, synthetic, tmp_path):
    flags = {"lr_projector": 0, "batch_projector": 1000, "projector_epochs": 1, "adapt_epochs": 1, "ce_projector": 0.3}
    views = replace(VIEWS, shuffle=2)
    projector = train(digits, prior, teachers, tmp_path, synthetic=synthetic, views=views, **flags)
    expected = epochs_by_hand(projector, teachers, [pool_of(digits[0]), synthetic], 0.3, shuffles=[1, 2])
    assert projector.results["epoch_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_step_asks_the_mean_of_all_teachers_or_one_of_them_and_all_in_time(digits, prior, teachers, tmp_path):
    flags = {"lr_projector": 0, "batch_projector": 1000, "projector_epochs": 8, "ce_projector": 0}
    one = train(digits, prior, teachers, tmp_path / "one", teacher_target="one", **flags)
    pools = [pool_of(digits[0])] * 8
    candidates = [epochs_by_hand(one, [teacher], pools, 0.0) for teacher in teachers]
    asked = []
    for epoch, loss in enumerate(one.results["epoch_loss"]):
        near = [loss == pytest.approx(losses[epoch], rel=1e-4) for losses in candidates]
        assert sum(near) == 1
        asked.append(near.index(True))
    assert set(asked) == {0, 1}


@pytest.mark.parametrize("mix", ["mixup", "none"])
def test_real_images_that_do_not_fit_are_read_ahead_once_and_are_each_others_partners(
    digits, prior, teachers, tmp_path, monkeypatch, mix
):
    views = replace(VIEWS, mix=mix)
    expected = matrices(train(digits, prior, teachers, tmp_path / "in memory", views=views))
    waited, sizes, take = Counter(), [], RealImages.uint8

    def read(real: RealImages, rows: Tensor) -> Tensor:
        waited[threading.current_thread() is threading.main_thread()] += 1
        sizes.append(len(rows))
        return take(real, rows)

    monkeypatch.setattr(RealImages, "uint8", read)
    monkeypatch.setattr(feed, "HOST_BYTES", 0)
    found = matrices(train((digits[0], None), prior, teachers, tmp_path / "on disk", views=views))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert waited[False] == 2  # of two batches in each of two epochs, the second
    assert sizes[:4] == [SMALL["batch_projector"] + 1] * 4  # the last one's partner is the first one


def test_partners_are_part_of_what_a_projector_is_and_those_of_before_still_serve(digits, prior, teachers, tmp_path):
    folder = tmp_path / "projector"
    first = train(digits, prior, teachers, folder, projector_epochs=1)
    index = json.loads((folder / INDEX).read_text())
    assert index["training"].pop("partners") == "of the batch"
    (folder / INDEX).write_text(json.dumps(index))
    (folder / SUMS).unlink()
    again = train(digits, prior, teachers, folder, projector_epochs=1, resume="latest")
    assert again.digest == first.digest
    (folder / INDEX).unlink()
    (folder / "README.md").unlink()
    (checkpoint,) = folder.glob("checkpoint-*")
    state = json.loads((checkpoint / STATE_FILE).read_text())
    del state["training"]["partners"]
    (checkpoint / STATE_FILE).write_text(json.dumps(state))
    (checkpoint / SUMS).unlink()
    with pytest.raises(ValueError, match=r"^.* is of another run: its partners is None and here it is of the batch.*$"):
        train(digits, prior, teachers, folder, projector_epochs=1, resume="latest")


def test_only_whole_batches_are_seen(digits, prior, teachers, tmp_path):
    flags = {"lr_projector": 0, "projector_epochs": 1, "ce_projector": 0}
    seen = train(digits, prior, teachers, tmp_path / "batches", batch_projector=33, **flags)  # 66 of 70
    whole = train(digits, prior, teachers, tmp_path / "whole", batch_projector=70, **flags)
    (loss,), (mean,) = seen.results["epoch_loss"], whole.results["epoch_loss"]
    assert loss != mean
    assert loss == pytest.approx(mean, rel=0.2)


def test_training_imitates_the_teachers_and_a_loaded_projector_is_the_trained_one(digits, prior, teachers, tmp_path):
    flags = {"lr_projector": 0.01, "projector_epochs": 12, "ce_projector": 0}
    before = {name: value.clone() for name, value in prior.visual.state_dict().items()}
    projector = train(digits, prior, teachers, tmp_path, **flags)
    losses = projector.results["epoch_loss"]
    assert losses[-1] < 0.5 * losses[0]
    pool, options = pool_of(digits[0]), {"accelerator": make_accelerator()}
    plain = LabelProjector(prior, digits[0].class_names, digits[0].preprocessing, templates="simple", lora=LORA)
    views = replace(VIEWS, seed=derive_seed(3, "projector", "fidelity"))
    first, last = (fidelity(each, teachers, pool, views, **options) for each in (plain, projector))
    assert last["agreement"] > first["agreement"]
    assert last["kl"] < first["kl"]
    assert last == pytest.approx({name: projector.results[name] for name in last}, rel=1e-5)
    again = LabelProjector.from_pretrained(tmp_path)
    assert again.digest == projector.digest
    x = pool.images(torch.arange(9))
    assert torch.equal(again(x), projector(x))
    assert all(torch.equal(value, before[name]) for name, value in prior.visual.state_dict().items())


def test_the_statistics_of_clips_batchnorm_never_move(digits, teachers, tmp_path):
    prior = Prior.from_pretrained(save_clip("conv", tmp_path / "clip"))
    before = {name: value.clone() for name, value in prior.visual.state_dict().items()}
    assert any(name.endswith("running_mean") for name in before)
    flags = {"projector_epochs": 1, "batch_projector": 35, "lr_projector": 0.01}
    projector = train(digits, prior, teachers, tmp_path / "run", **flags)
    assert any(value.any() for name, value in matrices(projector).items() if ".lora_B." in name)
    assert all(torch.equal(value, before[name]) for name, value in prior.visual.state_dict().items())
    buffers = dict(projector.model.base_model.model.visual.named_buffers())
    assert all(torch.equal(value, before[name]) for name, value in buffers.items())


# The schedule


def test_the_rate_grows_along_a_line_and_falls_along_half_a_cosine():
    config = ProjectorConfig(lr_projector=0.1, warmup_projector=0.15)  # three of twenty steps
    rates = [config.lr(step, 20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 17)
    for rate in rates[3:]:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert ProjectorConfig(lr_projector=0.1, warmup_projector=0).lr(0, 20) == 0.1
    between = ProjectorConfig(lr_projector=0.1, warmup_projector=0.25)  # two and a half of ten
    assert [between.lr(step, 10) for step in range(3)] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    assert between.lr(3, 10) == pytest.approx(0.05 * (1 + math.cos(math.pi / 15)))
    assert ProjectorConfig(lr_projector=0.1).lr(0, 1) > 0


# Going on


def test_a_stopped_training_goes_on_to_the_same_bits_and_a_finished_one_is_only_loaded(
    digits, prior, teachers, synthetic, tmp_path
):
    flags = {"synthetic": synthetic, "projector_epochs": 3, "adapt_epochs": 1, "teacher_target": "one"}
    whole = train(digits, prior, teachers, tmp_path / "whole", **flags)
    known = ProjectorConfig.lr

    def dies(self: ProjectorConfig, step: int, steps: int) -> float:
        if step == 5:  # two steps an epoch: in the middle of the third
            raise RuntimeError("stopped")
        return known(self, step, steps)

    ProjectorConfig.lr = dies
    try:
        with pytest.raises(RuntimeError, match="stopped"):
            train(digits, prior, teachers, tmp_path / "parts", **flags)
    finally:
        ProjectorConfig.lr = known
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint-2"]
    again = train(digits, prior, teachers, tmp_path / "parts", resume="latest", **flags)
    assert (again.digest, again.results) == (whole.digest, whole.results)
    assert again.config["training"] == whole.config["training"]
    other = train(digits, prior, teachers, tmp_path / "other", **{**flags, "teacher_target": "mean"})
    assert other.digest != whole.digest

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*")}
    loaded = train(digits, prior, teachers, tmp_path / "whole", resume="latest", **flags)
    assert (loaded.digest, loaded.results) == (whole.digest, whole.results)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*")}
    for changes, says in (
        ({"resume": "latest", "lr_projector": 0.5}, "its lr_projector is 0.001 and here it is 0.5"),
        ({"resume": "latest", "synthetic": pool_of(digits[1])}, "its synthetic is "),
        ({}, "already holds a projector; use --resume_from_checkpoint latest"),
    ):
        with pytest.raises(ValueError, match=f"^.*{says}.*$"):
            train(digits, prior, teachers, tmp_path / "whole", **{**flags, **changes})
    with pytest.raises(ValueError, match=r"^.*its teachers\[0\] is .*$"):
        train(digits, prior, teachers[::-1], tmp_path / "whole", resume="latest", **flags)


# Fidelity


@pytest.mark.parametrize("batch", [7, 500])
def test_fidelity_is_what_scipy_finds_in_a_loop_over_views(digits, prior, teachers, batch):
    real = digits[1]
    projector = LabelProjector(prior, real.class_names, real.preprocessing, templates="simple", lora=LORA)
    views, pool = Views(seed=8, scale=(0.3, 1.0)), pool_of(real)
    options = {"accelerator": make_accelerator(), "batch_size": batch}
    found = fidelity(projector, teachers, pool, views, epochs=2, **options)
    kl, same = [], []
    for epoch in range(2):
        for row in range(len(real)):
            x = views(pool.images, torch.tensor([row]), epoch, len(real), pool.black)
            with torch.no_grad():
                wanted = sum(teacher.model(x)[0].double().numpy() for teacher in teachers) / 2
                given = projector(x)[0].double().numpy()
            kl.append(rel_entr(softmax(wanted), np.exp(log_softmax(given))).sum())
            same.append(wanted.argmax() == given.argmax())
    assert found["views"] == 60
    assert found["agreement"] == pytest.approx(np.mean(same))
    assert found["kl"] == pytest.approx(np.mean(kl), rel=1e-4)


# Mistakes


def test_a_teacher_whose_logits_are_no_numbers_is_one_line_and_leaves_nothing(digits, prior, tmp_path):
    broken = random_teacher(digits[0], 0)
    broken.model.classifier.bias.data[3] = math.inf
    with pytest.raises(ValueError, match=r"^the projector's loss is not finite in epoch 1: a teacher's logits .*$"):
        train(digits, prior, [broken], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_trained_is_one_line_before_anything_is(digits, prior, teachers, tmp_path):
    shifted = Preprocessing(1, (8, 8), (0.1,), (0.9,))
    other = Teacher(teachers[0].model, teachers[0].spec, list("abcdefghij"), digits[0].preprocessing)
    for given, changes, says in (
        ([], {}, "there are no teachers for the projector to imitate"),
        ([random_teacher(digits[0], 1, shifted), *teachers], {}, "sees images through another preprocessing"),
        ([other, *teachers], {}, "calls class 0 'a', and here it is '0'"),
        (teachers, {"class_words": "imagenet"}, "--class_words imagenet has 1000 words"),
        (teachers, {"lora_head_r": 11}, "the LoRA rank of the head is 11, and 10 classes"),
        (teachers, {"adapt_epochs": 1}, "--adapt_epochs is 1 and there is no distilled set to adapt to"),
    ):
        with pytest.raises(ValueError, match=f"^.*{says}.*$"):
            train(digits, prior, given, tmp_path / "run", **changes)
    config, half = ProjectorConfig(**SMALL), SimpleNamespace(mixed_precision="fp16")  # which a CPU has not
    with pytest.raises(ValueError, match=r"^mixed precision fp16 needs a loss scaler.*; use bf16, or none$"):
        train_projector(*digits, prior, teachers, VIEWS, config, tmp_path / "run", seed=0, accelerator=half)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"prompts": "many"}, "--prompts is 'many'; expected one of openai, simple"),
        ({"projector_loss": "kl"}, "--projector_loss is 'kl'"),
        ({"teacher_target": "all"}, "--teacher_target is 'all'"),
        ({"lora_r": 0}, "--lora_r is 0"),
        ({"lora_alpha": 0}, "--lora_alpha is 0"),
        ({"lora_head_r": 0}, "--lora_head_r is 0"),
        ({"projector_epochs": 0}, "--projector_epochs is 0"),
        ({"adapt_epochs": -1}, "--adapt_epochs is -1"),
        ({"batch_projector": 1}, "--batch_projector is 1"),
        ({"lr_projector": -0.1}, "--lr_projector is -0.1"),
        ({"lr_projector": math.nan}, "--lr_projector is nan"),
        ({"ce_projector": -1}, "--ce_projector is -1"),
        ({"warmup_projector": 1.0}, "--warmup_projector is 1.0"),
        ({"weak_teachers": 0}, "--weak_teachers is 0"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_mean_nothing_are_one_line(flags, problem):
    with pytest.raises(ValueError, match=f"^{problem}.*$"):
        ProjectorConfig(**flags)


# Words


def test_classes_are_called_what_a_file_or_clip_calls_them(digits, tmp_path):
    names = digits[0].class_names
    assert ProjectorConfig().words(names) is None
    clips = ProjectorConfig(class_words="imagenet").words([f"n{number:08}" for number in range(1000)])
    assert clips == list(open_clip.IMAGENET_CLASSNAMES)
    assert clips[:2] == ["tench", "goldfish"]
    assert [clips.count(word) for word in ("missile", "sunglasses")] == [2, 2]
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (tmp_path / "list.json").write_text(json.dumps(words))
    (tmp_path / "object.json").write_text(json.dumps(dict(reversed([*zip(names, words, strict=True), ("x", "y")]))))
    for name in ("list.json", "object.json"):
        assert ProjectorConfig(class_words=str(tmp_path / name)).words(names) == words


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read .*; expected `imagenet` or a JSON file"),
        ("[", "cannot be read .*; expected `imagenet` or a JSON file"),
        ('"words"', "has no list of words, and there are 10 classes"),
        ('["a", "b"]', "has 2 words, and there are 10 classes; expected one for each, in order"),
        ('{"0": "zero"}', "has no word for the class '1'; add it"),
        (json.dumps([*"abcdefghi", 7]), "expected 1 to .* texts, none of them empty"),
        (json.dumps([*"abcdefghi", " "]), "expected 1 to .* texts, none of them empty"),
    ],
)
def test_words_that_cannot_be_are_one_line(digits, tmp_path, content, says):
    file = tmp_path / "words.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=f"^--class_words .*words.json.* {says}.*$"):
        ProjectorConfig(class_words=str(file)).words(digits[0].class_names)


def test_clips_own_words_are_for_a_thousand_classes(digits):
    with pytest.raises(ValueError, match=r"^--class_words imagenet has 1000 words, and there are 10 classes.*$"):
        ProjectorConfig(class_words="imagenet").words(digits[0].class_names)


def test_two_classes_may_be_called_the_same_and_learn_to_differ(digits, prior, teachers, tmp_path):
    (tmp_path / "words.json").write_text(json.dumps(["curve", "line", "curve", *"abcdefg"]))
    flags = {"class_words": str(tmp_path / "words.json"), "lr_projector": 0.01, "projector_epochs": 4}
    projector = train(digits, prior, teachers, tmp_path / "run", **flags)
    assert torch.equal(projector.text_head[0], projector.text_head[2])
    x = pool_of(digits[0]).images(torch.arange(20))
    zero, found = projector.zero_shot(x), LabelProjector.from_pretrained(tmp_path / "run")(x)
    torch.testing.assert_close(zero[:, 0], zero[:, 2])
    assert (found[:, 0] - found[:, 2]).abs().min() > 1e-3


# The prior


def test_a_prior_is_trained_once_or_read_from_where_it_is(digits, prior, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"seed": 0, "accelerator": make_accelerator(), "disable_tqdm": True}
    trained = find_prior(PriorArguments(prior_epochs=1), digits[0], **options)
    folder = small_clip_folder(digits[0], PriorArguments(prior_epochs=1), 0)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert find_prior(PriorArguments(prior_epochs=1), digits[0], **options).sha256 == trained.sha256 == prior.sha256
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    named = find_prior(PriorArguments(model_name_or_path=str(folder)), digits[0], **options)
    assert (named.sha256, named.origin) == (trained.sha256, None)
    for changes, says in (
        ({"model_name_or_path": str(tmp_path)}, "holds no CLIP model"),
        ({"model_name_or_path": str(folder), "model_library": "timm"}, "has no files of timm"),
        ({"prior_epochs": 2, "prior_lr": math.inf}, "--prior_lr is inf"),
        ({"prior_epochs": 0}, "--prior_epochs is 0"),
        ({"prior_lr": -1}, "--prior_lr is -1"),
        ({"prior_epochs": 2, "prior_lr": 1e30}, "the loss of the small CLIP model is not finite; lower --prior_lr"),
    ):
        with pytest.raises(ValueError, match=f"^.*{says}.*$"):
            find_prior(PriorArguments(**changes), digits[0], **options)
    assert len(list((tmp_path / "outputs").iterdir())) == 1


def test_a_prior_of_the_hub_is_pinned_to_its_commit(digits, prior, hub):
    repo = f"{hub.namespace}/clip"
    hub.put("model", repo, {path.name: path.read_bytes() for path in prior.folder.iterdir()})
    commit = hub.head("model", repo)
    options = {"seed": 0, "accelerator": make_accelerator()}
    found = find_prior(PriorArguments(model_name_or_path=repo), digits[0], **options)
    assert (found.sha256, found.origin.repo_id, found.origin.revision) == (prior.sha256, repo, commit)
