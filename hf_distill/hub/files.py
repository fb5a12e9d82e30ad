"""Files that are whole or not there, and what an artifact says of its own format and makers."""

import errno
import fnmatch
import glob
import hashlib
import importlib.metadata
import json
import os
import re
import reprlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from huggingface_hub.utils import WeakFileLock

from .._version import __version__

STAGING = ".saving-"  # what is written aside in the folder that it is to be moved into
SUMS = "SHA256SUMS"  # of a folder: what its files are, beside a README.md that people may edit
LEFT = 86_400  # seconds in which a process that is not seen here may be at work elsewhere, on the same storage
LARGEST_JSON = 200_000_000  # bytes; ImageNet-21K's names and every hyper-parameter there is are less than one of them


@contextmanager
def whole_file(path: str | Path, size: int | None = None) -> Iterator[Path]:
    """A place to write at, whose content then is at `path`: whole and on the disk, or not at all.

    What writers that were killed left of this file is removed.

    Args:
        path: Of the file.
        size: How many bytes it will have, where that is known.

    Raises:
        OSError: It cannot be written; its `filename` is `path`, unless it names another file, and of a full disk it
            says how much is free.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        sweep(path)
        yield aside
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        if error.filename in (None, str(aside)):
            raise _naming(path, error, size) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let an `OSError` that names no file, as that of a full disk does not, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise _naming(path, error) from error
        raise


def _naming(path: str | Path, error: OSError, size: int | None = None) -> OSError:
    reason = error.strerror or str(error)
    return OSError(error.errno, f"{reason}: {room(path, size)}" if is_full(error) else reason, str(path))


def is_full(error: OSError) -> bool:
    """True where a disk, or a user's share of it, is what is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def room(path: str | Path, size: int | None) -> str:
    """In words, how many bytes a file or folder needs, where that is known, and how many are free."""
    there = next(each for each in (Path(path), *Path(path).absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    return f"{free:,} bytes are free" if size is None else f"{size:,} bytes are needed and {free:,} free"


def reserve(path: Path, size: int) -> None:
    """Let a file have at least `size` bytes whose room on the disk is taken; what it holds stays.

    Writing through a map to a file with holes kills a process without a word once the disk is full.

    Raises:
        OSError: There is no room; the message says for how much, and how much there is.
    """
    path.touch()
    before = path.stat().st_size
    try:
        with open(path, "r+b") as file:
            _fill(file, before, size)
    except OSError as error:
        os.truncate(path, before)
        raise _naming(path, error, size) from error


def _fill(file: BinaryIO, start: int, stop: int) -> None:
    """Take the room of a file, which ends at `start`, up to `stop`."""
    if sys.platform == "linux":
        try:
            return os.posix_fallocate(file.fileno(), 0, stop)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of file systems that know no such thing
                raise
    file.seek(start)
    for first in range(start, stop, 2**20):
        file.write(bytes(min(2**20, stop - first)))


def atomic_write(path: str | Path, data: bytes | memoryview | str) -> None:
    """Put `data` at `path` whole or not at all; text is UTF-8. Raises as `whole_file`."""
    content = data.encode() if isinstance(data, str) else data
    with whole_file(path, memoryview(content).nbytes) as aside:
        aside.write_bytes(content)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    if path.is_dir() and sys.platform == "win32":  # which opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno == errno.EINVAL):  # some network file systems know no such thing
            raise
    finally:
        os.close(descriptor)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """True where a path matches one of the glob patterns, part by part: `*` does not cross a folder."""
    parts = name.split("/")
    each = (pattern.split("/") for pattern in patterns)
    return any(len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)) for wanted in each)


