"""What the field has lying about, as artifacts of this package: `.pt` images, `.pt` trajectories, folders of images.

`.pt` files are read with `torch.load(weights_only=True)`: tensors, plain containers and, for the accuracies that lie
beside DC's images, numpy's scalars. A file that needs anything else to run is refused.

Layouts:

- MTT, TESLA, FTD, DATM: `images_<step>.pt`, a tensor (N, C, H, W) as students saw it, class after class; beside it
  `labels_<step>.pt`, classes (N,) or soft labels (N, K), perhaps `lr_<step>.pt`, and with whitening
  `images_zca_<step>.pt`, the same as pixels.
- DC, DSA, DM: `res_<method>_<...>.pt`, `{"data": [[images, labels], ...], "accs_all_exps": {...}}`, a pair for each
  experiment.
- `DistilledSet.export_pt`, which says everything itself, and any `{"images": ..., "labels": ...}`.
- MTT's `replay_buffer_<n>.pt`: list[expert][epoch][parameter].
- SRe2L, CDA, RDED: a folder of JPEG or PNG files for each class, named by the class or its number (`new007`, `00007`).
"""

import hashlib
import json
import logging
import math
import pickle
import re
import shutil
import struct
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from .augment import DEFAULT_STRATEGY, DSA
from .config import DataArguments, check_choice
from .data import RealImages
from .distilled import DistilledSet
from .experts import DeviceImages
from .files import atomic_write, package_versions
from .functional import FlatModel
from .hub import Home
from .models import CONVNETS, StudentSpec
from .pixels import BadImage, Plan, Target, decode, is_gray
from .source import Source
from .trajectories import EXPERT_FILE, FORMAT_VERSION, METADATA, ExpertTrajectories, compact
from .transforms import Preprocessing

__all__ = [
    "class_order",
    "describes_itself",
    "import_image_folder",
    "import_images",
    "import_trajectories",
    "require_empty",
]

logger = logging.getLogger(__name__)

SPACES = ("auto", "network", "pixels")
PICTURES = (".jpg", ".jpeg", ".png")
NUMBERED = re.compile(r"(?:new|class)?_?(\d+)")  # new007 by SRe2L, 00007 by RDED
BYTES_FROM = 16.0  # floats from 0 to beyond this are bytes that somebody converted
NORMALISED = 1e-3  # how far a row of probabilities may be from 1: they were float16 once, perhaps
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


# Files


