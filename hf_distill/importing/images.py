"""Distilled sets from files of images, in the layouts of `hf_distill.importing`."""

import json
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import check_choice
from ..data.images import RealImages
from ..data.preprocessing import Preprocessing
from ..distilled.distilled_set import DistilledSet
from .files import config_of, known_classes, known_preprocessing, origin_of
from .layouts import NONE, StoredImages, read_images

logger = logging.getLogger(__name__)

SPACES = ("auto", "network", "pixels")
BEYOND = 0.5  # how far optimised pixels may lie beyond [0, 1] and still be taken for pixels
BYTES_FROM = 16.0  # floats from 0 to beyond this are bytes that somebody converted
NORMALISED = 1e-3  # how far a row of probabilities may be from 1: they were float16 once, perhaps


def describes_itself(path: str | Path, images_key: str | None = None) -> bool:
    """True where the images in `path` bring class names and preprocessing, so that no source data are needed.

    Args:
        path: As for `import_images`.
        images_key: As for `import_images`.

    Raises:
        ValueError: As `import_images`, where the file cannot be read.
    """
    read = read_images(Path(path), None, 0, images_key, NONE)
    return read.class_names is not None and read.mean is not None


def _own_preprocessing(read: StoredImages, given: Preprocessing | None) -> Preprocessing | None:
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


def _space(read: StoredImages, asked: str, preprocessing: Preprocessing) -> str:
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
        differ = preprocessing.zca is not None or any(preprocessing.mean) or set(preprocessing.std) != {1.0}
        if space == "network" and low >= -BEYOND and high <= 1 + BEYOND and differ:
            if read.layout != "pair":
                raise ValueError(
                    f"the images of {path} go from {low:.3g} to {high:.3g}: pixels that were optimised beyond [0, 1], "
                    "or what a network sees; say --space pixels or --space network"
                )
            space = "pixels"  # as IDC keeps them, which clips before its steps and not after them
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
    for shape in ((count,), (count, classes)):  # with axes of length 1 before, between or after these
        if labels.numel() == math.prod(shape) and [n for n in labels.shape if n > 1] == [n for n in shape if n > 1]:
            labels = labels.reshape(shape)
            break
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
    if blocks is not None:
        share, places = (blocks == best).double().mean().item(), best.bincount(minlength=classes).double() / count
        chance = places.mean().item()
        if share > min(0.5, chance + 6 * math.sqrt(chance * (1 - chance) / count)):
            return blocks, logits
    return best, logits


def _channels_first(images: Tensor, channels: int | None, what: str) -> Tensor:
    """Images (N, C, H, W), of what may be (N, H, W, C)."""
    sizes = (1, 3) if channels is None else (channels,)
    if images.ndim == 4 and images.shape[3] in sizes and images.shape[1] not in sizes:
        logger.info("%s: images %s are read as images, height, width, channels", what, tuple(images.shape))
        return images.permute(0, 3, 1, 2)
    return images


def _formation(read: StoredImages, space: str, factor: int | None) -> int:
    """IDC's factor: the number of parts a side of the stored images, which are enlarged before students see them."""
    path = read.files[0]
    if factor is not None:
        if factor < 1:
            raise ValueError(f"--factor is {factor}; expected 1 (images are whole) or more parts a side")
        return factor
    if read.layout != "pair":
        return 1
    about = re.search(r"_factor(\d+)(?:_(multi|bound)_)?", path.resolve().parent.name)
    known, kind = (int(about[1]), about[2]) if about else (None, None)
    options = path.with_name("args.txt")
    if options.is_file():
        try:
            content = json.loads(options.read_text(encoding="utf-8"))
            known, kind = max(1, int(content["factor"])), content.get("decode_type")
        except (ValueError, LookupError, TypeError):
            logger.warning("%s does not say the factor of %s", options, path)
    if known is not None and known > 1 and kind not in (None, "single"):
        raise ValueError(
            f"{path} was made with --decode_type {kind}, whose images have parts of several sizes; expected single"
        )
    if known is None and space == "pixels":
        raise ValueError(
            f"{path} does not say of how many parts its images consist; give IDC's factor as --factor (1 where images "
            "are whole)"
        )
    return known or 1


