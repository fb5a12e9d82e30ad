"""Folders of CLIP models as three libraries write them, with random weights."""

from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
DIM = 24
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TOWERS = {
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 32},
    "vit": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 4, "image_size": [8, 12]},
}


def random(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with values that tell its parts apart: no zeros, no ones, no statistics of nothing."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and name != "logit_scale":
                noise = torch.randn(tensor.shape, generator=draw)
                tensor.copy_(1 + 0.1 * noise.abs() if tensor.ndim == 1 else 0.1 * noise)
    return model.eval()


def save_open_clip(folder: Path, tower: str = "resnet", **changes: Any) -> nn.Module:
    """A folder as open_clip's own function writes it, which would fetch a tokenizer beside."""
    config = {"embed_dim": DIM, "vision_cfg": TOWERS[tower], "text_cfg": TEXT, **changes}
    options = {name: value for name, value in config.items() if name != "custom_text"}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = random(kind(**options))
    open_clip.factory.set_model_preprocess_cfg(model, {"mean": MEAN, "std": STD})
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    save_config_for_hf(model, folder / "open_clip_config.json", config)
    return model


def save_timm(folder: Path, name: str = "test_byobnet", **options: Any) -> nn.Module:
    model = random(timm.create_model(name, num_classes=DIM, **options))
    model.pretrained_cfg.update(mean=tuple(MEAN), std=tuple(STD))
    save_for_hf(model, folder, model_args=options, safe_serialization=True)
    return model


def save_transformers(folder: Path) -> CLIPModel:
    both = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**both, "num_hidden_layers": 2, "image_size": 16, "patch_size": 4},
        text_config={**both, "num_hidden_layers": 1},
        projection_dim=DIM,
    )
    model = random(CLIPModel(config))
    model.save_pretrained(folder)
    CLIPImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return model
