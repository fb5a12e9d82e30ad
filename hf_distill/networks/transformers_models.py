"""Image classifiers of transformers as networks that timm builds: one name for each kind, such as `transformers_vit`.
And its networks without a head, which have features alone.

What else such a network is goes with it as the text of a JSON object, `description`: transformers' configuration. Only
classes that are part of transformers are built from it, no file is loaded, and no code of a repository runs.
"""

import json
import re
import reprlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

__all__ = [
    "CLASSES",
    "FEATURES",
    "KINDS",
    "MISTAKES",
    "POOLER",
    "TransformersClassifier",
    "TransformersFeatures",
    "configuration",
    "most_layers",
]

# Some see no pixels, or texts beside them; timm's own networks are read as such.
OTHERS = ("imagegpt", "shieldgemma2", "timm_wrapper")
KINDS = {f"transformers_{kind.replace('-', '_')}": kind for kind in CLASSIFIERS if kind not in OTHERS}
CLASSES = {
    name: kind
    for kind, names in CLASSIFIERS.items()
    if kind not in OTHERS
    for name in ([names] if isinstance(names, str) else names)
}
FEATURES = (  # networks without a head that have features of one image
    *("beit", "bit", "clip_vision_model", "convnext", "convnextv2", "data2vec-vision", "deit", "dinov2"),
    *("dinov2_with_registers", "dinov3_convnext", "dinov3_vit", "efficientnet", "hiera", "mobilenet_v1"),
    *("mobilenet_v2", "regnet", "resnet", "siglip_vision_model", "swin", "swinv2", "vit", "vit_msn"),
)
POOLER = "network.pooler."  # of `TransformersFeatures`
LARGEST = 1_000_000  # of a number in a description; what asks for more asks for a machine's memory
MOST_LAYERS = 1_000  # also entries of a list, most of which are of layers
LAYERS = re.compile(r"layers|depth|blocks|stages|repeats|experts|^len\(")
LOADING = re.compile("pretrained|checkpoint|backbone|(?<!drop_)path|file|weights|url|hub")
OF_OTHERS = re.compile("auto_map|attribute_map|quantization")  # also what stands anywhere in these
# transformers takes the name of a repository for an implementation, and runs the kernel that is there.
IMPLEMENTATION = re.compile("implementation|use_kernel")
IMPLEMENTATIONS = (None, True, False, "eager", "sdpa")
# What transformers raises of configurations that cannot be.
MISTAKES = (
    *(ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError),
    StrictDataclassError,
)


def configuration(kind: str, description: str, num_classes: int) -> PretrainedConfig:
    """transformers' configuration of a network that `description` tells of.

    Raises:
        ValueError: It is no such text, would have a file loaded, or transformers cannot make sense of it.
    """
    try:
        values = json.loads(description)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the description of a {kind} of transformers is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"the description of a {kind} is {reprlib.repr(values)}; expected a JSON object")
    for names, value in _entries(values):
        name = names[-1]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        most = MOST_LAYERS if LAYERS.search(name) else LARGEST
        loads = value and (LOADING.search(name) or any(map(OF_OTHERS.search, names)))
        kernel = value not in IMPLEMENTATIONS and any(map(IMPLEMENTATION.search, names))
        if loads or kernel or (number and not abs(value) <= most):
            raise ValueError(
                f"the description of a {kind} has {'.'.join(names)} {reprlib.repr(value)}; expected what builds a "
                f"network without loading anything, with numbers up to {most:,}"
            )
    try:
        return AutoConfig.for_model(kind, **{**values, "num_labels": num_classes})
    except MISTAKES as error:
        reason = reprlib.repr(" ".join(str(error).split()))
        raise ValueError(f"transformers cannot make sense of the description of a {kind} ({reason})") from error


