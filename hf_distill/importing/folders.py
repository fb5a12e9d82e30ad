"""Images from a folder with a folder of JPEG or PNG files for each class."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch

from ..config import DataArguments
from ..data.images import RealImages
from ..data.pixels import NAMED, Misfit, Plan, Target, decode, is_gray
from ..data.source import Source
from ..distilled.distilled_set import DistilledSet
from .classes import match_classes
from .files import check_fetched, config_of, known_classes, known_preprocessing

PICTURES = (".jpg", ".jpeg", ".png")


def _inside(path: Path, root: Path) -> Path:
    if not path.resolve().is_relative_to(root):
        raise ValueError(f"{path} leads out of {root}; copy what it points to there")
    return path


def _class_files(root: Path, names: list[str], original: list[str]) -> list[tuple[Path, int]]:
    """Each picture of the classes `names` under `root`, with its class, class after class."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ValueError(f"{root} holds no folders; expected one for each class")
    by_name = {name: folder for folder, name in match_classes(f"folders in {root}", folders, original).items()}
    absent = [name for name in names if name not in by_name]
    if absent:
        raise ValueError(
            f"{root} has no folder for {len(absent)} of {len(names)} classes ({', '.join(absent[:10])}); name those it "
            "has with --classes"
        )
    files, empty = [], []
    for label, name in enumerate(names):
        folder = _inside(root / by_name[name], root)
        pictures = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURES]
        files += [(_inside(path, root), label) for path in pictures]
        empty += [] if pictures else [f"{folder} holds no JPEG or PNG files; expected the images of class {name!r}"]
    if empty:
        raise _refusal(empty)
    return files


def class_order(args: DataArguments) -> list[str]:
    """The classes of the source data in their order; no image is decoded unless it is streamed.

    Raises:
        ValueError: As `RealImages.from_hub`.
    """
    return Source.open(args, args.dataset_train_split, Target(None, "auto", False)).class_names


def _refusal(problems: list[str]) -> ValueError:
    more = ["and others"] if len(problems) > NAMED else []
    return ValueError("; ".join([*problems[:NAMED], *more]))


def import_image_folder(
    path: str | Path,
    *,
    real: RealImages | None = None,
    class_names: Sequence[str] | None = None,
    original_classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resolution: Sequence[int] | None = None,
    method: str | None = None,
) -> DistilledSet:
    """The distilled set in a folder of JPEG or PNG files, in a folder for each class.

    Args:
        path: The folder of the class folders, which are named by the class or by its number in the source's order.
        real: The training images it was made of: they give class names, size, preprocessing and provenance.
        class_names: Where there is no `real`.
        original_classes: All classes of the source in its order, where `real` holds only some of them: numbers count
            in these.
        mean: Per channel, where there is no `real`.
        std: Per channel, where there is no `real`.
        resolution: Height and width that pictures are brought to; without it they must have one size, that of `real`.
        method: What made the images, as cards say it.

    Raises:
        ValueError: A folder is no class, a class lacks, a file cannot be decoded, has another size, or is elsewhere.
    """
    root = Path(path).resolve()
    if not root.is_dir():
        raise ValueError(f"{path} is no folder; expected one that holds a folder of images for each class")
    names = known_classes(real, class_names, None, str(path))
    files = _class_files(root, names, list(original_classes or names))
    feature, digest = datasets.Image(), hashlib.sha256()

    def picture(file: Path) -> tuple[bytes, PIL.Image.Image] | str:
        """The file and its image, or why there is none."""
        try:
            check_fetched(file)
            content = file.read_bytes()
            return content, decode({"bytes": content, "path": str(file)}, feature)
        except OSError as error:
            return f"{file} cannot be read ({error.strerror}); expected a JPEG or PNG file"
        except ValueError as error:
            return str(error)

    size = (resolution[0], resolution[-1]) if resolution else None
    read = (picture(file) for file, _ in files)
    first = next((each[1] for each in read if not isinstance(each, str)), None)
    problems: list[str] = []
    if first is None:
        raise _refusal([each for each in (picture(file) for file, _ in files[:NAMED]) if isinstance(each, str)])
    if real is None:
        plan = Target(size, "auto", size is not None).plan((first.height, first.width), [is_gray(first)])
    else:
        plan = Plan(tuple(real.shape[1:]), real.shape[0], size is not None, False)
    images = np.empty((len(files), *plan.shape), np.uint8)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), 256):  # the pool would read everything ahead
            part = files[start : start + 256]
            for row, each in enumerate(pool.map(picture, [file for file, _ in part]), start=start):
                if isinstance(each, str):
                    problems.append(each)
                    continue
                file, (content, image) = files[row][0], each
                digest.update(json.dumps([file.relative_to(root).as_posix(), len(content)]).encode() + content)
                try:
                    images[row] = plan.pixels(image)
                except Misfit as error:
                    problems.append(f"{file}: {error}")
            if len(problems) >= NAMED:
                break
    if problems:
        raise _refusal(problems)
    preprocessing = known_preprocessing(real, plan.shape, mean, std, str(path))
    imported_from = {
        "layout": "image folder",
        "space": "bytes",
        "files": [{"file": root.name, "sha256": digest.hexdigest(), "images": len(files)}],
    }
    pixel_values = torch.from_numpy(images)  # the pictures themselves
    labels = torch.tensor([label for _, label in files])
    return DistilledSet(pixel_values, labels, names, preprocessing, config=config_of(real, method, imported_from))
