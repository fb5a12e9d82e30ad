"""SRe2L and CDA: every pixel and every step against plain torch written from the papers, and what comes of it."""

import math
import re
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hf_distill.augmentation.crops import (
    CROP_DRAWS,
    CropParams,
    crop_resize,
    draw_crops,
    draw_roll,
    min_scale,
    roll,
    uniform,
)
from hf_distill.config import DataArguments
from hf_distill.data import pixels
from hf_distill.data.feed import Pool
from hf_distill.data.images import RealImages
from hf_distill.data.preprocessing import Preprocessing, fit_zca
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.engine.blocks import Block
from hf_distill.engine.method import DistillationDiverged
from hf_distill.evaluation.accuracy import accuracy
from hf_distill.methods import APM, CDA, FADRM, CDAConfig, SRe2L, SRe2LConfig
from hf_distill.methods.recovering import bounds, drowned, learning_rate, placing
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.teachers import Teacher
from hf_distill.networks.timm_models import timm
from hf_distill.rng import derive_seed, generator
from hf_distill.runs.finish import run_recipe
from hf_distill.training.teachers import TeacherConfig, train_teacher
from tests.helpers.events import Notes, Signals

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def train() -> RealImages:
    return RealImages.from_arguments(DataArguments(max_train_samples=100))


def make_teacher(train: RealImages, name: str = "convnet_d2", seed: int = 0, norm: str = "batch", **changes: Any):
    """A network that was never trained, with statistics of its own."""
    preprocessing = changes.pop("preprocessing", train.preprocessing)
    names = changes.pop("class_names", train.class_names)
    channels, *size = (preprocessing.channels, *preprocessing.image_size)
    spec = StudentSpec(name, len(names), channels, tuple(size), {"width": 6, "norm": norm})
    model, draw = spec.build(seed), generator(seed, "statistics")
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=draw))
            layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=draw))
    return Teacher(model, spec, names, preprocessing)


TINY = {
    "ipc": 1,
    "max_steps": 3,
    "batch_classes": 10,
    "jitter": 1,
    "disable_tqdm": True,
    "eval_protocol": "crops-quick",
}


class Watched(SRe2L):
    """Keeps the last iterate, which `finished` is given, before it becomes bytes."""

    def finished(self, x: Tensor) -> Tensor:
        self.x = x.clone()
        return super().finished(x)


@pytest.fixture
def make(train, accelerator, tmp_path):
    def build(*teachers: Teacher, kind: type[SRe2L] = Watched, data: RealImages = train, **flags: Any) -> SRe2L:
        config = kind.config_class(**{**TINY, "output_dir": str(tmp_path / "run"), **flags})
        return kind(config, data, teachers=teachers or [make_teacher(data)], accelerator=accelerator)

    return build


def silent(iteration: int, values: dict[str, float]) -> None:
    pass


# Views

SIZES = [(8, 8), (7, 9), (32, 32), (15, 6), (33, 64)]


def boxes_of(height: int, width: int, count: int) -> list[list[int]]:
    """Random boxes, the whole image, each corner, and single pixels."""
    drawn = draw_crops(uniform(3, (height, width), torch.arange(count), CROP_DRAWS), (height, width)).boxes.tolist()
    edges = [[0, 0, height, width], [0, 0, 1, 1], [height - 1, width - 1, 1, 1], [height // 2, 0, 1, width]]
    return drawn + edges


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_matrices_cut_resize_mirror_and_roll_as_one_operation_after_the_other(size, channels):
    height, width = size
    x = torch.rand(2, channels, height, width, generator=generator(0, "images"))
    for number, (top, left, tall, wide) in enumerate(boxes_of(height, width, 25)):
        flip, (down, right) = bool(number % 2), (number % 5 - 2, number % 7 - 3)
        found = placing(top, tall, height, False, down) @ x @ placing(left, wide, width, flip, right).T
        params = CropParams(torch.tensor([[top, left, tall, wide]]), torch.tensor([flip]))
        expected = roll(crop_resize(x, params, size), torch.tensor([down, right]))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        part = F.interpolate(x[:, :, top : top + tall, left : left + wide], size, mode="bilinear", align_corners=False)
        part = torch.roll(part.flip(3) if flip else part, (down, right), (2, 3))
        torch.testing.assert_close(found, part, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_through_the_matrices_are_those_of_interpolation(size):
    height, width = size
    draw = generator(0, "images")
    x, weights = torch.rand(2, 3, *size, generator=draw), torch.randn(2, 3, *size, generator=draw)
    for number, (top, left, tall, wide) in enumerate(boxes_of(height, width, 10)):
        flip = bool(number % 2)
        ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
        (
            (placing(top, tall, height, False, 2) @ ours @ placing(left, wide, width, flip, 1).T) * weights
        ).sum().backward()
        part = F.interpolate(plain[:, :, top : top + tall, left : left + wide], size, mode="bilinear")
        part = torch.roll(part.flip(3) if flip else part, (2, 1), (2, 3))
        (part * weights).sum().backward()
        torch.testing.assert_close(ours.grad, plain.grad, atol=1e-4, rtol=1e-5)


def ramp(height: int, width: int) -> Tensor:
    """(2, 1, H, W): one image says in which row a pixel was, the other in which column."""
    rows, columns = torch.arange(float(height)), torch.arange(float(width))
    return torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)])[:, None]


