"""Options --dynamo_backend and --mixed_precision of `accelerate launch`, for what is run again and again."""

import functools
import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map_only

__all__ = [
    "backend_of",
    "check_backend",
    "compiled",
    "compiled_derivatives",
    "forward",
    "in_precision",
    "refuse_fp16",
    "say_uncompiled",
]

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
GRAPHS = 64
CAPTURING = ("reduce-overhead", "max-autotune")  # modes of Inductor that capture CUDA graphs


def backend_of(accelerator: Accelerator | None) -> str | None:
    """The launcher's --dynamo_backend, in lower case; None where it asks for nothing to be compiled."""
    backend = DynamoBackend.NO if accelerator is None else accelerator.state.dynamo_plugin.backend
    return None if backend == DynamoBackend.NO else str(backend.value).lower()


def check_backend(accelerator: Accelerator) -> None:
    """Raise a `ValueError` where the launcher asks for a backend that this PyTorch has not."""
    backend = backend_of(accelerator)
    if backend is None:
        return
    try:
        torch._dynamo.lookup_backend(backend)
    except (ImportError, torch._dynamo.exc.InvalidBackend) as error:
        raise ValueError(
            f"--dynamo_backend {backend} is not there in this PyTorch; expected no, or one of "
            f"{', '.join(torch._dynamo.list_backends())}"
        ) from error


def say_uncompiled(accelerator: Accelerator | None, work: str) -> None:
    """Warn, where the launcher asks for compiled networks, that `work` has none: whoever begins it says so once."""
    backend = backend_of(accelerator)
    if backend is not None:
        logger.warning("--dynamo_backend %s does not reach %s, which runs as it is written", backend, work)


def compiled(function: F, accelerator: Accelerator | None) -> F:
    """`function` through `torch.compile` with the launcher's options, or as it is where it asks for none.

    Each shape has a graph of its own unless `--dynamo_use_dynamic` says otherwise: bits then do not depend on the
    shapes that came before, so not on which process has which work. Networks of one architecture share a graph. A
    function may have `GRAPHS` of them; beyond PyTorch's eight it would be run as it is written from then on.
    """
    if accelerator is None or backend_of(accelerator) is None:
        return function
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    options = {"dynamic": False, **accelerator.state.dynamo_plugin.to_kwargs()}
    fast = torch.compile(function, **options)
    return _kept(fast) if options["backend"] == "cudagraphs" or options.get("mode") in CAPTURING else fast


def _kept(function: F) -> F:
    """`function` with answers of their own: a captured graph puts all its answers into the same memory."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return tree_map_only(Tensor, torch.clone, function(*args, **kwargs))

    return cast(F, call)


def compiled_derivatives(function: F, accelerator: Accelerator | None) -> F:
    """As `compiled`, for a function of tensors alone that asks autograd for derivatives of its own.

    What it computes for tensors of these shapes, derivatives of derivatives too, is written out when it is first called
    with them, and that is compiled: a function without autograd, which a backend may fuse or capture as a whole. It
    must not decide anything by the numbers in its tensors.
    """
    if backend_of(accelerator) is None:
        return function
    known: dict[Any, Callable[..., Any]] = {}

    def call(*tensors: Tensor) -> Any:
        key = tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors)
        if key not in known:
            known[key] = compiled(make_fx(function)(*tensors), accelerator)
        return known[key](*tensors)

    return cast(F, call)


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """To be compiled in place of `model`: networks of one architecture share its graph."""
    return model(x)


def in_precision(function: Callable[..., Tensor], accelerator: Accelerator | None) -> Callable[..., Tensor]:
    """`function`, the forward pass of a network and nothing else, in the launcher's precision; its answers are float32.

    What comes before, pixels and their places, and what comes after, losses, stay outside of autocast. Without an
    accelerator, or where the launcher asks for nothing, the autocast that the caller is in counts. Its cache does not:
    this would keep the first weights of a network that is trained for as long as the caller's autocast lasts.

    Args:
        function: Takes a tensor at least; its answers keep their type where they are not in half precision.
    """

    def answer(*args: Any) -> Tensor:
        kind = next(arg for arg in args if isinstance(arg, Tensor)).device.type
        with nullcontext() if accelerator is None else accelerator.autocast(), _uncached_autocast(kind):
            logits = function(*args)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    return answer


def _uncached_autocast(kind: str) -> torch.autocast | nullcontext[None]:
    """The autocast that the caller is in on a kind of device, without its cache; nothing on one that has none."""
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)


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
