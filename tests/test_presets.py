"""The presets: each parses, tells how it is launched, and holds what the sources say."""

import dataclasses
import fnmatch
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

from hf_distill.config import DataArguments, parse_args
from hf_distill.engine.plan import PlanArguments
from hf_distill.evaluation.protocols import PROTOCOLS
from hf_distill.methods import METHODS
from hf_distill.networks.class_names import imagenet_names
from hf_distill.training.teachers import TeacherConfig
from tests.helpers import ROOT
from tests.helpers.pages import DOCS, section_of
from tests.helpers.recipes import Recipes

CONFIGS = ROOT / "recipes" / "configs"
PRESETS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
DEMOS = [name for name in PRESETS if "digits" in name]

# T, M, max_start_epoch, batch_syn, lr_img, lr_lr, lr_init, ZCA
PUBLISHED = {
    # The commands of MTT's author, as github.com/justincui03/dc_benchmark has them.
    "mtt/cifar10-ipc1.yaml": (50, 2, 2, None, 100, 1e-7, 0.01, True),
    "mtt/cifar10-ipc10.yaml": (30, 2, 20, None, 100, 1e-5, 0.001, True),
    "mtt/cifar10-ipc50.yaml": (30, 2, 40, None, 1000, 1e-5, 0.001, False),
    "mtt/cifar100-ipc1.yaml": (20, 3, 20, None, 1000, 1e-5, 0.01, True),
    "mtt/cifar100-ipc10.yaml": (20, 2, 20, None, 1000, 1e-5, 0.01, False),
    "mtt/cifar100-ipc50.yaml": (80, 2, 40, 125, 1000, 1e-5, 0.01, True),
    "mtt/tiny-imagenet-ipc1.yaml": (10, 2, 10, None, 1e4, 1e-4, 0.01, False),
    "mtt/tiny-imagenet-ipc10.yaml": (20, 2, 40, 200, 1e4, 1e-4, 0.01, False),
    "mtt/tiny-imagenet-ipc50.yaml": (20, 2, 40, 300, 1e4, 1e-4, 0.01, False),
    # The commands of TESLA's README, with their lr_img: 1000, 1000 and 10000.
    "tesla/cifar10-ipc1.yaml": (50, 2, 5, None, 1000 / 2, 1e-7, 0.01, False),
    "tesla/cifar100-ipc50.yaml": (80, 2, 40, 125, 1000 / 2, 1e-5, 0.01, True),
    "tesla/imagenet1k-64-ipc1.yaml": (10, 3, 10, 100, 10000 / 2, 1e-4, 0.01, False),
}
# Where TESLA's authors give nothing: whose values these are.
BORROWED = {
    **{
        f"tesla/{name}.yaml": f"mtt/{name}.yaml"
        for name in (
            *("cifar10-ipc10", "cifar10-ipc50", "cifar100-ipc1", "cifar100-ipc10"),
            *("tiny-imagenet-ipc1", "tiny-imagenet-ipc10", "tiny-imagenet-ipc50"),
        )
    },
    "tesla/imagenet1k-64-ipc10.yaml": "tesla/imagenet1k-64-ipc1.yaml",
    "tesla/imagenet1k-64-ipc50.yaml": "tesla/imagenet1k-64-ipc1.yaml",
}
# Of DATM, as its authors have them. T, M, T⁻, T₀, T⁺, E, batch_syn, lr_img, lr_y, lr_lr, limit of the loss, protocol
ALIGNED = {
    "datm/cifar10-ipc1.yaml": (80, 2, 0, None, 4, None, None, 100, 5, 1e-7, 1.1, "datm-995"),
    "datm/cifar10-ipc10.yaml": (80, 2, 0, 10, 20, 1000, None, 100, 2, 1e-5, 1, "datm"),
    "datm/cifar10-ipc50.yaml": (80, 2, 0, 20, 40, 2000, None, 1000, 2, 1e-5, 1, "datm-995"),
    "datm/cifar100-ipc1.yaml": (40, 3, 0, 10, 20, 1000, None, 1000, 10, 1e-5, 1, "datm"),
    "datm/cifar100-ipc10.yaml": (80, 2, 0, 30, 50, 2000, None, 1000, 10, 1e-5, 1, "datm"),
    "datm/cifar100-ipc50.yaml": (80, 2, 20, None, 70, None, 1000, 1000, 10, 1e-5, 1, "datm"),
    "datm/tiny-imagenet-ipc1.yaml": (40, 2, 0, 15, 20, 2000, None, 10000, 10, 1e-4, 1, "datm"),
    "datm/tiny-imagenet-ipc10.yaml": (40, 2, 10, None, 50, None, 500, 100, 10, 1e-4, 1, "datm"),
    "datm/tiny-imagenet-ipc50.yaml": (20, 2, 40, None, 70, None, 1000, 100, 10, 1e-4, 1, "datm-995"),
}
# Image size, student, experts; columns and test split on the Hub
DATASETS = {
    "cifar10": ("uoft-cs/cifar10", "img", "label", None, None, "convnet_d3", 100),
    "cifar100": ("uoft-cs/cifar100", "img", "fine_label", None, None, "convnet_d3", 100),
    "tiny-imagenet": ("zh-plus/tiny-imagenet", "image", "label", "valid", None, "convnet_d4", 100),
    "imagenet1k-64": ("ILSVRC/imagenet-1k", "image", "label", "validation", [64], "convnet_d4", 50),
}

