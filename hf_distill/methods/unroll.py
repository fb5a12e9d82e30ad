r"""The exact gradient through a student's training, with the graph of a single step in memory.

A student starts at θ_0 and takes T steps of SGD on synthetic images X with labels Y,

    g_i     = ∇_θ ℓ(f(θ_i; A_i(X[I_i])), Y[I_i])
    v_{i+1} = μ v_i + g_i + w θ_i,   v_0 = 0
    θ_{i+1} = θ_i − β v_{i+1}

and the matching loss asks where it came to, beside where an expert came to from the same start:

    L = ‖θ_T − θ*‖² / ‖θ_0 − θ*‖²

`full_unroll` lets autograd differentiate all T steps at once: T second-order graphs in memory (MTT). `adjoint_unroll`
gets the same gradient from one backward sweep over the stored θ_i. With λ_i = ∂L/∂θ_i and ρ_i = ∂L/∂v_i (not counting
what v_i does to θ_i itself), it starts at λ_T = 2 (θ_T − θ*) / ‖θ_0 − θ*‖² and ρ_T = 0 and goes down:

    ∂L/∂β   = −Σ_i ⟨λ_{i+1}, v_{i+1}⟩
    r       = ρ_{i+1} − β λ_{i+1}                         what reaches v_{i+1}
    s       = ⟨g_i(θ, x, y), r⟩                           a scalar; one double backward gives all of
    ∂L/∂X[I_i] += ∂s/∂x,  ∂L/∂Y[I_i] += ∂s/∂y
    λ_i     = λ_{i+1} + γ ∂s/∂θ + w r                     ∂s/∂θ is the Hessian of the step times r
    ρ_i     = μ r

γ is the curvature knob. γ = 1 is exact. γ = 0 holds the student's path constant, which for μ = w = 0 is the formula
of TESLA (arXiv:2211.10586): exact only for T = 1 or a student without curvature. Values between damp the sweep.

    symbol   name                 shape
    X, Y     pixels, targets      (R, C, H, W); (R,) classes, or (R, K) probabilities or whatever the loss takes
    I_i      StudentStep.rows     (B,) indices into X and Y
    A_i      StudentStep.augment  what was drawn for the B images of the step
    θ, v, λ  theta, velocity, adjoint   (P,)
    β        lr                   ()

Everything here is a pure function of tensors; gradients are returned, nothing is accumulated anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..augmentation.dsa import DSA, DsaParams
from ..data.upload import upload

Model = Callable[[Tensor, Tensor], Tensor]  # (theta (P,), images (B, C, H, W)) -> logits (B, K)
Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (B, K), targets (B,) or (B, K)) -> mean over the batch

UNAUGMENTED = DsaParams("none", {})
TOGETHER_VALUES = 2**25  # pixel values that are augmented at once; their graph takes up to ten times the memory


@dataclass(frozen=True)
class StudentStep:
    """One step of a student: which images it takes, and how they are augmented.

    Attributes:
        rows: Indices (B,) into the pixels; the same image may occur in many steps, and twice in one. An accelerator
            adds the two gradients of the latter in any order.
        augment: Drawn parameters for the B images, in the order of `rows`; None leaves the images as they are.
        batch: Images of the whole batch, where `rows` are a part of it and `Student.total` adds up the parts.
    """

    rows: Tensor
    augment: DsaParams | None = None
    batch: int | None = None


@dataclass(frozen=True)
class Student:
    """A student, and the way it learns inside the unroll.

    Attributes:
        model: Logits as a function of flat parameters and images.
        loss: Mean loss of a batch. Cross-entropy takes classes and probabilities alike.
        momentum: μ of the inner SGD.
        weight_decay: w of the inner SGD, L2 as in `torch.optim.SGD`.
        micro_batch_size: Images in memory at once inside a step; None takes the whole batch. The result is the same
            for networks whose images do not see each other (any normalisation but BatchNorm).
        total: The sum of a vector (n,) over all that have a part of each batch; None where batches are whole.
        compiler: Makes a function of tensors, which differentiates inside, a faster one of the same results. It is
            given those of a single batch: what the sweep repeats.
    """

    model: Model
    loss: Loss = F.cross_entropy
    momentum: float = 0.0
    weight_decay: float = 0.0
    micro_batch_size: int | None = None
    total: Callable[[Tensor], Tensor] | None = None
    compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None

    @cached_property
    def _gradient(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """g (P,), the gradient of the loss of θ (P,) on images and targets."""

        def gradient(theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
            theta = theta.detach().requires_grad_()
            return torch.autograd.grad(self.loss(self.model(theta, images), targets), theta)[0]

        return gradient if self.compiler is None else self.compiler(gradient)

    @cached_property
    def _products(self) -> dict[tuple[bool, bool], Callable[..., list[Tensor]]]:
        """g, and ∂⟨g, r⟩ of images; of targets; of θ: by whether it is of targets, and of θ."""

        def products(
            with_targets: bool, with_theta: bool, theta: Tensor, images: Tensor, targets: Tensor, r: Tensor
        ) -> list[Tensor]:
            theta, images = theta.detach().requires_grad_(), images.detach().requires_grad_()
            targets = targets.detach().requires_grad_(with_targets)
            inputs = [images, *[targets] * with_targets, *[theta] * with_theta]
            loss = self.loss(self.model(theta, images), targets)
            (g,) = torch.autograd.grad(loss, theta, create_graph=True)
            # A loss that is linear in θ leaves θ out of ⟨g, r⟩: its gradient there is zero, not an error.
            return [g.detach(), *torch.autograd.grad(g, inputs, grad_outputs=r, materialize_grads=True)]

        made = {key: partial(products, *key) for key in ((a, b) for a in (False, True) for b in (False, True))}
        return made if self.compiler is None else {key: self.compiler(function) for key, function in made.items()}


@dataclass(frozen=True)
class MatchingGradient:
    """The matching loss and its gradients.

    Attributes:
        loss: L, a scalar; 1 means that the student came no closer to the expert than it started.
        pixels: ∂L/∂X (R, C, H, W); zero for images that no step took.
        lr: ∂L/∂β, a scalar.
        targets: ∂L/∂Y (R, K), or None unless it was asked for.
    """

    loss: Tensor
    pixels: Tensor
    lr: Tensor
    targets: Tensor | None = None


def matching_loss(theta: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """‖θ − θ*‖² / ‖θ_0 − θ*‖² for parameters (P,), a scalar; not finite where the expert did not move."""
    return (theta - target).square().sum() / (start - target).square().sum()


def full_unroll(
    student: Student,
    start: Tensor,
    target: Tensor,
    pixels: Tensor,
    targets: Tensor,
    steps: Sequence[StudentStep],
    lr: Tensor,
    *,
    targets_gradient: bool = False,
) -> MatchingGradient:
    """The gradient by autograd through all steps: memory grows with T. The baseline, and the truth to test against.

    Args:
        student: The inner loop; its `micro_batch_size` is not used, for all graphs are needed at once.
        start: θ_0 (P,).
        target: θ* (P,).
        pixels: X (R, C, H, W).
        targets: Y, classes (R,) or what the loss takes, (R, K).
        steps: The T steps, in order.
        lr: β, a scalar.
        targets_gradient: Also return ∂L/∂Y; needs targets (R, K).
    """
    lr, start = lr.detach().requires_grad_(), start.detach()
    batches = _batches(pixels, targets, steps)
    for batch in batches:
        batch.images.requires_grad_()
        batch.targets.requires_grad_(targets_gradient)
    rates = lr.expand(len(steps))  # so that autograd adds the gradients of all steps at once
    theta, velocity = start.clone().requires_grad_(), torch.zeros_like(start)
    for batch, rate in zip(batches, rates, strict=True):
        loss = student.loss(student.model(theta, batch.images), batch.targets)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = student.momentum * velocity + gradient + student.weight_decay * theta
        theta = theta - rate * velocity
    loss = matching_loss(theta, start, target)
    inputs = [lr, *(batch.images for batch in batches)]
    if targets_gradient:
        inputs += [batch.targets for batch in batches]
    for_lr, *gradients = torch.autograd.grad(loss, inputs, materialize_grads=True)
    return MatchingGradient(
        loss.detach(),
        _of_pixels(pixels, steps, gradients[: len(steps)]),
        for_lr,
        _of_targets(targets, steps, gradients[len(steps) :]) if targets_gradient else None,
    )


def adjoint_unroll(
    student: Student,
    start: Tensor,
    target: Tensor,
    pixels: Tensor,
    targets: Tensor,
    steps: Sequence[StudentStep],
    lr: Tensor,
    *,
    curvature: float = 1.0,
    targets_gradient: bool = False,
    theta_device: torch.device | str | None = None,
    keep_every: int = 1,
) -> MatchingGradient:
    """The gradient by one adjoint sweep: the graph of one step (or micro-batch) in memory, whatever T is.

    Args:
        student: The inner loop.
        start: θ_0 (P,).
        target: θ* (P,).
        pixels: X (R, C, H, W).
        targets: Y, classes (R,) or what the loss takes, (R, K).
        steps: The T steps, in order.
        lr: β, a scalar.
        curvature: γ. 1 is the exact gradient, 0 the truncation of TESLA.
        targets_gradient: Also return ∂L/∂Y; needs targets (R, K).
        theta_device: Where the T parameter vectors wait for the sweep; None leaves them where `start` is. They take
            4·P·T bytes in float32, twice that with momentum.
        keep_every: Keep every k-th θ_i and recompute the others once more on the way back: (T/k + k)·P values
            instead of T·P, for one more forward pass.
    """
    lr, start = lr.detach(), start.detach()
    count = len(steps)
    batches = _batches(pixels, targets, steps)
    store = _StateStore(theta_device, start.device)

    state = _State(start, torch.zeros_like(start) if student.momentum else None)
    for i, batch in enumerate(batches):
        if i % keep_every == 0:
            store.put(i, state)
        state = _advance(student, state, batch, lr)
    end = state.theta
    loss = matching_loss(end, start, target)

    adjoint = 2 * (end - target) / (start - target).square().sum()  # λ_T
    velocity_adjoint = torch.zeros_like(start)  # ρ_T
    for_images: list[Tensor] = []  # from the last step to the first
    for_targets: list[Tensor] = []
    for_lr = torch.zeros_like(lr)
    for first in reversed(range(0, count, keep_every)):
        last = min(first + keep_every, count)
        states = [store.take(first)]
        for i in range(first, last - 1):
            states.append(_advance(student, states[-1], batches[i], lr))
        for i in reversed(range(first, last)):
            state = states.pop()
            r = velocity_adjoint - lr * adjoint
            with_theta = curvature != 0 and i > 0  # λ_0 reaches nothing
            gradient, of_images, of_targets, hessian_r = _double_backward(
                student, state.theta, batches[i], r, with_targets=targets_gradient, with_theta=with_theta
            )
            for_images.append(of_images)
            for_targets += [of_targets] if of_targets is not None else []
            for_lr = for_lr - torch.dot(adjoint, _velocity(student, state, gradient))
            if hessian_r is not None:
                adjoint = adjoint + curvature * hessian_r
            if student.weight_decay:
                adjoint = adjoint + student.weight_decay * r
            velocity_adjoint = student.momentum * r
    return MatchingGradient(
        loss,
        _of_pixels(pixels, steps, for_images[::-1]),
        for_lr,
        _of_targets(targets, steps, for_targets[::-1]) if targets_gradient else None,
    )


@dataclass(frozen=True)
class _Batch:
    """What a student sees in a step: augmented images (B, C, H, W) and their targets; `share` of the whole batch."""

    images: Tensor
    targets: Tensor
    share: float

    def parts(self, size: int | None) -> Iterator["_Batch"]:
        """Itself in micro-batches, by their shares of the whole batch."""
        count = len(self.images)
        if size is None or size >= count:
            yield from [self] * (count > 0)
            return
        for images, targets in zip(self.images.split(size), self.targets.split(size), strict=True):
            yield _Batch(images, targets, self.share * len(images) / count)


def _together(pixels: Tensor, steps: Sequence[StudentStep]) -> Iterator[Sequence[StudentStep]]:
    """Steps, as many at a time as are augmented at once."""
    first = values = 0
    for i, step in enumerate(steps):
        own = len(step.rows) * pixels[0].numel()
        if i > first and values + own > TOGETHER_VALUES:
            yield steps[first:i]
            first, values = i, 0
        values += own
    if first < len(steps):
        yield steps[first:]


def _taken(pixels: Tensor, steps: Sequence[StudentStep]) -> Tensor:
    """The images of all these steps, one step after another."""
    return pixels.detach()[torch.cat([step.rows for step in steps])]


def _augmented(images: Tensor, steps: Sequence[StudentStep]) -> Tensor:
    sizes = [len(step.rows) for step in steps]
    return DSA.apply_each(images, [step.augment or UNAUGMENTED for step in steps], sizes)


def _batches(pixels: Tensor, targets: Tensor, steps: Sequence[StudentStep]) -> list[_Batch]:
    """What the student sees in all steps, augmented many steps at a time."""
    images: list[Tensor] = []
    for some in _together(pixels, steps):
        images += _augmented(_taken(pixels, some), some).split([len(step.rows) for step in some])
    shares = [1.0 if step.batch is None else len(step.rows) / step.batch for step in steps]
    rows = [step.rows for step in steps]
    return [_Batch(own.detach(), targets.detach()[row], of) for own, row, of in zip(images, rows, shares, strict=True)]


def _of_pixels(pixels: Tensor, steps: Sequence[StudentStep], for_images: Sequence[Tensor]) -> Tensor:
    """∂L/∂X (R, C, H, W) of what the steps saw, once more through their augmentation."""
    total, done = torch.zeros_like(pixels, requires_grad=False), 0
    for some in _together(pixels, steps):
        images = _taken(pixels, some).requires_grad_()
        given = torch.cat(list(for_images[done : done + len(some)]))
        (gradient,) = torch.autograd.grad(_augmented(images, some), images, given)
        for step, own in zip(some, gradient.split([len(step.rows) for step in some]), strict=True):
            total.index_add_(0, step.rows, own)  # step by step: an image is in a step once
        done += len(some)
    return total


def _of_targets(targets: Tensor, steps: Sequence[StudentStep], for_targets: Sequence[Tensor]) -> Tensor:
    """∂L/∂Y (R, K)."""
    total = torch.zeros_like(targets, requires_grad=False)
    for step, own in zip(steps, for_targets, strict=True):
        total.index_add_(0, step.rows, own)
    return total


@dataclass(frozen=True)
class _State:
    """The student before a step: θ_i (P,), and v_i (P,) where momentum needs it."""

    theta: Tensor
    velocity: Tensor | None


class _StateStore:
    """States that wait for the backward sweep, on the device or in the memory of the host, which waits for no copy."""

    def __init__(self, place: torch.device | str | None, home: torch.device) -> None:
        self.place = home if place is None else torch.device(place)
        self.home = home
        self.states: dict[int, _State] = {}

    def _move(self, tensor: Tensor, device: torch.device) -> Tensor:
        if tensor.device.type == "cuda" and device.type == "cpu":
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            return host.copy_(tensor, non_blocking=True)
        return upload(tensor, device)

    def _moved(self, state: _State, device: torch.device) -> _State:
        velocity = None if state.velocity is None else self._move(state.velocity, device)
        return _State(self._move(state.theta, device), velocity)

    def put(self, index: int, state: _State) -> None:
        self.states[index] = self._moved(state, self.place)

    def take(self, index: int) -> _State:
        return self._moved(self.states.pop(index), self.home)


def _velocity(student: Student, state: _State, gradient: Tensor) -> Tensor:
    """v_{i+1} from the state before the step and the gradient there."""
    velocity = gradient
    if student.weight_decay:
        velocity = velocity + student.weight_decay * state.theta
    if state.velocity is not None:
        velocity = velocity + student.momentum * state.velocity
    return velocity


def _advance(student: Student, state: _State, batch: _Batch, rate: Tensor) -> _State:
    """One step of the student, without a graph that outlives it."""
    gradient = None
    for part in batch.parts(student.micro_batch_size):
        own = student._gradient(state.theta, part.images, part.targets)
        gradient = _plus(gradient, own, part.share)
    gradient = torch.zeros_like(state.theta) if gradient is None else gradient
    if student.total is not None:
        gradient = student.total(gradient)
    velocity = _velocity(student, state, gradient)
    return _State(state.theta - rate * velocity, velocity if student.momentum else None)


def _plus(total: Tensor | None, value: Tensor, share: float) -> Tensor:
    """`total` and a share of `value`."""
    value = value if share == 1 else share * value
    return value if total is None else total + value


def _double_backward(
    student: Student, theta: Tensor, batch: _Batch, r: Tensor, *, with_targets: bool, with_theta: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """g_i, ∂s/∂x and ∂s/∂y of this part of the batch, and H_i r."""
    gradient = hessian_r = None
    of_images, of_targets = [], []
    for part in batch.parts(student.micro_batch_size):
        products = student._products[with_targets, with_theta]
        own, *others = products(theta, part.images, part.targets, r if part.share == 1 else part.share * r)
        gradient = _plus(gradient, own, part.share)
        of_images.append(others.pop(0))
        if with_targets:
            of_targets.append(others.pop(0))
        if with_theta:
            hessian_r = _plus(hessian_r, others.pop(0), 1)
    if gradient is None:  # no image of this batch is here
        gradient, hessian_r = torch.zeros_like(theta), torch.zeros_like(theta) if with_theta else None
        of_images, of_targets = [batch.images], [batch.targets]
    if student.total is not None:
        vectors = [gradient] if hessian_r is None else [gradient, hessian_r]
        gradient, *rest = student.total(torch.cat(vectors)).split(len(theta))
        hessian_r = rest[0] if rest else None
    return gradient, _joined(of_images), _joined(of_targets) if with_targets else None, hessian_r


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