def _numpy_scalars() -> list[Any]:
    """What a pickled numpy number is made with, under the names of numpy 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    return [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")] + [np.dtype, *numbers]


def _load(path: Path) -> Any:
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


def _origin(paths: Sequence[Path]) -> list[dict[str, str]]:
    """What an artifact says of the files it was made from: no folders, for those are of this machine."""
    return [{"file": path.name, "sha256": _sha256(path)} for path in paths]


def require_empty(directory: str | Path) -> None:
    """Raise a `ValueError` unless an import can go to `directory` without touching what is there."""
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"--output_dir {directory} is not empty; give a new folder")


def _find_images(path: Path) -> Path:
    """The file of images in a folder of `.pt` files; an error that lists them unless one stands out."""
    files = [file for file in sorted(path.glob("*.pt")) if not file.stem.startswith(("labels", "lr"))]
    plain = [file for file in files if not file.stem.startswith("images_zca")]
    others = [file for file in plain if not file.stem.startswith("images")]
    wanted = "images_best" if plain else "images_zca_best"
    chosen = [] if others else [file for file in files if file.stem == wanted]
    chosen = chosen or plain or files
    if len(chosen) != 1:
        found = ", ".join(file.name for file in chosen) or "none"
        raise ValueError(f"{path} holds several .pt files of images, or none ({found}); name the one to import")
    return chosen[0]


# Images


@dataclass
class _Images:
    """What a `.pt` file, and the files beside it, say."""

    images: Tensor  # (N, C, H, W)
    labels: Tensor | None  # (N,) or (N, K)
    layout: str
    files: list[Path]
    space: str | None = None  # where the layout tells it
    soft_labels: Tensor | None = None  # (N, K) logits
    lr: Any = None
    class_names: list[str] | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    whitening: dict[str, Any] = field(default_factory=dict)


def _read_images(path: Path, labels: Path | None, experiment: int) -> _Images:
    if path.is_dir():
        path = _find_images(path)
    content = _load(path)
    if isinstance(content, Tensor):
        read = _read_tensor(path, content)
    elif isinstance(content, dict) and isinstance(content.get("data"), list):
        read = _read_experiments(path, content["data"], experiment)
    elif isinstance(content, dict) and isinstance(content.get("images"), Tensor):
        read = _read_dict(path, content)
    else:
        found = f"keys {', '.join(map(str, content))[:100]}" if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} holds {found}; expected a tensor of images, {{'data': [[images, labels], ...]}} or "
            "{'images': ..., 'labels': ...}"
        )
    if labels is not None:
        read.labels, read.soft_labels = _load(labels), None
        read.files = [*read.files[:1], labels]
    if read.labels is not None and not isinstance(read.labels, Tensor):
        raise ValueError(f"the labels of {path} are a {type(read.labels).__name__}; expected a tensor (N,) or (N, K)")
    return read


def _read_tensor(path: Path, images: Tensor) -> _Images:
    read = _Images(images, None, "tensor", [path])
    if not path.stem.startswith("images"):
        return read
    step = path.stem.removeprefix("images").removeprefix("_zca")
    if path.stem.startswith("images_zca"):
        read.space = "pixels"
    for name in ("labels", "lr"):
        beside = path.with_name(f"{name}{step}.pt")
        if beside.is_file():
            setattr(read, name, _load(beside))
            read.files.append(beside)
    return read


def _read_experiments(path: Path, data: list[Any], experiment: int) -> _Images:
    if not 0 <= experiment < len(data):
        raise ValueError(f"{path} holds {len(data)} experiments; --experiment is {experiment}, counted from 0")
    pair = data[experiment]
    if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)):
        raise ValueError(f"experiment {experiment} of {path} is no pair [images, labels] of tensors")
    if len(data) > 1:
        logger.info("%s holds %d experiments: reading number %d", path, len(data), experiment)
    return _Images(pair[0], pair[1], f"experiments, number {experiment} of {len(data)}", [path])


def _read_dict(path: Path, content: dict[str, Any]) -> _Images:
    read = _Images(content["images"], content.get("labels"), "dict", [path], lr=content.get("lr"))
    names = content.get("class_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"the class_names of {path} are no list of words")
    soft = content.get("soft_labels")
    if soft is not None and not isinstance(soft, Tensor):
        raise ValueError(f"the soft_labels of {path} are a {type(soft).__name__}; expected a tensor (N, K)")
    read.class_names, read.soft_labels = names, soft
    statistics = content.get("mean"), content.get("std")
    if all(isinstance(value, Tensor) for value in statistics):
        read.mean, read.std = statistics
    if isinstance(content.get("pixel_values"), Tensor) and read.mean is not None:
        # The pixels beside them are clamped, these are what was optimised.
        read.images, read.space, read.layout = content["pixel_values"], "network", "export_pt"
        read.whitening = {name: value for name, value in content.items() if name.startswith("zca_")}
    return read


def describes_itself(path: str | Path) -> bool:
    """Whether the images in `path` bring class names and preprocessing, so that no source data are needed.

    Raises:
        ValueError: As `import_images`, where the file cannot be read.
    """
    read = _read_images(Path(path), None, 0)
    return read.class_names is not None and read.mean is not None


def _preprocessing(
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


def _own_preprocessing(read: _Images, given: Preprocessing | None) -> Preprocessing | None:
    """What the file itself says, where it does; `given` must agree with it, and has what the file does not say."""
    if read.mean is None or read.std is None:
        return given
    channels, height, width = read.images.shape[1:]
    values = channels * height * width
    wanted = {"zca_mean": (values,), "zca_vectors": (values, values), "zca_values": (values,)}
    mean, std = (tuple(part.flatten().tolist()) for part in (read.mean, read.std))
    parts = {name: part for name, part in read.whitening.items() if isinstance(part, Tensor) and part.ndim}
    if parts and {name: tuple(part.shape) for name, part in parts.items()} != wanted:
        raise ValueError(f"the whitening in {read.files[0]} does not fit its images; export the set again")
    if given is not None:
        theirs, ours = [torch.tensor(given.mean), torch.tensor(given.std)], [torch.tensor(mean), torch.tensor(std)]
        if (given.zca is None) == (not parts) and parts:
            theirs += [given.zca.mean, given.zca.values]
            ours += [parts["zca_mean"], parts["zca_values"]]
        if (given.zca is None) != (not parts) or not all(
            len(a) == len(b) and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(theirs, ours, strict=True)
        ):
            raise ValueError(
                f"{read.files[0]} says that its images were preprocessed otherwise than the source data are; give "
                "those it was made of with the same --normalization, or none"
            )
        return given
    if not parts:
        return Preprocessing(channels, (height, width), mean, std)
    eps, digest = read.whitening.get("zca_eps"), read.whitening.get("zca_digest", "")
    if eps is None:
        raise ValueError(
            f"{read.files[0]} holds whitened images and not the eps of the whitening; give the source data "
            "(--dataset_name) with --normalization zca"
        )
    zca = {"eps": float(eps), "digest": str(digest)}
    config = {"channels": channels, "image_size": [height, width], "mean": mean, "std": std, "zca": zca}
    return Preprocessing.from_config(config, parts)


def _class_names(
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


def _space(read: _Images, asked: str, preprocessing: Preprocessing) -> str:
    """Whether the values are pixels in [0, 1], bytes, or what a network sees; logged."""
    path, values = read.files[0], read.images
    if values.dtype == torch.uint8:
        found, why = "bytes", "they are uint8"
    elif asked != "auto":
        found, why = asked, "as asked for"
    elif read.space is not None:
        found, why = read.space, f"as {path.name} says"
    else:
        low, high = float(values.min()), float(values.max())
        if low >= 0 and high > BYTES_FROM:
            raise ValueError(
                f"the images of {path} go from {low:g} to {high:g}, as bytes do, and are {values.dtype}; store them as "
                "uint8 or divide by 255, or say --space network"
            )
        found = "pixels" if low >= 0 and high <= 1 else "network"
        why = f"they go from {low:.3g} to {high:.3g}"
        whitened = path.with_name(path.name.replace("images", "images_zca", 1))
        if found == "network" and path.stem.startswith("images") and whitened.is_file() and preprocessing.zca is None:
            raise ValueError(
                f"{whitened.name} beside {path} says that its images are whitened; give --normalization zca, or import "
                f"{whitened.name}"
            )
    logger.info("%s: images are read as %s (%s)", path, found, why)
    return found


def _split_labels(labels: Tensor | None, count: int, names: list[str], what: str) -> tuple[Tensor, Tensor | None]:
    """Classes (N,) and, where the labels say more than that, logits (N, K)."""
    classes = len(names)
    blocks = torch.arange(classes).repeat_interleave(count // classes) if count % classes == 0 else None
    if labels is None:
        if blocks is None:
            raise ValueError(
                f"{what} has no labels, and {count} images are no equal share for each of {classes} classes; give "
                "--labels, or the right classes"
            )
        logger.warning("%s has no labels: %d images for each class, class after class", what, count // classes)
        return blocks, None
    labels = labels.detach()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape not in ((count,), (count, classes)):
        raise ValueError(
            f"the labels of {what} have shape {tuple(labels.shape)}; expected ({count},), or ({count}, {classes}) for "
            f"{count} images of {classes} classes"
        )
    if not labels.isfinite().all():
        row = int((~labels.isfinite().view(count, -1).all(1)).nonzero()[0])
        raise ValueError(f"the label of image {row} of {what} is not finite")
    if labels.ndim == 1:
        whole = labels.long()
        if (whole != labels).any() or whole.min() < 0 or whole.max() >= classes:
            raise ValueError(
                f"the labels of {what} go from {labels.min():g} to {labels.max():g}; expected whole numbers from 0 to "
                f"{classes - 1}, for {classes} classes"
            )
        return whole, None
    best = labels.argmax(1)
    if torch.equal(labels.float(), torch.nn.functional.one_hot(best, classes).float()):
        return best, None
    logits = _logits(labels, what)
    # The teachers behind soft labels err; the images are still of the class that their place says.
    if blocks is not None and (blocks == best).float().mean() > 0.5:
        return blocks, logits
    return best, logits


def _logits(soft: Tensor, what: str) -> Tensor:
    """Logits (N, K) of probabilities, which are known by their sums, or of logits; logged."""
    soft = soft.detach().float()
    if not soft.isfinite().all():
        raise ValueError(f"the soft labels of {what} have NaN or infinite values")
    likely = bool((soft >= 0).all() and ((soft.sum(-1) - 1).abs() <= NORMALISED).all())
    logger.info("%s: soft labels are read as %s", what, "probabilities" if likely else "logits")
    return soft.clamp(min=torch.finfo(torch.float32).tiny).log() if likely else soft


def _number(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.number)):
        raise ValueError(f"the learning rate of {what} is a {type(value).__name__}; expected one number")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"the learned learning rate of {what} is {value}; expected one above 0: give --lr instead")
    return float(value)


def _check_finite(images: Tensor, labels: Tensor, names: list[str], what: str) -> None:
    for start in range(0, len(images), 1024):
        good = images[start : start + 1024].isfinite().flatten(1).all(1)
        if not good.all():
            row = start + int((~good).nonzero()[0])
            raise ValueError(f"image {row} of {what} (class {names[labels[row]]!r}) has NaN or infinite values")


def _config(real: RealImages | None, method: str | None, imported_from: dict[str, Any]) -> dict[str, Any]:
    """What `distill_config.json` says; nothing of it is guessed."""
    config: dict[str, Any] = {"imported_from": imported_from, "versions": package_versions()}
    if method is not None:
        config["method"] = method
    if real is not None:
        config["source"] = real.provenance
    return config


def import_images(
    path: str | Path,
    *,
    real: RealImages | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: str | Path | None = None,
    space: str = "auto",
    experiment: int = 0,
    lr: float | None = None,
    method: str | None = None,
) -> DistilledSet:
    """The distilled set in a `.pt` file of images, in one of the layouts at the top of this module.

    Args:
        path: The file, or a folder in which one pair of images and labels stands out.
        real: The training images it was made of: they give class names, preprocessing and provenance.
        class_names: Where there is no `real`.
        mean: Per channel, where there is no `real`.
        std: Per channel, where there is no `real`.
        labels: File of labels (N,) or (N, K); that beside the images if not given.
        space: "network" (standardised or whitened), "pixels" (in [0, 1]), or "auto": uint8 is bytes, values within
            [0, 1] are pixels, others what a network sees.
        experiment: Which pair, where the file has one for each experiment.
        lr: Learned learning rate; that in or beside the file if not given.
        method: What made the images, as cards say it.

    Raises:
        ValueError: The file needs code to run or is damaged, several files could be meant, or shapes, classes or values
            do not fit.
    """
    check_choice("space", space, SPACES)
    read = _read_images(Path(path), None if labels is None else Path(labels), experiment)
    what = str(read.files[0])
    images = read.images.detach()
    if images.ndim != 4 or not images.numel() or not (images.is_floating_point() or images.dtype == torch.uint8):
        raise ValueError(
            f"{what} holds images {tuple(images.shape)} {images.dtype}; expected (N, C, H, W), floats or uint8"
        )
    given = None
    if real is not None or mean is not None or read.mean is None:
        given = _preprocessing(real, tuple(images.shape[1:]), mean, std, what)
    preprocessing = _own_preprocessing(read, given) or given
    names = _class_names(real, class_names, read.class_names, what)
    classes, logits = _split_labels(read.labels, len(images), names, what)
    if read.soft_labels is not None:
        # Logits that happen to add up to 1 would be taken for probabilities.
        logits = read.soft_labels if read.layout == "export_pt" else _logits(read.soft_labels, what)
    absent = sorted(set(range(len(names))) - set(classes.tolist()))
    if absent and logits is None:
        raise ValueError(
            f"{what} has no image of class {names[absent[0]]!r} ({len(absent)} of {len(names)} classes lack); name the "
            "classes it has with --classes"
        )
    _check_finite(images, classes, names, what)
    found = _space(read, space, preprocessing)
    pixel_values = images.float() if found == "network" else preprocessing(images)
    imported_from = {"layout": read.layout, "space": found, "files": _origin(read.files)}
    return DistilledSet(
        pixel_values,
        classes,
        names,
        preprocessing,
        lr=_number(read.lr if lr is None else lr, what),
        soft_labels=logits,
        config=_config(real, method, imported_from),
    )


# Folders of images


def _inside(path: Path, root: Path) -> Path:
    if not path.resolve().is_relative_to(root):
        raise ValueError(f"{path} leads out of {root}; copy what it points to there")
    return path


def _numbers(folders: list[str], names: list[str]) -> dict[str, str]:
    """Class of each folder whose name is a number, by the place of the class in `names`."""
    found = {}
    numeric = all(name.isdecimal() for name in names)
    for folder in folders:
        match = NUMBERED.fullmatch(folder)
        if match and int(match[1]) < len(names):
            name = names[int(match[1])]
            if numeric and int(name) != int(match[1]):
                raise ValueError(
                    f"folder {folder} could be class {name!r} by its place or class {match[1].lstrip('0') or '0'!r} by "
                    "its name; rename the folders to the names of the classes"
                )
            found[folder] = name
    return found


def _match_folders(root: Path, folders: list[str], names: list[str]) -> dict[str, str]:
    """Class name of each folder: all by name, or all by number.

    Args:
        folders: Names of the folders in `root`.
        names: All classes of the source, in its order.
    """
    # As export_image_folder writes them.
    cleaned = {re.sub(r"[/\\\0]", "_", name).strip() or "_": name for name in names}
    cleaned |= {f"_{name}": original for name, original in cleaned.items() if name.startswith(".")}
    best = {folder: cleaned[folder] for folder in folders if folder in cleaned}
    if len(best) < len(folders):
        best = max(best, _numbers(folders, names), key=len)
    if len(best) < len(folders):
        odd = [folder for folder in folders if folder not in best]
        raise ValueError(
            f"{len(odd)} of {len(folders)} folders in {root} are no class of the source ({', '.join(odd[:10])}); "
            f"expected names such as {', '.join(names[:3])}, or numbers such as 00000 or new000 up to {len(names) - 1}"
        )
    if len(set(best.values())) < len(folders):
        raise ValueError(f"two folders in {root} are the same class; expected one for each")
    return best


def _class_files(root: Path, names: list[str], original: list[str]) -> list[tuple[Path, int]]:
    """Each picture of the classes `names` under `root`, with its class, class after class."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ValueError(f"{root} holds no folders; expected one for each class")
    by_name = {name: folder for folder, name in _match_folders(root, folders, original).items()}
    absent = [name for name in names if name not in by_name]
    if absent:
        raise ValueError(
            f"{root} has no folder for {len(absent)} of {len(names)} classes ({', '.join(absent[:10])}); name those it "
            "has with --classes"
        )
    files = []
    for label, name in enumerate(names):
        folder = _inside(root / by_name[name], root)
        pictures = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURES]
        if not pictures:
            raise ValueError(f"{folder} holds no JPEG or PNG files; expected the images of class {name!r}")
        files += [(_inside(path, root), label) for path in pictures]
    return files


