"""What work takes at least: its arithmetic at the rate of a matrix product, and its bytes at the rate of a copy.

An operation is one that PyTorch dispatches and that is no view; its bytes are those of the tensors that go in and come
out, and where rows are picked out of a tensor, or put into it, those of the rows. Of work that is compiled, they are
those of the same work as it is written: fused kernels move less, so a floor of bytes can be undercut.
"""

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_distill.engine.plan import fastest
from hf_distill.evaluation.costs import operation_flop

READS = ("_local_scalar_dense", "nonzero")
FREE = ("_unsafe_view", "empty", "empty_like", "empty_strided", "lift_fresh")  # beside views
PICKED, PLACED = ("index", "index_select", "gather"), ("index_add_", "index_copy_", "index_fill_", "index_put_")
# Sides of the matrices and bytes of the copy that rates are measured with.
SIDE = {"cuda": 8192, "cpu": 768}
COPY = {"cuda": 2**31, "cpu": 2**26}
TRIES = 5


@dataclass(frozen=True)
class Count:
    """What was computed."""

    operations: int = 0
    bytes: int = 0
    reads: int = 0
    flop: int = 0

    def __sub__(self, other: "Count") -> "Count":
        return Count(*(one - two for one, two in zip(astuple(self), astuple(other), strict=True)))


def moved(values: Any) -> int:
    """Bytes of all tensors in `values`; what is only repeated by its strides counts once."""
    return sum(
        tensor.element_size()
        * math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
        for tensor in tree_leaves(values)
        if isinstance(tensor, Tensor)
    )


def _taken_and_given(name: str, args: Any, kwargs: Any, found: Any) -> int:
    """Bytes of an operation."""
    if name in PICKED:
        return moved(args[1:]) + 2 * moved(found)
    return 2 * moved(args[1:]) if name in PLACED else moved((args, kwargs)) + moved(found)


class Counter(TorchDispatchMode):
    """Counts what is computed in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = self.reads = self.flop = 0

    @property
    def count(self) -> Count:
        """So far."""
        return Count(self.operations, self.bytes, self.reads, self.flop)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in READS:
            self.reads += 1
        elif not func.is_view and name not in FREE:
            self.operations += 1
            self.bytes += _taken_and_given(name, args, kwargs, found)
            self.flop += operation_flop(func, args, kwargs or {}, found)
        return found


def count(work: Callable[[], object]) -> Count:
    """What `work` computes."""
    with Counter() as counter:
        work()
    return counter.count


@dataclass(frozen=True)
class Rates:
    """What the device does in a second: FLOP of a matrix product, and bytes that a copy reads and writes."""

    flop: float
    bytes: float

    @classmethod
    def measured(cls, device: torch.device, precision: str = "no") -> "Rates":
        """The best of a few tries, in the type of the forward passes: that of accelerate's mixed precision."""
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        side, size = SIDE[device.type], COPY[device.type]
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        source = torch.zeros(size // dtype.itemsize, device=device, dtype=dtype)
        target = torch.empty_like(source)
        flop, copied = (fastest(work, device, TRIES) for work in (lambda: a @ b, lambda: target.copy_(source)))
        return cls(2 * side**3 / flop, 2 * size / copied)


@dataclass(frozen=True)
class Floor:
    """The two numbers that seconds are to be compared with.

    Attributes:
        flop: Of the work.
        bytes: That its operations take and give.
        rates: Of the device.
    """

    flop: int
    bytes: int
    rates: Rates

    @classmethod
    def of(cls, work: Callable[[], object], rates: Rates) -> "Floor":
        """That of `work`, which is done once."""
        counted = count(work)
        return cls(counted.flop, counted.bytes, rates)

    @property
    def seconds(self) -> float:
        """The larger of the two."""
        return max(self.flop / self.rates.flop, self.bytes / self.rates.bytes)

    def gap(self, seconds: float) -> float:
        """Seconds of work for one of its floor."""
        return seconds / self.seconds

    def __str__(self) -> str:
        flop, moved, rates = self.flop / 1e12, self.bytes / 1e9, self.rates
        flop, moved, rates = self.flop / 1e12, self.bytes / 1e9, self.rates
        return (
            f"floor {self.flop / rates.flop:.4f} s for {flop:.3f} TFLOP at {rates.flop / 1e12:.2f} TFLOP/s, "
            f"{self.bytes / rates.bytes:.4f} s for {moved:.2f} GB at {rates.bytes / 1e9:.0f} GB/s"
        )

    def against(self, seconds: float) -> dict[str, float]:
        """What a JSON file has of it, beside seconds that were measured."""
        rates = {"flop_per_s": self.rates.flop, "bytes_per_s": self.rates.bytes}
        return {"flop": self.flop, "bytes": self.bytes, **rates, "floor_s": self.seconds, "gap": self.gap(seconds)}
