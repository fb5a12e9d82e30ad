"""What the rows of a report cost: steps, images, FLOP and bytes of one student; and students of equal cost.

Nothing is timed. Steps and images follow from the protocol and the number of images; FLOP of a network are counted once
for one image by `torch.utils.flop_counter`, which knows products of matrices, convolutions and attention, and has a
multiply-add as two. Augmentation, normalisation, activations, optimizers, the choice of a learning rate and the test
are not in it.

A student is trained on its own: what students that train side by side share is counted for each. A batch that enters
the running statistics of BatchNorm twice is looked at once here (`crop_students.repeat_updates`), and costs once.
Features of a frozen backbone are the student's, forward: of each view, or where it looks at each image once, of these.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, flop_registry

from ..config import check_choice
from ..distilled.epoch_labels import EpochLabels
from ..distilled.label_costs import per_image
from ..distilled.labels import HardLabels, LabelSource, StoredLabels
from ..hub.cards import human_flop
from ..hub.results import RowCost
from ..networks.architectures import StudentSpec
from ..networks.probes import ProbeSpec
from .protocols import Budget, ProbeProtocol
from .steps import Epoch
from .students import student_name
from .trainer import Case

__all__ = [
    "BUDGETS",
    "Costs",
    "EqualCost",
    "asks_networks",
    "convolution_backward_flop",
    "operation_flop",
    "source_flop",
    "student_flop",
]

BUDGETS = ("steps", "flops")


def convolution_backward_flop(
    grad_out: Sequence[int], x: Sequence[int], w: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    """FLOP of the gradients of a convolution's input and weights, as far as they are asked for: each takes what its
    output took.

    That of weights is counted once for each pair of groups by torch, as if a depthwise convolution were a dense one.
    """
    transposed, output_mask = args[4], args[-1]
    return sum(output_mask[:2]) * conv_flop_count(list(x), list(w), list(grad_out), transposed=transposed)


def operation_flop(func: Any, args: Any, kwargs: Any, found: Any) -> int:
    """FLOP of an operation that PyTorch dispatches: `func` of `args` and `kwargs`, which gave `found`."""
    if func is torch.ops.aten.convolution_backward.default:
        return convolution_backward_flop(*(each.shape for each in args[:3]), *args[3:])
    counted = flop_registry.get(func.overloadpacket)
    return 0 if counted is None else counted(*args, **kwargs, out_val=found)


@contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    """Counts FLOP of what runs within, whatever kernels a device has for attention."""
    own = {torch.ops.aten.convolution_backward: convolution_backward_flop}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque kernel, in which nothing is counted
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=own) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def student_flop(spec: StudentSpec) -> int:
    """FLOP of a step of a student for each of its images: forward and backward; of a linear head without what its
    backbone takes."""
    if isinstance(spec, ProbeSpec):
        return 4 * spec.num_classes * spec.backbone.width  # the logits, and the gradient of the weights
    student = spec.build(0).train()
    with torch.random.fork_rng(devices=[]), _counting() as counter:  # dropout draws
        student(torch.zeros(2, spec.in_chans, *spec.img_size)).sum().backward()
    return counter.get_total_flops() // 2


def backbone_flop(spec: ProbeSpec, device: torch.device) -> int:
    """FLOP of the features of an image."""
    spec.backbone.to(device)
    images = torch.zeros(2, spec.in_chans, *spec.backbone.size, device=device)
    with torch.no_grad(), _counting() as counter:
        spec.backbone.features(images)
    return counter.get_total_flops() // 2


def source_flop(source: LabelSource, spec: StudentSpec, device: torch.device) -> int:
    """FLOP of the networks of `source` for each image that they label, an image of the size that `spec` takes."""
    rows = torch.arange(2)
    asked = torch.zeros(2, spec.in_chans, *spec.img_size, device=device), rows.new_zeros(2).to(device), rows.to(device)
    source(*asked, 0)  # the first call may fetch, fold and try the network
    with _counting() as counter:
        source(*asked, 0)
    return counter.get_total_flops() // 2


def asks_networks(targets: Tensor | LabelSource) -> bool:
    """True where networks look at images for these labels, which are not stored."""
    return not isinstance(targets, Tensor | HardLabels | StoredLabels | EpochLabels)


def _images_labelled(case: Case, seen: int) -> int:
    """The images that networks label for a student that sees so many: each view, or each image once before."""
    if not asks_networks(case.targets):
        return 0
    return seen if case.protocol.per_view else len(case.rows[0].unique())


class Costs:
    """What the students of cases cost. Each network is counted once.

    Args:
        device: Of what labels images.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known: dict[str, int] = {}

    def features_flop(self, case: Case) -> tuple[int, int]:
        """Of the features of a frozen backbone: for each image that is seen, and before all of these."""
        if not isinstance(case.spec, ProbeSpec):
            return 0, 0
        name = f"backbone {case.spec.backbone.sha256}"
        if name not in self._known:
            self._known[name] = backbone_flop(case.spec, self.device)
        once = isinstance(case.protocol, ProbeProtocol) and case.protocol.seen_once
        return (0, self._known[name] * len(case.rows[0].unique())) if once else (self._known[name], 0)

    def flop_per_image(self, case: Case) -> tuple[int, int]:
        """Of the student, and of what labels for it."""
        name = json.dumps(case.spec.to_dict(), sort_keys=True)
        if name not in self._known:
            self._known[name] = student_flop(case.spec)
        if isinstance(case.targets, Tensor) or not asks_networks(case.targets):
            return self._known[name], 0
        source = f"{id(case.targets)}"  # which cases hold for as long as anybody asks
        if source not in self._known:
            self._known[source] = source_flop(case.targets, case.spec, self.device)
        return self._known[name], self._known[source]

    def of(self, case: Case, value_bytes: int = 1) -> RowCost:
        """The cost of one student of a case, whose images are stored with so many bytes for each value."""
        epoch, budget = Epoch.of(case.rows.shape[1], case.spec, case.protocol), case.protocol.budget
        steps = case.epochs * epoch.steps if budget is None else min(budget.steps, case.epochs * epoch.steps)
        seen, (student, source) = epoch.images_in(steps), self.flop_per_image(case)
        features, before = self.features_flop(case)
        asks, labelled = asks_networks(case.targets), _images_labelled(case, seen)
        online = asks and case.protocol.per_view
        if isinstance(case.targets, Tensor):
            label_bytes = 0
        elif asks and not online:  # once each, before the training
            label_bytes = per_image(case.rows.shape[1], case.spec.num_classes)
        else:
            label_bytes = case.targets.num_bytes
        values = case.spec.in_chans * case.spec.img_size[0] * case.spec.img_size[1]
        own = before + seen * (features + student)
        flop = own + labelled * source
        return RowCost(
            regime="hard" if case.labels == "hard" else "online" if online else "stored",
            steps=steps,
            images_seen=seen,
            teacher_images=labelled,
            student_flop=own,
            teacher_flop=labelled * source,
            image_bytes=case.rows.shape[1] * values * value_bytes,
            label_bytes=label_bytes,
            over_budget=None if budget is None or budget.flop is None else flop - budget.flop,
        )


