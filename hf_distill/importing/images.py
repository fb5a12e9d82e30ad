"""Images from `.pt` files, in the layouts of `hf_distill.importing`."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import check_choice
from ..data.images import RealImages
from ..data.preprocessing import Preprocessing
from ..distilled.distilled_set import DistilledSet
from .files import config_of, known_classes, known_preprocessing, load_pt, origin_of

logger = logging.getLogger(__name__)

SPACES = ("auto", "network", "pixels")
BYTES_FROM = 16.0  # floats from 0 to beyond this are bytes that somebody converted
NORMALISED = 1e-3  # how far a row of probabilities may be from 1: they were float16 once, perhaps


def _find_images(path: Path) -> Path:
    """The file of images in a folder of `.pt` files; an error that lists them unless one stands out."""
    files = [file for file in sorted(path.glob("*.pt")) if not file.stem.startswith(("labels", "lr"))]
    plain = [file for file in files if not file.stem.startswith("images_zca")]
    others = [file for file in plain if not file.stem.startswith("images")]
    expected = "images_best" if plain else "images_zca_best"
    chosen = [] if others else [file for file in files if file.stem == expected]
    chosen = chosen or plain or files
    if len(chosen) != 1:
        those = ", ".join(file.name for file in chosen) or "none"
        raise ValueError(f"{path} holds several .pt files of images, or none ({those}); name the one to import")
    return chosen[0]


@dataclass
class _Images:
    """The content of a `.pt` file and of the files beside it."""

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
    content = load_pt(path)
    if isinstance(content, Tensor):
        read = _read_tensor(path, content)
    elif isinstance(content, dict) and isinstance(content.get("data"), list):
        read = _read_experiments(path, content["data"], experiment)
    elif isinstance(content, dict) and isinstance(content.get("images"), Tensor):
        read = _read_dict(path, content)
    else:
        kind = f"keys {', '.join(map(str, content))[:100]}" if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} holds {kind}; expected a tensor of images, {{'data': [[images, labels], ...]}} or "
            "{'images': ..., 'labels': ...}"
        )
    if labels is not None:
        read.labels, read.soft_labels = load_pt(labels), None
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
            setattr(read, name, load_pt(beside))
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
    """True where the images in `path` bring class names and preprocessing, so that no source data are needed.

    Raises:
        ValueError: As `import_images`, where the file cannot be read.
    """
    read = _read_images(Path(path), None, 0)
    return read.class_names is not None and read.mean is not None


def _own_preprocessing(read: _Images, given: Preprocessing | None) -> Preprocessing | None:
    """The preprocessing that the file itself says, where it does; `given` must agree with it, and has the rest."""
    if read.mean is None or read.std is None:
        return given
    channels, height, width = read.images.shape[1:]
    values = channels * height * width
    shapes = {"zca_mean": (values,), "zca_vectors": (values, values), "zca_values": (values,)}
    mean, std = (tuple(part.flatten().tolist()) for part in (read.mean, read.std))
    parts = {name: part for name, part in read.whitening.items() if isinstance(part, Tensor) and part.ndim}
    if parts and {name: tuple(part.shape) for name, part in parts.items()} != shapes:
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


def _space(read: _Images, asked: str, preprocessing: Preprocessing) -> str:
    """The kind of values, "bytes", "pixels" in [0, 1], or "network", what a network sees; logged."""
    path, values = read.files[0], read.images
    if values.dtype == torch.uint8:
        space, why = "bytes", "they are uint8"
    elif asked != "auto":
        space, why = asked, "as asked for"
    elif read.space is not None:
        space, why = read.space, f"as {path.name} says"
    else:
        low, high = float(values.min()), float(values.max())
        if low >= 0 and high > BYTES_FROM:
            raise ValueError(
                f"the images of {path} go from {low:g} to {high:g}, as bytes do, and are {values.dtype}; store them as "
                "uint8 or divide by 255, or say --space network"
            )
        space = "pixels" if low >= 0 and high <= 1 else "network"
        why = f"they go from {low:.3g} to {high:.3g}"
        whitened = path.with_name(path.name.replace("images", "images_zca", 1))
        if space == "network" and path.stem.startswith("images") and whitened.is_file() and preprocessing.zca is None:
            raise ValueError(
                f"{whitened.name} beside {path} says that its images are whitened; give --normalization zca, or import "
                f"{whitened.name}"
            )
    logger.info("%s: images are read as %s (%s)", path, space, why)
    return space


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
        given = known_preprocessing(real, tuple(images.shape[1:]), mean, std, what)
    preprocessing = _own_preprocessing(read, given) or given
    names = known_classes(real, class_names, read.class_names, what)
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
    read_space = _space(read, space, preprocessing)
    pixel_values = images.float() if read_space == "network" else preprocessing(images)
    imported_from = {"layout": read.layout, "space": read_space, "files": origin_of(read.files)}
    return DistilledSet(
        pixel_values,
        classes,
        names,
        preprocessing,
        lr=_number(read.lr if lr is None else lr, what),
        soft_labels=logits,
        config=config_of(real, method, imported_from),
    )
