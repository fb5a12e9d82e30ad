"""Decoded pictures of a large set, kept in a file that the processes of a machine map: one copy in memory for all."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..data.files import cache_folder
from ..hub.files import locked, reserve, sha256_of_file, whole_file

__all__ = ["shared_pictures"]

logger = logging.getLogger(__name__)

FOLDER = "hf_distill-pictures"  # in the cache of `datasets`
LARGE = 2**30  # bytes from which pictures are kept: below, each process decodes its own in seconds
AT_ONCE = 2**26


def shared_pictures(files: Sequence[Path], shape: Sequence[int], decode: Callable[[np.ndarray], None]) -> np.ndarray:
    """The pictures (N, C, H, W) uint8 that some files hold; large ones are decoded by one process, once.

    Writing into the array changes what this process sees of it, and no file.

    Args:
        files: All that decides the pictures, beside their shape.
        shape: (N, C, H, W).
        decode: Fills such an array; what it raises is raised.
    """
    if math.prod(shape) < LARGE:
        return _own(shape, decode)
    known = json.dumps([list(shape), [sha256_of_file(path) for path in files]])
    try:
        path = cache_folder() / FOLDER / hashlib.sha256(known.encode()).hexdigest()[:32]
        path.parent.mkdir(exist_ok=True)
        return _mapped(path, shape, decode)
    except OSError as error:
        logger.warning(
            "decoded pictures are not kept for other processes (%s); each decodes %s bytes of its own",
            error,
            f"{math.prod(shape):,}",
        )
        return _own(shape, decode)


def _own(shape: Sequence[int], decode: Callable[[np.ndarray], None]) -> np.ndarray:
    array = np.empty(shape, np.uint8)
    decode(array)
    return array


def _mapped(path: Path, shape: Sequence[int], decode: Callable[[np.ndarray], None]) -> np.ndarray:
    """The file at `path`, made first where it is not there whole."""
    lock = path.with_name(f"{path.name}.lock")
    with locked(lock):
        if not path.exists():
            _make(path, shape, decode)
    if not _is_whole(path, shape):
        logger.warning("%s is damaged; its pictures are decoded again", path)
        with locked(lock):  # where others map the damaged file, they keep that
            if not _is_whole(path, shape):
                _make(path, shape, decode)
    return np.memmap(path, np.uint8, "c", shape=tuple(shape))


def _make(path: Path, shape: Sequence[int], decode: Callable[[np.ndarray], None]) -> None:
    size = math.prod(shape)
    with whole_file(path, size + 32) as aside:
        reserve(aside, size + 32)
        array = np.memmap(aside, np.uint8, "r+", shape=tuple(shape))
        decode(array)
        array.flush()
        with open(aside, "r+b") as file:
            file.seek(size)
            file.write(_digest(aside, size))


def _is_whole(path: Path, shape: Sequence[int]) -> bool:
    """True where the file is as long as it should be, and ends with the digest of what comes before."""
    size = math.prod(shape)
    if path.stat().st_size != size + 32:
        return False
    with open(path, "rb") as file:
        file.seek(size)
        return file.read() == _digest(path, size)


def _digest(path: Path, size: int) -> bytes:
    """The 32 bytes of the SHA-256 of the beginning of a file."""
    digest, left = hashlib.sha256(), size
    with open(path, "rb") as file:
        while left:
            part = file.read(min(AT_ONCE, left))
            digest.update(part)
            left -= len(part)
    return digest.digest()
