"""Files that are whole or not there, and what an artifact says of its own format and makers."""

import importlib.metadata
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .._version import __version__

STAGING = ".saving-"  # what is written aside in the folder that it is to be moved into
LARGEST_JSON = 200_000_000  # bytes; ImageNet-21K's names and every hyper-parameter there is are less than one of them


def atomic_write(path: str | Path, data: bytes | memoryview | str) -> None:
    """Put `data` at `path` whole or not at all; text is UTF-8."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


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


def check_format_version(path: str | Path, config: dict[str, Any], known: int) -> None:
    """Raise a `ValueError` when the artifact at `path` is newer than the format this version reads."""
    version = config.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{path} has format_version {version!r}; expected a number from 1 to {known}")
    if version > known:
        raise ValueError(
            f"{path} has format_version {version} and hf_distill {__version__} reads up to {known}; upgrade hf_distill"
        )


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide the numbers in an artifact."""
    names = ("torch", "torchvision", "transformers", "datasets", "accelerate", "timm")
    return {"hf_distill": __version__, **{name: importlib.metadata.version(name) for name in names}}