def seen(view: Tensor) -> tuple[int, int, int, int, bool]:
    """Top, left, height and width of the box that a view of a ramp shows, and whether it is mirrored; not rolled."""
    rows, columns = view[0, 0], view[1, 0]
    (top, bottom), (left, right) = ((round(it.min().item()), round(it.max().item())) for it in (rows, columns))
    mirrored = bool(columns[0, 0] > columns[0, -1])
    return top, left, bottom - top + 1, right - left + 1, mirrored


@pytest.mark.parametrize("curve", ["none", "step", "linear", "cosine"])
def test_the_smallest_box_of_an_iteration_is_that_of_the_curriculum_at_its_share_of_the_milestone(make, curve):
    steps, milestone = 200, 0.5
    method = make(kind=CDA, curriculum=curve, milestone=milestone, max_steps=steps, jitter=0)
    u = uniform(1, (1,), torch.arange(steps), CROP_DRAWS)
    still, x = torch.zeros(steps, 2), ramp(40, 50)
    areas = []
    for t in range(steps):
        top, left, tall, wide, mirrored = seen(method.view(x, t, u, still))
        drawn = draw_crops(u[t : t + 1], (40, 50), (min_scale(t, 100, curve), 1.0))
        assert ([top, left, tall, wide], mirrored) == (drawn.boxes[0].tolist(), bool(drawn.flip[0]))
        areas.append(tall * wide / 2000)
    halfway = {"none": 0.08, "step": 1.0, "linear": 0.54, "cosine": 0.54}[curve]
    assert min(areas[40:51]) > halfway - 0.05  # whole pixels
    assert min(areas[100:]) < 0.2
    assert (min(areas[:100]) > 0.97) == (curve == "step")


def test_cda_is_sre2l_with_a_curriculum():
    config = CDAConfig()
    assert (config.curriculum, config.milestone) == ("cosine", 1.0)
    assert SRe2LConfig().curriculum == "none"
    changed = {name for name in vars(config) if getattr(config, name) != getattr(SRe2LConfig(), name)}
    assert changed == {"curriculum", "eval_protocol"}


@pytest.mark.parametrize(("symmetric", "low"), [(False, 0), (True, -3)])
def test_rolls_reach_both_ends_and_one_counts_for_the_block(make, symmetric, low):
    method = make(random_crop=False, random_flip=0, jitter=3, symmetric_jitter=symmetric, max_steps=300)
    rolls, x = uniform(5, (2,), torch.arange(300), 2), torch.rand(4, 1, 8, 8, generator=generator(0))
    still, found = torch.zeros(300, CROP_DRAWS), set()
    for t in range(300):
        view = method.view(x, t, still, rolls)
        offsets = [
            (down, right)
            for down in range(low, 4)
            for right in range(low, 4)
            if torch.equal(view, torch.roll(x, (down, right), (2, 3)))
        ]
        assert len(offsets) == 1
        found.add(offsets[0])
    assert len(found) == (4 - low) ** 2  # each pair, both ends included