def _entries(value: Any, names: tuple[str, ...] = ("",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The plain values in a JSON value, each under the keys that lead to it; the length of a list too."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _entries(item, (*names, key) if names != ("",) else (key,))
    elif isinstance(value, list):
        yield (*names[:-1], f"len({names[-1]})"), len(value)
        for item in value:
            yield from _entries(item, names)
    else:
        yield names, value


def most_layers(description: str) -> int:
    """The largest number of layers that stands in the description of a network."""
    counts = (value for names, value in _entries(json.loads(description)) if LAYERS.search(names[-1]))
    return max((value for value in counts if type(value) is int), default=0)


class TransformersClassifier(nn.Module):
    """The logits of an image classifier of transformers, in timm's manner.

    Args:
        kind: transformers' `model_type`.
        description: The rest of its configuration, as the text of a JSON object.
        num_classes: Logits.
        in_chans: Channels of its images.

    Raises:
        ValueError: As `configuration`; or the network is for images of other channels.
    """

    def __init__(self, kind: str, description: str = "{}", num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        config = configuration(kind, description, num_classes)
        if (channels := getattr(config, "num_channels", in_chans)) != in_chans:
            raise ValueError(f"a {kind} that sees {channels} channels, for images of {in_chans}; expected the same")
        try:
            self.network = AutoModelForImageClassification.from_config(config)
        except MISTAKES as error:
            reason = reprlib.repr(" ".join(str(error).split()))
            raise ValueError(f"transformers cannot build a {kind} as it is described ({reason})") from error
        self.num_classes = num_classes
        heads = {
            f"network.{name}": layer
            for name, layer in self.network.named_modules()
            if name.partition(".")[0] != self.network.base_model_prefix
            and isinstance(layer, nn.Linear | nn.Conv2d)
            and len(layer.weight) == num_classes
        }
        self.classifiers = list(heads)
        self.num_features = next((layer.weight.shape[1] for layer in heads.values()), 0)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        return self.network(pixel_values=x).logits

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the first layer that gives logits is given, and the logits: of some networks they are means of two."""
        given: list[Tensor] = []
        with ExitStack() as hooks:
            for name in self.classifiers[:1]:
                layer = self.get_submodule(name)
                hooks.callback(layer.register_forward_pre_hook(lambda _, args: given.append(args[0])).remove)
            logits = self(x)
        return given[0] if given else logits, logits

    def forward_head(self, x: tuple[Tensor, Tensor], pre_logits: bool = False) -> Tensor:
        """Of what `forward_features` gives, the features (N, D) or the logits."""
        return x[0].flatten(1) if pre_logits else x[1]

    def load_checkpoint(self, tensors: dict[str, Tensor]) -> None:
        """Take the weights of a checkpoint of transformers, whatever its version called them.

        Raises:
            ValueError: They are those of another network.
        """
        self.network, report = _with_weights(self.network, tensors)
        _check_report(report)


class TransformersFeatures(nn.Module):
    """The features of images that a network of transformers without a head has: what it pools.

    Where it pools nothing, or its file has no weights for it, they are those of the first token of its last layer, or
    the mean of its last maps.

    Args:
        kind: transformers' `model_type`, of `FEATURES`.
        description: The rest of its configuration, as the text of a JSON object.

    Raises:
        ValueError: As `configuration`.
    """

    def __init__(self, kind: str, description: str) -> None:
        super().__init__()
        config = configuration(kind, description, 1)
        try:
            self.network = AutoModel.from_config(config)
        except MISTAKES as error:
            reason = reprlib.repr(" ".join(str(error).split()))
            raise ValueError(f"transformers cannot build a {kind} as it is described ({reason})") from error

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, D) of images (N, C, H, W)."""
        given = self.network(pixel_values=x)
        pooled, last = given.get("pooler_output"), given.last_hidden_state
        if pooled is None:
            pooled = last[:, 0] if last.ndim == 3 else last.mean((2, 3))
        return pooled.flatten(1)

    def load_checkpoint(self, tensors: dict[str, Tensor]) -> None:
        """As `TransformersClassifier.load_checkpoint`."""
        self.network, report = _with_weights(self.network, tensors)
        missing = list(report["missing_keys"])
        if missing and all(f"network.{name}".startswith(POOLER) for name in missing):
            self.network.pooler, report["missing_keys"] = None, []
        _check_report(report)


def _with_weights(network: nn.Module, tensors: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Any]]:
    """A network like `network` of transformers that has the weights of a checkpoint, and transformers' report on it."""
    size = sum(value.numel() for value in network.state_dict().values())
    given = sum(map(torch.numel, tensors.values()))
    try:
        return type(network).from_pretrained(None, config=network.config, state_dict=tensors, output_loading_info=True)
    except MISTAKES as error:
        reason = reprlib.repr(" ".join(str(error).split()))
        raise ValueError(f"are not those of its description, {size:,} values of {given:,} ({reason})") from error


def _check_report(report: dict[str, Any]) -> None:
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report[kind]:
            what = kind.partition("_")[0]
            raise ValueError(f"have {len(report[kind])} {what} tensors, such as {min(map(str, report[kind]))}")
