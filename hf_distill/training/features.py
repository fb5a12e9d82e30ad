"""Features of real images in a frozen backbone, computed once: float16 in a file that is mapped, for any later run."""

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ..augmentation.noisy_crops import NoisyCrops
from ..data.feed import Pool
from ..data.files import cache_folder
from ..data.images import RealImages
from ..hub.files import load_sums, naming, save_sums, sha256_of_file, sync
from ..networks.backbones import Backbone
from ..networks.batches import images_at_once
from ..networks.compiling import in_precision
from ..runs.claims import claimed
from ..runs.folder import describe_images
from ..runs.processes import on_main

__all__ = ["FEATURES", "features_folder", "real_features"]

logger = logging.getLogger(__name__)

FEATURES = "features.f16"
PARTIAL = f"{FEATURES}.partial"


def features_folder(
    real: RealImages, backbone: Backbone, augment: NoisyCrops, views: int, accelerator: Accelerator
) -> Path:
    """The folder, in the cache of `datasets`, of the features that `real_features` gives for these arguments."""
    source = real.provenance
    about: dict[str, Any] = {
        "source": [source.get(name) for name in ("name", "config", "split")],
        "images": describe_images(real),
        "rows": hashlib.sha256(real.rows.numpy().tobytes()).hexdigest(),
        "size": list(real.shape),
        "backbone": [backbone.sha256, list(backbone.size), list(backbone.mean), list(backbone.std)],
        "augment": asdict(augment),
        "views": views,
        "precision": [accelerator.mixed_precision, accelerator.device.type],
    }
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "hf_distill-features" / name


def real_features(
    real: RealImages,
    backbone: Backbone,
    augment: NoisyCrops,
    views: int,
    *,
    accelerator: Accelerator,
    disable_tqdm: bool = False,
) -> Tensor:
    """The features of `views` crops of each of N images, (views · N, D) float16 on the CPU, mapped; view after view.

    All processes call it. The main one computes what is not in the cache yet, or is damaged there, and goes on where
    another run left it.

    Args:
        real: The images.
        backbone: On the accelerator's device.
        augment: What a view is of an image: a function of its number among `real`, and of the view's.
        views: Of each image.
        accelerator: Processes, device and precision.
        disable_tqdm: No progress bar.

    Raises:
        ValueError: Features are beyond what float16 holds, or no numbers at all.
        OSError: They cannot be written.
    """
    folder = Path(on_main(accelerator, lambda: str(features_folder(real, backbone, augment, views, accelerator))))
    rows = views * len(real)
    with claimed(folder, accelerator, wait=True):
        if not on_main(accelerator, lambda: _is_whole(folder / FEATURES, 2 * rows * backbone.width)):
            logger.info(
                "features of %s views of %s images in %s: %.3g MB, which stay in %s",
                views,
                f"{len(real):,}",
                backbone.name,
                2 * rows * backbone.width / 1e6,
                folder,
            )
            on_main(accelerator, lambda: _compute(folder, real, backbone, augment, views, accelerator, disable_tqdm))
    values = torch.from_file(str(folder / FEATURES), size=rows * backbone.width, dtype=torch.float16)
    return values.view(rows, backbone.width)


def _is_whole(path: Path, size: int) -> bool:
    """True where features are there as they were written: of so many bytes, with their checksum."""
    if not path.is_file():
        return False
    try:
        if path.stat().st_size == size and load_sums(path.parent).get(path.name) == sha256_of_file(path):
            return True
    except ValueError:  # of the checksum's own file
        pass
    logger.warning("%s is damaged: its size or its checksum is another; the features are computed again", path)
    return False


@torch.no_grad()
def _compute(
    folder: Path,
    real: RealImages,
    backbone: Backbone,
    augment: NoisyCrops,
    views: int,
    accelerator: Accelerator,
    disable_tqdm: bool,
) -> None:
    """Append to the file that is not whole yet, batch after batch, and give it its name in the end."""
    look, path = in_precision(backbone.features, accelerator), folder / PARTIAL
    pool = Pool(real, real.labels, device=accelerator.device, keep="nothing")

    def seen(images: Tensor, view: int, rows: Tensor) -> Tensor:
        return look(augment(images, (view,), rows, backbone.size))

    size = images_at_once(lambda images: seen(images, 0, torch.arange(len(images))), pool)
    parts = [(view, rows) for view in range(views) for rows in torch.arange(len(real)).split(size)]
    ends = torch.tensor([len(rows) for _, rows in parts]).cumsum(0) * 2 * backbone.width  # bytes
    with naming(path), path.open("ab") as file:
        done = int((ends <= file.tell()).sum())
        file.truncate(int(ends[done - 1]) if done else 0)
        bar = tqdm(total=len(parts), initial=done, desc="features", disable=disable_tqdm)
        left = parts[done:]
        for (view, rows), (_, images) in zip(left, pool.each([rows for _, rows in left]), strict=True):
            features = seen(images, view, rows).half().cpu()
            if not features.isfinite().all():
                raise ValueError(
                    f"{backbone.name} has features that are not finite in float16; expected a backbone with features "
                    "up to 65,504"
                )
            file.write(features.numpy().tobytes())
            bar.update()
        bar.close()
        file.flush()
        sync(path)
        save_sums(folder, {FEATURES: sha256_of_file(path)})
        os.replace(path, folder / FEATURES)
