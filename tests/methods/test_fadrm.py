"""FADRM: its stages, what they begin with, and whose turn it is, against SRe2L, NumPy and Adam written out."""

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from hf_distill.augmentation.crops import CROP_DRAWS, draw_crops, draw_roll, uniform
from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.methods import FADRM, FADRMConfig, SRe2L, SRe2LConfig
from hf_distill.methods.fadrm import from_the_middle, resized, sizes_of
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import derive_seed, generator
from hf_distill.runs.finish import run_recipe
from tests.helpers.events import Signals
from tests.helpers.pets import random_teacher
from tests.helpers.photographs import cache_in, cropped, photographs, store

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def train() -> RealImages:
    return RealImages.from_arguments(DataArguments(max_train_samples=100))


class Pooled(nn.Sequential):
    """One convolution, whatever the size of the image."""

    def __init__(self, seed: int, norm: bool, count: int = 10, channels: int = 1) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layer = nn.BatchNorm2d(5) if norm else nn.Identity()
            super().__init__(
                nn.Conv2d(channels, 5, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, count)
            )
        if norm:
            layer.running_mean.copy_(torch.randn(5, generator=generator(seed)))
            layer.running_var.uniform_(0.5, 1.5, generator=generator(seed, 1))


def make_teacher(train: RealImages, seed: int = 0, norm: bool = True) -> Teacher:
    spec = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4})  # of which the classes and the size count
    return Teacher(Pooled(seed, norm), spec, train.class_names, train.preprocessing)


