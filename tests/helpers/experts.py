"""Experts that nobody trained."""

import json
from pathlib import Path

import torch
from safetensors.torch import save

from hf_distill.data.preprocessing import Preprocessing
from hf_distill.hub.files import save_json
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.trajectories import EXPERT_FILE, INDEX, METADATA

FLAT = 178  # the parameters of the network below


def make_experts(folder: Path) -> Path:
    """Two experts with rows of random numbers, in the files that training would write."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    about = {"loss": [0.5], "accuracy": [0.5], "train_accuracy": 0.5, "test_accuracy": 0.5, "experts_at_once": 1}
    for expert in range(2):
        rows = torch.randn(2, FLAT, generator=generator)
        (folder / EXPERT_FILE.format(expert)).write_bytes(save({"params": rows}, {METADATA: json.dumps(about)}))
    results = {f"{split}_accuracy": [0.5] * 2 for split in ("train", "test")}
    config = {
        "format_version": 1,
        "num_experts": 2,
        "num_epochs": 1,
        "num_params": FLAT,
        "student": StudentSpec("convnet_d1", 2, 1, (8, 8), {"width": 4, "norm": "instance"}).to_dict(),
        "class_names": ["cat", "dog"],
        "preprocessing": Preprocessing(1, (8, 8), (0.5,), (0.5,)).to_config(),
        "source": {"name": "pets"},
        "results": {**results, "epoch_loss": [[0.5]] * 2, "epoch_accuracy": [[0.5]] * 2},
        "bytes": 2 * FLAT * 8,
        "training": {},
        "device": "cpu",
        "versions": {},
    }
    save_json(folder / INDEX, config)
    return folder
