"""Recipes and presets: what a user types, and the one line that a mistake gets."""

import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_distill.config import ProcessArguments, parse_args
from hf_distill.methods import METHODS
from tests.helpers import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
PRESETS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
LAUNCH = re.compile(
    r"# (?:accelerate launch(?: --mixed_precision bf16)?|python) recipes/(\w+)\.py(?: --config (\S+))?\s"
)
NAMES = [method.__name__.lower() for method in METHODS]
WRITTEN = ROOT / "tests" / "artifacts-0.1"
TINY = {
    "max_train_samples": 100,
    "max_test_samples": 30,
    "student": "convnet_d1",
    "student_width": 4,
    "num_experts": 2,
    "expert_train_epochs": 2,
    "experts_at_once": 2,
    "batch_train": 50,
    "max_steps": 1,
    "syn_steps": 2,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "lr_img": 1,
    "eval_nets": 1,
    "eval_seeds": 1,
    "eval_protocol": "tiny",
    "disable_tqdm": True,
}


# The first word


@pytest.mark.slow
def test_a_misspelt_flag_is_answered_before_anything_slow_is_imported():
    """By every recipe in turn, in one process: what one of them imports is found for those after it too."""
    slow = ["timm", "torchvision", "open_clip", "peft", "evaluate", "sklearn", "matplotlib", "torch._dynamo"]
    script = f"""
import runpy, sys
for name in {RECIPES}:
    sys.argv = [name, "--ipcc", "1"]
    try:
        runpy.run_path(f"recipes/{{name}}.py", run_name="__main__")
    except SystemExit as stop:
        print(name, stop.code, *(module for module in {slow} if module in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} 2" for name in RECIPES]
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["error"] * len(RECIPES)


# Help


@pytest.mark.parametrize("name", RECIPES)
def test_help_names_every_flag_with_its_help(recipes, name, tmp_path):
    done = recipes(name, ["--help"], tmp_path)
    assert done.status == [0]
    assert done.err == ""
    words = " ".join(done.out.split())
    for part in recipes.dataclasses(name):
        for field in dataclasses.fields(part):
            assert f"--{field.name} " in words
            assert field.metadata["help"], field.name
            # argparse breaks lines at hyphens too
            assert field.metadata["help"].replace(" ", "") in words.replace(" ", ""), field.name


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_a_number_of_threads(recipes, name):
    (part,) = [part for part in recipes.dataclasses(name) if issubclass(part, ProcessArguments)]
    assert "cpu_threads" in {field.name for field in dataclasses.fields(part)}


# Presets


def launched(preset: Path) -> tuple[str, str | None]:
    """The recipe and the --config of the launch line that a preset opens with."""
    found = LAUNCH.match(preset.read_text())
    assert found, "expected a launch line first"
    return found[1], found[2]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.relative_to(ROOT / "recipes/configs").as_posix())
def test_a_preset_opens_with_its_launch_line_and_says_only_what_its_recipe_knows(preset, recipes):
    recipe, config = launched(preset)
    # Without --config it is the demo: what the recipe runs with no flag.
    demo = config is None
    assert demo or ROOT / config == preset
    assert preset.parent.name == recipe
    if demo:
        assert f'"{preset.name}"' in (ROOT / "recipes" / f"{recipe}.py").read_text()
    parts = parse_args(*recipes.dataclasses(recipe), args=["--config", str(preset)])
    values = {field.name: getattr(part, field.name) for part in parts for field in dataclasses.fields(part)}
    for key, written in yaml.safe_load(preset.read_text()).items():
        kind = type(values[key])
        wanted = kind(written) if kind in (int, float, str) else written
        # One number may stand for a list of one.
        assert values[key] in (wanted, [wanted]), key


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.relative_to(ROOT / "recipes/configs").as_posix())
def test_a_misspelt_key_in_a_preset_is_refused_with_the_nearest(preset, recipes, tmp_path, capsys):
    recipe, _ = launched(preset)
    lines = preset.read_text().splitlines()
    number, key = next((i, line.split(":")[0]) for i, line in enumerate(lines) if re.match(r"\w+:", line))
    lines[number] = lines[number].replace(key, key[:-1] + "x", 1)
    (tmp_path / preset.name).write_text("\n".join(lines))
    with pytest.raises(SystemExit, match="2"):
        parse_args(*recipes.dataclasses(recipe), args=["--config", str(tmp_path / preset.name)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert f"unknown key {key[:-1] + 'x'!r}; did you mean {key!r}?" in line


# Mistakes


@pytest.fixture(scope="module")
def home(recipes, tmp_path_factory) -> Path:
    """A folder with trained experts in `experts` and a finished run in `done`."""
    home = tmp_path_factory.mktemp("home")
    done = recipes("tesla", {**TINY, "output_dir": "done"}, home)
    assert done.status == [0], done.err
    (experts,) = (home / "outputs").glob("experts-*")
    shutil.copytree(experts, home / "experts")
    shutil.copytree(experts, home / "short")
    file = home / "short" / "expert-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    shutil.copytree(experts, home / "empty")
    for file in (home / "empty").glob("*.safetensors"):
        file.unlink()
    return home


def mistake(recipes, home: Path, recipe: str = "tesla", **flags: Any) -> str:
    """The one line that a run gets, whatever else was logged before."""
    done = recipes(recipe, {**TINY, "output_dir": "new", **flags}, home)
    shutil.rmtree(home / "new", ignore_errors=True)
    assert done.status[0] in (1, 2)
    assert "Traceback" not in done.err
    (line,) = [line for line in done.err.splitlines() if "error" in line.lower()]
    assert line.startswith("error: ")
    assert done.err.rstrip().endswith(line)
    return line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"output_dir": "done"}, "--output_dir done already holds a run; use --resume_from_checkpoint latest"),
        ({"output_dir": "done/README.md"}, "--output_dir done/README.md is a file"),
        ({"ipc": 50}, "--ipc is 50 and some classes lack training images"),
        ({"image_column_name": "picture"}, "picture"),
        ({"label_column_name": "labels"}, "label"),
        ({"experts": "experts", "student": "convnet_d2"}, "convnet_d1"),
        ({"experts": "experts", "resolution": 16}, "the experts in experts are for images"),
        ({"experts": "experts", "normalization": "none"}, "the experts in experts are for preprocessing"),
        ({"experts": "experts", "max_start_epoch": 9}, "the experts hold 2 epochs and --max_start_epoch 9"),
        ({"experts": "short", "label": "hard", "max_steps": 4}, "short/expert-00001.safetensors is truncated"),
        ({"experts": "empty"}, "lacks expert-0000"),
        ({"experts": "nowhere"}, "nowhere"),
        ({"student": "convnet_d7"}, "convnet_d7 halves its images 7 times and they are 8x8; use convnet_d3 or less"),
        ({"student": "convnet"}, "is no timm model; did you mean convnet"),
        ({"syn_step": 3}, "unknown argument --syn_step; did you mean --syn_steps?"),
        ({"resume_from_checkpoint": "nowhere"}, "--resume_from_checkpoint nowhere is no folder"),
        ({"output_dir": "done", "resume_from_checkpoint": "done"}, "done is no whole checkpoint"),
        ({"output_dir": "done", "resume_from_checkpoint": "latest", "ipc": 2}, "use another --output_dir"),
        ({"eval_protocol": "slow"}, "--eval_protocol is 'slow'; expected one of mtt, quick"),
        ({"eval_also": "slow"}, "--eval_also is 'slow'; expected one of mtt, quick"),
        ({"dataset_name": "./nowhere"}, "nowhere"),
        ({"dataset_name": "experts"}, "experts"),
        ({"dsa_strategy": "blur"}, "--dsa_strategy names 'blur'"),
        ({"lr_img": "nan"}, "--lr_img is nan"),
        ({"lr_teacher": "inf"}, "--lr_teacher is inf"),
        ({"lr_init": "nan"}, "--lr_init is nan"),
        ({"cpu_threads": 0}, "--cpu_threads is 0; expected at least 1"),
        ({"classes": "zero"}, "--classes is ['zero']; expected at least two names"),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line_without_a_traceback(recipes, home, flags, says):
    assert says in mistake(recipes, home, **flags)


def test_a_tracker_that_is_not_installed_is_never_left_out_in_silence(recipes, home):
    before = "import hf_distill.runs.processes\nhf_distill.runs.processes.get_available_trackers = lambda: []"
    done = recipes("tesla", {**TINY, "output_dir": "new", "report_to": "wandb"}, home, before=before)
    assert done.status == [1]
    assert done.err.startswith("error: --report_to wandb is not available; install it with `pip install wandb`")


def test_mtt_says_it_the_same_way(recipes, home):
    assert "already holds a run" in mistake(recipes, home, "mtt", output_dir="done")


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """Ten images of each of two classes, which all end after their headers: decoding one would be an error."""
    folder, images = tmp_path_factory.mktemp("cut"), []
    for pixels in np.random.default_rng(0).integers(0, 256, (20, 16, 16), dtype=np.uint8):
        stream = io.BytesIO()
        PIL.Image.fromarray(pixels).save(stream, "JPEG")
        images.append({"bytes": stream.getvalue()[:-99], "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    content = {"image": images, "label": [0, 1] * 10}
    datasets.Dataset.from_dict(content, features=features).to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.parametrize(
    ("recipe", "flags", "says"),
    [
        *((name, {"ipc": 200}, "some classes lack training images: '0' has 7 of") for name in NAMES),
        *(
            (name, {"student": "convnet_d7"}, "convnet_d7 halves its images")
            for name in ("tesla", "apm", "experts", "teacher")
        ),
        ("sre2l", {"student_norm": "instance"}, "ConvNet has no BatchNorm2d layer"),
        ("tesla", {"expert_train_epochs": 2, "max_start_epoch": 9}, "--expert_train_epochs is 2, and --max_start"),
        ("rded", {"normalization": "zca"}, "crops are smaller than what --normalization zca whitens"),
        ("apm", {"teachers": "./nowhere"}, "./nowhere"),
        ("lgm", {"backbone": "./nowhere"}, "./nowhere"),
        (
            "lgm",
            {"backbone": WRITTEN / "teacher", "color": "rgb"},
            "sees gray images, and the data have 3 channels; give --color gray",
        ),
        (
            "clpdd",
            {"normalization": "zca"},
            "makes pixels, as a backbone sees them, and --normalization zca mixes them",
        ),
        ("clpdd", {"eval_protocol": "mtt"}, "--eval_protocol mtt trains whole networks"),
        ("mtt", {"experts": WRITTEN / "experts-float32"}, "are for classes 3, and this run has 2"),
        (
            "cda",
            {"teachers": WRITTEN / "teacher"},
            "takes images (1, 8, 8) (channels, height, width) and the data are",
        ),
    ],
)
def test_what_a_recipe_cannot_use_is_refused_before_an_image_is_decoded(recipes, cut, recipe, flags, says, tmp_path):
    done = recipes(recipe, {"student": "convnet_d1", **flags, "dataset_name": str(cut), "output_dir": "out"}, tmp_path)
    assert done.status == [1], done.err
    assert says in done.err


# Launched


@pytest.mark.slow
def test_two_processes_of_torchrun_average_what_one_accumulates(recipes, home):
    flags = {**TINY, "experts": "experts", "max_steps": 2, "select": "last", "eval_protocol": "quick"}
    tracked = {**flags, "cpu_threads": 1, "report_to": "tensorboard"}  # whose end must not be that of the process group
    words = [word for key, value in tracked.items() for word in (f"--{key}", str(value))]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(ROOT / "recipes" / "tesla.py"), *words, "--output_dir", "two"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("The picture:") == 1
    assert list((home / "two").rglob("*tfevents*"))
    one = recipes("tesla", {**flags, "gradient_accumulation_steps": 2, "output_dir": "one"}, home)
    assert one.status == [0], one.err
    found, wanted = (load_file(home / name / "checkpoint-2" / "state.safetensors") for name in ("two", "one"))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
