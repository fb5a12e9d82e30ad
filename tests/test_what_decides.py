"""Test images decide nothing: other ones give the same set, and the same choices, whatever the recipe."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hf_distill.engine.loop import Distiller
from hf_distill.methods import METHODS
from hf_distill.methods.rded import RDED
from hf_distill.methods.tesla import TESLA

# What makes a run short, where the recipe has it.
TINY = {
    "max_train_samples": 200,
    "max_test_samples": 50,
    "validation_fraction": 0.2,
    "student": "convnet_d1",
    "student_width": 8,
    "num_experts": 2,
    "expert_train_epochs": 2,
    "experts_at_once": 2,
    "teacher_epochs": 2,
    "teacher_augment": "none",
    "weak_teachers": 1,
    "batch_train": 50,
    "ipc": 1,
    "max_steps": 4,
    "eval_steps": 2,
    "eval_nets": 1,
    "eval_seeds": 1,
    "eval_baselines": "random",
    "eval_full_data": "false",
    "syn_steps": 2,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "num_students": 1,
    "student_epochs": 2,
    "jitter": 1,
    "prior_epochs": 1,
    "projector_epochs": 1,
    "adapt_epochs": 1,
    "compare_labels": "none",
    "disable_tqdm": True,
}
# Of two rates one teaches and one does nothing; and what the final table chooses among them is written down.
CHOICES = """
import dataclasses, json
from hf_distill.data.images import RealImages
from hf_distill.evaluation.protocols import PROTOCOLS
from hf_distill.evaluation.trainer import Trainer

for name in ("tiny", "crops-tiny"):
    PROTOCOLS[name] = dataclasses.replace(PROTOCOLS[name], epochs=30, lrs=(PROTOCOLS[name].lrs[0], 1e-9))
choose = Trainer.choose
def chosen(self, cases):
    rates = choose(self, cases)
    with open("rates.json", "a") as file:
        print(json.dumps(rates), file=file)
    return rates
Trainer.choose = chosen
"""
# The labels of one split are other ones: a student that learned nothing does better there than one that learned.
TURNED = {
    "test": """
read = RealImages.train_and_test.__func__
def turned(cls, *args, **kwargs):
    train, test = read(cls, *args, **kwargs)
    test.labels = test.num_classes - 1 - test.labels
    return train, test
RealImages.train_and_test = classmethod(turned)
""",
    "held out": """
split = RealImages.split
def turned(self, *args, **kwargs):
    train, held_out = split(self, *args, **kwargs)
    held_out.labels = (held_out.labels + 5) % held_out.num_classes
    return train, held_out
RealImages.split = turned
""",
}


def run(recipes: Any, method: type, home: Path, before: str) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """What was made, what is said of it, and the rates that were chosen, of a run that began with `before`."""
    home.mkdir()
    name = method.__name__.lower()
    known = {field.name for part in recipes.dataclasses(name) for field in dataclasses.fields(part)}
    flags = {flag: value for flag, value in TINY.items() if flag in known}
    students = "tiny" if issubclass(method, Distiller) else "crops-tiny"
    flags |= {"eval_protocol": "probe-quick" if method.probes else students, "output_dir": "run"}
    done = recipes(name, flags, home, before=CHOICES + before)
    assert done.status == [0], done.err
    files = {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.suffix in (".parquet", ".safetensors") and "expert" not in path.name
    }
    return (
        files,
        json.loads((home / "run" / "results.json").read_text()),
        (home / "rates.json").read_text().splitlines(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_what_is_made_kept_and_chosen_is_the_same_for_other_test_images(recipes, method, tmp_path):
    files, results, rates = run(recipes, method, tmp_path / "these", "")
    others, other_results, other_rates = run(recipes, method, tmp_path / "others", TURNED["test"])
    assert results["rows"] != other_results["rows"]  # they are looked at in the end
    assert (others.keys(), other_rates) == (files.keys(), rates)
    assert [name for name in files if files[name] != others[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("method", [TESLA, RDED], ids=lambda method: method.__name__)
def test_held_out_images_choose_the_step_and_the_rates(recipes, method, tmp_path):
    rates = [
        run(recipes, method, tmp_path / str(number), text)[2] for number, text in enumerate(("", TURNED["held out"]))
    ]
    nothing = [" ".join(each).count("1e-09") for each in rates]
    assert nothing[0] < nothing[1]