@dataclass(frozen=True)
class EqualCost:
    """Gives students what those of a reference have: the same steps, or as nearly as steps allow the same FLOP.

    Attributes:
        kind: One of `BUDGETS`; None changes nothing.
        references: By the name of the student, the cost of what it is compared with.
        costs: Counts FLOP.
    """

    kind: str | None
    references: Mapping[str, RowCost]
    costs: Costs

    @classmethod
    def to(cls, kind: str | None, cases: Sequence[Case], costs: Costs) -> "EqualCost":
        """The budget of the first of `cases` for each student; a `ValueError` where there is no such kind."""
        if kind is not None:
            check_choice("budget", kind, BUDGETS)
        first = {student_name(case.spec): case for case in reversed(cases)}
        known = {name: costs.of(case) for name, case in first.items()}  # networks are counted before the long work
        return cls(kind, {} if kind is None else known, costs)

    def __call__(self, case: Case) -> Case:
        """The case with the epochs and the end that its student's budget gives it."""
        reference = self.references.get(student_name(case.spec))
        epoch = Epoch.of(case.rows.shape[1], case.spec, case.protocol)
        if reference is None or not (reference.steps and epoch.steps):
            return case
        budget = Budget(f"budget of {reference.steps:,} steps", reference.steps)
        if self.kind == "flops":
            steps = self._steps(case, epoch, reference.flop)
            budget = Budget(f"budget of {human_flop(reference.flop)}", steps, reference.flop)
        return replace(case, epochs=epoch.epochs_in(budget.steps), protocol=replace(case.protocol, budget=budget))

    def _steps(self, case: Case, epoch: Epoch, flop: int) -> int:
        """The steps of a case that come nearest to so many FLOP, those of labelling among them."""
        student, source = self.costs.flop_per_image(case)
        if case.protocol.per_view:
            return epoch.steps_for(flop / (student + source))
        features, before = self.costs.features_flop(case)
        return epoch.steps_for(max(0, flop - before - _images_labelled(case, 0) * source) / (features + student))
