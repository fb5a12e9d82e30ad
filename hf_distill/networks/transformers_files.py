"""Image networks in transformers' format: `config.json`, `model.safetensors`, and what their images go through."""

import json
import math
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from ..data.preprocessing import Preprocessing
from ..hub.checks import MOST_CLASSES, are_names
from ..hub.files import load_json
from .architectures import StudentSpec, read_shapes
from .class_names import imagenet_order
from .timm_files import PROCESSOR, TIMM_CONFIG, WEIGHTS
from .transformers_models import (
    CLASSES,
    FEATURES,
    KINDS,
    MISTAKES,
    POOLER,
    TransformersClassifier,
    TransformersFeatures,
    configuration,
    most_layers,
)

Network = TypeVar("Network", TransformersClassifier, TransformersFeatures)
# Of a configuration: what says nothing of the network, or says it in another place.
LEFT_OUT = (
    *("model_type", "id2label", "label2id", "num_labels", "transformers_version", "torch_dtype", "dtype"),
    *("_name_or_path", "auto_map", "problem_type", "finetuning_task", "_commit_hash", "custom_pipelines"),
)
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by PIL's numbers


def read_transformers(
    folder: Path,
) -> tuple[TransformersClassifier, StudentSpec, Preprocessing, list[str] | None, dict[str, Any]]:
    """The classifier in a folder of transformers: the network, what builds it, its preprocessing, its classes and how
    its test images are cut.

    Classes are None where nobody named them, or two alike; in ImageNet-1K's order they have WordNet's numbers then.

    Raises:
        ValueError: It holds no image classifier of transformers, or a file is absent, damaged or does not fit.
    """
    path = folder / TIMM_CONFIG
    config = load_json(path)
    named, kind = config.get("architectures"), config.get("model_type")
    known = [name for name in named if CLASSES.get(str(name)) == kind] if isinstance(named, list) else []
    if not known:
        what = str(named[0] if isinstance(named, list) and named else kind)[:80]
        raise ValueError(
            f"{path} describes {what!r}, which is no image classifier of transformers that can be read; expected one "
            "such as ResNetForImageClassification"
        )
    labels = config.get("id2label")
    count: Any = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if type(count) is not int or not 1 <= count <= MOST_CLASSES:
        raise ValueError(f"{path} has {reprlib.repr(count)} classes; expected a whole number from 1")
    about = {name: value for name, value in config.items() if name not in LEFT_OUT}
    preprocessing, test_images = read_processor(folder)
    name = next(name for name, each in KINDS.items() if each == kind)
    spec = StudentSpec.from_dict(
        {
            "name": name,
            "num_classes": count,
            "in_chans": preprocessing.channels,
            "img_size": preprocessing.image_size,
            "kwargs": {"description": json.dumps(about, sort_keys=True)},
        }
    )
    configuration(kind, spec.kwargs["description"], count)
    model = _load(
        folder / WEIGHTS, lambda: cast(TransformersClassifier, spec.build(0)), spec, f"{name} for {count} classes"
    )
    return model, spec, preprocessing, _names(labels, count), test_images


def _names(labels: Any, count: int) -> list[str] | None:
    texts = [labels.get(str(index)) for index in range(count)] if isinstance(labels, dict) else []
    if not texts or not all(isinstance(text, str) for text in texts) or texts[0] == "LABEL_0":
        return None
    return texts if are_names(texts) else imagenet_order(texts)


def read_features(folder: Path) -> tuple[TransformersFeatures, Preprocessing]:
    """The network without a head in a folder of transformers, and what its images go through.

    Raises:
        ValueError: It holds no network that has features of images, or a file is absent, damaged or does not fit.
    """
    path = folder / TIMM_CONFIG
    config = load_json(path)
    kind = config.get("model_type")
    if kind not in FEATURES:
        raise ValueError(
            f"{path} describes {str(kind)[:80]!r}, whose features of images are not known; expected an image network "
            f"of transformers, of {', '.join(FEATURES)}"
        )
    description = json.dumps({name: value for name, value in config.items() if name not in LEFT_OUT}, sort_keys=True)
    preprocessing, _ = read_processor(folder)
    configuration(kind, description, 1)
    spec = StudentSpec(kind, 0, preprocessing.channels, preprocessing.image_size, {"description": description})
    return _load(folder / WEIGHTS, lambda: TransformersFeatures(kind, description), spec, kind), preprocessing