def test_one_box_one_coin_and_one_offset_count_for_the_whole_block(make):
    method = make(max_steps=40)
    crops, rolls = (uniform(1, (path,), torch.arange(40), count) for path, count in ((1, CROP_DRAWS), (2, 2)))
    x = torch.rand(5, 1, 8, 8, generator=generator(0))
    differ = 0
    for t in range(40):
        whole = method.view(x, t, crops, rolls)
        alone = torch.cat([method.view(image[None], t, crops, rolls) for image in x])
        torch.testing.assert_close(whole, alone, atol=1e-6, rtol=0)
        differ += not torch.allclose(whole, x)
    assert differ > 30


def test_without_crops_flips_and_rolls_the_view_is_the_image(make):
    method = make(random_crop=False, random_flip=0, jitter=0)
    x = torch.rand(5, 1, 8, 8)
    u = torch.full((3, CROP_DRAWS), 0.9)
    assert torch.equal(method.view(x, 1, u, u), x)


# Steps


def test_the_learning_rate_is_half_a_cosine():
    for t, expected in ((0, 0.25), (1000, 0.213388), (2000, 0.125), (3999, 3.855e-8)):
        assert learning_rate(t, 4000, 0.25) == pytest.approx(expected, rel=1e-4)


def test_images_stay_between_black_and_white(make, train):
    rgb = Preprocessing(3, (2, 2), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for preprocessing in (rgb, Preprocessing(3, (2, 2), (0.0,) * 3, (1.0,) * 3)):
        low, high = bounds(preprocessing)
        for channel in range(3):
            mean, std = preprocessing.mean[channel], preprocessing.std[channel]
            assert low[0, channel].item() == pytest.approx(-mean / std)
            assert high[0, channel].item() == pytest.approx((1 - mean) / std)
        ends = torch.cat([low, high]).expand(2, 3, 2, 2)
        torch.testing.assert_close(
            preprocessing.inverse(ends), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand_as(ends)
        )
    (mean,), (std,) = train.preprocessing.mean, train.preprocessing.std
    method = make(lr_img=5.0)
    method.make(method.blocks()[0], silent)
    assert method.x.min().item() == pytest.approx(-mean / std)
    assert method.x.max().item() == pytest.approx((1 - mean) / std)


def by_hand(teacher: Teacher, x: Tensor, labels: Tensor, config: SRe2LConfig) -> dict[str, Tensor]:
    """The terms of a step for views `x`, with the layers of convnet_d2 written out."""
    weights, matched = teacher.model.state_dict(), torch.zeros(())
    hidden = x
    for number, weight in ((0, config.first_bn_multiplier), (4, 1.0)):
        hidden = F.conv2d(hidden, weights[f"features.{number}.weight"], weights[f"features.{number}.bias"], padding=1)
        norm = f"features.{number + 1}."
        values = hidden.transpose(0, 1).flatten(1)
        mean = values.sum(1) / values.shape[1]
        variance = ((values - mean[:, None]) ** 2).sum(1) / values.shape[1]
        running_mean, running_var = weights[norm + "running_mean"], weights[norm + "running_var"]
        matched = matched + weight * ((running_var - variance) ** 2).sum().sqrt()
        matched = matched + weight * ((running_mean - mean) ** 2).sum().sqrt()
        shape = (1, -1, 1, 1)
        hidden = (hidden - running_mean.view(shape)) / (running_var.view(shape) + 1e-5).sqrt()
        hidden = (hidden * weights[norm + "weight"].view(shape) + weights[norm + "bias"].view(shape)).clamp(min=0)
        hidden = hidden.unflatten(3, (-1, 2)).mean(4).unflatten(2, (-1, 2)).mean(3)
    logits = hidden.flatten(1) @ weights["classifier.weight"].T + weights["classifier.bias"]
    ce = (logits.exp().sum(1).log() - logits[torch.arange(len(x)), labels]).mean()
    steps = [x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]]
    steps += [x[..., 1:, :-1] - x[..., :-1, 1:], x[..., 1:, 1:] - x[..., :-1, :-1]]
    tv = sum((step**2).sum().sqrt() for step in steps)
    l2 = (x**2).sum((1, 2, 3)).sqrt().mean()
    return {"ce": ce, "bn": matched, "tv": tv, "l2": l2,
            "loss": ce + config.r_bn * matched + config.r_tv * tv + config.r_l2 * l2}  # fmt: skip


