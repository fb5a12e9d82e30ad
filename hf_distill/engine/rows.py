"""`RowSGD`: SGD with momentum of a tensor of which each step sees a few rows, at the cost of these.

A step of SGD moves a row without a gradient by its momentum alone:

    v ← μ v,   x ← x − η v,   so after Δ such steps   x − η v (μ + μ² + … + μ^Δ)   and   μ^Δ v

which can wait until the row is wanted. `behind` counts these Δ. The steps of all rows are those of `torch.optim.SGD` to
rounding, and the bits depend on the rows that steps have taken and on nothing else: whoever looks on gets copies.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..data.upload import upload

__all__ = ["RowSGD"]

ROWS_AT_ONCE = 2**24  # values of rows that are brought up to date at once


class RowSGD(torch.optim.Optimizer):
    """SGD with momentum whose steps touch the rows with a gradient, and leave others behind until they are wanted.

    Between `begin` and `step`, `add` takes gradients. Its state, which a checkpoint keeps as it is: the parameter's
    `momentum_buffer`, the steps that each row is `behind` (N,), and the `rates` η and μ of these steps.

    Args:
        parameter: (N, ...). Rows that `begin` was given are where they are now, others may be behind.
        lr: η.
        momentum: μ.
    """

    def __init__(self, parameter: nn.Parameter, lr: float, momentum: float = 0.0) -> None:
        super().__init__([parameter], {"lr": lr, "momentum": momentum})
        self.parameter = parameter
        self.rows = torch.empty(0, dtype=torch.long)  # on the host, in ascending order
        self._places = self.rows
        self.gradient = parameter.new_empty(0)
        self._start()

    def _start(self) -> None:
        state = self.state[self.parameter]
        device = self.parameter.device
        state["momentum_buffer"] = torch.zeros_like(self.parameter, requires_grad=False)
        state["behind"] = torch.zeros(len(self.parameter), dtype=torch.int32, device=device)
        state["rates"] = torch.tensor(self._rates, dtype=torch.float64)

    @property
    def _rates(self) -> tuple[float, float]:
        (group,) = self.param_groups
        return group["lr"], group["momentum"]

    @torch.no_grad()
    def begin(self, rows: Tensor) -> None:
        """Bring rows up to date and take their gradients from now on.

        Args:
            rows: (U,) distinct, in ascending order, on the host: at least those that this step will add to.
        """
        self.rows, self._places = rows, upload(rows, self.parameter.device)
        self._catch_up(self._places, self._rates)
        self.gradient = self.parameter.new_zeros((len(rows), *self.parameter.shape[1:]), requires_grad=False)

    def add(self, rows: Tensor, gradient: Tensor) -> None:
        """Add a gradient (R, ...) of distinct rows (R,), on the host, out of those of `begin`."""
        self.gradient.index_add_(0, upload(torch.searchsorted(self.rows, rows), gradient.device), gradient)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step of all rows."""
        rate, momentum = self._rates
        state = self.state[self.parameter]
        velocity = state["momentum_buffer"].index_select(0, self._places).mul_(momentum).add_(self.gradient)
        state["momentum_buffer"].index_copy_(0, self._places, velocity)
        moved = self.parameter.index_select(0, self._places).add_(velocity, alpha=-rate)
        self.parameter.index_copy_(0, self._places, moved)
        state["behind"] += 1
        state["behind"].index_fill_(0, self._places, 0)

    # Rows that are behind

    def _factors(self, behind: Tensor, rates: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """η (μ + … + μ^Δ), by which the velocity of a row moves it, and μ^Δ, as they broadcast to rows."""
        rate, momentum = rates
        steps = behind.double()
        kept = momentum**steps
        total = steps if momentum == 1 else momentum * (1 - kept) / (1 - momentum)
        shape = (-1, *[1] * (self.parameter.ndim - 1))
        return (rate * total).to(self.parameter.dtype).view(shape), kept.to(self.parameter.dtype).view(shape)

    def _catch_up(self, places: Tensor, rates: tuple[float, float]) -> None:
        state = self.state[self.parameter]
        move, kept = self._factors(state["behind"].index_select(0, places), rates)
        velocity = state["momentum_buffer"].index_select(0, places)
        current = self.parameter.index_select(0, places).addcmul_(velocity, move, value=-1)
        self.parameter.index_copy_(0, places, current)
        state["momentum_buffer"].index_copy_(0, places, velocity.mul_(kept))
        state["behind"].index_fill_(0, places, 0)

    def _parts(self) -> Iterator[Tensor]:
        size = max(1, ROWS_AT_ONCE // max(1, math.prod(self.parameter.shape[1:])))
        yield from torch.arange(len(self.parameter), device=self.parameter.device).split(size)

    @torch.no_grad()
    def settle(self) -> None:
        """Bring all rows up to date: for when there are no more steps, or none at these rates."""
        for places in self._parts():
            self._catch_up(places, tuple(self.state[self.parameter]["rates"].tolist()))
        self.state[self.parameter]["rates"] = torch.tensor(self._rates, dtype=torch.float64)

    @property
    def is_behind(self) -> bool:
        """True where a row is not where it is now; the host waits for this."""
        return bool(self.state[self.parameter]["behind"].any())

    @torch.no_grad()
    def now(self) -> Tensor:
        """A copy of all rows as they are now (N, ...)."""
        state = self.state[self.parameter]
        current = torch.empty_like(self.parameter)
        for places in self._parts():
            rows = slice(int(places[0]), int(places[-1]) + 1)
            move, _ = self._factors(state["behind"][rows], self._rates)
            current[rows] = self.parameter[rows].addcmul(state["momentum_buffer"][rows], move, value=-1)
        return current

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, one of `torch.optim.SGD` too; settings stay as they are.

        What rows are behind at other rates, they move at those.

        Raises:
            ValueError: It is of other rows, or says what no steps lead to.
        """
        self._start()
        state, given = self.state[self.parameter], state_dict["state"].get(0, {})
        for name, value in given.items():
            _check(name, value, state.get(name))
        if ("behind" in given) != ("rates" in given):
            raise ValueError("the state of the images has one of `behind` and `rates`; expected both, or neither")
        for name, value in given.items():
            state[name].copy_(value)
        if tuple(state["rates"].tolist()) != self._rates:
            self.settle()


def _check(name: str, value: Tensor, own: Tensor | None) -> None:
    """Raise a `ValueError` unless a tensor can be that part of the state which `own` is."""
    if own is None or value.shape != own.shape:
        expected = "nothing" if own is None else tuple(own.shape)
        raise ValueError(f"the state of the images has {name} of shape {tuple(value.shape)}; expected {expected}")
    counts = name == "behind"
    whole = not value.is_floating_point() and bool((value >= 0).all())
    if not (whole if counts else bool(value.isfinite().all())):
        kind = "whole numbers from 0" if counts else "finite numbers"
        raise ValueError(f"the state of the images has {name} with other values than {kind}")
