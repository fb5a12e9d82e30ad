"""A rehearsal: the code of a run on tensors of PyTorch's meta device, which have shapes and no values.

Nothing is allocated or computed, and what is read of such a tensor is 0, or true. Every storage counts from the
operation that makes it until nobody holds it. Not counted: workspaces of convolutions, what an operation takes within
itself, and the device's own context; only a device tells these.
"""

import math
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..data.feed import TEST_BATCH, Pool
from ..data.images import Outline, RealImages
from ..data.pixels import Pixels
from ..data.preprocessing import Preprocessing
from ..distilled.epoch_labels import FILE_VIEWS
from ..distilled.labels import LabelSource
from ..evaluation.costs import Costs, operation_flop
from ..evaluation.protocols import Budget, ProbeProtocol
from ..evaluation.students import students_at_once, train_students
from ..evaluation.trainer import Case
from ..networks.batches import images_at_once
from ..networks.probes import Probe

__all__ = [
    "GRAPH",
    "META",
    "REAL",
    "STEPS",
    "Elsewhere",
    "Ledger",
    "Stage",
    "rehearse_labels",
    "rehearse_student",
    "rehearse_students",
    "students_of",
    "unseen",
]

PACKAGE = str(Path(__file__).parents[1])
META = torch.device("meta")
GRAPH, PIXELS, OPTIMIZER, GRADIENT = "graph of a step", "images", "state of their optimizer", "gradients"
NETWORKS, REAL, BATCH = "networks", "real images, where they fit", "images of a step"
STATES, LABELS, COPY = "states of students", "labels", "a copy of the images, to be looked at"
STEPS = 2  # that are taken: the second one finds the state of optimizers
SHOWN = 1024  # images of a batch, at most, of pixels that the host has
DRAWN = 2**16  # values: more random ones are not drawn
# What a storage is called, by where in the library it is made: (file, function), or all of a file, or of a room.
NAMES = {
    ("engine/rows.py", "begin"): GRADIENT,
    ("engine/rows.py", "_start"): OPTIMIZER,
    ("engine/rows.py", "now"): COPY,
    ("engine/rows.py", None): GRADIENT,
    ("engine/loop.py", "_clear"): GRADIENT,
    ("engine/loop.py", None): OPTIMIZER,
    ("engine/blocks.py", "assembled"): PIXELS,
    ("distilled/distilled_set.py", None): PIXELS,
    ("distilled/labels.py", None): NETWORKS,
    ("data/feed.py", "_keep"): REAL,
    ("data/images.py", "resident"): REAL,
    ("runs/rehearsal.py", "take"): BATCH,
    ("data", None): BATCH,
    ("augmentation", None): BATCH,
    ("networks/architectures.py", "build"): NETWORKS,
    ("networks/architectures.py", "init"): STATES,
    ("networks/folding.py", None): NETWORKS,
    ("networks/teachers.py", "narrowed"): NETWORKS,
    ("training/experts.py", None): STATES,
    ("methods/dm.py", "setup"): PIXELS,
    ("methods/trajectory.py", "setup"): PIXELS,
    ("methods/trajectory.py", "step"): BATCH,
    ("methods/trajectory.py", None): LABELS,
    ("methods/tesla.py", None): LABELS,
    ("methods/datm.py", None): LABELS,
    ("methods/unroll.py", "products"): GRAPH,
    ("methods/unroll.py", "gradient"): GRAPH,
    ("methods/unroll.py", None): STATES,
    ("methods/recovering.py", "_optimized"): PIXELS,
    ("methods/recovering.py", "make"): OPTIMIZER,
    ("methods/recovering.py", "view"): BATCH,
    ("methods/apm.py", "make"): PIXELS,
    ("methods/apm.py", "initial"): PIXELS,
    ("methods/lgm.py", "__init__"): PIXELS,
    ("methods/lgm.py", "setup"): PIXELS,
}


@dataclass(frozen=True)
class Stage:
    """A part of a run, as it was rehearsed.

    Attributes:
        name: Such as "distillation".
        memory: Bytes on the device at the peak, by what they are.
        flop: Of the whole part, in all processes.
        operations: That PyTorch dispatches for it, but for views.
        times: What the FLOP are of, in words.
        parts: How many processes can share the work; None for any number.
    """

    name: str
    memory: dict[str, int]
    flop: float
    operations: float
    times: str = ""
    parts: int | None = None

    def repeated(self, times: float) -> "Stage":
        """The part so many times."""
        return replace(self, flop=times * self.flop, operations=times * self.operations)

    @property
    def peak(self) -> int:
        """All bytes together."""
        return sum(self.memory.values())


@dataclass
class _Storage:
    name: str
    bytes: int


