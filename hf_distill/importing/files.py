"""Steps of every import: read a file without running it, name it by its hash, find out what is known of its data."""

import hashlib
import pickle
import re
import struct
import textwrap
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.images import RealImages
from ..data.preprocessing import Preprocessing
from ..hub.files import package_versions

# What torch.load raises for a file that is damaged, cut off, or of another kind.
UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
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
)


def _numpy_scalars() -> list[Any]:
    """The parts that a pickled numpy number is made with, under the names of numpy 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    return [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")] + [np.dtype, *numbers]


def load_pt(path: Path) -> Any:
    """The content of a `.pt` file on the CPU, mapped where its format allows it; nothing in it is run."""
    if not path.is_file():
        raise ValueError(f"{path} is no file; expected a .pt file that torch.save wrote")
    path.open("rb").close()  # who may not read it is told so
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except UNREADABLE as error:
        needs = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needs:
            raise ValueError(
                f"{path} is refused: reading it would run code ({needs[1]}), and only plain tensors are read; ask its "
                "authors for a file of tensors"
            ) from error
        reason = textwrap.shorten(" ".join(str(error).split()), 100) or type(error).__name__
        raise ValueError(
            f"{path} cannot be read ({reason}): damaged, or no file of plain tensors by torch.save; fetch it again"
        ) from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def origin_of(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Names and hashes of the files that an artifact was made from: no folders, for those are of this machine."""
    return [{"file": path.name, "sha256": _sha256(path)} for path in paths]


def require_empty(directory: str | Path) -> None:
    """Raise a `ValueError` unless an import can go to `directory` without touching what is there."""
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
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