# Of SRe2L and CDA. lr_img, r_bn, max_steps, jitter, symmetric jitter, crops and flips, curriculum, protocol; all have
# blocks of 100 classes, ten times the first layer, no other prior, and a milestone of 1 where there is a curriculum.
RECOVERED = {
    **{
        f"sre2l/imagenet1k-ipc{ipc}.yaml": (0.25, 0.01, 4000, 32, False, (True, 0.5), "none", "sre2l")
        for ipc in (10, 50)
    },
    "sre2l/tiny-imagenet-ipc50.yaml": (0.1, 1.0, 4000, 4, True, (True, 0.5), "none", "sre2l-tiny"),
    "sre2l/cifar100-ipc50.yaml": (0.25, 0.01, 1000, 4, False, (False, 0), "none", "cda-cifar"),
    **{
        f"cda/imagenet1k-ipc{ipc}.yaml": (0.25, 0.01, 4000, 32, False, (True, 0.5), "cosine", "cda") for ipc in (10, 50)
    },
    **{
        f"cda/tiny-imagenet-ipc{ipc}.yaml": (0.4, 0.05, 4000, 4, False, (True, 0.5), "cosine", "cda-tiny")
        for ipc in (50, 100)
    },
    "cda/imagenet21k-ipc20.yaml": (0.05, 0.25, 2000, 32, False, (True, 0.5), "cosine", "cda-21k"),
    # No published values for CDA on CIFAR-100: those of SRe2L, with crops for the curriculum.
    "cda/cifar100-ipc50.yaml": (0.25, 0.01, 1000, 4, False, (True, 0.5), "cosine", "cda-cifar"),
}
# How students are trained: optimizer, rate, decay, batch, epochs, temperature, its square, mix, warm-up, smoothing
TRAINED = {
    "sre2l": ("adamw", 0.001, 0.01, 1024, 300, 20, False, "cutmix", 0, 0),
    "cda": ("adamw", 0.001, 0.01, 128, 300, 20, False, "cutmix", 0, 0),
    "sre2l-tiny": ("sgd", 0.2, 1e-4, 256, 100, 20, True, "none", 5, 0),
    "cda-tiny": ("sgd", 0.2, 1e-4, 64, 100, 20, True, "none", 5, 0),
    "cda-cifar": ("adamw", 0.001, 0.01, 128, 400, 30, False, "mixup", 0, 0),
    "cda-21k": ("adamw", 0.002, 0.01, 32, 300, 20, False, "none", 0, 0.2),
    "rded": ("adamw", 0.001, 0.01, 100, 300, 20, False, "cutmix", 0, 0),
    "hello": ("adamw", 0.001, 0.01, 100, 300, 20, False, "cutmix", 0, 0),
    "fadrm": ("adamw", 0.001, 0.01, 16, 300, 20, False, "cutmix", 0, 0),
    "fadrm-cifar": ("adamw", 0.001, 0.01, 16, 1000, 20, False, "cutmix", 0, 0),
    "fadrm-imagenette": ("adamw", 5e-4, 0.01, 10, 300, 20, False, "cutmix", 0, 0),
}
# Of RDED: factor, candidates, crops
TILED = {
    "rded/cifar10-ipc10.yaml": (1, 300, 5),
    "rded/tiny-imagenet-ipc50.yaml": (1, 300, 5),
    "rded/imagenette-ipc10.yaml": (2, 300, 5),
    **{f"rded/imagenet1k-ipc{ipc}.yaml": (2, 300, 5) for ipc in (1, 10, 50)},
}
# Of the students of RDED: classes, and images per step
BATCHES = {
    "rded/cifar10-ipc10.yaml": (10, 50),
    "rded/tiny-imagenet-ipc50.yaml": (200, 100),
    "rded/imagenette-ipc10.yaml": (10, 50),
    **{f"rded/imagenet1k-ipc{ipc}.yaml": (1000, batch) for ipc, batch in ((1, 20), (10, 100), (50, 200))},
}
# Of FADRM: stages, iterations, rate, classes of a block, rolls, teachers of ImageNet-1K, crops along a side, protocol
STAGED = {
    **{
        f"fadrm/imagenet1k-{plus}ipc{ipc}.yaml": ([200, 224] * 2, 2000, 0.25, 100, 32, teachers, 2, "fadrm")
        for plus, ipc, teachers in (
            *(("", ipc, 1) for ipc in (1, 10, 50)),
            ("plus-", 1, 2),
            ("plus-", 10, 3),
            ("plus-", 50, 3),
        )
    },
    **{f"fadrm/cifar100-ipc{ipc}.yaml": ([32] * 4, 2000, 0.25, 100, 4, None, 1, "fadrm-cifar") for ipc in (10, 50)},
    **{f"fadrm/tiny-imagenet-ipc{ipc}.yaml": ([64] * 2, 1000, 0.01, 100, 4, None, 1, "fadrm") for ipc in (10, 50)},
    "fadrm/imagenette-ipc10.yaml": ([200, 224] * 2, 2000, 0.05, 10, 32, None, 2, "fadrm-imagenette"),
}
# Of HeLlO: the CLIP model
PROJECTED = {
    **{f"hello/imagenet1k-rn50-ipc{ipc}.yaml": "timm/resnet50_clip.openai" for ipc in (10, 50)},
    "hello/imagenet1k-vitb32-ipc10.yaml": "openai/clip-vit-base-patch32",
}
# Of teachers. Network, start, epochs, warm-up, batch, optimizer, schedule, rate, decay, smoothing, augmentation
SQUEEZED = {
    "teacher/cifar100.yaml": ("resnet18_small", None, 200, 0, 128, "sgd", "cosine", 0.1, 5e-4, 0, "crop_flip"),
    "teacher/tiny-imagenet.yaml": ("resnet18_small", None, 50, 5, 256, "sgd", "cosine", 0.2, 1e-4, 0, "rrc"),
    "teacher/imagenet21k.yaml": (
        *("resnet18", "timm:resnet18.tv_in1k", 80, 0, 1024, "adam", "onecycle", 3e-4, 1e-4, 0.2),
        "cutout_randaugment",
    ),
}
# Of APM: lr_img, lr_net, batch_syn, protocol; and how often 2,500 draws of batch_syn images take each one, on average
MATCHED = {
    "apm/cifar10-ipc50.yaml": (1, 0.02, None, "apm", 2500),
    "apm/cifar10-ipc500.yaml": (1, 0.02, 2500, "apm", 1250),
    "apm/cifar10-ipc1000.yaml": (1, 0.02, 2500, "apm-600", 625),
    "apm/cifar100-ipc10.yaml": (1, 0.02, None, "apm", 2500),
    "apm/cifar100-ipc50.yaml": (1, 0.04, 2500, "apm", 1250),
    "apm/cifar100-ipc100.yaml": (1, 0.04, 2500, "apm-600", 625),
    "apm/tiny-imagenet-ipc10.yaml": (20, 0.1, 500, "apm", 625),
    "apm/tiny-imagenet-ipc50.yaml": (40, 0.1, 500, "apm", 125),
    "apm/tiny-imagenet-ipc100.yaml": (40, 0.1, 500, "apm-600", 62.5),
    "apm/imagenet1k-64-ipc10.yaml": (20, 0.1, 500, "apm", 125),
    "apm/imagenet1k-64-ipc50.yaml": (20, 0.1, 500, "apm-600", 25),
    "apm/imagenet1k-64-ipc100.yaml": (20, 0.1, 500, "apm-600", 12.5),
}
# Of DM: real images per class, and iterations
MEANS = {
    **{f"dm/{data}-ipc{ipc}.yaml": (256, 20000) for data in DATASETS for ipc in (1, 10, 50)},
    **{f"dm/imagenet1k-64-ipc{ipc}.yaml": (64, 5000) for ipc in (1, 10, 50)},  # of which the authors say nothing
}
# How the authors' networks see pixels
NORMALISED = {
    "cifar100": ("mean_std", [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    "tiny-imagenet": ("mean_std", [0.4802, 0.4481, 0.3975], [0.2302, 0.2265, 0.2262]),
    "imagenet1k": ("mean_std", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "imagenet21k": ("none", None, None),
}
SHARED = DOCS / "presets.md"
PAGES = {path.stem: path for path in sorted((DOCS / "methods").glob("*.md"))}
ELSEWHERE = {"ipc", "eval_protocol"}  # in a preset's name, and in the docstrings of protocols
# Keys that say which data, and how many images, and so need no source
DATA = ("dataset_", "image_column_name", "label_column_name", "ipc")


def recipe_of(name: str) -> str:
    """The recipe that a preset is for: its folder."""
    return name.split("/")[0]


def written(name: str) -> dict[str, Any]:
    """What stands in a preset, with the types that YAML has for it."""
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))


def parsed(name: str) -> tuple[Any, ...]:
    """A preset as its recipe reads it."""
    settings = parse_args(*Recipes.dataclasses(recipe_of(name)), args=["--config", str(CONFIGS / name)])
    return tuple(each for each in settings if not isinstance(each, PlanArguments))  # of which no preset says anything


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting of one preset on the page; the value is None where the preset leaves it out."""

    value: Any
    theirs: str
    why: str
    section: str


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def value_of(text: str) -> Any:
    """What a cell says, as a YAML file would, with the numbers that YAML takes for text."""
    if text == "—":
        return None
    try:
        return float(text)
    except ValueError:
        return yaml.safe_load(text)


def sections() -> list[tuple[str, str]]:
    """The recipe and the text of all sections with values: those of methods' pages, and of the page that all share.

    The recipe is `*` where a section is for all of them.
    """
    own = [(recipe, section_of(page, "Preset values")) for recipe, page in PAGES.items()]
    parts = SHARED.read_text(encoding="utf-8").split("\n## ")[1:]
    named = [(re.match(r"`(\w+)`\n", part), part) for part in parts]
    return [*own, *((recipe[1] if recipe else "*", part) for recipe, part in named)]


def rows_of(recipe: str, section: str) -> dict[tuple[str, str], list[Row]]:
    """The rows of a section by preset and setting."""
    rows: dict[tuple[str, str], list[Row]] = {}
    columns: list[str] = []
    for line in section.splitlines():
        first, *cells = cells_of(line)
        if first == "setting":
            columns = [cell.strip("`") for cell in cells[:-2]]
        elif not line.startswith("|"):
            columns = []
        elif columns and first.startswith("`"):
            *values, theirs, why = cells
            assert len(values) == len(columns), line
            for pattern, value in zip(columns, values, strict=True):
                names = fnmatch.filter(set(PRESETS) - set(DEMOS), f"{recipe}/{pattern}.yaml")
                assert names, f"no preset is called {pattern}"
                for name in names:
                    row = Row(value_of(value), theirs, why, section)
                    rows.setdefault((name, first.strip("`")), []).append(row)
    return rows


def all_rows() -> dict[tuple[str, str], list[Row]]:
    """The rows of all sections, of which one may have a setting that another has too."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for recipe, section in sections():
        for place, found in rows_of(recipe, section).items():
            rows.setdefault(place, []).extend(found)
    return rows


PAGE_ROWS = all_rows()


@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(DEMOS)))
def test_the_page_has_every_value_of_a_preset_once_and_no_other(name):
    known = {key: value for key, value in written(name).items() if key not in ELSEWHERE}
    listed = {key: [row.value for row in rows] for (preset, key), rows in PAGE_ROWS.items() if preset == name}
    assert {key: values for key, values in listed.items() if values != [None]} == {
        key: [value] for key, value in known.items()
    }
    assert listed.keys() <= {field.name for part in parsed(name) for field in dataclasses.fields(part)}


