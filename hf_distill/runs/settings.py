"""The settings of a run that is started from Python: a preset and keyword arguments, in place of a command line."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import DataArguments, configure, find_preset, load_yaml, presets
from ..data.images import RealImages

# Height and width of the images of datasets whose presets give no resolution: the size that they come in.
SIDES = {"digits": 8, "cifar10": 32, "cifar100": 32, "tiny-imagenet": 64}
SPLIT = "validation_fraction"  # of `DataArguments`, what is still to be decided once the images are there


def settings_of(
    method: str, classes: Sequence[type], preset: str | None, settings: dict[str, Any]
) -> tuple[tuple[Any, ...], str]:
    """One instance of each dataclass, and where their values come from, in words.

    Args:
        method: In lower case.
        classes: `DataArguments`, whose only field that `settings` may name is `validation_fraction`, and others.
        preset: Name of a preset that comes with the package, or path of any YAML file.
        settings: What wins over the preset, by field name.

    Raises:
        ValueError: A setting or a preset that there is not, or a value that its field does not take.
    """
    of_data = vars(DataArguments()).keys() - {SPLIT}
    for name in settings:
        if name in of_data:
            raise ValueError(f"{name} is a setting of the images; give it to RealImages.from_dataset or from_hub")
    given = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    file = None if preset is None else _file(method, str(preset))
    values = ({} if file is None else load_yaml(file)) | given
    chosen = configure(*classes, values=values, source="settings" if file is None else str(file))
    listed = ", ".join(f"{name}={value!r}" for name, value in given.items())
    origin = f"the preset {file}" if file is not None else f"the defaults of {classes[-1].__name__}"
    return chosen, f"takes its settings from {origin}{f', and {listed}' if listed else ''}"


def _file(method: str, preset: str) -> Path:
    return Path(preset) if Path(preset).suffix in (".yaml", ".yml") else find_preset(preset, method)


def other_images(data: DataArguments, train: RealImages) -> list[str]:
    """In words, what a preset asks of the images that these are not."""
    height, width = train.shape[1:]
    normalization = "zca" if train.preprocessing.zca is not None else "mean_std"
    differences = []
    name, given = Path(str(train.provenance["name"])).name, data.short_name
    if given != name:
        differences.append(f"dataset {given} (these: {name})")
    if data.color != "auto" and (data.color == "gray") != (train.shape[0] == 1):
        differences.append(f"color {data.color} (these: {'gray' if train.shape[0] == 1 else 'rgb'})")
    for field in ("mean", "std"):
        asked, has = getattr(data, field), getattr(train.preprocessing, field)
        if asked is not None and tuple(asked) != tuple(has):
            differences.append(f"{field} {asked} (these: {list(has)})")
    if data.classes is not None and list(data.classes) != list(train.class_names):
        differences.append(f"{len(data.classes)} classes of its own (these: {train.num_classes})")
    if data.resolution is not None and (data.resolution[0], data.resolution[-1]) != (height, width):
        differences.append(f"resolution {data.resolution} (these: {height}x{width})")
    if data.resize is not None and data.resize != train.test_frame.side:
        differences.append(f"resize {data.resize} (these: {train.test_frame.side or 'none'})")
    if data.keep_side is not None and data.keep_side != train.keep_side:
        differences.append(f"keep_side {data.keep_side} (these: {train.keep_side or 'none'})")
    if data.normalization != "none" and data.normalization != normalization:
        differences.append(f"normalization {data.normalization} (these: {normalization})")
    return differences


def nearest_preset(method: str, train: RealImages, ipc: int) -> str | None:
    """Name of the preset for the most similar images: the same dataset first, then resolution, then IPC."""
    name = Path(str(train.provenance["name"])).name
    side = math.sqrt(train.shape[1] * train.shape[2])

    def distance(path: Path) -> tuple[float, ...]:
        values = load_yaml(path)
        dataset = Path(values.get("dataset_name") or "digits").name
        resolution = values.get("resolution") or SIDES[dataset]
        size = float(resolution[0] if isinstance(resolution, list) else resolution)
        return (dataset != name, abs(math.log(size / side)), abs(math.log(float(values.get("ipc", 1)) / ipc)))

    known = presets(method)
    return min(known, key=lambda preset: distance(known[preset]), default=None)
