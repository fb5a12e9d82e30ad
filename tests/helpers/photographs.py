"""A dataset of images of many shapes, smooth as photographs are, on disk; and what Pillow makes of one by hand."""

from pathlib import Path

import datasets
import numpy as np
import PIL.Image
from datasets import Dataset, Features, Image, Value

SHAPES = [(37, 50), (50, 37), (40, 40), (24, 90), (18, 21), (64, 48)]  # height and width


def photograph(height: int, width: int, seed: int, gray: bool = False) -> PIL.Image.Image:
    """Waves of a few colours, with detail at every scale."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = rng.uniform(0.02, 1.2, (3, 4, 2)), rng.uniform(0, 6, (3, 4))
    levels = [
        sum(np.sin(a * y + b * x + phase) for (a, b), phase in zip(*channel, strict=True))
        for channel in zip(*waves, strict=True)
    ]
    pixels = np.clip(127 + 30 * np.stack(levels, axis=2), 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(pixels[..., 0] if gray else pixels)


def photographs(count: int, gray: bool = False, shapes: list[tuple[int, int]] = SHAPES) -> list[PIL.Image.Image]:
    """Images of the `shapes` in turn."""
    return [photograph(*shapes[seed % len(shapes)], seed, gray) for seed in range(count)]


def store(folder: Path, split: str, images: list[PIL.Image.Image], classes: int = 2) -> None:
    """The images as PNG in a parquet file, of the classes in turn."""
    folder.mkdir(exist_ok=True)
    content = {"image": images, "label": [row % classes for row in range(len(images))]}
    features = Features({"image": Image(), "label": Value("int64")})
    Dataset.from_dict(content, features=features).to_parquet(str(folder / f"{split}-00000.parquet"))


def cache_in(folder: Path, monkeypatch) -> None:
    """A cache of its own for a test, so that no test finds what another decoded."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def cropped(image: PIL.Image.Image, box: list[int], size: tuple[int, int]) -> np.ndarray:
    """A box (top, left, height, width) cut out and resized by Pillow, (C, *size) floats."""
    top, left, tall, wide = box
    part = image.crop((left, top, left + wide, top + tall)).resize(size[::-1], PIL.Image.Resampling.BILINEAR)
    pixels = np.asarray(part, dtype=float)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