@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(DEMOS)))
def test_the_page_names_the_sources_that_the_file_names(name):
    lines = (CONFIGS / name).read_text(encoding="utf-8").splitlines()
    comments = {line.split(":")[0]: line.partition("  # ")[2] for line in lines if not line.startswith("#")}
    for key in written(name).keys() - ELSEWHERE:
        (row,) = PAGE_ROWS[name, key]
        assert row.theirs, key
        marks = set(re.findall(r"\[\w+\]", comments[key] if not key.startswith(DATA) else ""))
        assert marks <= set(re.findall(r"\[\w+\]", row.theirs + row.why)), key
        assert all(f"{mark}: " in row.section for mark in re.findall(r"\[\w+\]", row.theirs)), key
        ours = "this project" in comments[key] or "[ours]" in comments[key]
        assert row.why or not (ours or "the same" not in row.theirs), f"{key}: the page does not say why it differs"


@pytest.mark.parametrize("name", [name for name, other in BORROWED.items() if other.startswith("mtt/")])
def test_a_value_that_was_borrowed_from_mtt_is_said_to_be_the_same_where_it_is(name):
    for (preset, key), (row,) in PAGE_ROWS.items():
        lender = PAGE_ROWS.get((BORROWED[name], key))
        if preset != name or lender is None or not row.theirs.startswith("[MTT]"):
            continue
        numbers = re.match(r"\[MTT\] ([\d.e+-]+)$", row.theirs)
        theirs = row.value if "the same" in row.theirs else numbers and float(numbers[1])
        if theirs is not None:
            assert theirs == lender[0].value, key


