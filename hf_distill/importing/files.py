"""Steps of every import: read a file without running it, name it by its hash, find out what is known of its data."""

import pickle
import re
import struct
import textwrap
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.images import RealImages
from ..data.preprocessing import Preprocessing
from ..hub.files import STAGING, package_versions, sha256_of_file
from ..runs.claims import CLAIM

# What torch.load raises for a file that is damaged, cut off, or of another kind.
UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
)
PLAIN = "?bhilqBHILQefd"  # types of arrays that become tensors
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
# A file whose content takes more bytes than both is one that was made to exhaust the memory.
LARGE = 2**30
GROWTH = 200  # times the file
# The same for lists that are stored once and referred to in many places.
ENTRIES = 10**6
REPEATS = 10  # times the entries that are stored


class _RefusedError(ValueError):
    """The file is what it is meant to be, and is not read."""


class _Kind:
    """Stands in for numpy's dtype while a file is read: a type of numbers, and nothing that refers to objects."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        self.dtype = _plain(np.dtype(code) if re.fullmatch(r"[biuf]\d", str(code)) else None, str(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for numpy's ndarray while a file is read: its numbers are copied, and nothing else is done."""

    def __init__(self) -> None:
        self.tensor: Tensor | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _Kind):
            raise TypeError("an array of no numbers")
        flat = np.frombuffer(content, kind.dtype)
        self.tensor = as_tensor(flat.reshape(shape, order="F" if by_columns else "C"))


def _array(*_: Any) -> _Array:
    """An array whose content follows."""
    return _Array()


def _nothing() -> bytes:
    """The content of an empty array."""
    return b""


def _scalar(kind: _Kind, content: bytes) -> Any:
    """The number of a pickled scalar of numpy."""
    return np.frombuffer(content, kind.dtype, count=1)[0].item()


# Arrays and numbers of numpy, under the names of numpy 1 and 2, are made by the functions above in place of its own: a
# type that a file makes up cannot get that far.
NUMPY: list[Any] = [(_Kind, "numpy.dtype"), (_Array, "numpy.ndarray"), (_nothing, "builtins.bytes")]
for _core in ("core", "_core"):
    NUMPY += [(_array, f"numpy.{_core}.multiarray._reconstruct"), (_scalar, f"numpy.{_core}.multiarray.scalar")]


def _plain(dtype: np.dtype | None, what: str) -> np.dtype:
    """`dtype`, which is one of numbers that torch has too."""
    if dtype is None or dtype.char not in PLAIN:
        raise TypeError(f"an array of {what}, not of numbers")
    return dtype


def as_tensor(array: np.ndarray) -> Tensor:
    """A copy of an array of numbers, of any byte order."""
    return torch.from_numpy(np.array(array, _plain(array.dtype, str(array.dtype)).newbyteorder("="), order="C"))


def numbers_in(value: Any) -> Tensor | None:
    """A tensor, or one of the numbers in a list or alone; None for what is neither."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, (list, tuple, int, float, np.number)):
        return None
    rows = (
        [row.tolist() if isinstance(row, Tensor) else row for row in value]
        if isinstance(value, (list, tuple))
        else value
    )
    try:
        return as_tensor(np.asarray(rows))
    except (TypeError, ValueError, OverflowError):
        return None


def check_fetched(path: Path) -> None:
    """Raise a `ValueError` for a file that was never fetched: what stands in its place says so in its first bytes."""
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if not head:
        raise ValueError(f"{path} cannot be read: it is empty; fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS and not the file itself; fetch it with `git lfs pull`")
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error", b"{")):
        raise ValueError(
            f"{path} is a page or a message of a server ({head[:40].decode(errors='replace')!r}) and not the file "
            "itself; fetch it again, logged in where that is asked for"
        )


def _check_tensor(path: Path, tensor: Tensor) -> None:
    """Raise a `ValueError` unless a tensor is what an array of numbers is."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided:
        kind = "sparse"
    elif tensor.is_nested:
        kind = "nested"
    elif tensor.is_meta:
        kind = "meta"
    elif tensor.dtype in (torch.bool, *FLOATS, *INTEGERS):
        return
    raise _RefusedError(
        f"{path} holds a {kind} tensor; expected dense tensors of numbers, with their values: save it again as such"
    )


