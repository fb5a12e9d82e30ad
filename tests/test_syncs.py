"""What one iteration of everything that learns makes the host wait for, counted while it runs.

On an accelerator the host runs ahead of the device, unless it asks for a number, for a size that depends on numbers, or
copies from memory that is not pinned. On a CPU all of these can be counted, and whose numbers are asked for cannot be
seen: what is drawn at random is on the host anyway, and the tables say how much of what is allowed is that. PyTorch's
optimizers, whose count of steps is on the host too, are left out.
"""

import functools
import os
import sys
import traceback
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import hf_distill as hd
from hf_distill.augmentation.dsa import DEFAULT_STRATEGY, DSA
from hf_distill.data.feed import Pool
from hf_distill.data.preprocessing import Preprocessing, fit_zca
from hf_distill.data.upload import upload
from hf_distill.distilled.labels import NetworkLabels
from hf_distill.engine.loop import Distiller
from hf_distill.evaluation import accuracy, crop_students, probe_students, students
from hf_distill.evaluation.protocols import PROTOCOLS
from hf_distill.methods import METHODS, apm, fadrm, hello, patches, sre2l
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.probes import ProbeSpec
from hf_distill.rng import generator
from hf_distill.training import experts, projectors, teachers
from tests.helpers.iterations import SETTINGS

pytestmark = pytest.mark.usefixtures("one_thread")

OPERATIONS = DEFAULT_STRATEGY.split("_")
READS = {"_local_scalar_dense", "equal"}  # item(), bool(), int() and float() are the first
SIZES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}


OPTIMIZERS = os.path.join("torch", "optim", "")


@dataclass
class Waits:
    """What a stretch of code asks of the host.

    Attributes:
        reads: Numbers of tensors that are read.
        sizes: Tensors whose size depends on numbers.
        made: Tensors that are made of Python's numbers, or NumPy's.
        copies: Tensors that are sent to a device by another way than `upload`, or would be if they were not there.
    """

    reads: int = 0
    sizes: int = 0
    made: int = 0
    copies: int = 0

    def count(self, kind: str) -> None:
        frames = traceback.walk_stack(sys._getframe())
        if not any(OPTIMIZERS in frame.f_code.co_filename for frame, _ in frames):
            setattr(self, kind, getattr(self, kind) + 1)

    def within(self, allowed: "Waits") -> bool:
        return all(getattr(self, name) <= getattr(allowed, name) for name in vars(self))


