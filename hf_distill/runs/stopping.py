"""How a run is asked to stop: Ctrl-C (SIGINT), and the signals by which clusters end jobs, or say that they will."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor

from ..starting import follow_launcher, has_begun

SIGNALS = (signal.SIGTERM,) if sys.platform == "win32" else (signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Whether a loop was asked to stop.

    Attributes:
        asked: Looked at by the loop after each step: it then saves what there is and calls `end`.
    """

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: Any) -> None:
        self.asked = True

    def end(self) -> NoReturn:
        """End the run, once what there is has been saved; other processes may have been asked."""
        self.asked = True
        raise KeyboardInterrupt


class Agreement:
    """Whether any process was asked to stop, which all of them learn behind the same step.

    Of several processes that is the step after: a device has work to do while it is asked about the one before.

    Args:
        stop: Of this process.
        accelerator: The processes.
    """

    def __init__(self, stop: Stop, accelerator: Accelerator) -> None:
        self.stop, self.accelerator = stop, accelerator
        self._before: Tensor | None = None

    def to_stop(self) -> bool:
        """True where the run is to end behind this step. All processes call it, behind each step."""
        if self.accelerator.num_processes == 1:
            return self.stop.asked
        asked = torch.full((), float(self.stop.asked), device=self.accelerator.device)
        before, self._before = self._before, self.accelerator.reduce(asked)
        return before is not None and before.item() > 0


def _interrupt(number: int, frame: Any) -> None:
    """Do what Ctrl-C does, once: a cluster tells the launcher, and both tell this process."""
    _ignore()
    raise KeyboardInterrupt


def _ignore() -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[None]:
    """The time in which the signals of clusters do what Ctrl-C does, and so does the end of the launcher."""
    has_begun()
    follow_launcher()
    with _handled_by(_interrupt):
        yield


@contextmanager
def stopping() -> Iterator[Stop]:
    """The time of a loop that these signals ask to stop, where they would interrupt it: in a recipe.

    Raises:
        KeyboardInterrupt: They did behind its last step.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(SIGNALS[0]) is not _interrupt:
        yield stop
        return
    try:
        with _handled_by(stop):
            yield stop
            if stop.asked:
                raise KeyboardInterrupt
    finally:
        if stop.asked:
            _ignore()


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {each: signal.signal(each, handler) for each in SIGNALS}
    try:
        yield
    finally:
        for each, known in before.items():
            signal.signal(each, known)