def make_convnet(train: RealImages) -> Teacher:
    spec = StudentSpec("convnet_d2", 10, 1, (8, 8), {"width": 4, "norm": "batch"})
    model = spec.build(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.fill_(0.5)
    return Teacher(model, spec, train.class_names, train.preprocessing)


@pytest.fixture
def make(train, accelerator, tmp_path):
    def build(*teachers: Teacher, kind: type = FADRM, **flags: Any) -> Any:
        tiny = {"ipc": 1, "max_steps": 8, "jitter": 1, "disable_tqdm": True, "eval_protocol": "crops-quick"}
        if kind is FADRM:
            tiny["stage_sizes"] = [6, 8, 6, 8]
        config = kind.config_class(**{**tiny, "output_dir": str(tmp_path / "run"), **flags})
        return kind(config, train, teachers=teachers or [make_teacher(train)], accelerator=accelerator)

    return build


def silent(iteration: int, values: dict[str, float]) -> None:
    pass


# Stages


def test_one_stage_one_teacher_and_noise_are_sre2l_bit_for_bit(make, train):
    flags = {"max_steps": 5, "ipc": 2, "batch_classes": 4, "lr_img": 0.3, "init": "noise"}
    for teachers in ([make_convnet(train)], [make_teacher(train, seed) for seed in (0, 1)]):
        ours = make(*teachers, stage_sizes=[8], **flags)
        theirs = make(*teachers, kind=SRe2L, **flags)
        for block in ours.blocks()[:4:3]:
            assert torch.equal(ours.make(block, silent), theirs.make(block, silent))


def bilinear(x: np.ndarray, size: int) -> np.ndarray:
    """Square images (n, C, S, S) at another size, pixel by pixel."""
    side = x.shape[-1]
    out = np.zeros((*x.shape[:2], size, size))

    def places(i: int) -> list[tuple[int, float]]:
        at = min(max((i + 0.5) * side / size - 0.5, 0), side - 1)
        below = math.floor(at)
        return [(below, 1 - (at - below)), (min(below + 1, side - 1), at - below)]

    for i in range(size):
        for j in range(size):
            for row, one in places(i):
                for column, two in places(j):
                    out[:, :, i, j] += one * two * x[:, :, row, column]
    return out


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_where_nothing_is_learned_a_stage_begins_with_exactly_its_shares(make, alpha):
    method = make(lr_img=0, alpha=alpha, stage_sizes=[5, 8, 6, 8])
    block, left = method.blocks()[0], []
    method.finished = lambda x: left.append(x) or x
    method.make(block, silent)
    p = method.originals(block).double().numpy()
    x = bilinear(p, 5)
    for size in (8, 6, 8):
        x = alpha * bilinear(x, size) + (1 - alpha) * bilinear(p, size)
    np.testing.assert_allclose(left[0].numpy(), x, atol=2e-6)


def test_teachers_take_turns_by_one_count_over_all_stages_and_see_the_sizes_of_these(make, train):
    teachers, seen = [make_teacher(train, seed) for seed in range(3)], []
    method = make(*teachers, init="noise")
    for number, teacher in enumerate(teachers):
        teacher.model.register_forward_hook(lambda _, x, y, number=number: seen.append((number, x[0].shape[-1])))
    method.make(method.blocks()[0], silent)
    assert seen == [(0, 6), (1, 6), (2, 8), (0, 8), (1, 6), (2, 6), (0, 8), (1, 8)]


def test_stages_share_the_iterations_evenly_and_the_last_one_ends(train):
    for steps in (1, 2, 3, 5, 8, 11):
        config = FADRMConfig(stage_sizes=[8, 6, 8], max_steps=steps)
        stages = [config.stage_of(t) for t in range(steps)]
        assert stages == sorted(stages)
        assert stages[-1] == 2
        if steps >= 3:
            assert {stages.count(stage) - steps // 3 for stage in range(3)} <= {0, 1}
    assert sizes_of(FADRMConfig(), (3, 64, 64)) == [(64, 64)] * 4
    assert sizes_of(FADRMConfig(stage_sizes=[30, 40]), (3, 40, 60)) == [(30, 45), (40, 60)]


def test_the_rate_is_one_cosine_over_all_stages_and_the_moments_are_new_in_each(make, train):
    teacher = make_teacher(train)
    method = make(teacher, max_steps=4, stage_sizes=[6, 8], lr_img=0.3, r_bn=0.2, alpha=0.4, batch_classes=4)
    block, left = method.blocks()[0], []
    method.finished = lambda x: left.append(x) or x
    method.make(block, silent)

    p, model = method.originals(block).double(), teacher.model.double()
    conv, norm, head = model[0], model[1], model[4]
    seed, iterations = derive_seed(method.config.seed, "views", block.number), torch.arange(4)
    offsets = draw_roll(uniform(seed, (2,), iterations, 2), 1).tolist()
    (mean,), (std,) = train.preprocessing.mean, train.preprocessing.std
    x = F.interpolate(p, (6, 6), mode="bilinear")
    for t in range(4):
        side = 6 if t < 2 else 8
        if t == 2:
            x = 0.4 * F.interpolate(x, (8, 8), mode="bilinear") + 0.6 * p
        if t in (0, 2):
            first, second = torch.zeros_like(x), torch.zeros_like(x)
        drawn = draw_crops(uniform(seed, (1,), iterations[t : t + 1], CROP_DRAWS), (side, side))
        leaf = x.clone().requires_grad_()
        top, left_, tall, wide = drawn.boxes[0].tolist()
        view = F.interpolate(leaf[:, :, top : top + tall, left_ : left_ + wide], (side, side), mode="bilinear")
        view = torch.roll(view.flip(3) if drawn.flip[0] else view, offsets[t], (2, 3))
        hidden = F.conv2d(view, conv.weight, conv.bias)
        average, variance = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3), correction=0)
        matched = 10 * ((norm.running_mean - average).norm() + (norm.running_var - variance).norm())
        scaled = (norm.weight / (norm.running_var + 1e-5).sqrt()).view(1, -1, 1, 1)
        hidden = (hidden - norm.running_mean.view(1, -1, 1, 1)) * scaled + norm.bias.view(1, -1, 1, 1)
        logits = hidden.mean((2, 3)) @ head.weight.T + head.bias
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, block.labels) + 0.2 * matched, leaf)
        within = t % 2 + 1
        first, second = 0.5 * first + 0.5 * gradient, 0.9 * second + 0.1 * gradient**2
        step = (first / (1 - 0.5**within)) / ((second / (1 - 0.9**within)).sqrt() + 1e-8)
        x = (x - 0.3 * (1 + math.cos(math.pi * t / 4)) / 2 * step).clamp(-mean / std, (1 - mean) / std)
    torch.testing.assert_close(left[0].double(), x, atol=2e-3, rtol=0)
    assert (left[0] - p).abs().mean() > 0.05


# What images start from


def test_images_are_taken_from_the_median_of_probability_outwards():
    losses = torch.tensor([0.1, 5.0, 1.0, 3.0, 2.0])  # 0 is the most probable, 1 the least
    assert from_the_middle(losses).tolist() == [4, 3, 2, 1, 0]
    assert from_the_middle(losses[:4]).tolist() == [2, 3, 0, 1]
    assert from_the_middle(torch.zeros(3)).tolist() == [1, 0, 2]  # of equals the first is below
    for count in range(1, 9):
        assert sorted(from_the_middle(torch.rand(count)).tolist()) == list(range(count))


def test_image_number_i_starts_from_the_ith_image_of_its_class_by_probability(make, train):
    teacher = make_teacher(train)
    method = make(teacher, ipc=3, factor=1, batch_classes=4)
    for block in method.blocks():
        for image, label, row in zip(method.originals(block), block.labels.tolist(), block.rows.tolist(), strict=True):
            images = train.images(train.class_rows(label))
            with torch.no_grad():
                chances = teacher.model(images).double().softmax(1)[:, label].numpy()
            middle, by_chance = len(images) // 2, np.argsort(chances)
            expected = by_chance[middle + {0: 0, 1: -1, 2: 1}[row % 3]]
            assert torch.equal(image, images[expected])
    few, block = make(teacher, ipc=1, factor=1), method.blocks()[0]
    assert torch.equal(few.originals(few.blocks()[0])[:4], method.originals(block))  # fewer are the first of more


