"""Precision: what it is, as a part of what decides a result; and single precision for what says where a pixel is or
what it is worth, whatever the caller is in."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ParamSpec

import torch
from accelerate import Accelerator
from torch import Tensor

__all__ = ["no_autocast", "precision_of", "without_autocast"]

P = ParamSpec("P")


def precision_of(accelerator: Accelerator) -> dict[str, Any]:
    """The precision that networks run in, as JSON types: "mixed_precision" of the launcher, and on CUDA "tf32", where
    that is not as PyTorch begins, with convolutions alone."""
    known: dict[str, Any] = {"mixed_precision": str(accelerator.mixed_precision)}
    convolutions, products = _convolutions_in_tf32(), _products_in_tf32()
    if accelerator.device.type == "cuda" and (convolutions, products) != (True, False):
        known["tf32"] = products if convolutions == products else "products alone"
    return known


def _convolutions_in_tf32() -> bool:
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # somebody has used PyTorch's newer switches, after which the older ones cannot be read
        return torch.backends.cudnn.conv.fp32_precision == "tf32"


def _products_in_tf32() -> bool:
    try:
        return torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


@contextmanager
def _exact_products() -> Iterator[None]:
    """Time in which CUDA's products of float32 are not rounded to TF32; what said otherwise says so again behind it."""
    switches = torch.backends.cuda.matmul
    name: str = "allow_tf32"
    exact: Any = False
    try:
        before = getattr(switches, name)
    except RuntimeError:
        name, exact = "fp32_precision", "ieee"
        before = getattr(switches, name)
    setattr(switches, name, exact)
    try:
        yield
    finally:
        setattr(switches, name, before)


def no_autocast(kind: str) -> torch.autocast | nullcontext[None]:
    """Time without autocast on a kind of device; some, such as the meta device, have none anyway."""
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def without_autocast(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """`function`, computed in the types of its tensors also where the caller is in autocast, or asks for TF32.

    Matrix products would become bfloat16 there, whose eight bits lose a quarter of a pixel in 32, and a grey level.

    Args:
        function: Takes a tensor at least.
    """

    @functools.wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with no_autocast(given.device.type):
            if given.device.type != "cuda" or not _products_in_tf32():
                return function(*args, **kwargs)
            with _exact_products():
                return function(*args, **kwargs)

    return exact
