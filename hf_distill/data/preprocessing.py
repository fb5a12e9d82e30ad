"""`Preprocessing`: from pixels to what a network sees, and back. It travels inside every artifact.

Either per-channel standardisation, x̂ = (x − mean) / std, or ZCA whitening of the flattened image, x̂ = (x − μ) T with

    Σ = (X − μ)ᵀ(X − μ) / (n − 1) = U S Uᵀ        T = U (S + eps)^(−1/2) Uᵀ        T⁻¹ = U (S + eps)^(1/2) Uᵀ

and x in [0, 1]. The statistics are sums of products of bytes. At most 256 rows are multiplied at a time: every partial
sum is then a whole number below 2²⁴, which float32 holds exactly, and the totals are added up in float64. So the sums
are exact, whatever the order, the batches, the threads or the machine.
"""

import hashlib
import json
import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from .precision import without_autocast

__all__ = ["ZCA", "Preprocessing", "fit_mean_std", "fit_zca"]

EXACT_ROWS = 256  # 256 · 255² < 2²⁴
LARGEST = 100_000  # of a side of an image, in a file of anybody's


@dataclass(frozen=True, eq=False)
class ZCA:
    """Whitening of flattened images, by the eigenvectors of their covariance.

    Attributes:
        mean: (d,) float32, the mean image in [0, 1], d = C·H·W.
        vectors: (d, d) float32, U: an eigenvector per column.
        values: (d,) float32, S: the eigenvalues, ascending.
        eps: Added to the eigenvalues.
        digest: Names the data that was whitened. Eigenvectors differ in the last bits from machine to machine, the sums
            they come from do not; so a fit on the same images has the same digest anywhere.
    """

    mean: Tensor
    vectors: Tensor
    values: Tensor
    eps: float
    digest: str = ""
    _on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if float(self.values.min()) + self.eps <= 0:
            raise ValueError(
                f"--zca_eps is {self.eps} and the covariance has eigenvalues down to {float(self.values.min()):.2g}; "
                "expected a sum above 0, such as with --zca_eps 0.1"
            )
        if not self.digest:
            object.__setattr__(self, "digest", _sha(self.mean, self.vectors, self.values))

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """μ (d,), T and T⁻¹, both (d, d) and symmetric, all float32 on `device`; made once for each device."""
        if device not in self._on:
            with torch.inference_mode(False):  # whoever asks first, others may differentiate through them
                vectors, values = self.vectors.to("cpu", torch.float64), self.values.to("cpu", torch.float64) + self.eps
                pair = [((vectors * values**power) @ vectors.T).float().to(device) for power in (-0.5, 0.5)]
                self._on[device] = (self.mean.to(device), pair[0], pair[1])
        return self._on[device]


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """The way from pixels to what a network sees, with its inverse.

    Example:
        >>> import torch
        >>> pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
        >>> look = hd.Preprocessing(1, (1, 2), mean=(0.5,), std=(0.25,))
        >>> look(pixels).flatten().tolist(), look.to_uint8(look(pixels)).flatten().tolist()
        ([-2.0, 2.0], [0, 255])

    Attributes:
        channels: 1 (gray) or 3 (RGB).
        image_size: Height and width in pixels.
        mean: Per channel, for pixels in [0, 1]; zeros with ZCA.
        std: Per channel, for pixels in [0, 1]; ones with ZCA.
        zca: Whitening in place of mean and std.
    """

    channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    zca: ZCA | None = None
    _on: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"mean {list(self.mean)} and std {list(self.std)} do not fit images with {self.channels} channel(s); "
                "expected one number per channel"
            )
        if self.zca is not None and self.zca.mean.numel() != self.channels * self.image_size[0] * self.image_size[1]:
            raise ValueError(
                f"ZCA of {self.zca.mean.numel()} pixels does not fit {self.channels}x{self.image_size[0]}x"
                f"{self.image_size[1]} images; fit it on images of that size"
            )

    @without_autocast
    def __call__(self, images: Tensor) -> Tensor:
        """`images` as a network sees them; differentiable.

        Args:
            images: (N, C, H, W) uint8, or floats in [0, 1].

        Returns:
            (N, C, H, W) float32, on the device of `images`.
        """
        self._check_shape(images)
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if self.zca is not None:
            mean, whiten, _ = self.zca.on(pixels.device)
            return ((pixels.flatten(1) - mean) @ whiten).reshape(pixels.shape)
        mean, std = self._columns(pixels.device)
        return (pixels - mean) / std

    @without_autocast
    def inverse(self, x: Tensor) -> Tensor:
        """Pixels of what a network sees, (N, C, H, W) float32: in [0, 1] where `x` came from such, else beyond."""
        self._check_shape(x)
        if self.zca is not None:
            mean, _, restore = self.zca.on(x.device)
            return (x.float().flatten(1) @ restore + mean).reshape(x.shape)
        mean, std = self._columns(x.device)
        return x.float() * std + mean

    def to_uint8(self, x: Tensor) -> Tensor:
        """The nearest image that a file can hold, (N, C, H, W) uint8: `inverse`, clamped and rounded."""
        return (self.inverse(x.detach()) * 255).round().clamp(0, 255).to(torch.uint8)

    def to(self, device: torch.device | str) -> "Preprocessing":
        """The same preprocessing with its tensors on `device`."""
        if self.zca is None:
            return self
        mean, vectors, values = (part.to(device) for part in (self.zca.mean, self.zca.vectors, self.zca.values))
        return replace(self, zca=ZCA(mean, vectors, values, self.zca.eps, self.zca.digest))

    def to_config(self) -> dict[str, Any]:
        """Everything but the tensors, ready for JSON."""
        config: dict[str, Any] = {
            "channels": self.channels,
            "image_size": list(self.image_size),
            "mean": list(self.mean),
            "std": list(self.std),
        }
        if self.zca is not None:
            config["zca"] = {"eps": self.zca.eps, "digest": self.zca.digest}
        return config

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the whitening, on the CPU; empty without ZCA."""
        if self.zca is None:
            return {}
        parts = {"zca_mean": self.zca.mean, "zca_vectors": self.zca.vectors, "zca_values": self.zca.values}
        return {name: part.cpu().contiguous() for name, part in parts.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> "Preprocessing":
        """The preprocessing that `to_config()` and `tensors()` describe.

        Raises:
            ValueError: A value is missing or of another kind, or the config speaks of ZCA and `tensors` lacks one of
                its three or has it in another shape.
        """
        size: Any = config.get("image_size")
        channels: Any = config.get("channels")
        sides = size if isinstance(size, (list, tuple)) else []
        if not all(type(count) is int and 1 <= count <= LARGEST for count in (channels, *sides)) or len(sides) != 2:
            raise ValueError(
                f"preprocessing of {reprlib.repr(channels)} channels and {reprlib.repr(size)} pixels; expected whole "
                f"numbers from 1 to {LARGEST}, and height and width"
            )
        mean: Any = config.get("mean")
        std: Any = config.get("std")
        for values in (mean, std):
            if not isinstance(values, (list, tuple)) or not all(map(_finite, values)) or len(values) != channels:
                raise ValueError(
                    f"preprocessing with mean {reprlib.repr(mean)} and std {reprlib.repr(std)}; expected {channels} "
                    "finite number(s) each"
                )
        if not all(value > 0 for value in std):
            raise ValueError(f"preprocessing with std {std}; expected numbers above 0")
        zca = None
        if config.get("zca") is not None:
            zca = _whitening(config["zca"], tensors or {}, channels * sides[0] * sides[1])
        return cls(channels, (sides[0], sides[1]), tuple(mean), tuple(std), zca)

    @cached_property
    def _fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.to_config(), sort_keys=True).encode()).hexdigest()[:16]

    def fingerprint(self) -> str:
        """16 hex digits that two preprocessings share when they do the same, on any machine."""
        return self._fingerprint

    def _check_shape(self, images: Tensor) -> None:
        size = self.image_size if self.zca is not None else tuple(images.shape[-2:])
        if images.ndim != 4 or tuple(images.shape[1:]) != (self.channels, *size):
            raise ValueError(
                f"images of shape {tuple(images.shape)}; expected (N, {self.channels}, "
                f"{self.image_size[0]}, {self.image_size[1]}), as this preprocessing was made for"
            )

    def _columns(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and std as (C, 1, 1) float32 on `device`; made once for each device, which a GPU would wait for."""
        if device not in self._on:
            with torch.inference_mode(False):  # whoever asks first, others may differentiate through them
                mean, std = torch.tensor([self.mean, self.std], dtype=torch.float32, device=device)[..., None, None]
                self._on[device] = (mean, std)
        return self._on[device]