def enlarged_parts(images: Tensor, factor: int) -> Tensor:
    """The parts of images (N, C, H, W) brought to the size of the whole, (N factor², C, H, W) float32.

    It is what IDC calls decoding: each image is cut into `factor` times `factor` parts, and these are enlarged
    bilinearly. Sides that `factor` does not divide are padded with 0.5 at their end. The parts of an image follow one
    another, row by row.
    """
    height, width = images.shape[2:]
    images = torch.nn.functional.pad(images.float(), (0, -width % factor, 0, -height % factor), value=0.5)
    parts = images.unflatten(3, (factor, -1)).unflatten(2, (factor, -1))  # (N, C, factor, h, factor, w)
    parts = parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    return torch.nn.functional.interpolate(parts, (height, width), mode="bilinear", align_corners=False)


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
    factor: int | None = None,
    images_key: str | None = None,
    labels_key: str | None = None,
    lr: float | None = None,
    method: str | None = None,
) -> DistilledSet:
    """The distilled set in a `.pt`, `.npz` or `.npy` file of images, in one of the layouts of `hf_distill.importing`.

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
        factor: Parts a side of an image, which are enlarged to images of their own (IDC's factor); without it, what a
            pair [images, labels] has beside it: `args.txt`, or the name of its folder.
        images_key: Name of the images where the file holds several tensors of such: keys and places in lists, joined by
            dots.
        labels_key: Name of the labels in the file, or in that of `labels`; "none" where it has none.
        lr: Learned learning rate; that in or beside the file if not given.
        method: What made the images, as cards say it.

    Raises:
        ValueError: The file needs code to run or is damaged, several files could be meant, or shapes, classes or values
            do not fit.
    """
    check_choice("space", space, SPACES)
    read = read_images(Path(path), None if labels is None else Path(labels), experiment, images_key, labels_key)
    what = str(read.files[0])
    parts = list(read.images) if isinstance(read.images, (list, tuple)) else None
    if parts is not None and len({part.shape[1:] for part in parts}) > 1:
        raise ValueError(f"{what} holds images of several sizes; expected one")
    images = read.images.detach() if parts is None else torch.cat([part.detach() for part in parts])
    if images.ndim != 4 or not images.numel() or not (images.is_floating_point() or images.dtype == torch.uint8):
        raise ValueError(
            f"{what} holds images {tuple(images.shape)} {images.dtype}; expected (N, C, H, W), floats or uint8"
        )
    channels = real.shape[0] if real is not None else None if mean is None else len(mean)
    read.images = images = _channels_first(images, channels, what)
    given = None
    if real is not None or mean is not None or read.mean is None:
        given = known_preprocessing(real, tuple(images.shape[1:]), mean, std, what)
    preprocessing = _own_preprocessing(read, given) or given
    names = known_classes(real, class_names, read.class_names, what)
    if parts is not None and read.labels is None:
        if len(parts) != len(names):
            raise ValueError(
                f"{what} is a list of {len(parts)} tensors of images; expected one for each of {len(names)} classes"
            )
        read.labels = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
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
    imported_from = {"layout": read.layout, "space": read_space, "files": origin_of(read.files)}
    factor = _formation(read, read_space, factor)
    if factor > 1:
        if factor > min(images.shape[2:]):
            raise ValueError(
                f"--factor is {factor} and the images of {what} have fewer pixels a side; give the right one"
            )
        imported_from |= {"factor": factor, "images_stored": len(images)}
        logger.info("%s: each image is read as %d, its parts enlarged", what, factor**2)
        images = enlarged_parts(images.float() / 255 if images.dtype == torch.uint8 else images, factor)
        classes = classes.repeat_interleave(factor**2)
        logits = None if logits is None else logits.repeat_interleave(factor**2, dim=0)
    pixel_values = images.float() if read_space == "network" else preprocessing(images)
    rate, config = _number(read.lr if lr is None else lr, what), config_of(real, method, imported_from)
    try:
        return DistilledSet(pixel_values, classes, names, preprocessing, lr=rate, soft_labels=logits, config=config)
    except ValueError as error:
        raise ValueError(f"{what} holds no set: {error}") from error
