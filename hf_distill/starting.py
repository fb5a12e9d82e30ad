"""What a recipe needs while Python still imports for seconds: that it ends in one line, and with the launcher."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

from .shipped import shipped

# What `accelerate launch` and `torchrun` leave in the environment of the processes that they start.
LAUNCHED = ("ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID")
PARENT_DEATH = 1  # prctl's PR_SET_PDEATHSIG


def is_recipe() -> bool:
    """True where the program is one of our recipes."""
    return Path(sys.argv[0]).resolve().parent == shipped("recipes")


def begin() -> None:
    """Let Ctrl-C be one line of all processes until the recipe itself can say so, and follow the launcher."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    follow_launcher()


def has_begun() -> None:
    """Let Ctrl-C be a `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: Any) -> None:
    """End by the signal itself: an exception in the middle of imports is swallowed by some, and aborts others."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"interrupted\n")
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def follow_launcher() -> None:
    """Let the end of the launcher, where there is one, be a SIGTERM to this process."""
    if sys.platform == "linux" and any(name in os.environ for name in LAUNCHED):
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGTERM)
