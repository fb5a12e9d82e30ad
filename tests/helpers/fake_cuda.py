"""A CUDA device that computes nothing: its tensors have shapes, types and a place, and whatever is read of them is 1.

What a device would refuse fails: an operation with tensors of two devices. So does what it would wait for: places on
the host, of rows that are to be picked out of a tensor on the device.

Forward passes are those that a device would be asked for. Backward passes are left out, for PyTorch needs a device to
go backward on: every gradient is 1.
"""

import contextlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MEMORY = 8 * 10**9
PROPERTIES = SimpleNamespace(total_memory=MEMORY, multi_processor_count=100)


def _on_cuda(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


class _Device(TorchDispatchMode):
    """Operations with tensors of the device are those of fake tensors; all others are left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = func.overloadpacket.__name__, dict(kwargs or {})
        here = any(map(_on_cuda, tree_leaves((args, options))))
        target = options.get("device")
        if options.pop("pin_memory", False) or name == "_pin_memory":
            return args[0] if name == "_pin_memory" else func(*args, **options)
        if here and name == "_local_scalar_dense":
            return {torch.bool: True, torch.int64: 1}.get(args[0].dtype, 1.0)
        if here and name == "equal":
            return True
        if here and name == "_to_copy" and target is not None and target.type == "cpu":
            return torch.ones(args[0].shape, dtype=options.get("dtype") or args[0].dtype)
        if name == "copy_" and here and not _on_cuda(args[0]):
            return args[0].fill_(1)
        if here and name in ("index", "index_put", "index_put_"):
            places = [place for place in args[1] if place is not None]
            if not all(map(_on_cuda, (args[0], *places))):
                raise RuntimeError(f"{name} of {args[0].device} by {[str(place.device) for place in places]}")
        if name == "_fused_sgd_" and all(map(_on_cuda, tree_leaves(args))):  # of which there is no fake
            return None
        if here or (target is not None and torch.device(target).type == "cuda"):
            self.operations += 1
            with self.fake:
                return func(*args, **options)
        return func(*args, **options)


def _gradients(grad: Any) -> Any:
    """`torch.autograd.grad`, which gives ones on the device: PyTorch needs a real one to go backward on."""

    def ones(outputs: Any, inputs: Tensor | Sequence[Tensor], *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        if not any(map(_on_cuda, inputs)):
            return grad(outputs, inputs, *args, **kwargs)
        return tuple(torch.ones_like(each) for each in inputs)

    return ones


def _backward(backward: Any) -> Any:
    """`Tensor.backward`, which leaves ones in the leaves of a graph of the device."""

    def ones(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if not _on_cuda(loss):
            return backward(loss, *args, **kwargs)
        seen, todo = set(), [loss.grad_fn]
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                node.variable.grad = torch.ones_like(node.variable)
            todo += [following for following, _ in node.next_functions]
        return None

    return ones


def _cpu(cpu: Any) -> Any:
    """`Tensor.cpu`, in threads too, which have no modes of their own."""

    def ones(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.ones(x.shape, dtype=x.dtype) if isinstance(x, FakeTensor) else cpu(x, *args, **kwargs)

    return ones


def _swap(swap: Any) -> Any:
    """`torch.utils.swap_tensors`, but for parameters that are where they are sent: nothing is to be laid out."""

    def unless_alike(one: Tensor, other: Tensor) -> None:
        if (one.device, one.dtype, one.shape) != (other.device, other.dtype, other.shape):
            swap(one, other)

    return unless_alike


@contextlib.contextmanager
def fake_cuda() -> Iterator[_Device]:
    """The device, for all that accelerators are asked for meanwhile; `operations` counts what it was asked to do."""
    torch._C._ensureCUDADeviceGuardSet()
    device = torch.device("cuda", 0)
    # Kernels of cuDNN for grids have no fake.
    with contextlib.ExitStack() as held, torch.backends.cudnn.flags(enabled=False):
        for owner, name, value in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "mem_get_info", lambda device=None: (MEMORY, MEMORY)),
            (torch.cuda, "get_device_properties", lambda device=None: PROPERTIES),
            (torch.cuda, "get_device_name", lambda device=None: "a device that computes nothing"),
            (torch.cuda, "synchronize", lambda device=None: None),
            (torch.cuda, "get_rng_state", lambda device="cuda": torch.zeros(16, dtype=torch.uint8)),
            (torch.cuda, "set_rng_state", lambda state, device="cuda": None),
            (torch.autograd, "grad", _gradients(torch.autograd.grad)),
            (torch.utils, "swap_tensors", _swap(torch.utils.swap_tensors)),
            (Tensor, "cpu", _cpu(Tensor.cpu)),
            (Tensor, "backward", _backward(Tensor.backward)),
            (Accelerator, "device", property(lambda self: device)),
        ):
            held.enter_context(mock.patch.object(owner, name, value))
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` sends what it has made as an operation of its own
        held.callback(torch._C._set_only_lift_cpu_tensors, False)
        yield held.enter_context(_Device())
