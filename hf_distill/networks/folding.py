"""`folded`: a network that only answers, with its BatchNorm in the convolutions before it."""

import copy
import itertools
from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..data.precision import no_autocast
from ..rng import generator

__all__ = ["folded", "versions"]


def versions(network: nn.Module) -> tuple[Any, ...]:
    """What changes whenever the values, the type or the place of a network's tensors do."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return tuple(
        (tensor.data_ptr(), tensor.dtype, tensor.device, -1 if tensor.is_inference() else tensor._version)
        for tensor in tensors
    )


class _Uses(TorchFunctionMode):
    """Counts, while a network runs, the operations that take each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self._seen: list[Any] = []  # all tensors stay, so that no two have one address

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self.counts.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        self._seen.append((args, kwargs, result))
        return result


CLOSE = 1e-3  # of the largest answer, by which rounding in float32 moves none


@torch.inference_mode(False)  # what is folded is there for callers in any mode
@torch.no_grad()
def folded(network: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """A network that gives the answers of `network` to rounding, and the gradients of images, in fewer operations.

    BatchNorm by stored statistics is linear, so the weights of a convolution take it in, where nothing but this layer
    sees what the convolution gives. Other BatchNorm stays, as that before a convolution (DenseNet) does, or that behind
    weights which are made in the forward pass. Which is which, the network shows on images, and it is compared with
    what it became. What is not folded is shared with `network`: move both, or fold again.

    Args:
        network: In evaluation mode, with frozen parameters; it stays as it is.
        shape: (C, H, W) of images that it takes.

    Returns:
        A copy without hooks; `network` itself, where nothing can be folded.
    """
    from timm.layers import BatchNormAct2d  # which takes long, and the network is there already

    norms = (nn.BatchNorm2d, BatchNormAct2d)
    if not any(type(module) in norms for module in network.modules()):
        return network
    weight = next(itertools.chain(network.parameters(), network.buffers()))
    images = torch.rand(2, *shape, generator=generator(0, "folded")).to(weight.device, weight.dtype)
    try:
        copied = _folded(network, images)
        with no_autocast(weight.device.type):
            pairs = [(network(images[:count]).cpu(), copied(images[:count]).cpu()) for count in (1, 2)]
    except (AttributeError, RuntimeError, TypeError, ValueError):  # it looks at its layers, or cannot be copied
        return network
    alike = all((one - other).abs().max() <= CLOSE * one.abs().max() for one, other in pairs)  # and numbers at all
    return copied if alike else network


def _folded(network: nn.Module, images: Tensor) -> nn.Module:
    from timm.layers import BatchNormAct2d, Conv2dSame

    norms = (nn.BatchNorm2d, BatchNormAct2d)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in itertools.chain(network.parameters(), network.buffers())}
    for module in network.modules():  # whose hooks look at tensors too
        memo |= {id(hooks): OrderedDict() for hooks in (module._forward_hooks, module._forward_pre_hooks)}
    copied = copy.deepcopy(network, memo)
    pairs = _pairs(copied, images, (nn.Conv2d, Conv2dSame), norms)
    if not pairs:
        return network
    for before, name in pairs.items():
        conv, norm = copied.get_submodule(before), copied.get_submodule(name)
        own = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *own)
        rest = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
        parent, _, child = name.rpartition(".")
        setattr(copied.get_submodule(parent), child, nn.Sequential(*rest))
    return copied


def _pairs(
    network: nn.Module, images: Tensor, convolutions: tuple[type, ...], norms: tuple[type, ...]
) -> dict[str, str]:
    """The convolutions, by name, whose result goes into a BatchNorm layer, by name, and nowhere else."""
    made: dict[int, str] = {}  # the address of a tensor -> the convolution that gave it
    taken: list[tuple[str, int]] = []  # a layer, and the tensor that it normalised
    ran: Counter[str] = Counter()
    handles = []
    for name, module in network.named_modules(remove_duplicate=False):
        # A subclass may do more with its weights, or its input, than these do.
        if type(module) in convolutions:
            handles.append(module.register_forward_hook(_note_made(made, ran, name)))
        elif type(module) in norms and module.running_mean is not None and not module.training:
            handles.append(module.register_forward_pre_hook(_note_taken(taken, ran, name)))
    try:
        with _Uses() as uses:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return {
        made[tensor]: name
        for name, tensor in taken
        if tensor in made and uses.counts[tensor] == ran[made[tensor]] == ran[name] == 1
    }


def _note_made(made: dict[int, str], ran: Counter[str], name: str) -> Any:
    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made[id(output)] = name
        ran[name] += 1

    return note


def _note_taken(taken: list[tuple[str, int]], ran: Counter[str], name: str) -> Any:
    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        taken.append((name, id(inputs[0])))
        ran[name] += 1

    return note
