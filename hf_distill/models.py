"""The ConvNet-D family that trajectory methods distil with, and the one description of a student.

The family is registered with timm, so `timm.create_model` is the only factory of the package: a student is
`convnet_d3` as much as it is `resnet18` or `vit_tiny_patch16_224`.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

NORMS = ("instance", "batch", "none")
MAX_DEPTH = 8


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "instance":  # one group per channel: no running statistics, training and testing agree
        return nn.GroupNorm(width, width)
    return nn.BatchNorm2d(width) if kind == "batch" else nn.Identity()


class ConvNet(nn.Module):
    """`depth` blocks of convolution 3x3, normalisation, ReLU and average pooling 2x2, then one linear layer.

    This is the student and expert of the trajectory-matching literature (MTT, arXiv:2203.11932, and the papers after
    it): width 128, instance normalisation. Differs from the authors' code: gray images are padded like colour ones
    (they pad the first convolution by 3 to make 28x28 into 32x32).

    Args:
        depth: Blocks; each halves height and width, rounding down.
        num_classes: Logits; 0 leaves the linear layer out.
        in_chans: Channels of the images.
        img_size: Height and width of the images in pixels, or one number for both.
        width: Channels of every convolution.
        norm: "instance", "batch" or "none".

    Raises:
        ValueError: The images are too small for `depth`, or `norm` is unknown.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
        width: int = 128,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        height, breadth = (img_size, img_size) if isinstance(img_size, int) else img_size
        if norm not in NORMS:
            raise ValueError(f"the norm of a ConvNet is {norm!r}; expected one of {', '.join(NORMS)}")
        # The last normalisation sees 1/2^(depth-1) of the image; over a single pixel it would erase it.
        if min(height, breadth) >> depth < 1:
            deepest = min(height, breadth).bit_length() - 1
            raise ValueError(
                f"convnet_d{depth} halves its images {depth} times and they are {height}x{breadth}; "
                f"use convnet_d{deepest} or less, or a larger --resolution"
            )
        self.num_classes = num_classes
        self.num_features = width * (height >> depth) * (breadth >> depth)
        blocks: list[nn.Module] = []
        for block in range(depth):
            blocks += [
                nn.Conv2d(in_chans if block == 0 else width, width, 3, padding=1),
                _norm(norm, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, width, H >> depth, W >> depth)
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.flatten(1)  # (N, num_features)
        return x if pre_logits else self.classifier(x)  # (N, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, num_classes)
        return self.forward_head(self.forward_features(x))


CONVNETS = tuple(f"convnet_d{depth}" for depth in range(1, MAX_DEPTH + 1))

default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, 32, 32),
            "num_classes": 10,
            "pool_size": None,
            "first_conv": "features.0",
            "classifier": "classifier",
            "fixed_input_size": True,
            "license": "apache-2.0",
        }
        for name in CONVNETS
    }
)


def _register(depth: int) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(ConvNet, f"convnet_d{depth}", pretrained, depth=depth, **kwargs)

    create.__name__ = create.__qualname__ = f"convnet_d{depth}"
    create.__doc__ = f"ConvNet with {depth} blocks; takes `img_size`, `width` and `norm`."
    return register_model(create)


convnet_d1, convnet_d2, convnet_d3, convnet_d4, convnet_d5, convnet_d6, convnet_d7, convnet_d8 = map(
    _register, range(1, MAX_DEPTH + 1)
)


@dataclass(frozen=True)
class StudentSpec:
    """Everything that `timm.create_model` needs to build a network again: name, classes, channels, image size.

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

    def build(self, seed: int) -> nn.Module:
        """A freshly initialised network, the same one for the same seed; the global generators stay as they were.

        Raises:
            ValueError: timm has no such model, or the model cannot take images of this size.
        """
        if not timm.is_model(self.name):
            nearest = difflib.get_close_matches(self.name, timm.list_models(), n=3)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else "see timm.list_models()"
            raise ValueError(f"--student {self.name!r} is no timm model; {hint}")
        kwargs = dict(self.kwargs)
        cfg = timm.get_pretrained_cfg(self.name)
        if cfg is not None and cfg.fixed_input_size:
            kwargs["img_size"] = self.img_size
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
            return timm.create_model(self.name, num_classes=self.num_classes, in_chans=self.in_chans, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON types."""
        return {**dataclasses.asdict(self), "img_size": list(self.img_size)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StudentSpec":
        """The spec that `to_dict` wrote, or that somebody says it wrote: nothing in it can make timm load a file.

        Raises:
            ValueError: A value is missing, of another type, or would have a file loaded.
        """
        try:
            spec = cls(**{**values, "img_size": tuple(map(int, values["img_size"]))})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{values!r} does not describe a student ({error}); expected what to_dict gives"
            ) from error
        numbers = (spec.num_classes, spec.in_chans, *spec.img_size)
        if not all(type(number) is int and number > 0 for number in numbers) or len(spec.img_size) != 2:
            raise ValueError(f"a student has {numbers} classes, channels, height and width; expected whole numbers")
        if not isinstance(spec.name, str) or not re.fullmatch(r"[A-Za-z0-9_.]+", spec.name):
            raise ValueError(f"a student is called {spec.name!r}; expected the plain name of a timm model")
        loading = [name for name in spec.kwargs if re.search("pretrained|checkpoint|path|dir|file", name)]
        if loading:
            raise ValueError(f"the student {spec.name} has {loading[0]}, which loads weights; expected an architecture")
        return spec
