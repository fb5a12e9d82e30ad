"""Single precision for what says where a pixel is or what it is worth, whatever autocast the caller is in."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

__all__ = ["without_autocast"]

P = ParamSpec("P")


def without_autocast(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """`function`, computed in the types of its tensors also where the caller is in autocast.

    Matrix products would become bfloat16 there, whose eight bits lose a quarter of a pixel in 32, and a grey level.

    Args:
        function: Takes a tensor at least.
    """

    @functools.wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(given.device.type, enabled=False):
            return function(*args, **kwargs)

    return exact