def class_order(args: DataArguments) -> list[str]:
    """The classes of the source data in their order; no image is decoded unless it is streamed.

    Raises:
        ValueError: As `RealImages.from_hub`.
    """
    return Source.open(args, args.dataset_train_split, Target(None, "auto", False)).class_names


def import_image_folder(
    path: str | Path,
    *,
    real: RealImages | None = None,
    class_names: Sequence[str] | None = None,
    original_classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resolution: Sequence[int] | None = None,
    method: str | None = None,
) -> DistilledSet:
    """The distilled set in a folder of JPEG or PNG files, in a folder for each class.

    Args:
        path: The folder of the class folders, which are named by the class or by its number in the source's order.
        real: The training images it was made of: they give class names, size, preprocessing and provenance.
        class_names: Where there is no `real`.
        original_classes: All classes of the source in its order, where `real` holds only some of them: numbers count
            in these.
        mean: Per channel, where there is no `real`.
        std: Per channel, where there is no `real`.
        resolution: Height and width that pictures are brought to; without it they must have one size, that of `real`.
        method: What made the images, as cards say it.

    Raises:
        ValueError: A folder is no class, a class lacks, a file cannot be decoded, has another size, or is elsewhere.
    """
    root = Path(path).resolve()
    if not root.is_dir():
        raise ValueError(f"{path} is no folder; expected one that holds a folder of images for each class")
    names = _class_names(real, class_names, None, str(path))
    files = _class_files(root, names, list(original_classes or names))
    feature, digest = datasets.Image(), hashlib.sha256()

    def picture(file: Path) -> Any:
        content = file.read_bytes()
        try:
            return content, decode({"bytes": content, "path": str(file)}, feature, 0)
        except BadImage as bad:
            raise ValueError(bad.reason) from bad

    size = (resolution[0], resolution[-1]) if resolution else None
    first = picture(files[0][0])[1]
    if real is None:
        plan = Target(size, "auto", size is not None).plan((first.height, first.width), [is_gray(first)])
    else:
        plan = Plan(tuple(real.shape[1:]), real.shape[0], size is not None, False)
    images = np.empty((len(files), *plan.shape), np.uint8)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), 256):  # the pool would read everything ahead
            part = files[start : start + 256]
            for row, (content, image) in enumerate(pool.map(picture, [file for file, _ in part]), start=start):
                file = files[row][0]
                digest.update(json.dumps([file.relative_to(root).as_posix(), len(content)]).encode() + content)
                try:
                    images[row] = plan.pixels(image)
                except ValueError as error:
                    raise ValueError(f"{file}: {error}") from error
    preprocessing = _preprocessing(real, plan.shape, mean, std, str(path))
    imported_from = {
        "layout": "image folder",
        "space": "bytes",
        "files": [{"file": root.name, "sha256": digest.hexdigest(), "images": len(files)}],
    }
    pixel_values = preprocessing(torch.from_numpy(images))
    labels = torch.tensor([label for _, label in files])
    return DistilledSet(pixel_values, labels, names, preprocessing, config=_config(real, method, imported_from))