@pytest.mark.parametrize("priors", [{}, {"r_tv": 0.02, "r_l2": 0.03}], ids=["released", "with priors"])
def test_steps_are_those_of_plain_torch_written_from_the_paper(make, train, priors):
    teacher = make_teacher(train)
    flags = {"max_steps": 4, "lr_img": 0.3, "r_bn": 0.7, "first_bn_multiplier": 10.0, "logging_steps": 1}
    method = make(teacher, **flags, jitter=2, **priors)
    block, said = Block(3, torch.arange(4), torch.tensor([7, 2, 2, 0])), []
    start = method.initial(block)
    method.make(block, lambda iteration, values: said.append(values))

    config, x = method.config, start.double()
    teacher.model.double()
    seed, iterations = derive_seed(config.seed, "views", 3), torch.arange(4)
    boxes = draw_crops(uniform(seed, (1,), iterations, CROP_DRAWS), (8, 8))
    offsets = draw_roll(uniform(seed, (2,), iterations, 2), 2).tolist()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    (mean,), (std,) = train.preprocessing.mean, train.preprocessing.std
    for t in range(4):
        leaf = x.clone().requires_grad_()
        top, left, tall, wide = boxes.boxes[t].tolist()
        view = F.interpolate(leaf[:, :, top : top + tall, left : left + wide], (8, 8), mode="bilinear")
        view = torch.roll(view.flip(3) if boxes.flip[t] else view, offsets[t], (2, 3))
        terms = by_hand(teacher, view, block.labels, config)
        weights = {"bn": config.r_bn, **{name.removeprefix("r_"): weight for name, weight in priors.items()}}
        expected = {"ce", "loss", *weights}
        assert set(said[t]) == expected | {f"{name}_weighted" for name in weights}
        for name in expected:
            assert said[t][name] == pytest.approx(terms[name].item(), rel=1e-3), (t, name)
        for name, weight in weights.items():
            assert said[t][f"{name}_weighted"] == pytest.approx(weight * terms[name].item(), rel=1e-3), (t, name)
        (gradient,) = torch.autograd.grad(terms["loss"], leaf)
        first = 0.5 * first + 0.5 * gradient
        second = 0.9 * second + 0.1 * gradient**2
        rate = 0.3 * (1 + math.cos(math.pi * t / 4)) / 2
        step = (first / (1 - 0.5 ** (t + 1))) / ((second / (1 - 0.9 ** (t + 1))).sqrt() + 1e-8)
        x = (x - rate * step).clamp(-mean / std, (1 - mean) / std)
    torch.testing.assert_close(method.x.double(), x, atol=2e-3, rtol=0)
    assert (method.x - start).abs().mean() > 0.1


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_run_that_a_cluster_ends_keeps_its_next_iteration_and_goes_on_with_the_same_bytes(
    make, train, accelerator, tmp_path, step
):
    flags = {"max_steps": 4, "batch_classes": 5, "logging_steps": 1, "lr_img": 0.3}
    whole = make(make_teacher(train), kind=SRe2L, **flags, output_dir=str(tmp_path / "whole")).run()
    ended = make(make_teacher(train), kind=SRe2L, **flags)
    ended.callbacks.callbacks.append(Signals(step))
    with pytest.raises(SystemExit, match="interrupted: go on"):
        run_recipe(ended.run, "go on")
    block, iteration = divmod(step, 4)
    kept = [f"unfinished-{block:06d}/checkpoint-{iteration}"] if iteration else []
    assert [path.relative_to(ended.folder).as_posix() for path in ended.folder.glob("*/checkpoint-*")] == kept
    assert len(list(ended.folder.glob("block-*.json"))) == block
    rest, notes = make(make_teacher(train), kind=SRe2L, **flags), Notes()
    rest.callbacks.callbacks.append(notes)
    assert torch.equal(rest.run().pixel_values, whole.pixel_values)
    assert [state.step for name, state in notes.events if name == "step"] == list(range(step + 1, 9))
    assert not list(rest.folder.glob("unfinished-*"))


def test_the_teacher_learns_nothing_and_is_left_as_it_was(make, train):
    teacher = make_teacher(train)
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    method = make(teacher)
    method.make(method.blocks()[0], silent)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.model.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_gradients_have_the_layout_of_the_images_whatever_that_of_the_network(make, train):
    # A fused Adam on an accelerator refuses others.
    teacher, seen = make_teacher(train), []
    teacher.model.to(memory_format=torch.channels_last)
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.extend(
            (x.stride(), x.grad.stride()) for group in optimizer.param_groups for x in group["params"]
        )
    )
    for flags in ({}, {"random_crop": False, "random_flip": 0, "jitter": 0}):
        method = make(teacher, **flags)
        method.make(method.blocks()[0], silent)
    handle.remove()
    assert len(seen) == 6
    assert all(own == gradient for own, gradient in seen)


