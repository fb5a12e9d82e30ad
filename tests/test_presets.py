"""The presets: each parses, tells how it is launched, and holds what the sources say."""

import importlib.util
import shlex
from pathlib import Path

import pytest

from hf_distill.config import DataArguments, load_yaml, parse_args
from hf_distill.experts import ExpertConfig
from hf_distill.methods import MTTConfig, TeslaConfig

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "recipes" / "configs"
METHODS = {"mtt": MTTConfig, "tesla": TeslaConfig}
PRESETS = sorted(
    path.relative_to(CONFIGS).as_posix() for method in METHODS for path in CONFIGS.glob(f"{method}/*.yaml")
)

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
# Image size, student, experts; columns and test split on the Hub
DATASETS = {
    "cifar10": ("uoft-cs/cifar10", "img", "label", None, None, "convnet_d3", 100),
    "cifar100": ("uoft-cs/cifar100", "img", "fine_label", None, None, "convnet_d3", 100),
    "tiny-imagenet": ("zh-plus/tiny-imagenet", "image", "label", "valid", None, "convnet_d4", 100),
    "imagenet1k-64": ("ILSVRC/imagenet-1k", "image", "label", "validation", [64], "convnet_d4", 50),
}


def parsed(name):
    config_class = METHODS[name.split("/")[0]]
    return parse_args(DataArguments, ExpertConfig, config_class, args=["--config", str(CONFIGS / name)])


def demo(method):
    spec = importlib.util.spec_from_file_location(f"recipe_{method}", ROOT / "recipes" / f"{method}.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.DEMO


def test_every_published_setting_has_its_preset():
    digits = {name for name in PRESETS if "/digits-" in name}
    assert {"mtt/digits-ipc1.yaml", "tesla/digits-ipc1.yaml"} <= digits
    assert set(PRESETS) - digits == set(PUBLISHED) | set(BORROWED)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_parses_and_does_what_its_name_says(name):
    data, _, config = parsed(name)
    short, ipc = Path(name).stem.rsplit("-ipc", 1)
    assert config.ipc == int(ipc)
    assert (short == "digits") == (data.dataset_name is None)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_opens_with_the_line_that_launches_it(name):
    method = name.split("/")[0]
    comment, *words = shlex.split((CONFIGS / name).read_text(encoding="utf-8").splitlines()[0])
    launch = ["accelerate", "launch", f"recipes/{method}.py"]
    assert comment == "#"
    if words == launch:
        assert demo(method) == CONFIGS / name
    else:
        assert words == [*launch, "--config", f"recipes/configs/{name}"]


@pytest.mark.parametrize("name", [name for name in PRESETS if "/digits-" not in name])
def test_each_line_of_a_paper_preset_says_where_its_value_comes_from(name):
    chosen = set(load_yaml(CONFIGS / name)) - {"ipc"}
    lines = (CONFIGS / name).read_text(encoding="utf-8").splitlines()
    values = [
        line for line in lines if line.split(":")[0] in chosen and not line.startswith(("dataset", "image", "label_"))
    ]
    assert values
    for line in values:
        assert any(source in line.partition("  # ")[2] for source in ("[MTT]", "[TESLA]", "[code]", "this project")), (
            line
        )


@pytest.mark.parametrize("name", [*PUBLISHED, *BORROWED])
def test_a_preset_holds_the_values_of_its_source(name):
    method, short = name.split("/")[0], Path(name).stem.rsplit("-ipc", 1)[0]
    data, experts, config = parsed(name)
    steps, epochs, start, batch, lr_img, lr_lr, lr_init, zca = PUBLISHED[BORROWED.get(name, name)]
    assert (config.syn_steps, config.expert_epochs, config.max_start_epoch) == (steps, epochs, start)
    assert config.batch_syn == batch
    assert (config.lr_img, config.lr_lr, config.lr_init, config.mom_img) == (lr_img, lr_lr, lr_init, 0.5)
    assert data.normalization == ("zca" if zca else "mean_std")

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