# Trajectories


def _buffers(paths: Sequence[str | Path]) -> list[Path]:
    """The files of a list of files and folders; those of a folder by their number."""

    def number(path: Path) -> tuple[int, str]:
        found = re.findall(r"\d+", path.stem)
        return int(found[-1]) if found else -1, path.name

    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("replay_buffer_*.pt"), key=number) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path} holds no replay_buffer_*.pt; name the files")
        files += inside
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise ValueError(f"{absent[0]} is no file; expected a replay_buffer_<n>.pt, or a folder of them")
    if len({file.resolve() for file in files}) < len(files):
        raise ValueError("a file of trajectories is named twice; name each once")
    return files


def _trajectory(path: Path, expert: int, snapshots: Any, flat: FlatModel) -> Tensor:
    """One expert of a buffer as rows (T + 1, P) float32."""
    who = f"expert {expert} of {path}"
    if not isinstance(snapshots, (list, tuple)) or len(snapshots) < 2:
        raise ValueError(f"{who} is no list of two or more snapshots; expected list[expert][epoch][parameter]")
    rows = []
    for epoch, snapshot in enumerate(snapshots):
        if not isinstance(snapshot, (list, tuple)) or not all(isinstance(part, Tensor) for part in snapshot):
            raise ValueError(f"epoch {epoch} of {who} is no list of tensors; expected list[expert][epoch][parameter]")
        shapes = [tuple(part.shape) for part in snapshot]
        if shapes != flat.shapes:
            index = next(
                (i for i, pair in enumerate(zip(shapes, flat.shapes, strict=False)) if pair[0] != pair[1]),
                min(len(shapes), len(flat.shapes)),
            )
            theirs, ours = (str(known[index]) if index < len(known) else "none" for known in (shapes, flat.shapes))
            name = flat.names[index] if index < len(flat.names) else "nothing"
            raise ValueError(
                f"parameter {index} of epoch {epoch} of {who} has shape {theirs}, and that of the student ({name}) is "
                f"{ours}; give the --student, its width and norm, the --resolution and classes that were trained"
            )
        rows.append(torch.cat([part.detach().float().flatten() for part in snapshot]))
    params = torch.stack(rows)  # (T + 1, P)
    if not params.isfinite().all():
        raise ValueError(f"{who} has NaN or infinite parameters: its training diverged; leave the file out")
    if (params == params[0]).all():
        raise ValueError(
            f"all {len(params)} snapshots of {who} are the same: they are aliases of the final parameters, as training "
            "on a CPU saves them without a copy; the path is lost, train it again with recipes/experts.py"
        )
    return params