def test_a_page_that_has_rotted_is_found_out():
    (section,) = (text for recipe, text in sections() if recipe == "mtt")
    known = rows_of("mtt", section)
    other = rows_of("mtt", section.replace("| `syn_steps` | 50 |", "| `syn_steps` | 51 |", 1))
    changed = {place for place, rows in other.items() if [row.value for row in rows] != [r.value for r in known[place]]}
    assert changed == {("mtt/cifar10-ipc1.yaml", "syn_steps")}
    fewer = rows_of("mtt", "\n".join(line for line in section.splitlines() if not line.startswith("| `lr_lr`")))
    assert {key for _, key in known.keys() - fewer.keys()} == {"lr_lr"}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_the_page_of_a_method_lists_its_presets_and_no_other(method):
    page = PAGES[method.__name__.lower()]
    listed = re.findall(r"`([\w-]+-ipc\d+)`", section_of(page, "Presets"))
    assert sorted(listed) == sorted(path.stem for path in (CONFIGS / page.stem).glob("*.yaml"))


def test_every_published_setting_has_its_preset():
    assert {*PUBLISHED, *BORROWED, *ALIGNED, *RECOVERED, *STAGED, *TILED, *PROJECTED, *SQUEEZED, *MEANS} <= set(
        PRESETS
    ) - set(DEMOS)
    assert {recipe_of(name) for name in DEMOS} == {recipe_of(name) for name in PRESETS}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_parses_and_does_what_its_name_says(name):
    values = {key: value for part in parsed(name) for key, value in vars(part).items()}
    _, _, ipc = Path(name).stem.partition("-ipc")
    assert values.get("ipc") == (int(ipc) if ipc else None)
    assert (name in DEMOS) == (values["dataset_name"] is None)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_opens_with_the_line_that_launches_it(name):
    recipe = f"recipes/{recipe_of(name)}.py"
    comment, *words = shlex.split((CONFIGS / name).read_text(encoding="utf-8").splitlines()[0])
    assert (comment, words[:2]) == ("#", ["accelerate", "launch"])
    flags = words[words.index(recipe) + 1 :]
    if flags:
        assert flags == ["--config", f"recipes/configs/{name}"]
    else:
        assert f'"{Path(name).name}"' in (ROOT / recipe).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PRESETS)
