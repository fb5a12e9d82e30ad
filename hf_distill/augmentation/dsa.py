"""Differentiable siamese augmentation (DSA): drawn once, applied to anything, replayed exactly.

One operation per batch, one set of parameters per image (Zhao and Bilen, ICML 2021, arXiv:2102.08259; the settings are
those of MTT and TESLA). Drawing and applying are two functions, so that the second pass of an unrolled gradient sees
the very augmentation of the first without keeping its graph.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.upload import upload
from .sampling import sampled, shifted

CROP_RATIO = 0.125
CUTOUT_RATIO = 0.5
SCALE_RATIO = 1.2
ROTATE_DEGREES = 15.0

DEFAULT_STRATEGY = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class DsaParams:
    """The draw for `n` images: the operation and, per image, its parameters (n, ...).

    `params[a:b]` are the parameters of images a to b.
    """

    operation: str
    values: Mapping[str, Tensor]

    def __getitem__(self, part: slice) -> "DsaParams":
        return DsaParams(self.operation, {name: value[part] for name, value in self.values.items()})

    def for_all(self, n: int) -> "DsaParams":
        """The parameters of the one image that was drawn for, for each of `n`."""
        values = {name: value.expand(n, *value.shape[1:]) for name, value in self.values.items()}
        return DsaParams(self.operation, values)

    def to(self, device: torch.device | str) -> "DsaParams":
        """The same parameters on `device`."""
        return DsaParams(self.operation, {name: upload(value, device) for name, value in self.values.items()})


class DSA:
    """The augmentation family named by `strategy`.

    Args:
        strategy: Operations joined by underscores, out of color, crop, cutout, flip, scale and rotate; an empty
            string means none.

    Raises:
        ValueError: An operation that does not exist.
    """

    def __init__(self, strategy: str = DEFAULT_STRATEGY) -> None:
        self.strategy = strategy
        self.operations = [name for name in strategy.lower().split("_") if name not in ("", "none")]
        for name in self.operations:
            if name not in _APPLY:
                raise ValueError(f"--dsa_strategy names {name!r}; expected operations out of {', '.join(_APPLY)}")

    def sample(self, n: int, generator: torch.Generator, size: tuple[int, int]) -> DsaParams:
        """Draw one operation and its parameters for `n` images of `size` (height, width) pixels, on the CPU."""
        if not self.operations:
            return DsaParams("none", {})
        pick = int(torch.randint(len(self.operations), (1,), generator=generator))
        operation = self.operations[pick]
        return DsaParams(operation, _SAMPLE[operation](n, generator, size))

    @staticmethod
    def apply(x: Tensor, params: DsaParams) -> Tensor:
        """`x` (n, C, H, W), in any floating dtype, augmented by `params`; differentiable with respect to `x`."""
        if params.operation == "none":
            return x
        values = {name: upload(value, x.device) for name, value in params.values.items()}
        return _APPLY[params.operation](x, values)

    @classmethod
    def apply_each(cls, x: Tensor, params: Sequence[DsaParams], sizes: Sequence[int]) -> Tensor:
        """`x` with each of its batches augmented by its own draw, all batches of one operation at once.

        Args:
            x: (N, C, H, W), one batch after another.
            params: The draw for each batch, on the CPU.
            sizes: Images of each batch, together N; some may be 0.

        Returns:
            (N, C, H, W), contiguous.
        """
        members: dict[str, list[int]] = {}
        for number, drawn in enumerate(params):
            if sizes[number]:
                members.setdefault(drawn.operation, []).append(number)
        if not members:
            return x.contiguous()
        together = {operation: _joined([params[n] for n in numbers]) for operation, numbers in members.items()}
        if len(together) == 1:
            return cls.apply(x, *together.values()).contiguous()
        batches = torch.arange(len(x)).split(list(sizes))
        places = {operation: torch.cat([batches[n] for n in numbers]) for operation, numbers in members.items()}
        parts = [cls.apply(x[upload(places[operation], x.device)], drawn) for operation, drawn in together.items()]
        # Image i is where i stands among the places of the parts.
        return torch.cat(parts)[upload(torch.cat(list(places.values())).argsort(), x.device)].contiguous()


def _joined(params: Sequence[DsaParams]) -> DsaParams:
    """The parameters of several draws of one operation, one after another."""
    values = {name: torch.cat([drawn.values[name] for drawn in params]) for name in params[0].values}
    return DsaParams(params[0].operation, values)


Values = dict[str, Tensor]


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator)


def _sample_color(n: int, generator: torch.Generator, size: tuple[int, int]) -> Values:
    return {name: _uniform(n, generator) for name in ("brightness", "saturation", "contrast")}


def _apply_color(x: Tensor, values: Values) -> Tensor:
    brightness, saturation, contrast = (
        values[name].to(x.dtype).view(-1, 1, 1, 1) for name in ("brightness", "saturation", "contrast")
    )
    x = x + (brightness - 0.5)
    gray = x.mean(dim=1, keepdim=True)  # (n, 1, H, W)
    x = (x - gray) * (2 * saturation) + gray
    mean = x.mean(dim=(1, 2, 3), keepdim=True)  # (n, 1, 1, 1)
    return (x - mean) * (contrast + 0.5) + mean


def _sample_crop(n: int, generator: torch.Generator, size: tuple[int, int]) -> Values:
    reach = [int(length * CROP_RATIO + 0.5) for length in size]
    return {
        name: torch.randint(-most, most + 1, (n,), generator=generator)
        for name, most in zip(("down", "right"), reach, strict=True)
    }


def _apply_crop(x: Tensor, values: Values) -> Tensor:
    return shifted(x, values["down"], values["right"])


def _sample_cutout(n: int, generator: torch.Generator, size: tuple[int, int]) -> Values:
    # An even box can be centred between two pixels: one more position.
    boxes = [int(length * CUTOUT_RATIO + 0.5) for length in size]
    return {
        name: torch.randint(length + (1 - box % 2), (n,), generator=generator)
        for name, length, box in zip(("row", "column"), size, boxes, strict=True)
    }


def _apply_cutout(x: Tensor, values: Values) -> Tensor:
    def inside(length: int, centre: Tensor) -> Tensor:  # (n, length)
        box = int(length * CUTOUT_RATIO + 0.5)
        offset = torch.arange(length, device=x.device) - (centre.view(-1, 1) - box // 2)
        return (offset >= 0) & (offset < box)

    hole = inside(x.shape[2], values["row"])[:, :, None] & inside(x.shape[3], values["column"])[:, None, :]
    return x * (~hole[:, None]).to(x.dtype)


def _sample_flip(n: int, generator: torch.Generator, size: tuple[int, int]) -> Values:
    return {"flip": _uniform(n, generator) < 0.5}


def _apply_flip(x: Tensor, values: Values) -> Tensor:
    return torch.where(values["flip"].view(-1, 1, 1, 1), x.flip(3), x)


def _sample_scale(n: int, generator: torch.Generator, size: tuple[int, int]) -> Values:
    low = 1 / SCALE_RATIO
    return {name: low + (SCALE_RATIO - low) * _uniform(n, generator) for name in ("horizontal", "vertical")}


def _apply_scale(x: Tensor, values: Values) -> Tensor:
    return sampled(x, torch.diag_embed(torch.stack([values["horizontal"], values["vertical"]], dim=1)))


def _sample_rotate(n: int, generator: torch.Generator, size: tuple[int, int]) -> Values:
    return {"angle": (_uniform(n, generator) - 0.5) * 2 * math.radians(ROTATE_DEGREES)}


def _apply_rotate(x: Tensor, values: Values) -> Tensor:
    cosine, sine = torch.cos(values["angle"]), torch.sin(values["angle"])
    return sampled(x, torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2))


_SAMPLE = {
    "color": _sample_color,
    "crop": _sample_crop,
    "cutout": _sample_cutout,
    "flip": _sample_flip,
    "scale": _sample_scale,
    "rotate": _sample_rotate,
}
_APPLY = {
    "color": _apply_color,
    "crop": _apply_crop,
    "cutout": _apply_cutout,
    "flip": _apply_flip,
    "scale": _apply_scale,
    "rotate": _apply_rotate,
}