@torch.no_grad()
def _accuracy(flat: FlatModel, theta: Tensor, images: DeviceImages) -> float:
    """Accuracy in [0, 1] of `theta` (P,), without augmentation."""
    right = 0
    for rows in torch.arange(len(images.real)).split(1024):
        x, y = images(rows.to(images.rows_device))
        right += int((flat(theta, x).argmax(1).to(y.device) == y).sum())
    return right / len(images.real)


def _warn_near_chance(accuracies: Sequence[float], real: RealImages) -> None:
    chance = 1 / real.num_classes
    noise = 2 * math.sqrt(chance * (1 - chance) / len(real))
    mean = sum(accuracies) / len(accuracies)
    if mean < chance + min(chance / 2, 0.1) + noise:
        now = "ZCA whitening" if real.preprocessing.zca is not None else "mean and std"
        logger.warning(
            "the last snapshots are right on %.1f %% of the training images, and chance is %.1f %%: most likely they "
            "were trained on other preprocessing than the %s of this run (see --normalization, --mean, --std), or on "
            "classes in another order",
            100 * mean,
            100 * chance,
            now,
        )


def import_trajectories(
    paths: Sequence[str | Path],
    directory: str | Path,
    spec: StudentSpec,
    *,
    real: RealImages | None = None,
    test: RealImages | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dsa_strategy: str = DEFAULT_STRATEGY,
    expert_format: str = "float32",
    method: str | None = None,
    device: torch.device | str = "cpu",
    disable_tqdm: bool = False,
) -> ExpertTrajectories:
    """Expert trajectories in a new folder, from `replay_buffer_<n>.pt` files; one file is open at a time.

    Parameters are taken in the order of the file. For the ConvNets of this package that is the order of DC's and MTT's:
    in each block the weight and bias of the convolution, then of the normalisation; at the end those of the linear
    layer, whose input is flattened by channel, height and width in both. It is the same function too, for colour
    images; gray ones are padded by 3 pixels at the first convolution there, and by 1 here. For a network with BatchNorm
    such a file has no running statistics, and here none are used.

    Args:
        paths: Files, or folders of `replay_buffer_*.pt`; experts are numbered in this order.
        directory: A new or empty folder.
        spec: The network that was trained.
        real: The training images: they give class names, preprocessing and provenance, and the last snapshots are
            measured on them.
        test: Images to measure them on too.
        class_names: Where there is no `real`.
        mean: Per channel, where there is no `real`.
        std: Per channel, where there is no `real`.
        dsa_strategy: The augmentation that the experts were trained with, which methods use again; MTT's by default.
        expert_format: "float32", or "compact" for little more than half the bytes.
        method: What made them, as cards say it.
        device: What accuracies are computed on.
        disable_tqdm: No progress bar.

    Raises:
        ValueError: A file needs code to run, does not fit `spec`, or holds no path; or `directory` is not empty.
    """
    check_choice("expert_format", expert_format, ("float32", "compact"))
    DSA(dsa_strategy)
    directory, files = Path(directory), _buffers(paths)
    require_empty(directory)
    shape = (spec.in_chans, *spec.img_size)
    preprocessing = _preprocessing(real, shape, mean, std, str(files[0]))
    names = _class_names(real, class_names, None, str(files[0]))
    if len(names) != spec.num_classes:
        raise ValueError(f"the student has {spec.num_classes} classes and {len(names)} are named; give the same ones")
    if spec.name in CONVNETS and spec.in_chans == 1:
        logger.warning(
            "MTT's ConvNet pads gray images by 3 pixels at its first convolution and %s by 1: the imported rows are "
            "exact, and the network they belong to is a slightly different one here",
            spec.name,
        )
    flat = FlatModel.from_spec(spec).to(device)
    sets = {"train": real, "test": test}
    measured = {split: DeviceImages(part, torch.device(device)) for split, part in sets.items() if part is not None}
    origin: list[dict[str, str]] = []
    training = {
        "method": method,
        "dsa_strategy": dsa_strategy,
        "expert_format": expert_format,
    }
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".importing-", dir=directory.parent))
    try:
        count, epochs, accuracies = 0, None, []
        with tqdm(total=len(files), desc="files", disable=disable_tqdm) as bar:
            for file in files:
                origin += _origin([file])
                for params in _experts(file, flat):
                    if epochs not in (None, len(params) - 1):
                        raise ValueError(
                            f"{file} holds an expert of {len(params) - 1} epochs and those before have {epochs}; "
                            "import files of one length"
                        )
                    epochs = len(params) - 1
                    last = params[-1].to(device)
                    right = {split: _accuracy(flat, last, images) for split, images in measured.items()}
                    accuracies += [right["train"]] if "train" in right else []
                    metadata = {
                        "expert": count,
                        "imported_from": origin[-1],
                        "training": training,
                        "names": flat.names,
                        "shapes": flat.shapes,
                        "experts_at_once": None,
                        "loss": [None] * epochs,
                        "accuracy": [None] * epochs,
                        **{f"{split}_accuracy": right.get(split) for split in sets},
                    }
                    tensors = compact(params) if expert_format == "compact" else {"params": params}
                    content = save(tensors, {METADATA: json.dumps(metadata, sort_keys=True)})
                    atomic_write(aside / EXPERT_FILE.format(count), content)
                    count += 1
                bar.update()
        if real is not None:
            _warn_near_chance(accuracies, real)
        config = {
            "format_version": FORMAT_VERSION,
            "num_experts": count,
            "num_epochs": epochs,
            "num_params": flat.num_params,
            "student": spec.to_dict(),
            "class_names": names,
            "preprocessing": preprocessing.to_config(),
            "source": {} if real is None else real.provenance,
            "training": training,
            "imported_from": {"layout": "list[expert][epoch][parameter]", "files": origin},
            "device": None,
            "versions": package_versions(),
        }
        # What the expert files say themselves is read in one place.
        ExpertTrajectories(aside, config).limited(count, epochs)._write_about(
            aside, preprocessing, Home(directory.name)
        )
        ExpertTrajectories.from_pretrained(aside).save_pretrained(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return ExpertTrajectories.from_pretrained(directory)


def _experts(file: Path, flat: FlatModel) -> Iterator[Tensor]:
    """The trajectories (T + 1, P) of one file, one at a time."""
    buffer = _load(file)
    if not isinstance(buffer, (list, tuple)) or not buffer:
        raise ValueError(f"{file} holds a {type(buffer).__name__}; expected list[expert][epoch][parameter]")
    for expert, snapshots in enumerate(buffer):
        yield _trajectory(file, expert, snapshots, flat)