def test_each_value_of_a_preset_says_where_it_comes_from(name):
    text = (CONFIGS / name).read_text(encoding="utf-8")
    head, _, rest = text.partition("\n\n")
    if name in DEMOS:
        assert "All values are this project's own." in head
        return
    keys = [key for key in written(name) if not key.startswith(DATA)]
    lines = [line for line in rest.splitlines() if line.split(":")[0] in keys]
    assert len(lines) == len(keys) > 0
    for line in lines:
        comment = line.partition("  # ")[2]
        marks = re.findall(r"\[\w+\]", comment)
        assert marks or "this project" in comment, line
        assert all(f"{mark}: " in head for mark in marks), line


@pytest.mark.parametrize("name", [*PUBLISHED, *BORROWED])
def test_a_preset_holds_the_values_of_its_source(name):
    method, short = name.split("/")[0], Path(name).stem.rsplit("-ipc", 1)[0]
    data, experts, config, _ = parsed(name)
    steps, epochs, start, batch, lr_img, lr_lr, lr_init, zca = PUBLISHED[BORROWED.get(name, name)]
    assert (config.syn_steps, config.expert_epochs, config.max_start_epoch) == (steps, epochs, start)
    assert config.batch_syn == batch
    assert (config.lr_img, config.lr_lr, config.lr_init, config.mom_img) == (lr_img, lr_lr, lr_init, 0.5)
    assert data.normalization == ("zca" if zca else "mean_std")
    assert data.validation_fraction == 0.02  # the authors learn from all of train, and choose by test

    hub, image, label, test, resolution, student, count = DATASETS[short]
    assert (data.dataset_name, data.image_column_name, data.label_column_name) == (hub, image, label)
    assert (data.dataset_train_split, data.dataset_test_split, data.resolution) == ("train", test, resolution)
    if zca:
        assert data.mean is None
        assert data.zca_eps == 0.1
    elif short.startswith("cifar"):
        assert (data.mean, data.std) == ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    else:
        assert (data.mean, data.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    assert (experts.student, experts.student_width, experts.student_norm) == (student, 128, "instance")
    assert (experts.num_experts, experts.batch_train) == (count, 256)
    assert (experts.lr_teacher, experts.mom_teacher, experts.l2_teacher) == (0.01, 0, 0)
    assert experts.dsa_strategy == "color_crop_cutout_flip_scale_rotate"
    assert config.dsa
    assert (config.max_steps, config.eval_protocol) == ({"mtt": 5000, "tesla": 10000}[method], "mtt")
    if method == "tesla":
        assert config.curvature == 1
        assert config.label == ("expert" if short == "imagenet1k-64" else "hard")


@pytest.mark.parametrize("name", ALIGNED)
def test_a_preset_aligns_as_its_source_does(name):
    short = Path(name).stem.rsplit("-ipc", 1)[0]
    data, experts, config, _ = parsed(name)
    steps, epochs, *window, batch, lr_img, lr_y, lr_lr, limit, protocol = ALIGNED[name]
    assert (config.syn_steps, config.expert_epochs, config.batch_syn) == (steps, epochs, batch)
    flags = ("min_start_epoch", "first_max_start_epoch", "max_start_epoch", "growing_steps")
    assert [getattr(config, flag) for flag in flags] == window
    assert (config.lr_img, config.lr_y, config.mom_y, config.lr_lr, config.lr_init) == (lr_img, lr_y, 0.9, lr_lr, 0.01)
    assert (config.label, config.max_loss, config.max_steps, config.eval_protocol) == (
        "learned",
        limit,
        10000,
        protocol,
    )
    assert (data.normalization, experts.expert_train_epochs, experts.batch_train) == ("zca", 100, 256)
    assert (experts.student, experts.num_experts) == DATASETS[short][5:]
    assert experts.expert_train_epochs >= config.expert_epochs_needed


@pytest.mark.parametrize("name", RECOVERED)
def test_a_preset_recovers_as_its_source_does(name):
    short = Path(name).stem.rsplit("-ipc", 1)[0]
    data, teacher, config, _ = parsed(name)
    lr_img, r_bn, steps, jitter, symmetric, crops, curriculum, protocol = RECOVERED[name]
    assert (config.lr_img, config.r_bn, config.max_steps) == (lr_img, r_bn, steps)
    assert (config.jitter, config.symmetric_jitter) == (jitter, symmetric)
    assert (config.random_crop, config.random_flip) == crops
    assert (config.curriculum, config.eval_protocol) == (curriculum, protocol)
    assert (config.milestone, config.batch_classes, config.first_bn_multiplier) == (1, 100, 10)
    assert (config.r_tv, config.r_l2, config.init, config.compat) == (0, 0, "noise", "none")
    assert "random" in config.eval_baselines  # on ImageNet-1K it beats published numbers

    if short in ("imagenet1k", "imagenet21k"):
        assert data.resolution == [224]
        compared = ["random", "ccs", "bps"] if short == "imagenet1k" else ["random"]
        assert (config.eval_full_data, config.eval_baselines) == (False, compared)
    else:
        hub, image, label, test, *_ = DATASETS[short]
        assert (data.dataset_name, data.image_column_name, data.label_column_name) == (hub, image, label)
        assert data.dataset_test_split == test
        assert config.eval_baselines == ["random", "herding", "k-center"]
    assert (data.normalization, data.mean, data.std) == NORMALISED[short]  # as the authors' teachers, so their images
    assert data.validation_fraction == 0

    if short == "imagenet1k":
        assert config.teachers == ["timm:resnet18.tv_in1k"]
        weights = timm.get_pretrained_cfg("resnet18.tv_in1k")
        assert weights.hf_hub_id == "timm/resnet18.tv_in1k"
        assert "resnet18-f37072fd" in weights.url  # torchvision's file of IMAGENET1K_V1
        assert (list(weights.mean), list(weights.std)) == (data.mean, data.std)
        assert weights.input_size == (3, 224, 224)
    else:
        assert config.teachers is None
        alone, other, *_ = parsed(f"teacher/{short}.yaml")
        assert teacher == other
        assert (alone.dataset_name, alone.resolution) == (data.dataset_name, data.resolution)
        assert (alone.normalization, alone.mean, alone.std) == (data.normalization, data.mean, data.std)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(DEMOS)))