def _check_bytes(path: Path, size: int, what: str) -> None:
    """Raise a `ValueError` where `size` bytes are more than a file can mean."""
    stored = path.stat().st_size
    if size > max(LARGE, GROWTH * stored):
        raise _RefusedError(
            f"{path} is refused: {what} {size:,} bytes of a file of {stored:,}, more than {GROWTH} times as many; ask "
            "its authors for a file of the images themselves"
        )


class _Unpickled:
    """What a `.pt` file holds, with tensors in place of arrays.

    What a pickle refers to in several places is converted once, and is one object in several places again.

    Args:
        path: The file, for messages.

    Attributes:
        stored: Entries of dicts, lists and tuples that were converted.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.stored = path, 0
        self.done: dict[int, tuple[Any, int, int] | None] = {}  # by id; None while it is being converted

    def convert(self, content: Any) -> tuple[Any, int, int]:
        """`content` converted, and its entries and the bytes of its tensors, counted in each place anew.

        Raises:
            TypeError: An array of no content, or of other things than numbers.
            ValueError: A tensor that is none of plain numbers, or a list that holds itself.
        """
        if isinstance(content, _Array):
            if content.tensor is None:
                raise TypeError("an array without content")
            content = content.tensor
        if isinstance(content, Tensor):
            _check_tensor(self.path, content)
            return content, 1, content.numel() * content.element_size()
        if not isinstance(content, dict) and type(content) not in (list, tuple):
            return content, 1, 0
        if id(content) in self.done:
            known = self.done[id(content)]
            if known is None:
                raise ValueError("a list that holds itself")
            return known
        self.done[id(content)] = None
        parts = list(map(self.convert, content.values() if isinstance(content, dict) else content))
        values = [part[0] for part in parts]
        self.stored += 1 + len(parts)
        converted = dict(zip(content, values, strict=True)) if isinstance(content, dict) else type(content)(values)
        self.done[id(content)] = known = converted, 1 + sum(p[1] for p in parts), sum(p[2] for p in parts)
        return known


def _with_tensors(path: Path, content: Any) -> Any:
    """`content` with tensors in place of arrays.

    Raises:
        TypeError: An array of other things than numbers.
        ValueError: There are other tensors than plain ones, or more of anything than the file can mean.
    """
    unpickled = _Unpickled(path)
    converted, entries, size = unpickled.convert(content)
    if entries > max(ENTRIES, REPEATS * unpickled.stored):
        raise _RefusedError(
            f"{path} is refused: its lists hold one another, {entries:,} entries by {unpickled.stored:,} that are "
            "stored; ask its authors for a file of plain tensors"
        )
    _check_bytes(path, size, "its tensors declare")
    return converted


def _zipped(path: Path) -> list[zipfile.ZipInfo]:
    """The parts of a zip file, none for another file.

    Raises:
        ValueError: They would be unpacked to more than a file can mean.
    """
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    _check_bytes(path, sum(part.file_size for part in parts), "its parts unpack to")
    return parts


def _can_be_mapped(path: Path) -> bool:
    """True for a zip file whose parts lie in it as they are; torch checks neither that nor the sums of the parts.

    Raises:
        BadZipFile: A part is not what its sum says. A sum of 0 is one that torch was told not to compute.
        ValueError: Its parts would be unpacked to more than a file can mean.
    """
    parts = _zipped(path)
    if not parts:
        return False
    with zipfile.ZipFile(path) as archive:
        for part in parts:
            if part.CRC:
                with archive.open(part) as content:
                    while content.read(2**20):  # the sum is compared at the end
                        pass
    return all(part.compress_type == zipfile.ZIP_STORED for part in parts)


def load_pt(path: Path) -> Any:
    """The content of a `.pt` file on the CPU, mapped where its format allows it; nothing in it is run.

    Arrays of numpy become tensors, and its numbers those of Python.

    Raises:
        ValueError: It is none, is damaged, or needs code to be read; it has tensors of other things than plain numbers,
            or was made to exhaust the memory.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file; expected a .pt file that torch.save wrote")
    check_fetched(path)  # who may not read it is told so
    try:
        with torch.serialization.safe_globals(NUMPY), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol|Validating sparse tensor invariants")
            mapped = _can_be_mapped(path)
            return _with_tensors(path, torch.load(path, map_location="cpu", mmap=mapped, weights_only=True))
    except _RefusedError:
        raise
    except UNREADABLE as error:
        needs = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needs:
            raise ValueError(
                f"{path} is refused: reading it would run code ({needs[1]}), and only plain tensors are read; ask its "
                "authors for a file of tensors"
            ) from error
        said = str(error).rpartition("WeightsUnpickler error:")[2]  # before it stands how to read it all the same
        reason = textwrap.shorten(" ".join(said.split()), 100) or type(error).__name__
        if "Unsupported operand 149" in str(error):  # what protocols from 4 on begin with
            raise ValueError(
                f"{path} was saved with a pickle protocol above 3, which is not read; save it again with torch.save, "
                "without pickle_protocol"
            ) from error
        raise ValueError(
            f"{path} cannot be read ({reason}): damaged, or no file of plain tensors by torch.save; fetch it again"
        ) from error


