"""Folders in timm's own format: `config.json` that says what builds a network, and `model.safetensors` beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..data.preprocessing import Preprocessing
from ..hub.checks import OBJECT_OR_NULL, Rules, check_values, is_whole
from ..hub.files import load_json
from .architectures import StudentSpec, fill, read_shapes

TIMM_CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PROCESSOR = "preprocessor_config.json"  # of transformers, whose other two files are called as timm's are
PLAIN: Rules = {
    "architecture": ("the name of a timm model", lambda name: isinstance(name, str)),
    "num_classes": ("a whole number from 1", is_whole),
    "input_size": ("channels, height and width", lambda size: isinstance(size, list) and len(size) == 3),
    "mean": ("a number for each channel", lambda values: isinstance(values, list)),
    "std": ("a number for each channel", lambda values: isinstance(values, list)),
    "model_args": OBJECT_OR_NULL,
}


def is_transformers(folder: Path) -> bool:
    """True where the `config.json` in a folder is transformers' and not timm's."""
    config = load_json(folder / TIMM_CONFIG)
    return "architecture" not in config and isinstance(config.get("model_type"), str)


def read_timm(folder: Path, *, headless: bool = False) -> tuple[nn.Module, StudentSpec, Preprocessing, dict[str, Any]]:
    """The content of timm's two files: the network, what builds it, its preprocessing, and all they say of it.

    Args:
        folder: That has them.
        headless: Read a network without logits too, which has 0 classes.

    Raises:
        ValueError: A file is damaged, or does not fit the other.
    """
    path = folder / TIMM_CONFIG
    config = load_json(path)
    known = config.get("pretrained_cfg", config)  # long ago it was all one object
    both = {**known, **config} if isinstance(known, dict) else config
    without = headless and type(both.get("num_classes")) is int and both["num_classes"] == 0
    check_values(path, {**both, "num_classes": 1} if without else both, PLAIN)
    options = {k: v for k, v in (both.get("model_args") or {}).items() if k not in ("num_classes", "img_size")}
    channels, *size = known["input_size"]
    spec = StudentSpec.from_dict(
        {
            "name": both["architecture"],
            "num_classes": 1 if without else both["num_classes"],
            "in_chans": options.pop("in_chans", channels),
            "img_size": (both.get("model_args") or {}).get("img_size", size),
            "kwargs": options,
        }
    )
    spec = replace(spec, num_classes=0) if without else spec
    preprocessing = Preprocessing.from_config(
        {"channels": spec.in_chans, "image_size": list(spec.img_size), "mean": known["mean"], "std": known["std"]}
    )
    return load_weights(folder / WEIGHTS, spec), spec, preprocessing, both


def load_weights(path: Path, spec: StudentSpec) -> nn.Module:
    """The network of `spec` with the weights in a safetensors file.

    Raises:
        ValueError: The file is damaged, or holds the weights of another network.
    """
    try:
        what = f"{spec.name} for {spec.num_classes} classes"
        return fill(lambda: spec.build(0), read_shapes(path), lambda: load_file(path), path, what)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no whole safetensors file ({reason}); fetch or train it again") from error