def sweep(path: Path) -> None:
    """Remove what processes that are gone left of their attempts to write the file `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        writer = leftover.name.split(".")[-2]
        if writer.isdecimal() and not psutil.pid_exists(int(writer)):
            leftover.unlink(missing_ok=True)


@contextmanager
def folder_aside(prefix: str, where: str | Path | None = None) -> Iterator[Path]:
    """A new folder to write in, which is removed in the end; and so are those that killed processes left a day ago.

    Args:
        prefix: Of its name.
        where: It is made in; the folder for temporary files, if not given.
    """
    where = Path(where or tempfile.gettempdir())
    for leftover in where.glob(f"{glob.escape(prefix)}[0-9]*-*"):
        maker = leftover.name.removeprefix(prefix).split("-")[0]
        with suppress(OSError):  # somebody else may be quicker, or its owner
            old = time.time() - leftover.stat().st_mtime > LEFT
            if old and maker.isdecimal() and not psutil.pid_exists(int(maker)):
                shutil.rmtree(leftover)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(path: Path, timeout: float | None = None) -> Iterator[None]:
    """The time in which this process has the lock at `path`; where nobody can write, nobody needs one.

    Raises:
        TimeoutError: Another process had it for so many seconds.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(path, timeout=timeout))
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
        yield


# Checksums


def sha256_of_file(path: Path) -> str:
    """64 hex digits of the content of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def save_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write SHA256SUMS, which `sha256sum -c` reads too: the `sums` of files by their paths in `folder`."""
    atomic_write(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def load_sums(folder: Path) -> dict[str, str]:
    """The checksums in SHA256SUMS by the paths of the files; none where there is no such file.

    Raises:
        ValueError: It is damaged.
    """
    path = folder / SUMS
    if not path.exists():
        return {}
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"larger than {LARGEST_JSON:,} bytes")
        lines = path.read_text("utf-8").removesuffix("\n").split("\n")
        if wrong := [line for line in lines if not re.fullmatch(r"[0-9a-f]{64}  .+", line)]:
            raise ValueError(f"{reprlib.repr(wrong[0])} is no checksum with the name of a file")
        return {line[66:]: line[:64] for line in lines}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again, or delete it to do without") from error


def check_sum(path: Path, expected: str | None) -> None:
    """Raise a `ValueError` where a file is not what its checksum says; there may be none (None)."""
    if expected is not None and sha256_of_file(path) != expected:
        raise ValueError(
            f"{path} is damaged: its checksum is not that in {SUMS}; fetch or make it again, or delete {SUMS} where "
            "it was changed on purpose"
        )


def save_json(path: str | Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all. Floats come back bit for bit."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def load_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: The file is absent, is not JSON, or holds something else than an object.
    """
    try:
        if Path(path).stat().st_size > LARGEST_JSON:
            raise ValueError(f"larger than {LARGEST_JSON:,} bytes")
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; expected a complete artifact folder") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore the file or save the artifact again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def someone_elses(folder: Path, patterns: Iterable[str], index: str) -> str | None:
    """A file in `folder` that an artifact would write over although it is no part of one, or None.

    Args:
        folder: Which need not be there.
        patterns: Of the files that the artifact has.
        index: The one by which it is known; it is written last.
    """
    if (folder / index).exists() or any(folder.glob(f"{STAGING}*")):  # or the artifact that was being written
        return None
    matches = (path for pattern in patterns for path in folder.glob(pattern))
    return next((path.relative_to(folder).as_posix() for path in matches), None)


def check_target(folder: Path, patterns: Iterable[str], index: str) -> None:
    """Raise a `ValueError` where no such artifact can be saved into a folder: it is a file, or something else's.

    Args:
        folder, patterns, index: As of `someone_elses`.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder, or a path where one can be made")
    foreign = someone_elses(folder, patterns, index)
    if foreign is not None:
        raise ValueError(
            f"{folder} has a {foreign} and no {index}, so it holds something else; "
            "give another folder, or move that away"
        )


def check_format_version(path: str | Path, config: dict[str, Any], known: int, name: str = "format_version") -> None:
    """Raise a `ValueError` when the artifact or file at `path` is newer than the format this version reads.

    Args:
        path: What `config` was read from.
        config: With the version under `name`.
        known: The newest that is read.
        name: What the version is called there.
    """
    version = config.get(name)
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{path} has {name} {version!r}; expected a number from 1 to {known}")
    if version > known:
        raise ValueError(
            f"{path} has {name} {version} and hf_distill {__version__} reads up to {known}; upgrade hf_distill"
        )


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide the numbers in an artifact."""
    names = ("torch", "torchvision", "transformers", "datasets", "accelerate", "timm")
    return {"hf_distill": __version__, **{name: importlib.metadata.version(name) for name in names}}
