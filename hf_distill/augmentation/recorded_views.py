"""`RecordedViews`: what others showed of each image in each epoch, stored with their labels: no seed gives it again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..data.upload import upload
from ..hub.checks import is_whole
from .crops import CropParams, Mix, apply_mix, crop_resize

__all__ = ["RECORDED", "RecordedViews", "is_recorded_config", "recorded_config", "recorded_fields", "why_no_views"]

RECORDED = ("crop", "flip", "partner", "mix_box", "mix_weight")  # columns that are of views, and not of labels
MIXES = {"cutmix": "mix_box", "mixup": "mix_weight", "none": None}


def several(kind: pa.DataType, count: int) -> pa.DataType:
    """A list of `count` values, none of them absent."""
    return pa.list_(pa.field("element", kind, nullable=False), count)


def recorded_fields(mix: str) -> dict[str, pa.DataType]:
    """The columns of views that are mixed in a way: boxes are top, left, height and width, in pixels."""
    box = several(pa.uint16(), 4)
    fields = {"crop": box, "flip": pa.uint8()}
    column = MIXES[mix]
    if column is not None:
        fields |= {"partner": pa.int32(), column: box if mix == "cutmix" else pa.float32()}
    return fields


def recorded_config(mix: str, size: tuple[int, int]) -> dict[str, Any]:
    """The description, as JSON types, of views that are mixed in a way; their columns are beside it."""
    return {"kind": "recorded", "mix": mix, "size": list(size)}


def is_recorded_config(value: Any) -> bool:
    """True for a value of a JSON file that `recorded_config` can have given."""
    return (
        isinstance(value, dict)
        and value.get("kind") == "recorded"
        and isinstance(value.get("mix"), str)
        and value["mix"] in MIXES
        and isinstance(value.get("size"), list)
        and len(value["size"]) == 2
        and all(is_whole(side, most=2**16 - 1) for side in value["size"])
    )


def why_no_views(columns: dict[str, np.ndarray], size: Sequence[int], count: int) -> str | None:
    """The fault of columns that a file holds, in words, or None.

    Args:
        columns: Those of `recorded_fields`, among others.
        size: Height and width of the images.
        count: Images in the set.
    """
    for name, least in (("crop", 1), ("mix_box", 0)):
        if name in columns:
            boxes = columns[name].astype(np.int64)
            if boxes[:, 2:].min() < least or (boxes[:, :2] + boxes[:, 2:] > np.asarray(size)).any():
                return f"boxes in {name} that lie beyond images of {size[0]}x{size[1]} pixels, or hold nothing"
    if "flip" in columns and columns["flip"].max() > 1:
        return "values in flip that are neither 0 nor 1"
    if "partner" in columns and (columns["partner"].min() < 0 or columns["partner"].max() >= count):
        return f"partners that are none of {count:,} images"
    if "mix_weight" in columns and not ((columns["mix_weight"] >= 0) & (columns["mix_weight"] <= 1)).all():
        return "weights in mix_weight that are no numbers in [0, 1]"
    return None


def check_count(count: int, labelled: int) -> None:
    """Raise a `ValueError` for a set of another size, whose rows are not those of the labels."""
    if count != labelled:
        raise ValueError(
            f"labels of {labelled:,} images for a student on {count:,}; expected the whole set that was labelled"
        )


@dataclass(frozen=True)
class RecordedViews:
    """The views that stored labels are of, with every box, flip, partner and mix as it was.

    Attributes:
        mix: "cutmix", "mixup" or "none".
        size: Height and width of the images, in pixels.
        count: Images in the set that was labelled.
        recall: Gives the columns of some rows in an epoch of the student, on the CPU.
    """

    mix: str
    size: tuple[int, int]
    count: int
    recall: Callable[[Tensor, int], dict[str, Tensor]]

    def __call__(
        self, images: Callable[[Tensor], Tensor], rows: Tensor, epoch: int, count: int, background: Tensor | float = 0.0
    ) -> Tensor:
        """As `Views`, with `background` nowhere to be seen.

        Raises:
            ValueError: The images are of another size or number than those that were labelled.
        """
        check_count(count, self.count)
        known = self.recall(rows, epoch)
        own = self._cropped(images(rows), known)
        if self.mix == "none":
            return own
        partners = known["partner"].long()
        other = self._cropped(images(upload(partners, rows.device)), self.recall(partners, epoch))
        return apply_mix(own, other, self._mix(known).to(own.device))

    def mixing(self, rows: Tensor, epoch: int, count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """As `Views`."""
        check_count(count, self.count)
        known = self.recall(rows, epoch)
        if self.mix == "none":
            return rows, torch.ones(len(rows), device=rows.device)
        partners, share = known["partner"].long(), self._mix(known).own_share(size)
        return upload(partners, rows.device), upload(share, rows.device)

    def _mix(self, known: dict[str, Tensor]) -> Mix:
        if self.mix == "mixup":
            return Mix("mixup", known["mix_weight"])
        return Mix("cutmix", known["mix_box"].long())

    def _cropped(self, x: Tensor, known: dict[str, Tensor]) -> Tensor:
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(f"images of {tuple(x.shape[2:])} pixels; expected {self.size}, which were labelled")
        params = CropParams(known["crop"].long(), known["flip"] != 0)
        return crop_resize(x, params.to(x.device), self.size)

    def to_config(self) -> dict[str, Any]:
        """Their description, by `recorded_config`."""
        return recorded_config(self.mix, self.size)
