"""`StudentResults`: what students reached, in a folder from the moment that it is known.

An interrupted table goes on with it, and a row that is there is not trained again. A file holds the results of the
students that trained side by side, for these decide how each other's sums are rounded, and its name is a digest of all
that decides them: the bytes of images and labels, the network, the protocol, seeds, precision, device and versions.
Where anything else is asked for, another file is.

What they reached on all real images lies in the cache of `datasets` too, in files of the same names: another set of
these images, with this student, protocol and seed, finds it there, whatever its size and baselines. So are the coresets
that one such network chose, for sets with as many images of each class and the same list of coresets; for others it is
trained again, with those side by side with it. After `datasets.disable_caching()` none is kept or found there.
"""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor

from ..data.feed import Pool
from ..data.files import cache_folder
from ..distilled.epoch_labels import images_sha256
from ..hub.files import atomic_write, package_versions
from ..networks.architectures import sha256_of
from .accuracy import device_name

__all__ = ["FULL_DATA", "STUDENTS", "StudentResults", "remove_results"]

logger = logging.getLogger(__name__)

STUDENTS = "students"  # the folder, in that of a run or of a set
FULL_DATA = "hf_distill-full-data"  # the folder, in the cache of `datasets`
NAME = "[0-9a-f]" * 32 + ".json"


class StudentResults:
    """Results by what decides them. Processes, and other runs, may read and write here at the same time.

    Args:
        folder: Of the run, or of the set; what is kept lies in its `students/`.
        accelerator: Device and precision.
    """

    def __init__(self, folder: str | Path, accelerator: Accelerator) -> None:
        self.folder = Path(folder, STUDENTS)
        self._launch = _launch(accelerator)
        self._keeps = True
        self._images: dict[tuple[Pool, str], str] = {}

    def images(self, pool: Pool, rows: Tensor | None = None) -> str:
        """64 hex digits of some images as students see them, and of their classes and places.

        Args:
            pool: Among others, the images.
            rows: Of any shape, on the CPU; all if not given.
        """
        rows = torch.arange(len(pool)) if rows is None else rows
        used, places = rows.unique(return_inverse=True)
        labels = pool.labels.cpu()[used]
        numbers = f"{pool.keeps} " + sha256_of({"rows": used, "places": places, "labels": labels})
        if (pool, numbers) not in self._images:
            self._images[pool, numbers] = hashlib.sha256((numbers + images_sha256(pool, used)).encode()).hexdigest()
        return self._images[pool, numbers]

    def complete(self, about: dict[str, Any]) -> dict[str, Any]:
        """What decides some results, and what all of this process share, as JSON types."""
        return json.loads(json.dumps({**about, **self._launch}))

    def find(
        self, about: dict[str, Any], may_be: Callable[[list[Any]], bool], full_data: bool = False
    ) -> list[Any] | None:
        """The results of such students, if they are there; what is damaged is said, and is not.

        Args:
            about: As `complete` gives it.
            may_be: True for what may be their results.
            full_data: They were trained on all real images, and are taken from the cache where they are there alone.
        """
        for folder in self._folders(full_data):
            results = self._read(folder / _name(about), about, may_be)
            if results is not None:
                if folder != self.folder:
                    self.keep(about, results)
                return results
        return None

    def _read(self, path: Path, about: dict[str, Any], may_be: Callable[[list[Any]], bool]) -> list[Any] | None:
        try:
            kept = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError):
            kept = {}
        kept = kept if isinstance(kept, dict) else {}
        results = kept.get("results")
        whole = kept.get("about") == about and kept.get("sha256") == _sha256(results) and isinstance(results, list)
        if whole and may_be(results):
            return results
        logger.warning("%s is damaged; its students are trained again", path)
        return None

    def keep(self, about: dict[str, Any], results: list[Any], full_data: bool = False) -> None:
        """Write down what students reached, as JSON types; where that cannot be, say so once and do without.

        Args:
            about, full_data: As for `find`.
            results: Of the students.
        """
        kept = {"about": about, "results": results, "sha256": _sha256(results)}
        for folder in self._folders(full_data):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                atomic_write(folder / _name(about), json.dumps(kept, ensure_ascii=False) + "\n")
            except OSError as error:
                if self._keeps and folder == self.folder:
                    logger.warning(
                        "what students reach is not kept in %s (%s): after an interruption they are trained again",
                        folder,
                        error.strerror or error,
                    )
                    self._keeps = False

    def _folders(self, full_data: bool) -> list[Path]:
        shared = full_data and datasets.is_caching_enabled()
        return [self.folder, *([cache_folder() / FULL_DATA] if shared else [])]


def _name(about: dict[str, Any]) -> str:
    return f"{_sha256(about)[:32]}.json"


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _launch(accelerator: Accelerator) -> dict[str, Any]:
    """What decides rounding beside the work itself, as JSON types."""
    device = accelerator.device
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return {
        "device": device_name(device),
        "cpu_threads": torch.get_num_threads() if device.type == "cpu" else None,
        "cpu": [platform.machine(), torch.backends.cpu.get_cpu_capability()] if device.type == "cpu" else None,
        "mixed_precision": str(accelerator.mixed_precision),
        "autocast": None if autocast is None else str(autocast),
        "compiled": {name: str(value) for name, value in accelerator.state.dynamo_plugin.to_dict().items()},
        "float32": [*_float32(), os.environ.get("NVIDIA_TF32_OVERRIDE")],
        "cudnn": [torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "versions": package_versions(),
    }


def _float32() -> list[str]:
    """How exact products and convolutions of float32 are: by PyTorch's older switches, or by the newer ones where these
    were used, for then the older ones cannot be read."""
    backends = torch.backends
    try:
        products = torch.get_float32_matmul_precision()
        return [str(switch) for switch in (products, backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)]
    except RuntimeError:
        kinds = (backends, backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
        return [str(kind.fp32_precision) for kind in kinds]


def remove_results(folder: Path) -> None:
    """Remove what students of a run reached, and nothing else that somebody keeps there."""
    kept = folder / STUDENTS
    for path in (*kept.glob(NAME), *kept.glob(f".{NAME}.*.tmp")):
        path.unlink()
    if kept.is_dir() and not kept.is_symlink() and not any(kept.iterdir()):
        kept.rmdir()