def test_the_pretrained_networks_of_a_preset_are_in_timms_list_for_images_of_this_size(name):
    values = written(name)
    teachers = values.get("teachers")
    named = teachers if isinstance(teachers, list) else [teachers]
    for given in (*named, values.get("pretrained_weights"), values.get("model_name_or_path")):
        if given is None or not given.startswith(("timm:", "timm/")):
            continue
        known = timm.get_pretrained_cfg(given[len("timm:") :])
        assert known.hf_hub_id == f"timm/{given[len('timm:') :]}"
        assert known.input_size == (3, values["resolution"], values["resolution"])


@pytest.mark.parametrize("name", SQUEEZED)
def test_a_teacher_is_trained_as_its_source_trains_it(name):
    data, config, *_ = parsed(name)
    student, start, epochs, warmup, batch, optimizer, schedule, lr, decay, smoothing, augment = SQUEEZED[name]
    assert (config.student, config.pretrained_weights) == (student, start)
    assert (config.teacher_epochs, config.warmup_epochs, config.batch_train) == (epochs, warmup, batch)
    assert (config.teacher_optimizer, config.teacher_schedule) == (optimizer, schedule)
    assert (config.lr_teacher, config.mom_teacher, config.l2_teacher) == (lr, 0.9, decay)
    assert (config.label_smoothing, config.teacher_augment) == (smoothing, augment)
    assert (data.normalization, data.mean, data.std) == NORMALISED[Path(name).stem]
    assert data.validation_fraction == 0