def test_several_teachers_take_turns(make, train):
    teachers, turns = [make_teacher(train, seed=seed) for seed in range(3)], []
    for number, teacher in enumerate(teachers):
        teacher.model.register_forward_hook(lambda *_, number=number: turns.append(number))
    method = make(*teachers, max_steps=7)
    method.make(method.blocks()[0], silent)
    assert turns == [0, 1, 2, 0, 1, 2, 0]
    assert method.identity()["teachers"] == [teacher.digest for teacher in teachers]


def test_noise_is_of_unit_variance_and_real_images_are_of_the_classes(make, train):
    block = make().blocks()[0]
    noise = torch.cat([make(seed=seed).initial(block) for seed in range(20)])
    assert noise.mean().abs() < 0.03
    assert (noise.std() - 1).abs() < 0.03
    assert not torch.equal(make(seed=0).initial(block), make(seed=1).initial(block))
    found = make(init="real").initial(block)
    for image, label in zip(found, block.labels.tolist(), strict=True):
        assert any(torch.equal(image, real) for real in train.images(train.class_rows(label)))


# Blocks and bytes


@pytest.mark.parametrize(("batch", "ipc"), [(1, 2), (3, 1), (3, 4), (10, 3), (100, 2)])
def test_blocks_hold_every_image_of_every_class_once(make, batch, ipc):
    blocks = make(batch_classes=batch, ipc=ipc).blocks()
    assert [block.number for block in blocks] == list(range(math.ceil(10 / batch) * ipc))
    assert torch.cat([block.rows for block in blocks]).sort().values.tolist() == list(range(10 * ipc))
    for block in blocks:
        assert (block.rows // ipc).tolist() == block.labels.tolist()  # a class's images lie together
        assert len(set((block.rows % ipc).tolist())) == 1
        first = int(block.labels[0])
        assert first % batch == 0
        assert block.labels.tolist() == list(range(first, min(first + batch, 10)))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_authors_bytes_are_cut_off_and_go_through_a_jpeg_file(make, train, tmp_path, channels):
    mean, std = (0.45, 0.5, 0.4)[:channels], (0.25, 0.2, 0.3)[:channels]
    preprocessing = Preprocessing(channels, (16, 16), mean, std)
    method = make(compat="vila")
    method.preprocessing = preprocessing
    pixels = torch.rand(3, channels, 16, 16, generator=generator(0, "images"))
    pixels[0], pixels[1] = 0.9999, 100.7 / 255  # a plain image survives JPEG as it is
    found = method.finished(preprocessing(pixels))
    assert (found[0] == 254).all()
    assert (found[1] == 100).all()
    array = (pixels[2] * 255).numpy().astype(np.uint8).transpose(1, 2, 0)
    path = tmp_path / "image.jpg"
    Image.fromarray(array[..., 0] if channels == 1 else array).save(path)  # Pillow's own quality
    expected = np.array(Image.open(path)).reshape(array.shape).transpose(2, 0, 1)
    assert torch.equal(found[2], torch.from_numpy(expected.copy()))
    assert (found[2].int() - (pixels[2] * 255).int()).abs().max() > 5
    method.config.compat = "none"
    assert torch.equal(method.finished(preprocessing(pixels)), (pixels * 255).round().to(torch.uint8))


def test_bytes_survive_a_file_without_loss(make):
    distilled = make(ipc=2).run()
    for image in distilled.pixel_values:
        buffer = BytesIO()
        Image.fromarray(image[0].numpy()).save(buffer, "PNG")
        assert np.array_equal(np.array(Image.open(buffer)), image[0].numpy())


# A teacher of more classes


def test_classes_are_recovered_among_all_of_the_teachers_and_labelled_among_their_own(make, train, tmp_path):
    """Against the network by hand: the cross-entropy knows the classes that the data lack."""
    two = RealImages.train_and_test(DataArguments(max_train_samples=40, classes=["7", "3"]))[0]
    teacher = make_teacher(train)
    method = make(teacher, data=two)
    (block,) = method.blocks()
    x = torch.randn(2, 1, 8, 8, generator=generator(0))
    terms = by_hand(teacher, x, torch.tensor([7, 3]), method.config)
    for name, value in method.losses(x, block.labels, 0).items():
        if name in terms:
            assert value.item() == pytest.approx(terms[name].item(), rel=1e-4), name
    distilled = method.run()
    assert distilled.class_names == ["7", "3"]
    seen, rows = distilled.floats(), torch.arange(2)
    labels = distilled.teacher(seen, distilled.labels, rows)
    torch.testing.assert_close(labels, teacher.logits(seen)[:, [7, 3]], rtol=1e-5, atol=1e-6)

    back = DistilledSet.from_pretrained(distilled.save_pretrained(tmp_path / "set"))
    assert torch.equal(back.teacher(seen, back.labels, rows), labels)
    kept = back.teacher.teacher
    assert kept.config["narrowed"] == {"num_classes": 10, "rows": [7, 3], "digest": teacher.digest}
    assert (kept.class_names, back.config["student"]["num_classes"]) == (["7", "3"], 2)
    assert back.config["teachers"][0]["digest"] == teacher.digest
    (network,) = (tmp_path / "set" / "teacher").iterdir()
    alone = timm.create_model(f"local-dir:{network}", pretrained=True).eval()  # as anybody loads it
    torch.testing.assert_close(alone(seen), labels, rtol=1e-6, atol=1e-6)


def test_a_run_is_not_continued_with_other_rows_of_the_teacher(make, train):
    two = RealImages.train_and_test(DataArguments(max_train_samples=40, classes=["7", "3"]))[0]
    names = [*"0123456789"]
    make(make_teacher(train, class_names=names), data=two).run()
    names[7], names[8] = "8", "7"
    with pytest.raises(ValueError, match=r"teacher_rows\[0\]\[0\]"):
        make(make_teacher(train, class_names=names), data=two, resume_from_checkpoint="latest").run()
    assert "teacher_rows" not in make(make_teacher(train)).identity()  # so that older runs go on


def test_a_teacher_of_another_order_recovers_and_labels_by_name(make, train):
    teacher = make_teacher(train, class_names=train.class_names[::-1])
    method = make(teacher)
    assert method.rows == [list(range(10))[::-1]]
    distilled = method.run()
    seen = distilled.floats()
    labels = distilled.teacher(seen, distilled.labels, torch.arange(10))
    torch.testing.assert_close(labels, teacher.logits(seen).flip(1), rtol=1e-5, atol=1e-6)


# Both parts of the loss


@pytest.mark.parametrize(
    ("ce", "bn", "r_bn", "says"),
    [
        (
            1.0,
            9500.0,
            0.01,
            r"the class drowns .*--r_bn 0\.01 makes 95 of R_BN 9500, .* of 1\..*--r_bn 0\.0005 it would",
        ),
        (6.9, 1e5, 0.01, "the class drowns"),
        (6.0, 20.0, 0.01, r"the statistics drown .*--r_bn 2 it would"),
        (6.9, 1000.0, 0.01, None),
        (0.01, 300.0, 0.01, None),  # the class is there; as every block ends
        (6.9, 1e5, 0.0, None),
    ],
)
def test_a_part_of_the_loss_that_is_lost_beside_the_other_is_told(ce, bn, r_bn, says):
    warning = drowned({"ce": ce, "bn": bn, "bn_weighted": r_bn * bn}, SRe2LConfig(r_bn=r_bn))
    assert (warning is None) == (says is None)
    assert says is None or re.search(says, warning)


def test_it_is_told_once_while_the_images_take_shape(make, caplog):
    method = make(max_steps=10, logging_steps=1, r_bn=1e4, ipc=2)
    method.run()
    told = [record.getMessage() for record in caplog.records if "drowns" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("at iteration 1 of 10 the class drowns in the statistics: --r_bn 10000 makes")


# What cannot be


def test_a_teacher_without_batch_norm_is_one_line(make, train):
    with pytest.raises(ValueError, match=r"has no BatchNorm2d layer; expected a network with BatchNorm") as error:
        make(make_teacher(train, norm="instance"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [SRe2L, CDA, FADRM, APM])
def test_teachers_that_see_images_differently_are_one_line_before_an_image_is_decoded(
    method, train, accelerator, tmp_path
):
    known = train.preprocessing
    brighter = Preprocessing(known.channels, known.image_size, (0.9,), known.std)
    for name, own in {"first": known, "alike": known, "other": brighter}.items():
        make_teacher(train, preprocessing=own).save_pretrained(tmp_path / name)

    def check(*names: str) -> None:
        config = method.config_class(ipc=1, teachers=[str(tmp_path / name) for name in names])
        method.check(config, train.outline, accelerator, [TeacherConfig()])

    check("first", "alike")
    with pytest.raises(ValueError, match=r"^the teacher convnet_d2 .*0\.9.* and convnet_d2 .* same images$") as error:
        check("first", "alike", "other")
    assert "\n" not in str(error.value)


def test_a_teacher_without_a_class_is_one_line(make, train):
    with pytest.raises(ValueError, match=r"has 9 classes, and 1 of these 10 are not among them: '9'"):
        make(make_teacher(train), make_teacher(train, class_names=train.class_names[:9]))


def test_a_teacher_of_another_resolution_or_colour_is_one_line(make, train):
    larger = Preprocessing(1, (16, 16), (0.5,), (0.5,))
    with pytest.raises(
        ValueError, match=r"takes images \(1, 16, 16\).*the data are \(1, 8, 8\); give --resolution 16 16"
    ):
        make(make_teacher(train, preprocessing=larger))
    colour = Preprocessing(3, (8, 8), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match=r"takes images \(3, 8, 8\)"):
        make(make_teacher(train, preprocessing=colour))


def test_whitened_images_are_refused_in_one_line(make, train):
    whitening = fit_zca([train.uint8(torch.arange(len(train)))], 0.1)
    zca = Preprocessing(1, (8, 8), (0.0,), (1.0,), whitening)
    with pytest.raises(ValueError, match=r"--normalization zca mixes up; use --normalization mean_std"):
        make(make_teacher(train, preprocessing=zca))


def test_statistics_that_are_not_numbers_are_one_line(make, train):
    teacher = make_teacher(train)
    teacher.model.features[1].running_mean[2] = math.nan
    with pytest.raises(ValueError, match=r"layer 'features.1' has running statistics that are NaN"):
        make(teacher)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"curriculum": "square"}, "--curriculum is 'square'; expected one of none, step, linear, cosine"),
        ({"compat": "exact"}, "--compat is 'exact'; expected one of none, vila"),
        ({"random_flip": 1.5}, "--random_flip is 1.5; expected 0 to 1"),
        ({"milestone": 2.0}, "--milestone is 2.0; expected 0 to 1"),
        ({"batch_classes": 0}, "--batch_classes is 0; expected at least 1"),
        ({"r_bn": -1.0}, "--r_bn is -1.0; expected at least 0"),
        (
            {"eval_baselines": ["kmeans"]},
            "--eval_baselines is 'kmeans'; expected one of random, herding, k-center, centroid",
        ),
    ],
)
def test_flags_that_mean_nothing_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        SRe2LConfig(**flags)


