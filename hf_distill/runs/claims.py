"""Who works in a folder: one run at a time, and the next one where that one is gone.

A claim is a file that says who holds it, with a lock that the system takes back from a process that ends, however it
ends. Where a file system knows no locks, the file alone tells.
"""

import atexit
import errno
import json
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from accelerate import Accelerator

from ..hub.files import naming
from .processes import on_main

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

CLAIM = ".claim"
LONGEST = 1000  # characters of a command
TURN = 1.0  # seconds between two looks at a folder that is in use


class FolderInUse(ValueError):
    """Another run is at work in a folder."""


@contextmanager
def claimed(folder: Path, accelerator: Accelerator, *, wait: bool = False) -> Iterator[None]:
    """The time in which `folder`, which is made, belongs to this run. All processes call it.

    Args:
        folder: On storage that the processes share.
        accelerator: The processes, the main one of which holds the claim.
        wait: For the end of a run that is at work there.

    Raises:
        FolderInUse: One is, and it is not waited for.
    """
    with ExitStack() as held:
        told = False

        def take() -> bool:
            nonlocal told
            try:
                claim(folder, held)
            except FolderInUse as error:
                if not wait:
                    raise
                if not told:
                    logger.info("waiting: %s", error)
                told = True
                time.sleep(TURN)
                return False
            return True

        while not on_main(accelerator, take):
            pass
        yield


def keep_claimed(folder: str | Path, accelerator: Accelerator) -> None:
    """As `claimed`, until this process ends. All processes call it."""
    until_exit().enter_context(claimed(Path(folder), accelerator))


def until_exit() -> ExitStack:
    """What is closed when this process ends."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack


def claim(folder: Path, held: ExitStack) -> None:
    """Let `folder`, which is made, belong to this process until `held` is closed. One process calls it.

    Where nothing can be written there is nothing to claim: what needs to write says so. This very process is not kept
    out.

    Raises:
        FolderInUse: Another run is at work there; the message says which.
    """
    path, made = folder / CLAIM, [each for each in (folder, *folder.parents) if not each.exists()]
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return
        owner = _read(descriptor)
        if _is_held(descriptor, owner):
            os.close(descriptor)
            raise FolderInUse(
                f"{folder} is in use by {_described(owner)}; wait for its end, or give another folder (--output_dir)"
            )
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            break
        os.close(descriptor)  # the owner removed it in this moment
    if owner:
        logger.info("%s was in use by %s, which is gone", folder, _described(owner))
    with naming(path):
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_about()).encode(), 0)
    held.callback(_release, path, descriptor, os.getpid(), made)


def _release(path: Path, descriptor: int, owner: int, made: Sequence[Path]) -> None:
    if os.getpid() != owner:  # a child, which has all that its parent has
        return
    path.unlink(missing_ok=True)
    os.close(descriptor)
    with suppress(OSError):  # from the first on that holds something
        for each in made:
            each.rmdir()


def _is_held(descriptor: int, owner: dict[str, Any]) -> bool:
    """True where another process has the lock; taken where none has."""
    if sys.platform != "win32":
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return True
    return bool(owner) and owner.get("pid") != os.getpid() and _may_live(owner)


def _may_live(owner: dict[str, Any]) -> bool:
    """False for a process of this machine that is gone, or whose number another one has."""
    if owner.get("host") != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) < 1
    except (psutil.Error, LookupError, TypeError, ValueError):
        return False


def _about() -> dict[str, Any]:
    """This process, as its claims say it."""
    process = psutil.Process()
    started, command = process.create_time(), shlex.join(_without_token(sys.argv))
    return {"host": socket.gethostname(), "pid": process.pid, "started": started, "command": command[:LONGEST]}


def _without_token(words: Sequence[str]) -> list[str]:
    return [
        word
        for before, word in zip(("", *words), words, strict=False)
        if before != "--hub_token" and not word.startswith("--hub_token")
    ]


def _read(descriptor: int) -> dict[str, Any]:
    """What a claim says; nothing where it says nothing of use."""
    try:
        owner = json.loads(os.pread(descriptor, 8 * LONGEST, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _described(owner: dict[str, Any]) -> str:
    try:
        since = datetime.fromtimestamp(owner["started"]).isoformat(" ", "seconds")
        return f"process {owner['pid']} on {owner['host']} since {since} ({owner['command']})"
    except (LookupError, TypeError, ValueError, OverflowError, OSError):
        return "another process"
