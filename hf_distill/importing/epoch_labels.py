"""Labels of every epoch from the files of FKD, SRe2L, CDA and their kin: `epoch_<e>/batch_<b>.tar`.

Each file is what `torch.save` made of `[crops, flips, partners, λ, box, logits]` of one batch. Crops are fractions
(top / H, left / W, height / H, width / W); times the side and rounded they are whole pixels again, in float32 and in
float16. Cutting the fraction of a pixel off instead gives other crops: in float32 for 93 of 225 values at 224 pixels.

No file says which images its batch holds: a sampler dealt them, from a seed. Whether it dealt these is seen in the
labels of all epochs together, which must speak of the classes of their images (`evidence`).
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import RandomSampler
from tqdm.auto import tqdm

from ..augmentation.crops import CropParams, Mix
from ..augmentation.recorded_views import recorded_config
from ..data.feed import Pool
from ..distilled.epoch_labels import FORMAT_VERSION, EpochLabels, images_sha256, store
from ..hub.files import folder_aside
from .evidence import CERTAIN, LabelEvidence
from .files import load_pt, numbers_in, require_empty

logger = logging.getLogger(__name__)

__all__ = ["import_epoch_labels", "sampler_order", "whole_pixels"]


def sampler_order(count: int, epochs: int, seed: int = 42) -> Tensor:
    """The images of each epoch as a `RandomSampler` of one generator deals them, (epochs, count) int64.

    It is that of this version of torch: releases have drawn from the generator in different ways.
    """
    sampler = RandomSampler(range(count), generator=torch.Generator().manual_seed(seed))
    return torch.stack([torch.tensor(list(sampler)) for _ in range(epochs)])


def whole_pixels(fractions: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (n, 4) int64, top, left, height, width, of `fractions` (n, 4) of images of `size` (height, width)."""
    height, width = size
    return (fractions.double() * torch.tensor([height, width, height, width])).round().long()


def import_epoch_labels(
    folder: str | Path,
    pool: Pool,
    class_names: Sequence[str],
    directory: str | Path,
    *,
    order_seed: int = 42,
    source: dict[str, Any] | None = None,
    disable_tqdm: bool = False,
) -> EpochLabels:
    """The labels in the authors' files, with their views, stored in `directory`; the work of one process.

    Args:
        folder: Holds `epoch_<e>/batch_<b>.tar`, from 0.
        pool: The images that were labelled, in the order of an `ImageFolder`: class after class.
        class_names: Of the images, one for each logit.
        directory: A new or empty folder; it is written to when all labels are read and believed.
        order_seed: Of the sampler that dealt the images.
        source: `RealImages.provenance` of what the images were made of.
        disable_tqdm: No progress bar.

    Raises:
        ValueError: Files are missing, hold something else or need code to be read, or are of other images or classes,
            or of these in another order; or `directory` is not empty.
    """
    require_empty(directory)
    folder, directory, count, size = Path(folder), Path(directory), len(pool), tuple(pool.shape[1:])
    files = _epochs(folder)
    first = _batch(files[0][0], size)
    num_classes = first.logits.shape[1]
    if num_classes != len(class_names):
        raise ValueError(
            f"the labels in {folder} are {num_classes} logits, and the images have {len(class_names)} classes; use the "
            "set that was labelled"
        )
    mix = "none" if first.mix is None else first.mix.kind
    order, evidence = sampler_order(count, len(files), order_seed), LabelEvidence(pool.labels, num_classes)

    def make(part: range, bar: tqdm) -> Iterator[dict[str, Tensor]]:
        for epoch in part:
            columns = _rows(folder / f"epoch_{epoch}", files[epoch], order[epoch], mix, num_classes, size)
            evidence.add(columns["logits"], _larger(columns, mix, size))
            _check_order(folder, evidence, order_seed)
            yield columns
            bar.update(count)

    config = {
        "format_version": FORMAT_VERSION,
        "images": count,
        "images_sha256": images_sha256(pool),
        "epochs": len(files),
        "kept": None,
        "classes": num_classes,
        "class_names": [*class_names],
        "views": recorded_config(mix, size),
        "imported_from": {
            "layout": "folders of epochs",
            "files": sum(map(len, files)),
            "sha256": _sha256([path for batches in files for path in batches]),
            "order_seed": order_seed,
        },
    }
    there = directory.resolve()
    there.parent.mkdir(parents=True, exist_ok=True)
    # All epochs are evidence, so nothing of an import that was refused or interrupted is gone on with.
    with folder_aside(".importing-", there.parent) as aside:
        new = aside / there.name  # which its card names
        store(new, config, make, source=source, accelerator=Accelerator(), disable_tqdm=disable_tqdm)
        there.mkdir(exist_ok=True)
        for part in sorted(new.iterdir()):
            part.replace(there / part.name)
    _warn_unless_certain(folder, evidence, order_seed)
    return EpochLabels.from_pretrained(directory)


