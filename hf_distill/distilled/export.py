"""Exports of a distilled set for programs that know nothing of it: a folder of PNG files, or one file of tensors."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import DatasetCardData

from ..hub.files import atomic_write, whole_file
from .card import config_entry
from .tables import pictures, png

if TYPE_CHECKING:
    from .distilled_set import DistilledSet

__all__ = ["export_image_folder", "export_pt"]


def export_image_folder(distilled: "DistilledSet", directory: str | Path) -> Path:
    """As `DistilledSet.export_image_folder`."""
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} is not empty; give a new folder, so that no other images mix with these")
    folders = [re.sub(r"[/\\\0]", "_", name).strip() or "_" for name in distilled.class_names]
    folders = [f"_{name}" if name.startswith(".") else name for name in folders]
    if len(set(folders)) < len(folders):
        raise ValueError(f"class names {distilled.class_names} do not give one folder each; rename the classes")
    for row, label in enumerate(distilled.labels.tolist()):
        folder = directory / "train" / folders[label]
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / f"{row:05d}.png", png(pictures(distilled.images_uint8(slice(row, row + 1)))[0]))
    # Without it `load_dataset` would take a class such as "test tube" for a test split.
    metadata = DatasetCardData(configs=[config_entry("default", "train/**")])
    atomic_write(directory / "README.md", f"---\n{metadata.to_yaml()}\n---\n")
    return directory


def export_pt(distilled: "DistilledSet", path: str | Path) -> Path:
    """As `DistilledSet.export_pt`."""
    preprocessing = distilled.preprocessing
    if distilled.is_bytes:
        images = {"images": distilled.pixel_values}
    else:
        pixels = distilled.pixel_values.detach()
        images = {"images": preprocessing.inverse(pixels).clamp(0, 1).cpu(), "pixel_values": pixels.cpu()}
    content = {
        **images,
        "labels": distilled.labels.cpu(),
        "soft_labels": None if distilled.stored_logits is None else distilled.stored_logits.cpu(),
        "lr": None if distilled.lr is None else distilled.lr.detach().cpu(),
        "mean": torch.tensor(preprocessing.mean),
        "std": torch.tensor(preprocessing.std),
        "class_names": distilled.class_names,
        **preprocessing.tensors(),
    }
    if preprocessing.zca is not None:
        content |= {"zca_eps": preprocessing.zca.eps, "zca_digest": preprocessing.zca.digest}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(value.nbytes for value in content.values() if isinstance(value, torch.Tensor))
    with whole_file(path, size) as aside, open(aside, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of its writer, which goes on behind the one of a full disk
            raise error.__context__ or error from None
    return path
