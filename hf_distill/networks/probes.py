"""`ProbeSpec`: a student that is a linear head on the features of a frozen backbone.

Of such a student only the head learns, W (K, D) and b (K,), so features are what costs: those of images as they are
tested are computed once for each pool of images, whatever the number of students.
"""

import os
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..data.feed import Pool
from ..data.preprocessing import Preprocessing
from ..data.resampling import resized
from ..rng import generator
from .architectures import StudentSpec
from .backbones import Backbone
from .batches import images_at_once

__all__ = ["PREFIX", "Probe", "ProbeSpec", "centre"]

PREFIX = "probe:"  # of the name of a student
CUT = 256 / 224  # of the side that is tested, images are resized to before their centre is cut out
OTHER = f"name one with --student {PREFIX}NAME"
HEAD_STD = 0.01  # of the weights of a fresh head, whose biases are 0


def centre(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Images as they are tested, (n, C, *size): resized to 256/224 of `size`, of which the centre is cut out.

    Args:
        pixels: (n, C, H, W), of any size; of another shape than `size`, the longer side loses more.
        size: Height and width of the result.
    """
    factor = CUT * max(side / full for side, full in zip(size, pixels.shape[2:], strict=True))
    height, width = (round(full * factor) for full in pixels.shape[2:])
    if (height, width) != tuple(pixels.shape[2:]):
        pixels = resized(pixels, (height, width))
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return pixels[:, :, top : top + size[0], left : left + size[1]]


@dataclass(frozen=True)
class ProbeSpec(StudentSpec):
    """A student with a frozen backbone, of which a linear head alone is trained: as any `StudentSpec` for reports.

    Attributes:
        backbone: Gives features of pixels.
        preprocessing: Of the images that the student is given, which is undone: the backbone has its own.
    """

    backbone: Backbone = field(kw_only=True, compare=False, repr=False)
    preprocessing: Preprocessing = field(kw_only=True, compare=False, repr=False)
    _features: WeakKeyDictionary[Pool, Tensor] = field(
        default_factory=WeakKeyDictionary, init=False, compare=False, repr=False
    )

    @classmethod
    def of(
        cls, backbone: Backbone, num_classes: int, preprocessing: Preprocessing, img_size: tuple[int, int]
    ) -> "ProbeSpec":
        """A head of `num_classes` on a backbone, for images of a preprocessing and of `img_size`.

        Raises:
            ValueError: The images have colours, and the backbone sees gray ones.
        """
        channels = preprocessing.channels
        if channels > backbone.channels:
            raise ValueError(
                f"--student {PREFIX}{backbone.name} sees gray images, and those of the set have {channels} channels; "
                "expected a backbone of 3"
            )
        name = backbone.name if backbone.revision is not None else Path(backbone.name).name
        called = f"{PREFIX}{name} ({backbone.digest})"
        return cls(called, num_classes, channels, img_size, backbone=backbone, preprocessing=preprocessing)

    @classmethod
    def named(
        cls, student: str, num_classes: int, preprocessing: Preprocessing, img_size: tuple[int, int]
    ) -> "ProbeSpec":
        """The student that `probe:NAME` or `probe:NAME@REVISION` means: NAME is what `Backbone.from_pretrained` takes.

        Raises:
            ValueError: There is no such backbone, or it does not fit the images.
            OSError: The Hub does not answer.
        """
        name, revision = student.removeprefix(PREFIX), None
        if not os.path.exists(name):
            name, _, revision = name.partition("@")
        if not name:
            raise ValueError(f"--student {student} names no backbone; expected such as {PREFIX}facebook/dinov2-base")
        try:
            backbone = Backbone.from_pretrained(name, revision=revision or None)
        except ValueError as error:
            raise ValueError(f"--student {student}: {error}") from error
        return cls.of(backbone, num_classes, preprocessing, img_size)

    @classmethod
    def recorded(
        cls, about: Any, num_classes: int, preprocessing: Preprocessing, img_size: tuple[int, int]
    ) -> "ProbeSpec":
        """The student with the backbone that `Backbone.about` told of.

        Raises:
            ValueError: It is not found, or has other weights now.
            OSError: The Hub does not answer.
        """
        known = about if isinstance(about, dict) else {}
        name, revision, digest = (known.get(key) for key in ("name", "revision", "digest"))
        if not (isinstance(name, str) and isinstance(digest, str) and isinstance(revision, str | None)):
            raise ValueError(f"the set was made with the backbone {reprlib.repr(about)}; {OTHER}")
        try:
            backbone = Backbone.from_pretrained(name, revision=revision)
        except ValueError as error:
            raise ValueError(f"the set was made with a backbone that is not found ({error}); {OTHER}") from error
        if backbone.digest != digest:
            raise ValueError(
                f"the set was made with the backbone {name} ({digest}), whose weights are others now "
                f"({backbone.digest}); {OTHER}"
            )
        return cls.of(backbone, num_classes, preprocessing, img_size)

    def build(self, seed: int) -> "Probe":
        """A student with a fresh head on the CPU, the same one for the same seed."""
        head = nn.utils.skip_init(nn.Linear, self.backbone.width, self.num_classes)
        with torch.no_grad():
            head.weight.normal_(0, HEAD_STD, generator=generator(seed, "head"))
            head.bias.zero_()
        return Probe(self, head)

    def num_params(self) -> int:
        """The number of parameters that are trained."""
        return self.num_classes * (self.backbone.width + 1)

    def to_dict(self) -> dict[str, Any]:
        """All that makes the student, as JSON types."""
        about = {**self.backbone.about(), "sha256": self.backbone.sha256}
        del about["name"]  # of a folder it is where that lies
        sizes = {"num_classes": self.num_classes, "in_chans": self.in_chans, "img_size": list(self.img_size)}
        return {"name": self.name, "probe": about, **sizes}

    def pixels(self, x: Tensor) -> Tensor:
        """What was preprocessed, (n, C, H, W), as pixels in [0, 1]."""
        return self.preprocessing.inverse(x)

    def seen(self, x: Tensor) -> Tensor:
        """The features (n, D) of preprocessed images (n, C, H, W) as they are tested."""
        return self.backbone.features(centre(self.pixels(x), self.backbone.size))

    @torch.no_grad()
    def features(self, pool: Pool, rows: Tensor | None = None) -> Tensor:
        """The features (n, D) float32, on the device of a pool, of its images as they are tested.

        Those of all images are computed once for as long as the pool is there: 4 D bytes for each.

        Args:
            pool: Of preprocessed images.
            rows: (n,) on the CPU; all if not given.
        """
        if rows is None:
            if pool not in self._features:
                self._features[pool] = self._looked(pool, torch.arange(len(pool)))
            return self._features[pool]
        return self._looked(pool, rows)

    def _looked(self, pool: Pool, rows: Tensor) -> Tensor:
        self.backbone.to(pool.device)
        parts = rows.split(images_at_once(self.seen, pool))
        return torch.cat([self.seen(images).float() for _, images in pool.each(parts)])


class Probe(nn.Module):
    """A student: logits of preprocessed images, by a linear head on what a frozen backbone has of them.

    Attributes:
        spec: What it is made of.
        head: The layer that learns, the only one whose parameters these are.
    """

    def __init__(self, spec: ProbeSpec, head: nn.Linear) -> None:
        super().__init__()
        self.spec, self.head = spec, head

    def forward_features(self, x: Tensor) -> Tensor:
        """Features (n, D) of preprocessed images (n, C, H, W)."""
        return self.spec.seen(x)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Of features (n, D), themselves or the logits (n, K)."""
        return features if pre_logits else self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K)."""
        return self.head(self.forward_features(x))

    def logits(self, pool: Pool) -> Tensor:
        """Logits (N, K) of all images of a pool, whose features are computed once."""
        return self.head(self.spec.features(pool))