class Ledger(TorchDispatchMode):
    """What is alive on a device and what is computed there, as a context.

    Args:
        kind: Of the device, the meta device but for comparisons with a run that has values.

    Attributes:
        now: Bytes by name.
        peak: The same when their sum was largest, since `forget` was called last.
        flop: Of all operations.
        operations: How many there were, but for views.
    """

    def __init__(self, kind: str = META.type) -> None:
        super().__init__()
        self.kind = kind
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.flop = self.operations = 0
        self._begun = (0, 0)
        self._total = self._most = 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, _Storage] = weakref.WeakKeyDictionary()

    def forget(self) -> None:
        """Begin with what is alive."""
        self.peak, self._most = Counter(self.now), self._total
        self._begun = (self.flop, self.operations)

    @property
    def density(self) -> float:
        """Operations for a FLOP, since `forget`."""
        return (self.operations - self._begun[1]) / max(self.flop - self._begun[0], 1)

    def stage(
        self, name: str, flop: float, times: str = "", *, operations: float | None = None, parts: int | None = None
    ) -> Stage:
        """What was seen since `forget`, as a part of a run.

        Args:
            name: Of the part.
            flop: Of all of it.
            times: What they are of, in words.
            operations: Of all of it; as many for a FLOP as were seen, if not given.
            parts: How many processes can share the work; None for any number.
        """
        memory = {what: size for what, size in self.peak.most_common() if size > 0}
        return Stage(name, memory, flop, flop * self.density if operations is None else operations, times, parts)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = func.overloadpacket.__name__, kwargs or {}
        given = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        if given and given[0].is_meta:
            if name == "_local_scalar_dense":
                return given[0].dtype == torch.bool
            if name == "_to_copy" and options.get("device", META).type == "cpu":
                return torch.zeros(given[0].shape, dtype=options.get("dtype") or given[0].dtype)
        elif self.kind == META.type and name == "randn" and options.get("generator") and math.prod(args[0]) > DRAWN:
            options = {**{key: value for key, value in options.items() if key != "generator"}, "device": META}
            func = torch.ops.aten.empty.memory_format
        # Which PyTorch takes apart on the meta device, and that takes long.
        alone = name == "native_group_norm" and given[0].is_meta
        found = _group_norm(*args) if alone else func(*args, **options)
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.device.type == self.kind:
                self._see(tensor.untyped_storage())
        if given and given[0].device.type == self.kind:
            self.flop += operation_flop(func, args, options, found)
        self.operations += not func.is_view  # the host's own, for it launches the others meanwhile
        return found

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        made = self._known[storage] = _Storage(_name_of_what_is_made(), storage.nbytes())
        weakref.finalize(storage, self._gone, made)
        self.now[made.name] += made.bytes
        self._total += made.bytes
        if self._total > self._most:
            self.peak, self._most = Counter(self.now), self._total

    def _gone(self, made: _Storage) -> None:
        self.now[made.name] -= made.bytes
        self._total -= made.bytes


