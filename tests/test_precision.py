"""Mixed precision is for networks: what they are shown is the same with and without it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_distill.augmentation.crops import (
    CROP_DRAWS,
    apply_mix,
    crop_resize,
    draw_crops,
    draw_cutmix,
    draw_mixup,
    draw_roll,
    roll,
    uniform,
)
from hf_distill.augmentation.dsa import DEFAULT_STRATEGY, DSA
from hf_distill.augmentation.randaugment import DRAWS, OPERATIONS, cutout_randaugment, operate
from hf_distill.augmentation.shrinking import take_crops
from hf_distill.augmentation.views import Views
from hf_distill.config import DataArguments
from hf_distill.data.feed import Pool
from hf_distill.data.images import RealImages
from hf_distill.data.preprocessing import Preprocessing, fit_zca
from hf_distill.data.resampling import resized
from hf_distill.distilled.labels import NetworkLabels
from hf_distill.evaluation.protocols import CropProtocol, EvalProtocol
from hf_distill.evaluation.students import train_students
from hf_distill.methods import APM, MTT, RDED, TESLA, APMConfig, MTTConfig, RDEDConfig, SRe2L, SRe2LConfig, TESLAConfig
from hf_distill.methods.hello import update_in_prior
from hf_distill.methods.patches import centred
from hf_distill.methods.unroll import StudentStep
from hf_distill.networks.architectures import FlatModel, StudentSpec
from hf_distill.networks.priors import Prior
from hf_distill.networks.projector import LabelProjector
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import generator
from hf_distill.training.experts import ExpertConfig, ExpertTrainer
from hf_distill.training.projectors import ProjectorConfig, ProjectorStep
from hf_distill.training.teachers import TeacherConfig, crop_flip, train_teacher
from tests.helpers.clips import save_clip

COUNT, SIDE = 6, 32
SIZE = (SIDE, SIDE)
SPEC = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": "batch"})


pytestmark = pytest.mark.usefixtures("one_thread")


def images() -> Tensor:
    return torch.randn(COUNT, 3, *SIZE, generator=generator(0, "images"))


def pixels() -> Tensor:
    return torch.randint(0, 256, (COUNT, 3, *SIZE), generator=generator(0, "pixels"), dtype=torch.uint8)


def numbers(count: int) -> Tensor:
    return uniform(0, (1,), torch.arange(COUNT), count)


def dsa(operation: str) -> Tensor:
    return DSA.apply(images(), DSA(operation).sample(COUNT, generator(0, operation), SIZE))


def crops(count: int, source: Callable[[], Tensor]) -> Tensor:
    return crop_resize(source(), draw_crops(numbers(CROP_DRAWS)[:count], SIZE), SIZE)


def views(crop: str, mix: str, source: Callable[[], Tensor]) -> Tensor:
    return Views(crop=crop, mix=mix)(lambda rows: source()[rows], torch.arange(COUNT), 1, COUNT, 0.25)


def operation(index: int) -> Tensor:
    return operate(pixels(), torch.full((COUNT,), index), numbers(4).double() * 0.5 + 0.3)


def boxes() -> Tensor:
    return draw_crops(numbers(CROP_DRAWS), SIZE).boxes


def recovered_view(t: int) -> Tensor:
    method = SRe2L.__new__(SRe2L)
    method.config = SRe2LConfig(max_steps=8, jitter=4)
    return method.view(images(), t, uniform(0, (1,), torch.arange(8), CROP_DRAWS), uniform(0, (2,), torch.arange(8), 2))


def whitened(inverse: bool) -> Tensor:
    small = torch.randint(0, 256, (60, 1, 4, 4), generator=generator(0, "small"), dtype=torch.uint8)
    look = Preprocessing(1, (4, 4), (0.0,), (1.0,), fit_zca([small], 0.1))
    return look.inverse(small / 255) if inverse else look(small)


AUGMENTATIONS: dict[str, Callable[[], Tensor]] = {
    **{f"DSA, {name}": lambda name=name: dsa(name) for name in DEFAULT_STRATEGY.split("_")},
    **{f"RandAugment, {name}": lambda index=index: operation(index) for index, name in enumerate(OPERATIONS)},
    "cutout and RandAugment": lambda: cutout_randaugment(pixels(), numbers(DRAWS)),
    **{
        f"crops, {count} of {source.__name__}": lambda count=count, source=source: crops(count, source)
        for count in (1, COUNT)
        for source in (images, pixels)
    },
    "roll": lambda: roll(images(), draw_roll(numbers(2)[:1], 5)),
    "cutmix": lambda: apply_mix(images(), images().flip(0), draw_cutmix(numbers(3), SIZE)),
    "mixup": lambda: apply_mix(images(), images().flip(0), draw_mixup(numbers(1))),
    **{
        f"views, {crop}, {mix}": lambda crop=crop, mix=mix: views(crop, mix, images)
        for crop in ("resized", "padded", "none")
        for mix in ("cutmix", "mixup", "none")
    },
    "teacher's crops": lambda: crop_flip(pixels(), numbers(3)),
    "patches' crops": lambda: take_crops(pixels(), boxes(), (16, 16)),
    "patches in the middle": lambda: centred(pixels(), Preprocessing(3, (48, 48), (0.4,) * 3, (0.3,) * 3)),
    "enlarged": lambda: resized(images(), (48, 40)),
    "shrunk": lambda: resized(images(), (20, 13)),
    **{f"recovering, iteration {t}": lambda t=t: recovered_view(t) for t in range(4)},
    "whitening": lambda: whitened(False),
    "whitening undone": lambda: whitened(True),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_autocast_moves_no_pixel(name):
    expected = AUGMENTATIONS[name]()
    with torch.autocast("cpu", torch.bfloat16):
        found = AUGMENTATIONS[name]()
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


# What networks are shown


@pytest.fixture(scope="module")
def train() -> RealImages:
    return RealImages.from_arguments(DataArguments(max_train_samples=60))


@contextmanager
def watched() -> Iterator[list[tuple[bool, Tensor]]]:
    """Whether it is in autocast, and the images, of every forward pass of a network of one convolution."""
    shown: list[tuple[bool, Tensor]] = []

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d):  # the only one: here a network is within its precision, whoever asked it
            shown.append((torch.is_autocast_enabled("cpu"), inputs[0].detach().clone()))

    handle = nn.modules.module.register_module_forward_pre_hook(see)
    try:
        yield shown
    finally:
        handle.remove()


def network(train: RealImages) -> Teacher:
    return Teacher(SPEC.build(3), SPEC, train.class_names, train.preprocessing)


def students_of_apm(train: RealImages, accelerator: Accelerator, folder: str) -> None:
    config = APMConfig(ipc=1, max_steps=1, student_epochs=4, num_students=1, output_dir=folder, disable_tqdm=True)
    apm = APM(config, train, teachers=[network(train)], accelerator=accelerator)
    apm.train_students(apm.initial(apm.blocks()[0]), apm._logits(apm.teachers[0].model), 5)


def students_on_crops(train: RealImages, accelerator: Accelerator, folder: str) -> None:
    pool = Pool(train.uint8(torch.arange(20)), train.labels[:20], preprocessing=train.preprocessing)
    protocol = CropProtocol("crops", epochs=2, full_data_epochs=1, batch_size=8)
    labels, rows = NetworkLabels(network(train)), torch.arange(20)[None]
    train_students(pool, labels, rows, SPEC, protocol, 2, [0.01], [1], accelerator)


def students_under_dsa(train: RealImages, accelerator: Accelerator, folder: str) -> None:
    pool = Pool(train.uint8(torch.arange(20)), train.labels[:20], preprocessing=train.preprocessing)
    protocol = EvalProtocol("under-dsa", epochs=4, full_data_epochs=1, batch_size=8)
    train_students(pool, pool.labels, torch.arange(20)[None], SPEC, protocol, 4, [0.01], [1], accelerator)


def recovered_images(train: RealImages, accelerator: Accelerator, folder: str) -> None:
    teacher = network(train)
    teacher.model.features[1].running_var.mul_(2.0)  # as if it had seen data
    config = SRe2LConfig(ipc=1, max_steps=3, jitter=2, output_dir=folder, disable_tqdm=True)
    method = SRe2L(config, train, teachers=[teacher], accelerator=accelerator)
    x, numbers = method.initial(method.blocks()[0]), uniform(0, (1,), torch.arange(3), CROP_DRAWS)
    for t in range(4):
        method.losses(method.view(x, t % 3, numbers, numbers[:, :2]), torch.arange(10), t)


def matched_trajectories(train: RealImages, accelerator: Accelerator, folder: str) -> None:
    flat, draw = FlatModel.from_spec(StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4})), generator(0, "steps")
    start = flat.init(0)
    rows = [torch.randperm(8, generator=draw)[:5] for _ in range(3)]
    steps = [StudentStep(each, DSA("scale_rotate").sample(5, draw, (8, 8))) for each in rows]
    images, labels = train.images(range(8)), train.labels[:8]
    # With a rate of 0 the parameters, and so all that is shown, are the same in each precision.
    for kind, config in ((MTT, MTTConfig()), (TESLA, TESLAConfig(label="hard"))):
        method = kind.__new__(kind)
        method.config, method.accelerator = config, accelerator
        method.experts = SimpleNamespace(flat_model=lambda: flat)
        method.student = method._student()
        method.matching_gradient(start, start + 0.1, images, labels, steps, torch.tensor(0.0))


def updated_tiles(train: RealImages, accelerator: Accelerator, folder: str) -> None:
    prior = Prior.from_pretrained(save_clip("vit", Path(folder)))
    originals = torch.rand(4, 3, 32, 32, generator=generator(0, "originals"))
    update_in_prior(prior, resized(originals, (16, 16)).clamp(0, 1), originals, 1, 0.0, accelerator)


def a_projector(train: RealImages, accelerator: Accelerator, folder: str) -> None:
    prior, config = Prior.from_pretrained(save_clip("vit", Path(folder))), ProjectorConfig(prompts="simple")
    names = [f"digit {name}" for name in train.class_names]
    projector = LabelProjector(prior, names, train.preprocessing, templates="simple", lora=config.lora())
    x, labels = train.images(range(6)), train.labels[:6]
    step = ProjectorStep(projector.train(), config, accelerator)
    for _ in range(2):
        step(x, [network(train)], (labels, labels, torch.ones(6)), 0.0, 6)


def a_teacher(train: RealImages, accelerator: Accelerator, folder: str) -> None:
    flags = {"student": "convnet_d1", "student_width": 4, "teacher_augment": "dsa"}
    config = TeacherConfig(teacher_epochs=2, batch_train=10, **flags)
    train_teacher(train, None, config, folder, accelerator=accelerator, disable_tqdm=True)


def an_expert(train: RealImages, accelerator: Accelerator, folder: str) -> None:
    trainer = ExpertTrainer(train, SPEC, ExpertConfig(batch_train=10), 0, accelerator)
    trainer.epoch([0], 1, trainer.init([0]))


def scores_of_crops(train: RealImages, accelerator: Accelerator, folder: str) -> None:
    config = RDEDConfig(ipc=1, num_crops=4, output_dir=folder, disable_tqdm=True)
    method = RDED(config, train, teachers=[network(train)], accelerator=accelerator)
    rows = train.class_rows(0)[:4]
    method.crop_losses(rows, method.boxes(rows), 0)


LOOKING = [
    *(students_of_apm, students_on_crops, students_under_dsa, a_teacher, an_expert, scores_of_crops),
    *(recovered_images, matched_trajectories, updated_tiles),
    pytest.param(a_projector, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("look", LOOKING, ids=lambda look: look.__name__)
def test_networks_are_shown_the_same_images_in_every_precision(look, train, launch, tmp_path):
    seen: dict[str, list[tuple[bool, Tensor]]] = {}
    for precision in ("no", "bf16"):
        with watched() as seen[precision]:
            look(train, launch(precision), str(tmp_path / precision))
    assert len(seen["no"]) == len(seen["bf16"]) > 3
    assert not any(half for half, _ in seen["no"])
    assert any(half for half, _ in seen["bf16"]) or look is students_under_dsa  # which are float32 by their protocol
    for (_, plain), (_, half) in zip(seen["no"], seen["bf16"], strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_students_that_trajectories_are_matched_with_are_float32_whatever_the_caller_is_in(norm, train):
    pool = Pool(train.uint8(torch.arange(20)), train.labels[:20], preprocessing=train.preprocessing)
    spec = replace(SPEC, kwargs={"width": 4, "norm": norm})  # two of the first kind train side by side
    protocol = EvalProtocol("short", epochs=3, full_data_epochs=1)

    def trained() -> list[Tensor]:
        rows = torch.arange(20).expand(2, -1)
        models = train_students(pool, pool.labels, rows, spec, protocol, 3, [0.1, 0.1], [1, 2])
        return [value for model in models for value in model.state_dict().values()]

    expected = trained()
    with torch.autocast("cpu", torch.bfloat16):
        inside = trained()
    assert all(torch.equal(one, other) for one, other in zip(inside, expected, strict=True))
