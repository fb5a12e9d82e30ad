"""The one description of a student, and a network as a function of one flat parameter vector.

timm's factory is the only one of the package: a student is `convnet_d3` as much as it is `resnet18` or
`vit_tiny_patch16_224`. It is imported where a network is built, for it takes seconds to import.
"""

import copy
import dataclasses
import difflib
import hashlib
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from typing_extensions import Self

from ..hub.checks import MOST_CLASSES, Rules, check_values, is_number, is_whole
from .convnets import CONVNETS, NORMS, ConvNet
from .norms import with_closed_norms

__all__ = [
    "CONVNETS",
    "NORMS",
    "ConvNet",
    "FlatModel",
    "StudentSpec",
    "before_logits",
    "features_and_logits",
    "fill",
    "layout_for",
    "read_shapes",
    "sha256_of",
    "timm_with_ours",
]

LARGEST = 10_000  # of a size or an option of a network; what asks for more asks for a machine's memory


def timm_models() -> ModuleType:
    """The module that makes the networks of this package known to timm; the first call takes seconds to import it."""
    with torch.device("cpu"):  # a caller may build on another device, and what an import makes stays where it was made
        from . import timm_models
    return timm_models


def timm_with_ours() -> ModuleType:
    """timm, to which the networks of this package are known; the first call takes seconds to import it."""
    return timm_models().timm


def layout_for(model: nn.Module, device: torch.device) -> torch.memory_format:
    """The layout of weights and images that a network is fastest in: on CUDA channels last, as convolutions like it.

    Not with GroupNorm, whose CUDA kernels copy what is not contiguous: each layer would change the layout twice.
    """
    grouped = any(isinstance(layer, nn.GroupNorm) for layer in model.modules())
    return torch.channels_last if device.type == "cuda" and not grouped else torch.contiguous_format