class _Operations(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in READS:
            self.waits.count("reads")
        elif name in SIZES or any(mask is not None and mask.dtype == torch.bool for mask in masks):
            self.waits.count("sizes")
        elif name == "lift_fresh":
            self.waits.count("made")
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """What no operation is seen of."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, given = getattr(func, "__name__", ""), (*args[1:], *(kwargs or {}).values())
        if name in ("tolist", "numpy", "cpu"):
            self.waits.count("reads")
        to_device = name == "to" and any(isinstance(value, torch.device | str) for value in given)
        if to_device and sys._getframe(1).f_code is not upload.__code__:
            self.waits.count("copies")
        return func(*args, **(kwargs or {}))


class Counted:
    """A context in which waits are counted."""

    def __init__(self) -> None:
        self.waits = Waits()
        self.modes = (_Calls(self.waits), _Operations(self.waits))

    def __enter__(self) -> Waits:
        for mode in self.modes:
            mode.__enter__()
        return self.waits

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)


def second_iteration(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Waits]:
    """Fills with what is counted from the second call of a function, which each iteration calls once, to the third."""
    known, found, calls, counted = getattr(owner, name), [], [], Counted()

    @functools.wraps(known)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == 2:
            counted.__enter__()
        if len(calls) == 3:
            counted.__exit__(None, None, None)
            found.append(counted.waits)
        return known(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return found


def check(found: list[Waits], allowed: Waits) -> None:
    (waits,) = found
    assert waits.within(allowed), f"counted {waits}, allowed {allowed}"


def test_what_waits_is_counted_and_what_does_not_is_not():
    x = torch.arange(4.0)
    mask, pair = x > 1, [1.0, 2.0]
    for wait, kind in (
        (lambda: x.sum().item(), "reads"),
        (lambda: bool(mask[0]), "reads"),
        (lambda: int(x[0]), "reads"),
        (lambda: x.tolist(), "reads"),
        (lambda: x.cpu(), "reads"),
        (lambda: torch.equal(x, x), "reads"),
        (lambda: mask.nonzero(), "sizes"),
        (lambda: x[mask], "sizes"),
        (lambda: x.unique(), "sizes"),
        (lambda: torch.tensor(pair), "made"),
        (lambda: x.new_tensor(pair), "made"),
        (lambda: x[[0, 1]], "made"),
        (lambda: x.to("cpu"), "copies"),
        (lambda: x.to(device=x.device), "copies"),
    ):
        with Counted() as waits:
            wait()
        assert waits == Waits(**{kind: 1})
    with Counted() as waits:
        upload(x, "cpu") + 1.0
        torch.where(mask, x, 0.0).double().to(torch.float32).mul_(2).index_add_(0, torch.arange(2), x[2:])
        torch.zeros(3, device=x.device).fill_(2.0)
    assert waits == Waits()


@pytest.fixture(scope="module")
def data() -> tuple[hd.RealImages, hd.RealImages]:
    return hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=60, max_test_samples=20))


# What each of its iterations calls once; and what an iteration may wait for.
RUNS: dict[str, tuple[Any, str, Waits]] = {
    # Of the device one, when all is done: the loss, the largest gradients, and β after the step are read together. Of
    # the host, which step was read ahead.
    "MTT": (Distiller, "_advance", Waits(reads=2)),
    "TESLA": (Distiller, "_advance", Waits(reads=2)),
    "DATM": (Distiller, "_advance", Waits(reads=2)),
    "SRe2L": (sre2l.SRe2L, "losses", Waits(reads=3)),  # of the host: box, mirror and roll
    "CDA": (sre2l.SRe2L, "losses", Waits(reads=3)),
    "FADRM": (fadrm.FADRM, "losses", Waits(reads=3)),  # as SRe2L
    "RDED": (patches, "centred", Waits()),  # an iteration is a batch of crops
    "HeLlO": (hello, "resized", Waits()),  # an iteration is a step of the update of tiles
    "APM": (apm, "group_gradient", Waits()),
    # Of the device one, when all is done; of the host, which operation is drawn for each of ten classes.
    "DM": (Distiller, "_advance", Waits(reads=11)),
    # Of the device one, as of MTT.
    "LGM": (Distiller, "_advance", Waits(reads=1)),
    "CLPDD": (Distiller, "_advance", Waits(reads=1)),
}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_an_iteration_of_a_method_waits_no_more_often_than_it_must(method, data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where networks stay that no other test should find
    owner, name, allowed = RUNS[method.__name__]
    found = second_iteration(monkeypatch, owner, name)
    of_projector = second_iteration(monkeypatch, projectors.ProjectorStep, "__call__")
    method.distill(data[0], data[1], ipc=1, output_dir=str(tmp_path / "run"), **SETTINGS[method.__name__])
    check(found, allowed)
    if method is hd.HeLlO:  # which trains one
        check(of_projector, Waits())


@pytest.mark.parametrize("at_once", ["1", "2"])
def test_a_step_of_an_expert_reads_which_operation_is_drawn(at_once, data, monkeypatch, tmp_path):
    found = second_iteration(monkeypatch, experts.ExpertTrainer, "step")
    network = {"student": "convnet_d1", "student_width": 4, "num_experts": 2, "batch_train": 20}
    config = hd.ExpertConfig(**network, experts_at_once=at_once)
    hd.train_experts(data[0], config, tmp_path / "experts", epochs=1, disable_tqdm=True)
    check(found, Waits(reads=int(at_once)))  # of the host


TEACHERS = {  # all of the host
    "crop_flip": Waits(),
    "rrc": Waits(),
    "cutout_randaugment": Waits(reads=2, made=2),
    "dsa": Waits(reads=1),
    "none": Waits(),
}


@pytest.mark.parametrize("augment", teachers.AUGMENTATIONS)
def test_a_step_of_a_teacher_reads_nothing_of_the_device(augment, data, monkeypatch, tmp_path):
    found = second_iteration(monkeypatch, teachers._Augmented, "augmented")
    config = hd.TeacherConfig(student="convnet_d1", student_width=4, teacher_epochs=1, batch_train=15)
    config = replace(config, teacher_augment=augment)
    hd.train_teacher(data[0], None, config, tmp_path / "teacher", disable_tqdm=True)
    check(found, TEACHERS[augment])


@pytest.fixture(scope="module")
def pool(data) -> Pool:
    return Pool(data[0], data[0].labels, preprocessing=data[0].preprocessing)


@pytest.mark.parametrize("norm", ["instance", "batch"], ids=["side by side", "alone"])
def test_a_step_of_a_student_waits_for_nothing(norm, pool, monkeypatch):
    found = second_iteration(monkeypatch, students, "_loss")
    spec = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": norm})
    rows = torch.arange(30).expand(2, -1)
    students.train_students(
        pool, pool.labels, rows, spec, replace(PROTOCOLS["datm"], batch_size=10), 1, [0.1] * 2, [0, 1]
    )
    check(found, Waits())


@pytest.mark.parametrize("name", ["cda-cifar", "hello", "rded"])
def test_a_step_of_a_student_on_crops_reads_nothing_of_the_device(name, data, pool, monkeypatch):
    found = second_iteration(monkeypatch, crop_students, "_soft_loss")
    spec = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": "batch"})
    label = NetworkLabels(hd.Teacher(spec.build(0), spec, data[0].class_names, data[0].preprocessing))
    protocol = replace(PROTOCOLS[name], batch_size=10)
    crop_students.train_on_crops(pool, label, torch.arange(30), spec, protocol, 1, 0.01, 0)
    # All of the host: partners, once more for classes of their own; the edges of tiles, of two views and two sides.
    check(found, Waits(reads=1 + (protocol.ce_weight > 0), made=4 * (protocol.views.shuffle > 1)))


@pytest.mark.parametrize("once", [False, True])
def test_a_step_of_heads_on_a_backbone_waits_for_nothing(once, data, pool, monkeypatch):
    found = second_iteration(monkeypatch, probe_students, "loss_targets")
    spec = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4})
    backbone = hd.Backbone.from_teacher(hd.Teacher(spec.build(0), spec, data[0].class_names, data[0].preprocessing))
    probe = ProbeSpec.of(backbone, 10, data[0].preprocessing, (8, 8))
    protocol = replace(PROTOCOLS["probe"], batch_size=10, seen_once=once)
    rows = torch.arange(30).expand(2, -1)
    probe_students.train_probes(pool, pool.labels, rows, probe, protocol, 1, 0.1, [0, 1])
    check(found, Waits())


@pytest.mark.parametrize("whitened", [False, True])
def test_preprocessing_makes_its_constants_once(whitened, data):
    zca = fit_zca([data[0].uint8(range(20))], 0.1) if whitened else None
    known = Preprocessing(1, (8, 8), (0.5,), (0.25,), zca)
    pixels = data[0].uint8([0, 1])
    for first in (True, False):
        with Counted() as waits:
            known.inverse(known(pixels))
            known.to_uint8(known(pixels.float() / 255))
        assert (waits == Waits()) is not first


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("size", [7, 60])
def test_an_accuracy_is_read_once_whatever_the_batches(size, k, pool, monkeypatch):
    monkeypatch.setattr(accuracy, "images_at_once", lambda network, pool: size)
    network = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4}).build(0)
    pool.images(torch.arange(2))
    with Counted() as waits:
        accuracy.accuracy(network, pool, k)
    assert waits == Waits(reads=2)  # to the host, and to NumPy there


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_augmentation_and_its_gradients_wait_for_nothing(operation):
    x = torch.rand(4, 3, 8, 8, generator=generator(0)).requires_grad_()
    drawn = DSA(operation).sample(4, generator(1), (8, 8))
    with Counted() as waits:
        (gradient,) = torch.autograd.grad(DSA.apply(x, drawn).square().sum(), x, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), x)
    assert waits == Waits()