def test_a_loss_that_leaves_the_numbers_names_the_flags_and_keeps_the_blocks_that_are_done(make):
    with pytest.raises(DistillationDiverged, match=r"bn|loss") as error:
        make(r_bn=1e39).run()
    for part in ("--lr_img 0.25", "--r_bn 1e+39", "block 0"):
        assert part in str(error.value)


# What comes of it


@pytest.fixture(scope="module")
def digits(accelerator, tmp_path_factory) -> tuple[RealImages, RealImages, Teacher]:
    data, test = RealImages.train_and_test(DataArguments(max_train_samples=800))
    config = TeacherConfig(
        student="convnet_d2",
        student_width=16,
        teacher_epochs=12,
        batch_train=50,
        lr_teacher=0.05,
        teacher_augment="none",
    )
    folder = tmp_path_factory.mktemp("teacher")
    return data, test, train_teacher(data, test, config, folder, seed=0, accelerator=accelerator, disable_tqdm=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SRe2L, CDA])
def test_recovered_digits_are_digits_to_their_teacher_and_teach_students(digits, accelerator, tmp_path, kind):
    data, test, teacher = digits
    assert teacher.results["test_accuracy"] > 0.9
    flags = {"ipc": 5, "max_steps": 150, "lr_img": 0.1, "r_bn": 0.1, "random_flip": 0, "symmetric_jitter": True}
    judged = {"eval_seeds": 1, "eval_full_data": False, "eval_baselines": []}
    config = kind.config_class(**{**TINY, **flags, **judged, "output_dir": str(tmp_path / "run")})
    method = kind(config, data, teachers=[teacher], accelerator=accelerator)
    block = method.blocks()[0]
    start, end = method.initial(block), method.preprocessing(method.make(block, silent))
    before, after = (method.losses(x, block.labels, 0)["ce"].item() for x in (start, end))
    assert before > 2
    assert after < 0.3

    distilled = method.run()
    assert distilled.labels.bincount().tolist() == [5] * 10
    recovered = Pool(distilled.pixel_values, distilled.labels, preprocessing=distilled.preprocessing)
    assert accuracy(teacher.model, recovered) > 0.9
    means = {row.labels: np.mean(row.accuracies) for row in method.evaluate(test).rows}
    assert means["soft"] > 0.7  # a tenth by chance
    assert means["soft"] > means["hard"] + 0.1