def load_arrays(path: Path) -> Any:
    """The content of a `.npy` file, a tensor, or of a `.npz` file, tensors by name; words stay lists of words.

    Raises:
        ValueError: It is none, is damaged, holds objects, which are pickled, or was made to exhaust the memory.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file; expected a .npy or .npz file that numpy wrote")
    check_fetched(path)

    def plain(array: np.ndarray) -> Any:
        return array.tolist() if array.dtype.kind == "U" else as_tensor(array)

    try:
        _zipped(path)
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return plain(content)
        with content:
            return {name: plain(content[name]) for name in content.files}
    except _RefusedError:
        raise
    except UNREADABLE as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path} is refused: reading it would run code (a pickle), and only arrays of numbers are read; ask "
                "its authors for a file of these"
            ) from error
        reason = textwrap.shorten(" ".join(str(error).split()), 100) or type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}): damaged, or no file of arrays; fetch it again") from error


def origin_of(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Names and hashes of the files that an artifact was made from: no folders, for those are of this machine."""
    return [{"file": path.name, "sha256": sha256_of_file(path)} for path in paths]


def require_empty(directory: str | Path) -> None:
    """Raise a `ValueError` unless an import can go to `directory` without touching what is there.

    What a killed save wrote aside is nothing.
    """
    directory = Path(directory)
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    if directory.is_file() or any(name != CLAIM and not name.startswith(STAGING) for name in names):
        raise ValueError(f"--output_dir {directory} is not empty; give a new folder")


def known_preprocessing(
    real: RealImages | None,
    shape: tuple[int, ...],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    what: str,
) -> Preprocessing:
    """That of `real`, else by `mean` and `std`; it fits images of `shape` (C, H, W)."""
    if real is not None:
        if tuple(real.shape) != tuple(shape):
            raise ValueError(
                f"{what} holds images {'x'.join(map(str, shape))} (channels x height x width) and the source data are "
                f"{'x'.join(map(str, real.shape))}; give the --dataset_name they were made of, and its --resolution"
            )
        return real.preprocessing
    if mean is None or std is None:
        raise ValueError(
            f"{what} does not say how its images were normalised; give the source data (--dataset_name), or --mean and "
            "--std (zeros and ones where nothing was done)"
        )
    return Preprocessing(shape[0], (shape[1], shape[2]), tuple(map(float, mean)), tuple(map(float, std)))


def known_classes(
    real: RealImages | None, class_names: Sequence[str] | None, own: list[str] | None, what: str
) -> list[str]:
    """Names of the classes: those given, else the file's own, else those of the source data; they agree."""
    known = [list(names) for names in (class_names, own, None if real is None else real.class_names) if names]
    if not known:
        raise ValueError(f"{what} does not name its classes; give the source data (--dataset_name), or --class_names")
    if real is not None and known[0] != list(real.class_names):
        raise ValueError(
            f"the classes are {', '.join(known[0])[:80]} and those of the source data "
            f"{', '.join(real.class_names)[:80]}; give the data they were made of, with --classes in the same order"
        )
    if len(set(known[0])) < len(known[0]):
        raise ValueError("a class is named twice in --class_names; give a name of its own to each")
    return known[0]


def config_of(real: RealImages | None, method: str | None, imported_from: dict[str, Any]) -> dict[str, Any]:
    """The content of `distill_config.json`; nothing of it is guessed."""
    config: dict[str, Any] = {"imported_from": imported_from, "versions": package_versions()}
    if method is not None:
        config["method"] = method
    if real is not None:
        config["source"] = real.provenance
    return config