def _sha256(paths: Sequence[Path]) -> str:
    """64 hex digits of the content of files, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _numbered(folder: Path, name: str) -> list[Path]:
    """The files in a folder under a name with a number in the place of #, from 0 on."""
    files = {}
    for path in folder.glob("*"):
        match = re.fullmatch(re.escape(name).replace(r"\#", r"(\d+)"), path.name)
        if match:
            files[int(match[1])] = path
    if not files or sorted(files) != list(range(len(files))):
        raise ValueError(
            f"{folder} holds {len(files)} of {name.replace('#', '<number>')}; expected {name.replace('#', '0')} and "
            "all after it"
        )
    return [files[number] for number in range(len(files))]


def _epochs(folder: Path) -> list[list[Path]]:
    """The files of each epoch."""
    return [_numbered(epoch, "batch_#.tar") for epoch in _numbered(folder, "epoch_#")]


def _check_order(folder: Path, evidence: LabelEvidence, order_seed: int) -> None:
    """Raise a `ValueError` where the labels so far are proof that they are of other images than the order says."""
    epochs = len(evidence.epochs)
    now, turned = evidence.refuted(), evidence.turned()
    if now is None and turned is None:
        return
    if now is not None:
        where = "epoch_0" if epochs == 1 else f"epoch_0 to epoch_{epochs - 1}"
    else:
        where, now = f"epoch_{turned}", evidence.epochs[turned]
    raise ValueError(
        f"{folder}/{where} labels the images' own classes with {now.mean:.1%} on average ({now.chance:.1%} at "
        f"random), no more than chance: a sampler with the seed {order_seed} did not deal these images in this order; "
        "give the set that was labelled, or its --order_seed"
    )


def _warn_unless_certain(folder: Path, evidence: LabelEvidence, order_seed: int) -> None:
    """Warn where all labels together are no proof that the order is right."""
    now = evidence.all
    if not evidence.certain:
        logger.warning(
            "the labels in %s are too few or too weak to show that a sampler with the seed %d dealt these images in "
            "this order: they give the own class %.1f %% on average, and chance %.1f %% (%.1f deviations; %.0f are "
            "proof); look at a student that is trained on them before you trust them",
            folder,
            order_seed,
            100 * now.mean,
            100 * now.chance,
            now.z,
            CERTAIN,
        )


@dataclass(frozen=True)
class _Batch:
    """One file.

    Attributes:
        crops: Of each image.
        partners: (n,), each a place in the batch.
        mix: One for each image; None where nothing was mixed.
        logits: (n, K) float16.
    """

    crops: CropParams
    partners: Tensor
    mix: Mix | None
    logits: Tensor


