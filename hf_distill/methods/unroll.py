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
    X, Y     pixels, targets      (R, C, H, W); (R,) classes or (R, K) probabilities
    I_i      StudentStep.rows     (B,) indices into X and Y
    A_i      StudentStep.augment  what was drawn for the B images of the step
    θ, v, λ  theta, velocity, adjoint   (P,)
    β        lr                   ()

Everything here is a pure function of tensors; gradients are returned, nothing is accumulated anywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..augmentation.dsa import DSA, DsaParams
from ..data.upload import upload

Model = Callable[[Tensor, Tensor], Tensor]  # (theta (P,), images (B, C, H, W)) -> logits (B, K)
Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (B, K), targets (B,) or (B, K)) -> mean over the batch


@dataclass(frozen=True)
class StudentStep:
    """One step of a student: which images it takes, and how they are augmented.

    Attributes:
        rows: Indices (B,) into the pixels; the same image may occur in many steps, and twice in one. An accelerator
            adds the two gradients of the latter in any order.
        augment: Drawn parameters for the B images, in the order of `rows`; None leaves the images as they are.
    """

    rows: Tensor
    augment: DsaParams | None = None


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
    """

    model: Model
    loss: Loss = F.cross_entropy
    momentum: float = 0.0
    weight_decay: float = 0.0
    micro_batch_size: int | None = None


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
        targets: Y, classes (R,) or probabilities (R, K).
        steps: The T steps, in order.
        lr: β, a scalar.
        targets_gradient: Also return ∂L/∂Y; needs probabilities.
    """
    pixels, lr = pixels.detach().requires_grad_(), lr.detach().requires_grad_()
    targets = targets.detach().requires_grad_(targets_gradient)
    rates = lr.expand(len(steps))  # so that autograd adds the gradients of all steps at once
    theta = start.detach().requires_grad_()
    velocity = torch.zeros_like(start)
    for step, rate in zip(steps, rates, strict=True):
        loss = _student_loss(student, theta, pixels[step.rows], targets[step.rows], step.augment)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = student.momentum * velocity + gradient + student.weight_decay * theta
        theta = theta - rate * velocity
    loss = matching_loss(theta, start, target)
    inputs = [pixels, lr, *([targets] if targets_gradient else [])]
    gradients = torch.autograd.grad(loss, inputs, materialize_grads=True)
    return MatchingGradient(loss.detach(), *gradients)


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
        targets: Y, classes (R,) or probabilities (R, K).
        steps: The T steps, in order.
        lr: β, a scalar.
        curvature: γ. 1 is the exact gradient, 0 the truncation of TESLA.
        targets_gradient: Also return ∂L/∂Y; needs probabilities.
        theta_device: Where the T parameter vectors wait for the sweep; None leaves them where `start` is. They take
            4·P·T bytes in float32, twice that with momentum.
        keep_every: Keep every k-th θ_i and recompute the others once more on the way back: (T/k + k)·P values
            instead of T·P, for one more forward pass.
    """
    lr, pixels = lr.detach(), pixels.detach()
    targets = targets.detach()
    count = len(steps)
    store = _StateStore(theta_device, start.device)

    state = _State(start.detach(), torch.zeros_like(start) if student.momentum else None)
    for i, step in enumerate(steps):
        if i % keep_every == 0:
            store.put(i, state)
        state = _advance(student, state, pixels, targets, step, lr)
    end = state.theta
    loss = matching_loss(end, start, target)

    adjoint = 2 * (end - target) / (start - target).square().sum()  # λ_T
    velocity_adjoint = torch.zeros_like(start)  # ρ_T
    pixels_gradient = torch.zeros_like(pixels)
    targets_sum = torch.zeros_like(targets) if targets_gradient else None
    lr_gradients = torch.zeros(count, dtype=start.dtype, device=start.device)
    for first in reversed(range(0, count, keep_every)):
        last = min(first + keep_every, count)
        states = [store.take(first)]
        for i in range(first, last - 1):
            states.append(_advance(student, states[-1], pixels, targets, steps[i], lr))
        for i in reversed(range(first, last)):
            state, step = states.pop(), steps[i]
            r = velocity_adjoint - lr * adjoint
            with_theta = curvature != 0 and i > 0  # λ_0 reaches nothing
            gradient, hessian_r = _double_backward(
                student, state.theta, pixels, targets, step, r, pixels_gradient, targets_sum, with_theta=with_theta
            )
            velocity = _velocity(student, state, gradient)
            lr_gradients[i] = -torch.dot(adjoint, velocity)
            if hessian_r is not None:
                adjoint = adjoint + curvature * hessian_r
            if student.weight_decay:
                adjoint = adjoint + student.weight_decay * r
            velocity_adjoint = student.momentum * r
    return MatchingGradient(loss, pixels_gradient, lr_gradients.sum(), targets_sum)


@dataclass(frozen=True)
class _State:
    """The student before a step: θ_i (P,), and v_i (P,) where momentum needs it."""

    theta: Tensor
    velocity: Tensor | None


class _StateStore:
    """States that wait for the backward sweep, on the device or in the memory of the host.

    Copies to the host are pinned and asynchronous: they overlap the forward pass, and the sweep takes each back once.
    """

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


def _chunks(student: Student, step: StudentStep) -> list[tuple[Tensor, DsaParams | None, float]]:
    """The micro-batches of a step: rows, their augmentation, and their share of the batch's mean."""
    batch = len(step.rows)
    size = student.micro_batch_size or batch
    return [
        (
            step.rows[at : at + size],
            None if step.augment is None else step.augment[at : at + size],
            min(size, batch - at) / batch,
        )
        for at in range(0, batch, size)
    ]