def _load(path: Path, build: Callable[[], Network], spec: StudentSpec, what: str) -> Network:
    """The network that `build` gives, and `spec` describes, with the weights in a file of transformers."""
    try:
        shapes = read_shapes(path)
        if (layers := most_layers(spec.kwargs["description"])) > len(shapes):
            raise ValueError(
                f"{path} has {len(shapes):,} tensors, and {spec.name} is described with {layers:,} layers; expected "
                "the weights of that network: fetch the repository again"
            )
        with torch.device("meta"):  # a description can ask for a network of any size
            model = build()
            _check_output(model, spec)
        needed = sum(value.numel() for name, value in model.named_parameters() if not name.startswith(POOLER))
        given = sum(math.prod(shape) for shape in shapes.values())
        if needed > given:
            raise ValueError(
                f"{path} has {given:,} values, and {what} takes {needed:,}; expected the weights of that network: "
                "fetch the repository again"
            )
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no whole safetensors file ({reason}); fetch it again") from error
    broken = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise ValueError(f"{path} has values in {broken} that are not finite; fetch or train the network again")
    with torch.random.fork_rng(devices=[]):
        model = build()
    try:
        model.load_checkpoint({name: tensor.float() for name, tensor in tensors.items()})
    except ValueError as error:
        raise ValueError(f"the weights in {path} {error}; expected those of {spec.name}: fetch it again") from error
    return model


def _check_output(model: TransformersClassifier | TransformersFeatures, spec: StudentSpec) -> None:
    """Raise a `ValueError` unless the network, which is on no device, takes images of its size."""
    try:
        shape = tuple(model.eval()(torch.zeros(2, spec.in_chans, *spec.img_size)).shape)
    except NotImplementedError:  # an operation that needs values
        return
    except MISTAKES as error:
        reason = reprlib.repr(" ".join(str(error).split()))
        raise ValueError(f"{spec.name} cannot take images of {spec.img_size} pixels ({reason})") from error
    if spec.num_classes == 0 and len(shape) == 2:
        return
    if shape != (2, spec.num_classes):
        raise ValueError(f"{spec.name} gives {shape} for two images; expected {spec.num_classes} logits of each")


def read_processor(folder: Path) -> tuple[Preprocessing, dict[str, Any]]:
    """What images go through, and the share of the shorter side that is cut out of test images (`crop_pct`) after
    resizing by `interpolation`."""
    path = folder / PROCESSOR
    load_json(path)
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        values = processor.to_dict()
    except (OSError, *MISTAKES) as error:
        reason = reprlib.repr(" ".join(str(error).split()))
        raise ValueError(f"{path} describes no image processor of transformers ({reason})") from error
    if values.get("do_flip_channel_order"):
        raise ValueError(f"{path} turns the channels of images around (BGR), which networks here never see")
    if values.get("do_resize") and not isinstance(values.get("size"), dict):
        raise ValueError(f"{path} has size {reprlib.repr(values.get('size'))}; expected that of images")
    mean, std = values.get("image_mean"), values.get("image_std")
    if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple):
        raise ValueError(f"{path} has image_mean {reprlib.repr(mean)}; expected a number for each channel")
    try:
        size, crop = values.get("size") or {}, values.get("crop_size") or {}
        shorter = size.get("shortest_edge") or min(size.get("height") or 0, size.get("width") or 0)
        height, width = size.get("height") or shorter, size.get("width") or shorter
        crop_pct = 1.0
        if values.get("crop_pct"):  # such a processor enlarges by it first, and ConvNeXt's squeezes large images
            squeezed = "ConvNext" in type(processor).__name__ and shorter >= 384
            crop_pct = 1.0 if squeezed else values["crop_pct"]
        elif values.get("do_center_crop") and crop.get("height"):
            height, width = crop["height"], crop["width"]
            # LeViT's resizes to 256 for 224, and says 224
            crop_pct = (
                224 / 256 if "Levit" in type(processor).__name__ else min(1.0, min(height, width) / (shorter or 1))
            )
        if values.get("do_center_crop") and crop.get("height"):
            height, width = crop["height"], crop["width"]
        # ((255 factor x - offset) - mean) / std of x in [0, 1]
        scale = 255 * (values.get("rescale_factor") or 1 / 255) if values.get("do_rescale") else 255.0
        offset = 1.0 if values.get("rescale_offset") else 0.0
        # EfficientNet's divides twice.
        powers = int(bool(values.get("do_normalize"))) + int(bool(values.get("include_top")))
        shifts = list(mean) if values.get("do_normalize") else [0.0] * len(mean)
        preprocessing = Preprocessing.from_config(
            {
                "channels": len(mean),
                "image_size": [height, width],
                "mean": [(shift + offset) / scale for shift in shifts],
                "std": [deviation**powers / scale for deviation in std],
            }
        )
    except MISTAKES as error:
        ours = isinstance(error, ValueError)
        reason = str(error) if ours else f"it has a value of another kind: {' '.join(str(error).split())[:80]}"
        raise ValueError(f"{path} does not say what images go through: {reason}") from error
    resample = values.get("resample")
    known = isinstance(resample, int) and 0 <= resample < len(RESAMPLING)
    return preprocessing, {"crop_pct": crop_pct, **({"interpolation": RESAMPLING[resample]} if known else {})}