def _rows(
    where: Path, paths: Sequence[Path], order: Tensor, mix: str, num_classes: int, size: tuple[int, int]
) -> dict[str, Tensor]:
    """The columns of an epoch, row by row of the set."""
    batches = [_batch(path, size) for path in paths]
    counts = [len(batch.logits) for batch in batches]
    if sum(counts) != len(order):
        raise ValueError(
            f"{where} labels {sum(counts)} images, and there are {len(order)}; use the images that were labelled"
        )
    kinds = {"none" if batch.mix is None else batch.mix.kind for batch in batches}
    if kinds != {mix} or {batch.logits.shape[1] for batch in batches} != {num_classes}:
        raise ValueError(f"the batches of {where} differ from the first of all in classes or in how they are mixed")
    columns = {
        "logits": torch.cat([batch.logits for batch in batches]),
        "crop": torch.cat([batch.crops.boxes for batch in batches]),
        "flip": torch.cat([batch.crops.flip for batch in batches]),
    }
    if mix != "none":
        own = order.split(counts)
        # Places in a batch become rows of the set.
        columns["partner"] = torch.cat([rows[batch.partners] for rows, batch in zip(own, batches, strict=True)])
        name = "mix_box" if mix == "cutmix" else "mix_weight"
        columns[name] = torch.cat([batch.mix.values for batch in batches if batch.mix is not None])
    back = order.argsort()
    return {name: column[back] for name, column in columns.items()}


def _larger(columns: dict[str, Tensor], mix: str, size: tuple[int, int]) -> Tensor:
    """The image that is the larger part of each view, (N,) long: its labels are first of all of that one."""
    own = torch.arange(len(columns["logits"]))
    if mix == "none":
        return own
    values = columns["mix_box" if mix == "cutmix" else "mix_weight"]
    share = Mix("cutmix" if mix == "cutmix" else "mixup", values).own_share(size)
    return torch.where(share >= 0.5, own, columns["partner"])


def _batch(path: Path, size: tuple[int, int]) -> _Batch:
    """The content of one file."""

    def refuse(what: str) -> ValueError:
        return ValueError(f"{path} {what}; expected [crops, flips, partners, λ, box, logits] of one batch")

    content = load_pt(path)
    if not isinstance(content, (list, tuple)) or len(content) != 6:
        raise refuse(f"holds a {type(content).__name__}, or not six parts")
    fractions, flip, partners, weight, box, logits = content
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point() or not logits.numel():
        raise refuse("has no logits (images, classes)")
    if not logits.half().isfinite().all():
        raise refuse("has logits that are not finite, or beyond 65,504")
    count, (height, width) = len(logits), size
    if not isinstance(fractions, Tensor) or fractions.shape != (count, 4) or not fractions.is_floating_point():
        raise refuse(f"has no crops ({count}, 4)")
    flip = numbers_in(flip)
    if flip is None or flip.shape != (count,) or not ((flip == 0) | (flip == 1)).all():
        raise refuse(f"has no flips ({count},) of 0 and 1")
    boxes = whole_pixels(fractions.clamp(-1, 2).nan_to_num(-1), size)
    ends = boxes[:, :2] + boxes[:, 2:]
    if boxes[:, :2].min() < 0 or boxes[:, 2:].min() < 1 or (ends > torch.tensor([height, width])).any():
        raise refuse(f"has crops beyond images of {height}x{width} pixels")
    crops = CropParams(boxes, flip != 0)
    if partners is None:
        return _Batch(crops, torch.arange(count), None, logits.half())
    places = numbers_in(partners)
    if places is None or places.shape != (count,) or (places.double().sort().values != torch.arange(count)).any():
        raise refuse(f"has partners that are no permutation of {count}")
    partners = places.long()
    if box is None:
        weight = numbers_in(weight)
        if weight is None or weight.numel() != 1 or not 0 <= weight.item() <= 1:
            raise refuse("has a weight λ that is no number in [0, 1]")
        return _Batch(crops, partners, Mix("mixup", torch.full((count,), weight.item())), logits.half())
    corners = numbers_in(box)
    if corners is None or corners.shape != (4,) or (corners.double() % 1 != 0).any():  # which infinity is not either
        raise refuse("has a box that is none of four whole numbers")
    # Their first axis is the image's first, the height, though they call it the width.
    top, left, bottom, right = map(int, corners.tolist())
    if not (0 <= top <= bottom and 0 <= left <= right):
        raise refuse("has a box that is none")
    if bottom > height or right > width:
        raise refuse(f"has a box beyond images of {height}x{width} pixels")
    cut = torch.tensor([top, left, bottom - top, right - left]).repeat(count, 1)
    return _Batch(crops, partners, Mix("cutmix", cut), logits.half())