@pytest.mark.parametrize("name", TILED)
def test_a_preset_tiles_as_the_scripts_of_rdeds_authors_do(name):
    data, _, config, _ = parsed(name)
    assert (config.factor, config.num_candidates, config.num_crops) == TILED[name]
    assert (config.min_scale, config.eval_protocol) == (0.08, "rded")
    classes, batch = BATCHES[name]
    protocol = PROTOCOLS["rded"].for_set(config.ipc, classes, config.factor)
    assert protocol.batch_size == batch
    assert (protocol.views.crop, protocol.views.scale[0]) == (("none", 1) if config.factor == 1 else ("resized", 0.5))
    assert data.validation_fraction == 0
    assert (data.mean, data.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize("name", [*RECOVERED, *STAGED, *TILED, *PROJECTED])
def test_test_images_of_224_pixels_are_cut_out_of_256_and_crops_out_of_the_images_themselves(name):
    data, (method, short) = parsed(name)[0], name.split("/")
    if short.startswith(("imagenet1k-", "imagenette")):
        assert (data.resolution, data.resize, data.interpolation) == ([224], 256, "bilinear")
        crops = None if method in ("sre2l", "cda") else "source"
        assert data.keep_side == ("384" if short.startswith("imagenette") else crops)
    elif name == "rded/tiny-imagenet-ipc50.yaml":
        assert (data.resolution, data.resize, data.interpolation) == (None, 64 // 7 * 8, "bilinear")
        assert data.keep_side is None
    else:
        assert (data.resize, data.interpolation, data.keep_side) == (None, None, None)


@pytest.mark.parametrize("name", PROJECTED)
def test_a_preset_projects_as_the_paper_of_hello_does_as_far_as_it_says(name):
    data, teacher, prior, config, _ = parsed(name)
    assert (prior.model_name_or_path, config.class_words, config.prompts) == (PROJECTED[name], "imagenet", "openai")
    assert (config.lora_r, config.lora_alpha, config.lora_head_r, config.weak_teachers) == (8, None, 128, 9)
    assert (config.factor, config.num_candidates, config.num_crops, config.min_scale) == (2, 300, 5, 0.08)
    assert (config.eval_protocol, teacher.student, config.teachers) == ("hello", "resnet18", None)
    assert (data.mean, data.std, data.resolution) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], [224])
    assert data.validation_fraction == 0
    assert "stored" not in config.compare_labels  # gigabytes that nobody asked for


