"""How much memory a computation takes at its peak, and how much of it fits into a budget."""

import math
import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

__all__ = ["SavedBytes", "largest_size", "parse_bytes", "peak_bytes"]

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(flag: str, text: str) -> int:
    """The number of bytes that a text such as `6GB`, `512MB` or `1.5GiB` names.

    Raises:
        ValueError: It names none; the message names `flag`.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", text.strip().upper())
    if match is None or not 0 < float(match[1]) < math.inf:
        raise ValueError(f"--{flag} is {text!r}; expected a number of bytes above 0, such as 6GB or 512MB")
    return int(float(match[1]) * UNITS[match[2] or ""])


class SavedBytes:
    """Counts the bytes that autograd holds for backward, each storage once, as a context.

    Attributes:
        now: What is held.
        peak: The most that was held at one time.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._held: dict[int, list[int]] = {}  # storage, whose pointer is 0 on the meta device -> [tensors, bytes]

    def __enter__(self) -> "SavedBytes":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(partial(_Saved, self), lambda saved: saved.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count a tensor that is held from now on."""
        entry = self._held.setdefault(storage._cdata, [0, storage.nbytes()])
        if entry[0] == 0:
            self.now += entry[1]
            self.peak = max(self.peak, self.now)
        entry[0] += 1

    def remove(self, storage: torch.UntypedStorage) -> None:
        """Count a tensor no longer."""
        entry = self._held[storage._cdata]
        entry[0] -= 1
        if entry[0] == 0:
            self.now -= entry[1]
            del self._held[storage._cdata]


class _Saved:
    """A tensor that autograd keeps; it is counted for as long as this object lives."""

    def __init__(self, count: SavedBytes, tensor: Tensor) -> None:
        self.count, self.tensor = count, tensor
        count.add(tensor.untyped_storage())

    def __del__(self) -> None:
        self.count.remove(self.tensor.untyped_storage())


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The memory that `work` takes at its peak, beyond what is there before.

    On CUDA that is everything the allocator gave out. On a CPU, where nothing tells, it is what autograd holds for
    backward: the part that grows with the number of images.
    """
    if device.type != "cuda":
        with SavedBytes() as saved:
            work()
        return saved.peak
    work()  # once beforehand, for libraries take memory of their own at the first call
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def largest_size(measure: Callable[[int], int], budget: int, most: int) -> tuple[int, int]:
    """The largest size, up to `most`, whose memory fits into a budget, by a line through two measurements.

    Args:
        measure: The bytes that a size takes; they grow linearly with it.
        budget: Bytes.
        most: The largest size that is of use.

    Returns:
        The size, 0 where not even 1 fits; and the bytes that size 1 takes by the same line.
    """
    low, high = max(1, min(8, most // 2)), min(32, most)
    first = measure(low)
    slope = (measure(high) - first) / (high - low) if high > low else first / low
    fixed = first - slope * low
    if slope <= 0:
        return (most if first <= budget else 0), first
    size = int((budget - fixed) // slope)
    return max(0, min(most, size)), int(fixed + slope)