# What is decoded


@pytest.fixture
def decoded(monkeypatch) -> list[Any]:
    """Every image that is decoded from now on."""
    cells, decode = [], pixels.decode

    def note(value: Any, feature: Any) -> Image.Image:
        cells.append(value)
        return decode(value, feature)

    monkeypatch.setattr(pixels, "decode", note)
    return cells


def test_from_noise_with_a_teacher_and_random_subsets_hardly_any_training_image_is_decoded(make, decoded, tmp_path):
    data = DataArguments(max_train_samples=417, max_test_samples=17, mean=[0.5], std=[0.25])
    flags = {"teachers": ["somewhere"], "eval_full_data": False, "eval_baselines": ["random"], "max_steps": 2}
    few = SRe2L.looks_once(SRe2LConfig(ipc=1, **flags))
    train, test = RealImages.train_and_test(data, on_demand=few)
    run = make(data=train, output_dir=str(tmp_path / "few"), **flags).run()
    assert len(decoded) < 17 + 150
    decoded.clear()
    held = Pool(train, train.labels, keep="nothing").holding(torch.tensor([[3, 400], [3, 7]]))
    for _ in range(2):
        shown = held.images(torch.tensor([3, 7, 400]))
    assert len(decoded) == 3
    decoded.clear()
    held = Pool(train, train.labels, keep="nothing").holding(torch.tensor([5, 300]), free=0)  # nor fits into memory
    for _ in range(3):
        assert torch.equal(held.images(torch.tensor([300])), train.uint8([300]))
    assert len(decoded) == 2 + 3
    whole, same = RealImages.train_and_test(data)
    assert len(decoded) >= 417
    assert torch.equal(shown, whole.uint8([3, 7, 400]))
    assert torch.equal(test.uint8(range(17)), same.uint8(range(17)))
    assert (repr(train), train.provenance, train.outline) == (repr(whole), whole.provenance, whole.outline)
    again = make(data=whole, output_dir=str(tmp_path / "whole"), **flags).run()
    assert torch.equal(run.pixel_values, again.pixel_values)


