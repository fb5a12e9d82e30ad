"""The presets: each parses, tells how it is launched, and holds what the sources say."""

import importlib.util
import shlex
from pathlib import Path

import pytest
import timm

from hf_distill.config import DataArguments, load_yaml, parse_args
from hf_distill.experts import ExpertConfig
from hf_distill.methods import CDAConfig, MTTConfig, SRe2LConfig, TeslaConfig
from hf_distill.protocols import PROTOCOLS
from hf_distill.teacher_training import TeacherConfig

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "recipes" / "configs"
METHODS = {
    "mtt": (ExpertConfig, MTTConfig),
    "tesla": (ExpertConfig, TeslaConfig),
    "sre2l": (TeacherConfig, SRe2LConfig),
    "cda": (TeacherConfig, CDAConfig),
}
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

# Of SRe2L and CDA. lr_img, r_bn, max_steps, jitter, symmetric jitter, crops and flips, curriculum, protocol; all have
# blocks of 100 classes, ten times the first layer, no other prior, and a milestone of 1 where there is a curriculum.
RECOVERED = {
    **{
        f"sre2l/imagenet1k-ipc{ipc}.yaml": (0.25, 0.01, 4000, 32, False, (True, 0.5), "none", "sre2l")
        for ipc in (10, 50)
    },
    "sre2l/tiny-imagenet-ipc50.yaml": (0.1, 1.0, 4000, 4, True, (True, 0.5), "none", "cda-tiny"),
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
    "cda-tiny": ("sgd", 0.2, 1e-4, 64, 100, 20, True, "none", 5, 0),
    "cda-cifar": ("adamw", 0.001, 0.01, 128, 400, 30, False, "mixup", 0, 0),
    "cda-21k": ("adamw", 0.002, 0.01, 32, 300, 20, False, "none", 0, 0.2),
}
# What stands for a source in a comment
SOURCES = ("[MTT]", "[TESLA]", "[SRe2L]", "[CDA]", "[code]", "this project")


def parsed(name):
    return parse_args(DataArguments, *METHODS[name.split("/")[0]], args=["--config", str(CONFIGS / name)])


def demo(method):
    spec = importlib.util.spec_from_file_location(f"recipe_{method}", ROOT / "recipes" / f"{method}.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.DEMO


def test_every_published_setting_has_its_preset():
    digits = {name for name in PRESETS if "/digits-" in name}
    assert {
        "mtt/digits-ipc1.yaml",
        "tesla/digits-ipc1.yaml",
        "sre2l/digits-ipc5.yaml",
        "cda/digits-ipc5.yaml",
    } <= digits
    assert set(PRESETS) - digits == set(PUBLISHED) | set(BORROWED) | set(RECOVERED)


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
        assert any(source in line.partition("  # ")[2] for source in SOURCES), line


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


@pytest.mark.parametrize("name", RECOVERED)
def test_a_preset_recovers_as_its_source_does(name):
    short = Path(name).stem.rsplit("-ipc", 1)[0]
    data, teacher, config = parsed(name)
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
        assert (config.eval_full_data, config.eval_baselines) == (False, ["random"])
    else:
        hub, image, label, test, *_ = DATASETS[short]
        assert (data.dataset_name, data.image_column_name, data.label_column_name) == (hub, image, label)
        assert data.dataset_test_split == test
        assert config.eval_baselines == ["random", "herding", "k-center"]
    # The authors' teachers, and so their images, know pixels in this form.
    if short == "imagenet21k":
        assert (data.normalization, data.mean) == ("none", None)
    elif short == "cifar100":
        assert (data.mean, data.std) == ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    else:
        assert (data.mean, data.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
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
    if short in ("tiny-imagenet", "cifar100"):
        path = CONFIGS / "teacher" / f"{short}.yaml"
        _, alone = parse_args(DataArguments, TeacherConfig, args=["--config", str(path)])
        assert teacher == alone
    if short == "imagenet21k":
        assert (teacher.student, teacher.teacher_epochs, teacher.batch_train) == ("resnet18", 80, 1024)
        assert (teacher.teacher_optimizer, teacher.lr_teacher, teacher.l2_teacher) == ("adam", 3e-4, 1e-4)
        assert (teacher.teacher_schedule, teacher.label_smoothing) == ("onecycle", 0.2)


@pytest.mark.parametrize("name", TRAINED)
def test_students_are_trained_as_the_source_trains_them(name):
    protocol = PROTOCOLS[name]
    optimizer, lr, decay, batch, epochs, temperature, squared, mix, warmup, smoothing = TRAINED[name]
    assert (protocol.optimizer, protocol.lrs, protocol.weight_decay) == (optimizer, (lr,), decay)
    assert (protocol.batch_size, protocol.epochs, protocol.warmup_epochs) == (batch, epochs, warmup)
    assert (protocol.temperature, protocol.squared, protocol.label_smoothing) == (temperature, squared, smoothing)
    assert (protocol.views.mix, protocol.views.flip) == (mix, 0.5)
    if name == "cda-cifar":
        assert (protocol.views.crop, protocol.views.pad, protocol.views.alpha) == ("padded", 4, 0.8)
    else:
        assert (protocol.views.crop, protocol.views.scale, protocol.views.alpha) == ("resized", (0.08, 1.0), 1.0)
