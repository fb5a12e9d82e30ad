"""Recipes that make, publish and compare label projectors, and the one line that a mistake gets."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_projector import save_clip

from hf_distill.distilled import DistilledSet
from hf_distill.labels import ProjectorLabels
from hf_distill.projector import LabelProjector
from hf_distill.teachers import Teacher

ROOT = Path(__file__).resolve().parents[1]
DATA = {"max_train_samples": 200, "max_test_samples": 40, "disable_tqdm": True}
TEACHER = {
    "student": "convnet_d1",
    "student_width": 8,
    "student_norm": "batch",
    "teacher_epochs": 2,
    "batch_train": 50,
    "weak_teachers": 2,
}
PROJECTOR = {
    "prior_epochs": 1,
    "prompts": "simple",
    "lora_r": 2,
    "lora_head_r": 1,
    "projector_epochs": 1,
    "batch_projector": 50,
}
EVALUATION = {"num_seeds": 1, "full_data": False, "disable_tqdm": True}


@pytest.fixture(scope="module")
def home(recipes, tmp_path_factory) -> Path:
    """A folder with a set of RDED in `set`, its teacher, and a projector for it in `projector` with `labelled`."""
    home = tmp_path_factory.mktemp("home")
    teacher = {name: value for name, value in TEACHER.items() if name != "weak_teachers"}
    rded = {"ipc": 2, "factor": 1, "num_crops": 2, "eval_protocol": "crops-tiny", "eval_seeds": 1}
    rded |= {"eval_full_data": False, "eval_baselines": "random", "output_dir": "set"}
    done = recipes("rded", {**DATA, **teacher, **rded}, home)
    assert done.status == [0], done.err
    folders = {"output_dir": "projector", "labelled_output_dir": "labelled"}
    done = recipes("projector", {**flags(home), **folders}, home)
    assert done.status == [0], done.err
    (home / "out").write_text(done.out)
    return home


def flags(home: Path) -> dict[str, Any]:
    return {"distilled_dataset": "set", "disable_tqdm": True, **TEACHER, **PROJECTOR}


def test_images_of_another_method_get_a_projector_that_the_recipe_speaks_of(home):
    projector, labelled = (
        cls.from_pretrained(home / name) for cls, name in ((LabelProjector, "projector"), (DistilledSet, "labelled"))
    )
    plain, out = DistilledSet.from_pretrained(home / "set"), (home / "out").read_text()
    assert isinstance(labelled.teacher, ProjectorLabels)
    assert isinstance(labelled.label_source, ProjectorLabels)
    assert labelled.teacher.digest == projector.digest
    assert torch.equal(labelled.pixel_values, plain.pixel_values)
    assert labelled.preprocessing.fingerprint() == plain.preprocessing.fingerprint()
    assert projector.config["training"]["num_images"] == 180  # the held-out tenth is nobody's
    assert len(projector.config["teachers"]) == 2
    assert projector.results["asked_about"] == "distilled images"
    assert f"{100 * projector.results['agreement']:.1f} % of the cases" in out
    assert "projector with all that is shared" in out
    assert 'load: DistilledSet.from_pretrained("labelled").teacher' in out
    # Students of the old labels say nothing of the new ones.
    assert {row.labels for row in plain.report.rows} == {"soft", "hard"}
    assert {row.labels for row in labelled.report.rows} == {"hard"}
