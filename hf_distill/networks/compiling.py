"""Options --dynamo_backend and --mixed_precision of `accelerate launch`, for what is run again and again."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import Tensor, nn

__all__ = ["compiled", "forward", "refuse_fp16", "uncached_autocast"]

F = TypeVar("F", bound=Callable[..., Any])
GRAPHS = 64


def compiled(function: F, accelerator: Accelerator | None) -> F:
    """`function` through `torch.compile` with the launcher's options, or as it is where it asks for none.

    Each shape has a graph of its own unless `--dynamo_use_dynamic` says otherwise: bits then do not depend on the
    shapes that came before, so not on which process has which work. Networks of one architecture share a graph. A
    function may have `GRAPHS` of them; beyond PyTorch's eight it would be run as it is written from then on.
    """
    plugin = None if accelerator is None else accelerator.state.dynamo_plugin
    if plugin is None or plugin.backend == DynamoBackend.NO:
        return function
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    return torch.compile(function, **{"dynamic": False, **plugin.to_kwargs()})


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """To be compiled in place of `model`: networks of one architecture share its graph."""
    return model(x)


def uncached_autocast(device: torch.device) -> torch.autocast:
    """The autocast that the caller is in, without its cache: this would keep the first weights of a network that is
    trained for as long as the caller's autocast lasts."""
    return torch.autocast(
        device.type,
        dtype=torch.get_autocast_dtype(device.type),
        enabled=torch.is_autocast_enabled(device.type),
        cache_enabled=False,
    )


def refuse_fp16(accelerator: Accelerator, subject: str) -> None:
    """Raise a `ValueError` where the launcher asks for a precision that needs a loss scaler.

    Args:
        accelerator: The launcher's.
        subject: The work that is done without one, such as "teacher training".
    """
    if accelerator.mixed_precision == "fp16":
        raise ValueError(
            f"mixed precision fp16 needs a loss scaler, and there is none for {subject}; use bf16, or none"
        )