def _finite(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < math.inf


def _whitening(config: Any, tensors: dict[str, Tensor], pixels: int) -> ZCA:
    """The whitening that the `zca` of a config and its tensors describe, of images of so many values."""
    known = config if isinstance(config, dict) else {}
    eps, digest = known.get("eps"), known.get("digest")
    if not (_finite(eps) and eps >= 0 and isinstance(digest, str)):
        raise ValueError(
            f"ZCA is described as {reprlib.repr(config)}; expected eps, a number from 0, and digest, a text"
        )
    shapes = {"zca_mean": (pixels,), "zca_vectors": (pixels, pixels), "zca_values": (pixels,)}
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise ValueError(f"ZCA preprocessing without its tensors {', '.join(missing)}: the artifact lacks them")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected finite float32 of shape {shape}"
            )
    return ZCA(tensors["zca_mean"], tensors["zca_vectors"], tensors["zca_values"], eps, digest)


def fit_mean_std(batches: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population deviation of each channel, for pixels in [0, 1], in one pass.

    A channel that never changes has deviation 1: it becomes zero instead of a division by zero.

    Args:
        batches: (n, C, H, W) uint8 tensors of any sizes n.

    Raises:
        ValueError: There is no image.
    """
    count, total, squares = 0, np.zeros(0), np.zeros(0)
    for rows in _exact_rows(batches):
        if not count:
            channels = rows.shape[1]
            total, squares = (np.zeros(rows[0].size) for _ in range(2))
        flat = rows.reshape(len(rows), -1).astype(np.float32)
        count += len(flat)
        total += flat.sum(0)
        squares += np.square(flat, out=flat).sum(0)
    if not count:
        raise ValueError("mean and std of no images; expected at least one")
    mean = total.reshape(channels, -1).mean(1) / count
    variance = squares.reshape(channels, -1).mean(1) / count - mean**2
    std = np.sqrt(np.maximum(variance, 0)) / 255
    return tuple((mean / 255).tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def fit_zca(batches: Iterable[Tensor], eps: float) -> ZCA:
    """The whitening of all images in `batches`, in one pass that keeps one (d, d) float64 matrix.

    Args:
        batches: (n, C, H, W) uint8 tensors of any sizes n; d = C·H·W.
        eps: Added to the eigenvalues of the covariance of pixels in [0, 1].

    Raises:
        ValueError: There are fewer than two images, or `eps` is 0 and the covariance is singular.
    """
    count, total, products = 0, np.zeros(0), np.zeros((0, 0))
    for rows in _exact_rows(batches):
        if not count:
            total, products = np.zeros(rows[0].size), np.zeros((rows[0].size, rows[0].size))
        flat = rows.reshape(len(rows), -1).astype(np.float32)
        count += len(flat)
        total += flat.sum(0)
        products += flat.T @ flat
    if count < 2:
        raise ValueError(f"ZCA of {count} image(s); expected at least two")
    digest = _sha(torch.tensor(count), torch.from_numpy(total), torch.from_numpy(products))
    mean = total / count
    products -= np.outer(total, mean)
    products /= (count - 1) * 255.0**2
    values, vectors = np.linalg.eigh(products)
    parts = [torch.from_numpy(part).float().contiguous() for part in (mean / 255, vectors, values.clip(min=0))]
    return ZCA(parts[0], parts[1], parts[2], eps, digest)


def _exact_rows(batches: Iterable[Tensor]) -> Iterable[np.ndarray]:
    """Parts (n, C, H, W) uint8 of the batches, each short enough for exact float32 sums."""
    for batch in batches:
        if batch.dtype != torch.uint8:
            raise ValueError(f"statistics of {batch.dtype} images; expected uint8, 0 to 255")
        yield from (part.numpy() for part in batch.cpu().split(EXACT_ROWS))


def _sha(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