@pytest.mark.parametrize(
    "flags",
    [
        {"init": "real"},
        {"teachers": None},
        {"eval_full_data": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [SRe2LConfig, CDAConfig])
def test_whoever_looks_at_training_images_again_and_again_has_them_decoded_first(kind, flags):
    few = {"teachers": ["somewhere"], "eval_full_data": False, "eval_baselines": ["random"]}
    assert SRe2L.looks_once(kind(**few))
    for names in ([], ["herding"], ["random", "ccs", "bps"], ["all"]):
        assert SRe2L.looks_once(kind(**{**few, "eval_baselines": names}))
    assert not SRe2L.looks_once(kind(**{**few, **flags}))


@pytest.mark.parametrize("flags", [{}, {"normalization": "zca"}, {"skip_corrupt": True}], ids=str)
def test_what_all_images_tell_takes_all_of_them(flags, decoded):
    given = {"mean": [0.5], "std": [0.25]} if "skip_corrupt" in flags else {}
    count = 203 + len(str(flags))  # that no other test has decoded
    data = DataArguments(max_train_samples=count, max_test_samples=10, **given, **flags)
    train, _ = RealImages.train_and_test(data, on_demand=True)
    before = len(decoded)
    train.uint8(range(count))
    assert before >= count
    assert len(decoded) == before