def sees_batches(model: nn.Module) -> bool:
    """True where what a network in training says of an image depends on its batch: it has BatchNorm of some kind."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def before_logits(model: nn.Module, images: Tensor) -> Tensor:
    """The features (n, D) that a timm model has of `images` (n, C, H, W) before its logits."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def features_and_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """As `before_logits`, and the logits (n, K), in one pass."""
    maps = model.forward_features(images)
    return model.forward_head(maps, pre_logits=True), model.forward_head(maps)


@dataclass(frozen=True)
class StudentSpec:
    """Everything that `timm.create_model` needs to build a network again: name, classes, channels, image size.

    Example:
        >>> spec = hd.StudentSpec("convnet_d3", num_classes=10, in_chans=3, img_size=(32, 32), kwargs={"width": 128})
        >>> spec.num_params(), type(spec.build(0)).__name__
        (320010, 'ConvNet')

    Attributes:
        name: A timm name; the ConvNets of this module are timm names too.
        img_size: Height and width in pixels.
        kwargs: What else the architecture takes, such as a ConvNet's `width` and `norm`.
    """

    name: str
    num_classes: int
    in_chans: int
    img_size: tuple[int, int]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def for_images(cls, name: str, num_classes: int, shape: tuple[int, int, int], *, width: int, norm: str) -> Self:
        """The network `name` for images of `shape` (C, H, W); with `width` and `norm` if it is a ConvNet."""
        channels, *size = shape
        kwargs = {"width": width, "norm": norm} if name in CONVNETS else {}
        return cls(name, num_classes, channels, (size[0], size[1]), kwargs)

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised network, the same one for the same seed; the global generators stay as they were.

        It starts as torchvision's of that kind does, where there is one: see `timm_models.start_as_torchvision`.

        Raises:
            ValueError: timm has no such model, or the model cannot take images of this size.
        """
        timm = timm_with_ours()
        if not timm.is_model(self.name):
            nearest = difflib.get_close_matches(self.name, timm.list_models(), n=3)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else "see timm.list_models()"
            raise ValueError(f"the network {self.name!r} is no timm model; {hint}")
        kwargs = dict(self.kwargs)
        cfg = timm.get_pretrained_cfg(self.name)
        if cfg is not None and cfg.fixed_input_size:
            kwargs["img_size"] = self.img_size
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
            try:
                model = timm.create_model(self.name, num_classes=self.num_classes, in_chans=self.in_chans, **kwargs)
                if "zero_init_last" not in kwargs:
                    timm_models().start_as_torchvision(self.name, model)
                return model
            except (TypeError, RuntimeError, AssertionError, ArithmeticError, LookupError) as error:
                reason = reprlib.repr(" ".join(str(error).split()))
                raise ValueError(
                    f"timm cannot build {self.name} for {self.num_classes} classes, {self.in_chans} channels and "
                    f"{self.img_size} pixels with {reprlib.repr(self.kwargs)} ({reason}); use other sizes or options"
                ) from error

    def num_params(self) -> int:
        """The number of parameters that the network has, without the memory for them.

        Raises:
            ValueError: As `build`.
        """
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.build(0).parameters())

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON types."""
        return {**dataclasses.asdict(self), "img_size": list(self.img_size)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StudentSpec":
        """The spec that `to_dict` wrote, or that somebody says it wrote: nothing in it can make timm load a file.

        Raises:
            ValueError: A value is missing, of another type, or would have a file loaded.
        """
        if not isinstance(values, dict) or set(values) - {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(f"{reprlib.repr(values)} does not describe a student; expected what to_dict gives")
        check_values("a student", values, SPEC)
        loading = [name for name in values["kwargs"] if LOADING.search(name)]
        if loading:
            raise ValueError(
                f"the student {values['name']} has {loading[0]}, which loads weights; expected an architecture"
            )
        height, width = values["img_size"]
        return cls(**{**values, "img_size": (height, width)})


def _is_option(value: Any) -> bool:
    """True where a network may be told so: a text, a flag or a number, or a few of these."""
    if isinstance(value, list):
        return len(value) <= 100 and all(not isinstance(item, list) and _is_option(item) for item in value)
    return value is None or isinstance(value, (bool, str)) or (is_number(value) and abs(value) <= LARGEST)


LOADING = re.compile("pretrained|checkpoint|(?<!drop_)path|dir|file|cfg|weights|url|hub")
SPEC: Rules = {
    "name": (
        "the plain name of a timm model",
        lambda name: isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.]{1,200}", name) is not None,
    ),
    "num_classes": (f"a whole number from 1 to {MOST_CLASSES}", lambda count: is_whole(count, most=MOST_CLASSES)),
    "in_chans": (f"a whole number from 1 to {LARGEST}", lambda count: is_whole(count, most=LARGEST)),
    "img_size": (
        f"height and width, from 1 to {LARGEST}",
        lambda size: (
            isinstance(size, (list, tuple)) and len(size) == 2 and all(is_whole(side, most=LARGEST) for side in size)
        ),
    ),
    "kwargs": (
        f"names with texts, flags or numbers up to {LARGEST}",
        lambda kwargs: (
            isinstance(kwargs, dict)
            and all(re.fullmatch("[a-z][a-z0-9_]*", name) and _is_option(value) for name, value in kwargs.items())
        ),
    ),
}


# Weights of others


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file, by name; their values are not read.

    Raises:
        OSError, SafetensorError: It is no whole file of that kind.
    """
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def differing_tensor(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> tuple[str, tuple[int, ...] | str, tuple[int, ...] | str] | None:
    """The first name whose shapes differ, with its shape in each ("nothing" where it is absent), or None."""
    for name in sorted(expected.keys() | shapes.keys()):
        if shapes.get(name) != expected.get(name):
            return name, shapes.get(name, "nothing"), expected.get(name, "nothing")
    return None


def fill(
    build: Callable[[], nn.Module],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Callable[[], dict[str, Tensor]],
    path: Path,
    what: str,
) -> nn.Module:
    """The network that `build` gives, with the tensors of a file, after a look at what that claims to hold.

    Args:
        build: The network, of any values.
        shapes: Shapes of the file's tensors, by name.
        tensors: Reads them; asked when their shapes are those of the network.
        path: The file, for messages.
        what: The network, for messages.

    Raises:
        ValueError: Other tensors than the network has, or values that are not finite.
    """
    with torch.device("meta"):  # a description can ask for a network of any size
        expected = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    if difference := differing_tensor(shapes, expected):
        name, have, want = difference
        raise ValueError(
            f"{path} has {have} for {name}, and {what} {want}; expected the weights of that network: fetch the "
            "repository again"
        )
    values = tensors()
    broken = next((name for name, tensor in values.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise ValueError(f"{path} has values in {broken} that are not finite; fetch or train the network again")
    model = build()
    model.load_state_dict(values)
    return model


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """64 hex digits that name `tensors`: their names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class FlatModel:
    """`logits = model(theta, x)` for one flat `theta`, so that a parameter state is a row of a matrix.

    BatchNorm layers lose their running statistics and always use those of the batch: a row of parameters holds no
    buffers, and statistics that were never stored must not be made up. Dropout is off.

    Args:
        module: The architecture; it is copied, and its own parameter values do not matter.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = torch.func.replace_all_batch_norm_modules_(copy.deepcopy(module)).eval()
        parameters = dict(self.module.named_parameters())
        self.names = list(parameters)
        self.shapes = [tuple(parameter.shape) for parameter in parameters.values()]
        self.sizes = [parameter.numel() for parameter in parameters.values()]
        self.num_params = sum(self.sizes)
        self.module.requires_grad_(False)

    @classmethod
    def from_spec(cls, spec: StudentSpec) -> "FlatModel":
        """The functional form of the network that `spec` describes."""
        model = cls(spec.build(0))
        model.spec = spec
        return model

    spec: StudentSpec | None = None

    @property
    def sees_batches(self) -> bool:
        """True where BatchNorm makes what it says of an image depend on the others of the batch."""
        return sees_batches(self.module)

    def to(self, device: torch.device | str) -> "FlatModel":
        """Move the buffers of the architecture, where it has any; `theta` brings its own device."""
        self.module.to(device)
        return self

    def for_second_derivatives(self) -> "FlatModel":
        """Itself, with GroupNorm that is faster to differentiate twice, slower once, and the same to rounding."""
        with_closed_norms(self.module)
        return self

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of `theta` (P,) under the names and shapes of the parameters."""
        pieces = theta.split(self.sizes)
        return {name: piece.view(shape) for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)}

    def flatten(self, module: nn.Module) -> Tensor:
        """The parameters of `module`, which has this architecture, as a new vector (P,)."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])

    def init(self, seed: int) -> Tensor:
        """A fresh initialisation (P,) float32, the same for the same seed. Needs `from_spec`."""
        if self.spec is None:
            raise ValueError("only a FlatModel made by FlatModel.from_spec knows how to initialise itself")
        return self.flatten(self.spec.build(seed))

    def load(self, theta: Tensor) -> nn.Module:
        """A stand-alone module with the values of `theta` (P,), in evaluation mode."""
        if theta.numel() != self.num_params:
            raise ValueError(f"theta has {theta.numel()} values and the architecture {self.num_params}")
        module = copy.deepcopy(self.module).to(theta.device, theta.dtype)
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), self.unflatten(theta).values(), strict=True):
                parameter.copy_(value)
        return module.requires_grad_(True)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (N, K) of the network with parameters `theta` (P,) for images `x` (N, C, H, W)."""
        return torch.func.functional_call(self.module, self.unflatten(theta), (x,))
