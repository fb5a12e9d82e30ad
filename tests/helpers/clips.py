"""Small CLIPs with random weights, and projectors that have learned something."""

from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

from hf_distill.hub.files import save_json
from hf_distill.networks.projector import LabelProjector

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
TOWERS = {
    "conv": {"layers": [1, 1, 1, 1], "width": 8},
    "vit": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
}
PROJECTOR_CONFIG = {
    "source": {
        "name": "org/pets",
        "split": "train",
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "license": "cc-by-nc-4.0",
        "gated": "auto",
        "homepage": "https://huggingface.co/datasets/org/pets",
        "num_images": 7000,
    },
    "results": {"zero_shot_accuracy": 0.4, "test_accuracy": 0.715, "agreement": 0.803, "kl": 0.1234567},
    "training": {"projector_epochs": 10, "lr_projector": 0.001, "seed": 7, "teachers": None},
    "versions": {"hf_distill": "0.0.0", "torch": "9.9"},
    "device": "cpu",
}


def clip(kind: str) -> open_clip.CLIP:
    """A small CLIP of open_clip's with random weights, none of which makes a layer idle."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = open_clip.CLIP(24, {"image_size": 32, **TOWERS[kind]}, text).eval().requires_grad_(False)
    return awake(model)


def awake(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and weights of its own: those that close a block start at zero."""
    draw = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.running_mean, -0.5), (module.running_var, 0.5)):
                tensor.data.copy_(low + torch.rand(len(tensor), generator=draw))
    return model


def save_clip(kind: str, folder: Path, change: float = 0) -> Path:
    """The files of that CLIP, as open_clip's repositories have them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    tower = {"embed_dim": 24, "vision_cfg": {"image_size": 32, **TOWERS[kind]}, "text_cfg": text}
    save_json(folder / "open_clip_config.json", {"model_cfg": tower, "preprocess_cfg": {"mean": MEAN, "std": STD}})
    tensors = {name: tensor + change for name, tensor in clip(kind).state_dict().items() if tensor.is_floating_point()}
    others = {name: tensor for name, tensor in clip(kind).state_dict().items() if not tensor.is_floating_point()}
    save_file({**tensors, **others}, folder / "open_clip_model.safetensors")
    return folder


def learn(projector: LabelProjector, size: float = 0.05) -> LabelProjector:
    """Give LoRA values, as training does."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in projector.parameters_to_train():
            parameter.add_(size * torch.randn(parameter.shape, generator=draw))
            parameter.requires_grad_(False)
    projector.round_parameters()
    return projector