def _student_loss(
    student: Student, theta: Tensor, images: Tensor, targets: Tensor, augment: DsaParams | None
) -> Tensor:
    if augment is not None:
        images = DSA.apply(images, augment)
    return student.loss(student.model(theta, images), targets)


def _velocity(student: Student, state: _State, gradient: Tensor) -> Tensor:
    """v_{i+1} from the state before the step and the gradient there."""
    velocity = gradient
    if student.weight_decay:
        velocity = velocity + student.weight_decay * state.theta
    if state.velocity is not None:
        velocity = velocity + student.momentum * state.velocity
    return velocity


def _advance(
    student: Student, state: _State, pixels: Tensor, targets: Tensor, step: StudentStep, rate: Tensor
) -> _State:
    """One step of the student, without a graph that outlives it."""
    theta = state.theta.detach().requires_grad_()
    gradient = torch.zeros_like(state.theta)
    for rows, augment, share in _chunks(student, step):
        loss = _student_loss(student, theta, pixels[rows], targets[rows], augment)
        gradient += share * torch.autograd.grad(loss, theta)[0]
    velocity = _velocity(student, state, gradient)
    return _State(state.theta - rate * velocity, velocity if student.momentum else None)


def _double_backward(
    student: Student,
    theta: Tensor,
    pixels: Tensor,
    targets: Tensor,
    step: StudentStep,
    r: Tensor,
    pixels_gradient: Tensor,
    targets_gradient: Tensor | None,
    *,
    with_theta: bool,
) -> tuple[Tensor, Tensor | None]:
    """g_i and H_i r of one step; the gradients of s for its images and targets are added at its rows."""
    theta = theta.detach().requires_grad_()
    gradient, hessian_r = torch.zeros_like(theta), torch.zeros_like(theta) if with_theta else None
    for rows, augment, share in _chunks(student, step):
        images = pixels[rows].requires_grad_()
        labels = targets[rows]
        inputs = [images]
        if targets_gradient is not None:
            inputs.append(labels.requires_grad_())
        if with_theta:
            inputs.append(theta)
        loss = _student_loss(student, theta, images, labels, augment)
        (g,) = torch.autograd.grad(loss, theta, create_graph=True)
        # ∂(share·s). A loss that is linear in θ leaves θ out of s: its gradient there is zero, not an error.
        gradients = list(torch.autograd.grad(g, inputs, grad_outputs=share * r, materialize_grads=True))
        gradient += share * g.detach()
        pixels_gradient.index_add_(0, rows, gradients.pop(0))
        if targets_gradient is not None:
            targets_gradient.index_add_(0, rows, gradients.pop(0))
        if hessian_r is not None:
            hessian_r += gradients.pop(0)
    return gradient, hessian_r