def test_of_many_images_of_a_class_so_many_are_ranked(make, train):
    method = make(num_candidates=3, ipc=2, factor=1)
    assert {len(make(num_candidates=1, ipc=2, factor=1).taken(label)) for label in range(10)} == {
        2
    }  # that start images
    for label in range(10):
        assert len(method.taken(label)) == min(3, len(train.class_rows(label)))
        assert set(method.taken(label).tolist()) <= set(train.class_rows(label).tolist())


@pytest.mark.parametrize(("side", "shape"), [(None, (8, 8)), ("source", (9, 7))])
def test_a_mosaic_is_of_the_crops_around_the_median_four_after_four(make, tmp_path, monkeypatch, side, shape):
    cache_in(tmp_path / "cache", monkeypatch)
    tints = torch.randint(
        0, 200, (42, 3), generator=generator(1)
    ).numpy()  # losses far apart, and Pillow's rounding near
    grainy = (np.asarray(photo) // 5 + tint for photo, tint in zip(photographs(42), tints, strict=True))
    photos = [PIL.Image.fromarray(photo.astype(np.uint8)) for photo in grainy]
    store(tmp_path / "photos", "train", photos, classes=3)
    arguments = DataArguments(dataset_name=str(tmp_path / "photos"), resolution=list(shape), keep_side=side)
    train = RealImages.from_arguments(arguments)
    teacher = Teacher(
        Pooled(0, True, 3, 3), random_teacher(train, train.class_names).spec, train.class_names, train.preprocessing
    )
    accelerator = Accelerator(cpu=True)
    flags = {"jitter": 1, "disable_tqdm": True, "output_dir": str(tmp_path / "run"), "batch_classes": 2}
    methods = [
        FADRM(FADRMConfig(ipc=ipc, **flags), train, teachers=[teacher], accelerator=accelerator) for ipc in (1, 3)
    ]
    height, width = shape
    rows, columns = (np.array_split(np.arange(length), 2) for length in shape)

    def box(row: int, size: tuple[int, int]) -> list[int]:
        u = uniform(derive_seed(0, "crops"), (0,), torch.tensor([row]), CROP_DRAWS)
        return draw_crops(u, size, ratio=(width / height,) * 2, flip=0.0).boxes[0].tolist()

    def crop(row: int, size: tuple[int, int]) -> np.ndarray:
        image = photos[row] if side else PIL.Image.fromarray(train.uint8([row])[0].permute(1, 2, 0).numpy())
        return cropped(image, box(row, image.size[::-1]), size)

    @cache
    def loss(row: int, label: int) -> float:
        small = torch.from_numpy(crop(row, (height // 2, width // 2)).round()).to(torch.uint8)
        seen, tall, wide = torch.zeros(3, *shape), height // 2, width // 2
        top, left = (height - tall) // 2, (width - wide) // 2
        mean, std = (
            torch.tensor(values).view(3, 1, 1) for values in (teacher.preprocessing.mean, teacher.preprocessing.std)
        )
        seen[:, top : top + tall, left : left + wide] = (small / 255 - mean) / std
        with torch.no_grad():
            return -teacher.model(seen[None]).double().log_softmax(1)[0, label].item()

    for method in methods:
        for block in method.blocks():
            found = method.preprocessing.to_uint8(method.originals(block)).double().numpy()
            for image, label, place in zip(found, block.labels.tolist(), block.rows.tolist(), strict=True):
                likely = sorted(train.class_rows(label).tolist(), key=lambda row: -loss(row, label))
                middle, number = len(likely) // 2, place % method.config.ipc
                outwards = sorted(range(len(likely)), key=lambda at: (abs(at - middle), at))
                own = [likely[at] for at in outwards[4 * number : 4 * number + 4]]
                for row, (y, x) in zip(own, itertools.product(rows, columns), strict=True):
                    wanted = crop(row, (len(y), len(x)))
                    assert np.abs(image[:, y[0] : y[-1] + 1, x[0] : x[-1] + 1] - wanted).max() <= 1


def test_images_that_have_no_room_for_their_tiles_or_too_few_beside_them_are_one_line(make):
    with pytest.raises(ValueError, match="--factor is 9 for images of 8x8 pixels; expected at most 8"):
        make(factor=9)
    with pytest.raises(
        ValueError, match=r"--ipc 3 with --factor 2 starts from 12 images, .* lack .*; lower --ipc or --factor"
    ):
        make(ipc=3)
    make(ipc=3, factor=9, init="noise")  # which has neither


# Runs


@pytest.mark.parametrize("step", [1, 2, 10])
def test_a_run_that_ends_in_a_stage_or_between_two_goes_on_with_the_same_bytes(make, train, tmp_path, step):
    flags = {"max_steps": 8, "batch_classes": 5, "logging_steps": 1, "lr_img": 0.3}
    teachers = [make_teacher(train, seed) for seed in (0, 1, 2)]
    whole = make(*teachers, **flags, output_dir=str(tmp_path / "whole")).run()
    ended = make(*teachers, **flags)
    ended.callbacks.callbacks.append(Signals(step))
    with pytest.raises(SystemExit, match="interrupted: go on"):
        run_recipe(ended.run, "go on")
    block, _ = divmod(step, 8)
    assert [path.name for path in ended.folder.glob("unfinished-*")] == [f"unfinished-{block:06d}"]
    again = make(*teachers, **flags, resume_from_checkpoint="latest").run()
    assert torch.equal(again.pixel_values, whole.pixel_values)


def test_a_teacher_without_batch_norm_has_no_statistics_where_another_one_has_them(make, train):
    said = []
    method = make(make_teacher(train), make_teacher(train, 1, norm=False), logging_steps=1)
    method.make(method.blocks()[0], lambda iteration, values: said.append(values["bn"]))
    assert all((value == 0) == (t % 2 == 1) for t, value in enumerate(said))


@pytest.mark.parametrize(
    ("count", "says"), [(1, "distilled with `fadrm` (["), (2, "distilled with `fadrm` as `FADRM+` ([")]
)
def test_the_card_calls_a_set_of_several_teachers_fadrm_plus(make, train, tmp_path, count, says):
    distilled = make(*[make_convnet(train)] * count, max_steps=1, stage_sizes=[8]).run()
    assert distilled.config["method"] == "fadrm"
    distilled.save_pretrained(tmp_path / "set")
    again = DistilledSet.from_pretrained(tmp_path / "set")
    again.save_pretrained(tmp_path / "again")
    for folder in ("set", "again"):
        assert says in (tmp_path / folder / "README.md").read_text(encoding="utf-8")


# What cannot be


def test_teachers_without_batch_norm_are_one_line(make, train):
    with pytest.raises(ValueError, match=r"has no BatchNorm2d layer; expected a network with BatchNorm"):
        make(make_teacher(train, norm=False), make_teacher(train, 1, norm=False))


@pytest.mark.parametrize("size", [6, 2, 1])
def test_a_stage_that_is_no_size_of_a_teacher_is_one_line(make, train, size):
    teachers = {6: [make_teacher(train), make_convnet(train)]}.get(size, [make_teacher(train)])
    with pytest.raises(
        ValueError, match=rf"cannot look at images of {size}x{size} pixels, which --stage_sizes has"
    ) as e:
        make(*teachers, stage_sizes=[size, 8])
    assert "\n" not in str(e.value)


def test_a_last_stage_of_another_size_than_the_set_is_one_line(make):
    with pytest.raises(ValueError, match=r"--stage_sizes ends with 6 and the images .* of 8; .*--resolution 6"):
        make(stage_sizes=[8, 6])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"alpha": 1.5}, "--alpha is 1.5; expected 0 to 1"),
        ({"alpha": float("nan")}, "--alpha is nan; expected 0 to 1"),
        ({"stage_sizes": []}, r"--stage_sizes is \[\]; expected one side for each stage"),
        ({"stage_sizes": [0, 8]}, r"--stage_sizes is \[0, 8\]; expected one side"),
        ({"max_steps": 0}, "--max_steps is 0; expected at least 1"),
        ({"num_candidates": 0}, "--num_candidates is 0; expected at least 1"),
        ({"factor": 0}, "--factor is 0; expected at least 1"),
        ({"init": "median"}, "--init is 'median'; expected one of real, noise"),
    ],
)
def test_flags_that_mean_nothing_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        FADRMConfig(**flags)


def test_sizes_that_are_the_same_are_left_alone():
    x: Tensor = torch.rand(1, 1, 4, 4)
    assert resized(x, (4, 4)) is x
    assert SRe2LConfig().weights == {"bn": 0.01, "tv": 0.0, "l2": 0.0}


def test_real_images_of_a_large_set_are_decoded_when_they_are_asked_for():
    flags = {"teachers": ["somewhere"], "eval_full_data": False, "eval_baselines": ["random"]}
    assert FADRM.looks_once(FADRMConfig(**flags))
    assert not FADRM.looks_once(FADRMConfig(**{**flags, "teachers": None}))
    assert not FADRM.looks_once(FADRMConfig(**{**flags, "eval_full_data": True}))
