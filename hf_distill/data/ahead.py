"""`ReadAhead`: what is asked for next is read from disk in a thread, while what was asked for is computed with."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["ReadAhead"]

WAITING = 4  # parts that are read and not asked for yet: own images and partners, of this step and the next

Read = TypeVar("Read")


class ReadAhead(Generic[Read]):
    """Reads images by their places, which may be said beforehand.

    Args:
        read: Gives the images at places (n,), and may be called in another thread.
    """

    def __init__(self, read: Callable[[Tensor], Read]) -> None:
        self.read = read
        self._waiting: list[tuple[Tensor, Future[Read]]] = []

    def expect(self, places: Tensor) -> None:
        """Begin to read what will be asked for, once; of what nobody asks for, the oldest is forgotten."""
        if any(torch.equal(expected, places) for expected, _ in self._waiting):
            return
        thread = ThreadPoolExecutor(1)
        self._waiting = [*self._waiting, (places, thread.submit(self.read, places))][-WAITING:]
        thread.shutdown(wait=False)  # it ends when it has read

    def __call__(self, places: Tensor) -> Read:
        """The images at `places`, as `read` gives them, and with its errors."""
        for number, (expected, future) in enumerate(self._waiting):
            if torch.equal(expected, places):
                del self._waiting[number]
                return future.result()
        return self.read(places)
