"""`Views`: what is seen of each image in each epoch, as a function of (seed, epoch, row).

Whoever labels a view and whoever trains on it see the same pixels, without a crop, a partner or a permutation ever
being stored, and whatever the order, the batches, the workers or the processes are.
"""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.upload import upload
from .crops import (
    CROP_DRAWS,
    CropParams,
    Mix,
    apply_mix,
    crop_resize,
    draw_crops,
    draw_cutmix,
    draw_mixup,
    draw_shuffle,
    partners,
    shuffle_tiles,
    uniform,
)

__all__ = ["ViewSource", "Views"]

CROP, MIX, SHUFFLE = 1, 2, 3  # paths of the draws, after the epoch


class ViewSource(Protocol):
    """Shows images: `Views`, or the views that stored labels are of."""

    def __call__(
        self, images: Callable[[Tensor], Tensor], rows: Tensor, epoch: int, count: int, background: Tensor | float = 0.0
    ) -> Tensor:
        """As `Views`."""

    def mixing(self, rows: Tensor, epoch: int, count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """As `Views`."""

    def to_config(self) -> dict[str, Any]:
        """The description of these views, as JSON types."""


@functools.lru_cache(maxsize=2)
def _partners(seed: int, epoch: int, count: int) -> Tensor:
    """Those of a whole epoch, which each of its batches asks for."""
    return partners(seed, epoch, count)


@dataclass(frozen=True)
class Views:
    """Random crops and flips of images, each mixed with that of a partner.

    Differs from the authors' code of SRe2L and CDA (arXiv:2306.13092, arXiv:2311.18838): every image has a box of its
    own and a partner out of the whole set, where theirs has one box for each batch and the partner in the batch. Theirs
    cannot be made again without the batches.

    Attributes:
        seed: Everything random is a function of it, of the epoch and of the row.
        crop: "resized", random boxes of `scale` resized to the whole image; "padded", whole images shifted by up to
            `pad` pixels over black; or "none".
        scale: Smallest and largest area of a box, as a share of the image.
        pad: Pixels.
        flip: Probability of mirroring.
        mix: "cutmix", "mixup" or "none".
        alpha: Of the Beta distribution that mixes; 1 is uniform.
        shuffle: f, before the crop: the f rows of tiles and the f columns of tiles of an image come in any order, each
            image's own; 1 leaves it as it is. This is RDED's (arXiv:2312.03526) for images of f x f tiles; for f = 2
            and even sides it is a roll by half of each side, each with probability ½.
    """

    seed: int = 0
    crop: str = "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    pad: int = 4
    flip: float = 0.5
    mix: str = "cutmix"
    alpha: float = 1.0
    shuffle: int = 1

    def __post_init__(self) -> None:
        if type(self.shuffle) is not int or self.shuffle < 1:
            raise ValueError(f"views with shuffle={self.shuffle!r}; expected the tiles along a side, from 1")
        for name, value, known in (
            ("crop", self.crop, ("resized", "padded", "none")),
            ("mix", self.mix, ("cutmix", "mixup", "none")),
        ):
            if value not in known:
                raise ValueError(f"views with {name}={value!r}; expected one of {', '.join(known)}")

    def __call__(
        self, images: Callable[[Tensor], Tensor], rows: Tensor, epoch: int, count: int, background: Tensor | float = 0.0
    ) -> Tensor:
        """The views of `rows` in an epoch.

        Args:
            images: Gives the images (n, C, H, W) of rows (n,).
            rows: (n,) int64.
            epoch: From 0.
            count: Images in the whole set: partners are drawn from all of it.
            background: What is beyond the edge of a padded image: black, (C, 1, 1) in the values of the images.
        """
        own = self._cropped(images, rows, epoch, background)
        if self.mix == "none":
            return own
        mix = self._mix(rows, epoch, own.shape[2:], self._partners(rows, epoch, count))
        return apply_mix(own, self._cropped(images, mix.partners, epoch, background), mix.to(own.device))

    def mixing(self, rows: Tensor, epoch: int, count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Whom the views of `rows` are mixed with, and the share of each view that is its own image's.

        Args:
            rows, epoch, count: As the views are asked for.
            size: Height and width of the images.

        Returns:
            Rows of the partners (n,) and shares (n,) float32 in [0, 1], both where `rows` are; without mixing an image
            is its own partner.
        """
        if self.mix == "none":
            return rows, torch.ones(len(rows), device=rows.device)
        mix = self._mix(rows, epoch, size, self._partners(rows, epoch, count))
        return mix.partners, mix.own_share(size)

    def in_a_row(
        self, images: Callable[[Tensor], Tensor], rows: Tensor, epoch: int, background: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """The views of all `rows` but the last, each mixed with the image behind it: of each image one crop is made.

        Crops and mixes are those that `__call__` gives; for whoever draws the order of the rows, and stores nothing.

        Args:
            images, epoch, background: As the views are asked for.
            rows: (n + 1,) int64.

        Returns:
            The views (n, C, H, W), and the share of each that is its own image's, (n,) float32 where `rows` are.
        """
        x, own = self._cropped(images, rows, epoch, background), rows[:-1]
        if self.mix == "none":
            return x[:-1], torch.ones(len(own), device=rows.device)
        mix = self._mix(own, epoch, x.shape[2:], rows[1:])
        return apply_mix(x[:-1], x[1:], mix.to(x.device)), mix.own_share(x.shape[2:])

    def _partners(self, rows: Tensor, epoch: int, count: int) -> Tensor:
        return upload(_partners(self.seed, epoch, count)[rows.cpu()], rows.device)

    def _mix(self, rows: Tensor, epoch: int, size: tuple[int, int], other: Tensor) -> Mix:
        u = uniform(self.seed, (epoch, MIX), rows, 3)
        if self.mix == "cutmix":
            return draw_cutmix(u, size, self.alpha, other)
        return draw_mixup(u, self.alpha, other)

    def _cropped(
        self, images: Callable[[Tensor], Tensor], rows: Tensor, epoch: int, background: Tensor | float
    ) -> Tensor:
        x = images(rows)
        if self.shuffle > 1:
            orders = draw_shuffle(uniform(self.seed, (epoch, SHUFFLE), rows, 2 * self.shuffle), self.shuffle)
            x = shuffle_tiles(x, orders)
        u = uniform(self.seed, (epoch, CROP), rows, CROP_DRAWS)
        height, width = x.shape[2:]
        if self.crop == "resized":
            params = draw_crops(u, (height, width), self.scale, flip=self.flip)
            return crop_resize(x, params.to(x.device), (height, width))
        boxes = torch.zeros(len(rows), 4, dtype=torch.long, device=u.device)
        boxes[:, 2], boxes[:, 3] = height, width
        if self.crop == "padded":
            boxes[:, :2] = (u[:, :2].double() * (2 * self.pad + 1)).floor().long()
            x = F.pad(x - background, (self.pad,) * 4) + background
        params = CropParams(boxes, u[:, CROP_DRAWS - 1] < self.flip)
        return crop_resize(x, params.to(x.device), (height, width))

    def for_real_images(self) -> "Views":
        """The views without a shuffle: images as they were taken have no tiles."""
        return replace(self, shuffle=1)

    def to_config(self) -> dict[str, Any]:
        """The attributes as JSON types; `shuffle` where there is one, so that earlier descriptions are the same."""
        config = {**asdict(self), "scale": list(self.scale)}
        return config if self.shuffle > 1 else {key: value for key, value in config.items() if key != "shuffle"}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Views":
        """The views that `to_config` described."""
        return cls(**{**config, "scale": tuple(config["scale"])})
