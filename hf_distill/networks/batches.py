"""How much goes through networks at a time: images where nothing is learned, and small networks side by side."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..data.feed import TEST_BATCH, Pool, at_once, processors
from .architectures import StudentSpec

__all__ = ["images_at_once", "networks_at_once"]

# Bytes that one operation may take and give: on a CPU, and the part of a GPU's memory. Bits depend on it.
LOOK_BYTES, LOOK_PART = 300_000_000, 64
# Values in the widest layer of a step, for each processor of a device, up to which several networks train faster side
# by side than one after another.
STEP_VALUES = 2**17
MEASURED = (2, 4)  # images; not 1, of which BatchNorm has no statistics


class _Operations(TorchDispatchMode):
    """The bytes that each operation takes and gives, in order, as a context."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.bytes.append(sum(leaf.nbytes for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)))
        return result


@torch.no_grad()
def images_at_once(look: Callable[[Tensor], Any], pool: Pool, *, room: int | None = None) -> int:
    """How many images of a pool go through a network at a time: a power of two, up to 1,024.

    Two and four images go through it first. What grows between them in its largest operation is what an image takes,
    and so many images are taken that this operation stays within `room`.

    Args:
        look: The network, or another function of images (n, C, H, W) that keeps nothing for a backward pass.
        pool: The images.
        room: Bytes; without it 300 MB on a CPU, and a 64th of a GPU's memory.
    """
    room = at_once(pool.device, LOOK_BYTES, LOOK_PART) if room is None else room
    taken = []
    for count in MEASURED:
        images = pool.images(torch.arange(count) % len(pool))
        with _Operations() as operations:
            look(images)
        taken.append(operations.bytes)
    few, more = taken
    each = max((b - a for a, b in zip(few, more, strict=False)), default=0) // (MEASURED[1] - MEASURED[0])
    return min(TEST_BATCH, 1 << max(0, (room // max(1, each)).bit_length() - 1))


def networks_at_once(spec: StudentSpec, batch: int, device: torch.device) -> int:
    """How many ConvNets to train side by side, where each takes `batch` images in a step.

    A small step leaves a device idle. On a CPU a large one takes longer side by side, for its convolutions become one
    with many groups. The number changes how sums are rounded, and nothing else; it depends on the kind of device and
    on no measurement, so that the same seed gives the same bits there.
    """
    height, width = spec.img_size
    values = batch * height * width * int(spec.kwargs.get("width", 128))
    return max(1, STEP_VALUES * processors(device) // values)
