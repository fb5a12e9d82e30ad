"""The networks of this package by name for `timm.create_model`: ConvNets, ResNets for small images, transformers'.

Importing this registers them, and takes seconds: the package does it when a network is built, in
`architectures.timm_with_ours`, and never at the top of a module.
"""

from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from .convnets import CONVNETS, MAX_DEPTH, ConvNet
from .transformers_models import KINDS, TransformersClassifier

__all__ = ["start_as_torchvision", "timm"]

# timm's names of networks that torchvision has too, and the ResNets for small images.
AS_TORCHVISION = {
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet18_small", "resnet50_small"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
    *(f"regnet{kind}_{size}" for kind in "xy" for size in ("004", "008", "016", "032", "080", "160", "320")),
    *("regnety_1280", "mobilenetv2_100"),
    *(f"efficientnet_b{number}" for number in range(8)),
    *(f"swinv2_{size}_window8_256" for size in ("tiny", "small", "base")),
}


class SmallResNet(ResNet):
    """timm's ResNet for images of 32 to 64 pixels: a stem of one convolution 3x3 with stride 1, and no max-pooling.

    The usual teacher on CIFAR and Tiny-ImageNet (SRe2L, arXiv:2306.13092). Takes what timm's ResNet takes.
    """

    def __init__(self, *args: Any, in_chans: int = 3, **kwargs: Any) -> None:
        super().__init__(*args, in_chans=in_chans, **kwargs)
        self.conv1 = nn.Conv2d(in_chans, self.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        for stage in self.feature_info:
            stage["reduction"] = max(1, stage["reduction"] // 4)


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
    | {
        name: {
            "input_size": (3, 32, 32),
            "pool_size": None,
            "first_conv": "conv1",
            "classifier": "fc",
            "license": "apache-2.0",
        }
        for name in ("resnet18_small", "resnet50_small")
    }
    | {name: {"input_size": (3, 224, 224), "pool_size": None} for name in KINDS}
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


@register_model
def resnet18_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 for images of 32 to 64 pixels."""
    layers = {"block": BasicBlock, "layers": (2, 2, 2, 2)}
    return build_model_with_cfg(SmallResNet, "resnet18_small", pretrained, **layers, **kwargs)


@register_model
def resnet50_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 for images of 32 to 64 pixels."""
    layers = {"block": Bottleneck, "layers": (3, 4, 6, 3)}
    return build_model_with_cfg(SmallResNet, "resnet50_small", pretrained, **layers, **kwargs)


def _register_transformers(name: str, kind: str) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model = build_model_with_cfg(TransformersClassifier, name, pretrained, kind=kind, **kwargs)
        model.pretrained_cfg = {**model.pretrained_cfg, "classifier": model.classifiers}
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"The image classifier {kind} of transformers; takes `description`, its configuration as JSON."
    register_model(create)


for _name, _kind in KINDS.items():
    _register_transformers(_name, _kind)


@torch.no_grad()
def start_as_torchvision(name: str, model: nn.Module) -> None:
    """Let a fresh network of a timm name start as torchvision's does, which students and teachers of the papers are.

    timm starts the last normalisation of a residual block at 0 (`zero_init_last`, and Swin V2's) where torchvision
    has 1; and convolutions of C channels in G groups with the deviation sqrt(2 G / (k² C)) in MobileNetV2, EfficientNet
    and RegNet, where torchvision leaves G out; MobileNetV2's classifier differs as well. The stored description of a
    network says nothing of it, and weights that are loaded take its place.

    Args:
        name: By which timm built it.
        model: Changed in place; networks that torchvision has not, or starts alike, are left as they are.
    """
    base = name.partition(".")[0]
    for layer in model.modules() if base in AS_TORCHVISION else ():
        if isinstance(layer, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.ones_(layer.weight)
        elif isinstance(layer, nn.Conv2d) and not base.startswith(("resne", "wide", "swin")):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        elif isinstance(layer, nn.Linear) and base.startswith("mobilenet"):
            nn.init.normal_(layer.weight, std=0.01)