def _name_of_what_is_made() -> str:
    """By the innermost function of the library that is being run."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return GRAPH if frame is None else _name_of(frame.f_code.co_filename, frame.f_code.co_name)


def _group_norm(
    x: Tensor, weight: Any, bias: Any, count: int, channels: int, size: int, groups: int, eps: float
) -> Any:
    """Tensors as `native_group_norm` gives them: the result, means and deviations."""
    return x.new_empty(x.shape), x.new_empty((count, groups)), x.new_empty((count, groups))


@cache
def _name_of(file: str, function: str) -> str:
    place = Path(file).relative_to(PACKAGE)
    keys = ((place.as_posix(), function), (place.as_posix(), None), (place.parts[0], None))
    return next((NAMES[key] for key in keys if key in NAMES), GRAPH)


class Elsewhere(Accelerator):
    """The processes of an accelerator, of which this one computes on the meta device.

    What processes reduce they clone, and nothing is sent; forward passes are float32, for there is no autocast of such
    tensors.

    Args:
        like: Whose processes they are.
        processes: How many they are taken for, if not as many.
    """

    def __init__(self, like: Accelerator, processes: int | None = None) -> None:
        self.__dict__.update(like.__dict__)
        self._processes = processes or like.num_processes

    @property
    def num_processes(self) -> int:
        """How many there are."""
        return self._processes

    @property
    def device(self) -> torch.device:
        """The meta device."""
        return META

    @property
    def mixed_precision(self) -> str:
        """None."""
        return "no"

    @contextmanager
    def autocast(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """No autocast."""
        yield

    def reduce(self, tensor: Any, reduction: str = "sum", scale: float = 1.0) -> Any:
        """A clone."""
        return tensor.clone()

    def prepare_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """The model as it is."""
        return model

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """The backward pass."""
        loss.backward()

    def wait_for_everyone(self) -> None:
        """Nobody is waited for."""


class _Blank:
    """Pixels of images of which no more than the size is known."""

    resized, at_once = False, 2**12

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def take(self, positions: Tensor) -> Tensor:
        return torch.empty((len(positions), *self.shape), dtype=torch.uint8, device=META)


def unseen(outline: Outline, counts: Sequence[int] | None = None) -> RealImages:
    """Images of which the outline is known: they have classes and a size, and their pixels are on the meta device.

    Args:
        outline: Theirs.
        counts: Images of each class, where they are others.
    """
    numbers = torch.tensor(list(outline.counts if counts is None else counts))
    labels = torch.arange(outline.num_classes).repeat_interleave(numbers)
    channels, height, width = outline.shape
    look = Preprocessing(channels, (height, width), (0.5,) * channels, (0.25,) * channels)
    about = {"name": "images", "config": None, "split": "train", "revision": None, "num_images": len(labels)}
    pixels = cast(Pixels, _Blank(outline.shape))
    return RealImages(pixels, torch.arange(len(labels)), labels, list(outline.class_names), look, about)


def students_of(case: Case, held_out: RealImages) -> int:
    """How many students are trained for a case, with those that choose its learning rate on `held_out`."""
    return len(case.rows) + (len(case.lrs) if len(case.lrs) > 1 and len(held_out) else 0)


def rehearse_students(
    name: str,
    groups: Iterable[Sequence[Case]],
    held_out: RealImages,
    tested: Pool,
    costs: Costs,
    accelerator: Accelerator,
    ledger: Ledger,
) -> Stage:
    """What the students of cases take since `ledger` began, those that choose learning rates among them.

    Args:
        name: Of the stage.
        groups: Cases of which the first stands for the others of its group: its students are trained for a few steps.
        held_out: What learning rates are chosen on.
        tested: What accuracies are measured on.
        costs: Counts what students cost.
        accelerator: One `Elsewhere`.
        ledger: Sees what is held.
    """
    flop, operations, students = 0.0, 0.0, 0
    for cases in groups:
        first, density = cases[0], 0.0
        # Heads look at each real image once, by the batches that those of the set are looked at by.
        if not first.full_data or not isinstance(first.protocol, ProbeProtocol):
            density = rehearse_student(first, tested, accelerator, ledger)
        for case in cases:
            count = students_of(case, held_out)
            work = count * costs.of(case).flop
            students, flop, operations = students + count, flop + work, operations + density * work
    words = f"{students:,} students" + " of the final table" * (name == "evaluation")
    return ledger.stage(name, flop, words, operations=operations, parts=students)


def rehearse_student(case: Case, tested: Pool, accelerator: Accelerator, ledger: Ledger) -> float:
    """Train the students of a case that learn side by side for a few steps, and test one of them on some images.

    Returns:
        The operations of training for each of its FLOP.
    """
    protocol = replace(case.protocol, budget=Budget("a rehearsal", STEPS))
    count = min(len(case.rows), students_at_once(case.spec, case.rows.shape[1], case.protocol, META))
    rows, rates, seeds = case.rows[:count], [case.lrs[0]] * count, list(range(count))
    if isinstance(case.pool.source, Tensor) and not case.pool.source.is_meta:
        rows = rows[:, : (STEPS + 1) * SHOWN]  # which are gathered on the host, and have values
    flop, operations = ledger.flop, ledger.operations
    model = train_students(case.pool, case.targets, rows, case.spec, protocol, case.epochs, rates, seeds, accelerator)[
        0
    ]
    density = (ledger.operations - operations) / max(ledger.flop - flop, 1)
    if not isinstance(model, Probe) and len(tested):
        with torch.no_grad():
            model(tested.images(torch.arange(min(len(tested), images_at_once(model, tested)))))
    return density


def rehearse_labels(source: LabelSource, images: Tensor, epochs: int, ledger: Ledger) -> Stage:
    """What it takes to store what networks, on the meta device, say of all views of `images` (N, C, H, W)."""
    ledger.forget()
    before, some = ledger.flop, torch.arange(min(len(images), TEST_BATCH), device=META)
    with torch.no_grad():
        source(torch.empty((len(some), *images.shape[1:]), device=META), torch.zeros_like(some), some, 0)
    flop = epochs * len(images) * (ledger.flop - before) / len(some)
    files = -(-epochs // max(1, FILE_VIEWS // len(images)))  # which processes share
    return ledger.stage("stored labels", flop, f"{epochs:,} epochs of {len(images):,} images", parts=files)