@pytest.mark.parametrize("name", MATCHED)
def test_a_preset_matches_predictions_as_apms_table_says(name):
    short = Path(name).stem.rsplit("-ipc", 1)[0]
    data, teacher, config, _ = parsed(name)
    lr_img, lr_net, batch_syn, protocol, draws = MATCHED[name]
    assert (config.lr_img, config.lr_net, config.batch_syn, config.eval_protocol) == (
        lr_img,
        lr_net,
        batch_syn,
        protocol,
    )
    assert (config.max_steps, config.student_epochs, config.num_students) == (math.ceil(draws), 250, 5)
    assert (config.alpha, config.mom_img, config.batch_net, config.refresh_every) == (0.1, 0.5, 256, 3)
    assert (config.init, config.reduce_k, data.validation_fraction) == ("real", "sum", 0)

    hub, image, label, test, resolution, student, _ = DATASETS[short]
    assert (data.dataset_name, data.image_column_name, data.label_column_name) == (hub, image, label)
    assert (data.dataset_test_split, data.resolution) == (test, resolution)
    if short.startswith("cifar"):
        assert (data.normalization, data.mean, data.zca_eps) == ("zca", None, 0.1)
    else:
        assert (data.mean, data.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (teacher.student, teacher.student_width, teacher.student_norm) == (student, 128, "instance")
    assert (teacher.teacher_epochs, teacher.batch_train, teacher.teacher_augment) == (100, 256, "dsa")
    assert (teacher.lr_teacher, teacher.mom_teacher, teacher.l2_teacher) == (0.05, 0.9, 5e-4)
    assert [round(teacher.lr(epoch, 1), 6) for epoch in (0, 49, 50, 99)] == [0.05, 0.05, 0.005, 0.005]
    evaluated = PROTOCOLS[protocol]
    assert (evaluated.loss, evaluated.epochs - 1, evaluated.batch_size) == (
        "l1",
        1000 if protocol == "apm" else 600,
        256,
    )
    assert (evaluated.momentum, evaluated.weight_decay, evaluated.decay) == (0.9, 5e-4, 0.1)


@pytest.mark.parametrize("name", STAGED)
def test_stages_are_those_of_the_source(name):
    _, _, config, _ = parsed(name)
    sizes, steps, lr, classes, jitter, teachers, factor, protocol = STAGED[name]
    assert (config.stage_sizes, config.max_steps, config.lr_img) == (sizes, steps, lr)
    assert (config.batch_classes, config.jitter, config.eval_protocol) == (classes, jitter, protocol)
    assert (config.alpha, config.r_bn, config.first_bn_multiplier, config.random_flip) == (0.5, 0.01, 10, 0.5)
    assert (config.random_crop, config.symmetric_jitter, config.init, config.factor) == (True, False, "real", factor)
    assert (None if config.teachers is None else len(config.teachers)) == teachers


@pytest.mark.parametrize("name", MEANS)
def test_a_preset_matches_means_as_the_code_of_dms_authors_does(name):
    short = Path(name).stem.rsplit("-ipc", 1)[0]
    data, config, _ = parsed(name)
    assert (config.batch_real, config.max_steps) == MEANS[name]
    assert (config.lr_img, config.mom_img, config.init, config.select) == (1, 0.5, "real", "last")
    assert config.dsa_strategy == "color_crop_cutout_flip_scale_rotate"
    hub, image, label, test, resolution, student, _ = DATASETS[short]
    assert (data.dataset_name, data.image_column_name, data.label_column_name) == (hub, image, label)
    assert (data.dataset_test_split, data.resolution) == (test, resolution)
    assert (data.normalization, data.validation_fraction) == ("mean_std", 0)
    assert (config.student, config.student_width, config.student_norm) == (student, 128, "instance")
    evaluated = PROTOCOLS[config.eval_protocol]
    assert (evaluated.epochs - 1, evaluated.lrs[0], evaluated.batch_size, evaluated.momentum) == (1000, 0.01, 256, 0.9)
    assert (evaluated.weight_decay, evaluated.decay, evaluated.dsa_strategy) == (5e-4, 0.1, config.dsa_strategy)


@pytest.mark.parametrize("name", TRAINED)
def test_students_are_trained_as_the_source_trains_them(name):
    protocol = PROTOCOLS[name]
    optimizer, lr, decay, batch, epochs, temperature, squared, mix, warmup, smoothing = TRAINED[name]
    assert (protocol.optimizer, protocol.lrs, protocol.weight_decay) == (optimizer, (lr,), decay)
    assert (protocol.batch_size, protocol.epochs, protocol.warmup_epochs) == (batch, epochs, warmup)
    assert protocol.momentum == (0.9 if optimizer == "sgd" else None)
    assert protocol.decay_all == (name in ("sre2l-tiny", "cda-tiny", "cda-cifar"))
    assert (protocol.temperature, protocol.squared, protocol.label_smoothing) == (temperature, squared, smoothing)
    assert (protocol.views.mix, protocol.views.flip) == (mix, 0.0 if name == "cda-21k" else 0.5)
    if name == "cda-cifar":
        assert (protocol.views.crop, protocol.views.pad, protocol.views.alpha) == ("padded", 4, 0.8)
    else:
        smallest = 0.5 if name in ("rded", "hello") else 0.08
        assert (protocol.views.crop, protocol.views.scale, protocol.views.alpha) == ("resized", (smallest, 1.0), 1.0)


@pytest.mark.parametrize(
    "name", [name for name in PRESETS if name.split("/")[0] in ("apm", "cda", "fadrm", "sre2l", "rded")]
)
def test_the_preset_of_a_method_says_which_teacher_to_train_and_a_misspelt_key_is_still_one(name, tmp_path, capsys):
    classes, methods = (DataArguments, TeacherConfig), [method.config_class for method in METHODS]
    words = ["--config", str(CONFIGS / name)]
    data, teacher = parse_args(*classes, args=words, passed_over=methods)
    known = written(name)
    for part in (data, teacher):
        for field in dataclasses.fields(part):
            if field.name in known:
                wanted, found = known[field.name], getattr(part, field.name)
                assert found in (wanted, [wanted], str(wanted)), field.name
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((CONFIGS / name).read_text() + "\nteacher_epoch: 3\n")
    with pytest.raises(SystemExit):
        parse_args(*classes, args=["--config", str(wrong)], passed_over=methods)
    assert "unknown key 'teacher_epoch'; did you mean 'teacher_epochs'?" in capsys.readouterr().err


NAMED = sorted(
    (name, teacher.removeprefix("timm:"))
    for name in PRESETS
    for named in [written(name).get("teachers", [])]
    for teacher in ([named] if isinstance(named, str) else named)
)


@pytest.mark.parametrize(("name", "teacher"), NAMED, ids=str)
def test_a_teacher_that_a_preset_names_knows_its_classes_and_sees_what_the_preset_makes(name, teacher):
    values, known = written(name), timm.get_pretrained_cfg(teacher)
    assert imagenet_names({"tag": known.tag, "num_classes": known.num_classes}) is not None
    assert known.input_size == (3, values["resolution"], values["resolution"])
    assert (list(known.mean), list(known.std)) == (values["mean"], values["std"])
    assert known.hf_hub_id == f"timm/{teacher}"
