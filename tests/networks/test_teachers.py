"""Teachers: the same network for every reader and after any accident, with classes that are never assumed."""

import itertools
import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import load_file, save, save_file
from timm.data import ImageNetInfo, create_transform
from timm.models import save_for_hf
from torch import nn
from torchvision.transforms import functional as vision

from hf_distill.augmentation.crops import CROP_DRAWS, draw_crops, uniform
from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.data.pixels import Frame
from hf_distill.data.preprocessing import Preprocessing, fit_zca
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.hub.files import load_json, save_json
from hf_distill.methods.apm import APM
from hf_distill.methods.hello import HeLlO
from hf_distill.methods.rded import RDED
from hf_distill.methods.sre2l import CDA, SRe2L
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.frames import frame_in_timm, frame_to_timm
from hf_distill.networks.teachers import Teacher
from hf_distill.networks.timm_models import timm
from hf_distill.rng import generator
from hf_distill.runs.callbacks import RunState
from hf_distill.runs.checkpoints import load_checkpoint
from hf_distill.runs.processes import make_accelerator
from hf_distill.training import teachers as teachers_module
from hf_distill.training.batchnorm import share_statistics
from hf_distill.training.teachers import (
    TeacherConfig,
    _Augmented,
    _pool,
    crop_flip,
    find_teachers,
    framed_by_teacher,
    teacher_folder,
    train_teacher,
)
from tests.helpers import without_sums
from tests.helpers.events import Notes
from tests.helpers.goldens import check_golden
from tests.helpers.photographs import cache_in, cropped, photographs, store
from tests.helpers.recipes import DIES_AT_THIRD_STATE

NAMES = ["cat", "Hund", "犬", "a/b | c"]
SOURCE = {
    "name": "org/pets",
    "split": "train",
    "revision": "0123456789abcdef0123456789abcdef01234567",
    "license": "cc-by-nc-4.0",
    "gated": "auto",
    "homepage": "https://huggingface.co/datasets/org/pets",
    "num_images": 7000,
}
CONFIG = {
    "source": SOURCE,
    "training": {"teacher_epochs": 50, "lr_teacher": 0.2, "seed": 7, "classes": None},
    "results": {"train_accuracy": 0.995, "test_accuracy": 0.596, "epoch_loss": [2.5], "epoch_accuracy": [0.25]},
    "versions": {"hf_distill": "0.0.0", "torch": "9.9"},
    "device": "cpu",
}
TINY = {
    "max_train_samples": 200,
    "max_test_samples": 50,
    "student": "convnet_d1",
    "student_width": 8,
    "teacher_epochs": 4,
    "batch_train": 50,
    "teacher_augment": "crop_flip",
    "disable_tqdm": True,
}


def remember(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm running statistics of its own."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=draw))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=draw))
            module.num_batches_tracked.fill_(17)
    return model


def make(name: str = "test_resnet", *, size=(16, 24), channels=3, names=NAMES, zca=False, config=CONFIG, **kwargs):
    spec = StudentSpec(name, len(names), channels, size, kwargs)
    preprocessing = Preprocessing(channels, size, (0.4,) * channels, (0.3,) * channels)
    if zca:
        pixels = torch.randint(0, 256, (20, channels, *size), dtype=torch.uint8, generator=torch.Generator())
        preprocessing = Preprocessing(channels, size, (0.0,) * channels, (1.0,) * channels, fit_zca([pixels], 0.1))
    return Teacher(remember(spec.build(0)), spec, names, preprocessing, config)


def pixels(teacher: Teacher, n: int = 3) -> torch.Tensor:
    shape = (n, teacher.spec.in_chans, *teacher.spec.img_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def logits(teacher: Teacher) -> torch.Tensor:
    return teacher.model(teacher.preprocessing(pixels(teacher)))


def check_same(found: Teacher, expected: Teacher) -> None:
    assert found.model.state_dict().keys() == expected.model.state_dict().keys()
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name
    assert torch.equal(logits(found), logits(expected))
    assert (found.spec, found.class_names, found.config) == (expected.spec, expected.class_names, expected.config)
    assert found.preprocessing.fingerprint() == expected.preprocessing.fingerprint()
    assert (found.digest, found.num_bytes) == (expected.digest, expected.num_bytes)


# The same thing for every reader


@pytest.mark.parametrize(
    "build",
    [
        lambda: make(),
        lambda: make("convnet_d2", channels=1, size=(8, 8), width=4, norm="batch"),
        lambda: make(zca=True, size=(6, 6), channels=1),
        lambda: make("test_vit", size=(32, 32)),
    ],
    ids=["resnet", "convnet", "zca", "vit"],
)
def test_a_saved_teacher_comes_back_bit_for_bit(build, tmp_path):
    teacher = build()
    again = Teacher.from_pretrained(teacher.save_pretrained(tmp_path / "teacher"))
    check_same(again, teacher)
    assert again.origin is None
    assert again.save_pretrained(tmp_path / "teacher") == tmp_path / "teacher"
    check_same(Teacher.from_pretrained(tmp_path / "teacher"), teacher)


def test_a_teacher_is_frozen_and_images_get_gradients_and_statistics_stay(device):
    teacher = make().to(device)
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    images = torch.randn(4, 3, 16, 24, device=device, requires_grad=True)
    teacher.logits(images).logsumexp(1).sum().backward()
    assert images.grad.abs().sum() > 0
    assert not teacher.model.training
    assert all(not parameter.requires_grad for parameter in teacher.model.parameters())
    for name, tensor in teacher.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["test_resnet", "convnet_d2"])
def test_a_teacher_says_the_same_on_an_accelerator_and_keeps_its_digest(name, cuda):
    kwargs = {"width": 4, "norm": "batch"} if name == "convnet_d2" else {}
    still, moved = make(name, **kwargs), make(name, **kwargs).to(cuda)
    x = still.preprocessing(pixels(still))
    with torch.no_grad():
        torch.testing.assert_close(moved.logits(x.to(cuda)).cpu(), still.logits(x), rtol=1e-4, atol=1e-4)
    assert moved.digest == still.digest


def test_the_digest_names_the_weights_and_the_statistics():
    assert make().digest == make(names=NAMES[::-1]).digest
    changed = make()
    changed.model.bn1.running_var[0] += 1e-6
    assert changed.digest != make().digest
    assert make().num_bytes == sum(t.numel() * t.element_size() for t in timm_like().state_dict().values())


def timm_like() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=len(NAMES))


TIMM_ALONE = """
import sys
sys.modules["hf_distill"] = None  # as where it is not installed
import json, numpy as np, timm, torch
out, *names = sys.argv[1:]
images = torch.from_numpy(np.load(out + ".npy"))
found, labels = [], []
for name in names:
    model = timm.create_model(name, pretrained=True).eval()
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        found.append(model((images.float() / 255 - mean) / std).numpy())
    labels.append([cfg["input_size"], cfg["label_names"]])
np.save(out, np.stack(found))
print(json.dumps(labels))
"""


def test_timm_alone_loads_a_teacher_from_the_hub_and_from_a_folder(hub, online, tmp_path):
    repo, teacher = f"{hub.namespace}/teacher", make()
    commit = teacher.push_to_hub(repo, tag="v1.0.0", token=hub.token)
    again = Teacher.from_pretrained(repo, revision="v1.0.0")
    check_same(again, teacher)
    assert (again.origin.repo_id, again.origin.revision) == (repo, commit.oid)
    assert again.release == {"repo_id": repo, "tag": "v1.0.0"}

    out, folder = tmp_path / "logits", teacher.save_pretrained(tmp_path / "teacher")
    np.save(f"{out}.npy", pixels(teacher).numpy())
    read = online(TIMM_ALONE, out, f"hf-hub:{repo}@v1.0.0", f"local-dir:{folder}")
    assert read.status == [0], read.err
    assert json.loads(read.out.splitlines()[-1]) == [[[3, 16, 24], NAMES]] * 2
    assert np.array_equal(np.load(f"{out}.npy"), torch.stack([logits(teacher)] * 2).numpy())


def test_timm_loads_networks_of_this_library_once_it_is_imported(tmp_path):
    teacher = make("convnet_d2", channels=1, size=(8, 8), width=4, norm="batch")
    model = timm.create_model(f"local-dir:{teacher.save_pretrained(tmp_path / 't')}", pretrained=True).eval()
    assert torch.equal(model(teacher.preprocessing(pixels(teacher))), logits(teacher))


def plain(folder: Path, **changes: Any) -> nn.Module:
    """A folder that timm's own function wrote."""
    model = remember(timm_like()).eval()
    model.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), input_size=(3, 16, 24))
    save_for_hf(model, folder, {"label_names": NAMES, **changes}, safe_serialization=True)
    return model


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_repository_of_timm_alone_becomes_a_teacher_and_says_where_from(hub, tmp_path):
    model, repo = plain(tmp_path / "plain"), f"{hub.namespace}/plain"
    hub.put("model", repo, files(tmp_path / "plain"))
    commit = hub.head("model", repo)
    teacher = Teacher.from_timm(f"hf-hub:{repo}@{commit}")
    wanted = (pixels(teacher).float() / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor(
        [0.5, 0.6, 0.7]
    )[:, None, None]
    assert torch.equal(logits(teacher), model(wanted))
    assert (teacher.class_names, teacher.spec.img_size, teacher.spec.name) == (NAMES, (16, 24), "test_resnet")
    assert (teacher.config["weights"]["repo_id"], teacher.config["weights"]["revision"]) == (repo, commit)
    teacher.push_to_hub(f"{hub.namespace}/own", token=hub.token)
    check_same(Teacher.from_pretrained(f"{hub.namespace}/own"), teacher)
    again = Teacher.from_pretrained(teacher.save_pretrained(tmp_path / "own"))
    check_same(again, teacher)
    assert repo in (tmp_path / "own" / "README.md").read_text()


def timms_own(hub, name: str, labels: list[str] | None = None) -> str:
    """A repository with the files and fields of timm's own, and a network that is quick to build; its commit."""
    known = timm.get_pretrained_cfg(name).to_dict(remove_source=True, remove_null=True)
    config = {"architecture": "test_resnet", "num_classes": known["num_classes"], "num_features": 512}
    cut = {**known, "input_size": (3, 16, 24)}
    model = remember(timm.create_model("test_resnet", num_classes=known["num_classes"]), seed=1)
    content = {
        "config.json": json.dumps({**config, **({"label_names": labels} if labels else {}), "pretrained_cfg": cut}),
        "model.safetensors": save({key: tensor.contiguous() for key, tensor in model.state_dict().items()}),
        "README.md": "---\nlicense: bsd-3-clause\nlibrary_name: timm\n---\n",
        "pytorch_model.bin": b"never read",
    }
    repo = timm.get_pretrained_cfg(name).hf_hub_id
    hub.put("model", repo, {path: text.encode() if isinstance(text, str) else text for path, text in content.items()})
    return hub.head("model", repo)


@pytest.mark.slow
def test_timms_own_repositories_of_imagenet_are_teachers_of_its_classes_and_of_ten_of_them(hub, tmp_path):
    """They name no classes; each preset's teacher is one."""
    hub.add_user("timms", "hf_" + "t" * 34, orgs=["timm"])
    commit = timms_own(hub, "resnet18.tv_in1k")
    real = Images(["tench", "English springer", "golf_ball"])
    (teacher,) = find_teachers(["timm:resnet18.tv_in1k"], real, None, TeacherConfig(), seed=0, accelerator=None)
    assert teacher.class_names == ImageNetInfo().label_names()
    home = {"repo_id": "timm/resnet18.tv_in1k", "revision": commit}
    about = {"tag": "tv_in1k", "license": "bsd-3-clause", "origin_url": "https://github.com/pytorch/vision"}
    assert teacher.config["weights"] == about | home
    assert teacher.test_frame == Teacher.frame_of("timm:resnet18.tv_in1k") == Frame(18, "bilinear")  # 16 / 0.875
    assert teacher.preprocessing.mean == (0.485, 0.456, 0.406)

    words = ImageNetInfo().label_descriptions()
    everything = teacher.narrowed([*words[:517], "crane2", *words[518:]])
    assert everything.model is teacher.model  # by other names, and still fetched from there
    assert everything.origin == teacher.origin

    narrowed = teacher.narrowed(real.class_names)
    images = teacher.preprocessing(pixels(teacher))
    torch.testing.assert_close(narrowed.logits(images), teacher.logits(images)[:, [0, 217, 574]], rtol=1e-6, atol=1e-6)
    assert narrowed.origin is None  # so a set keeps its 3 rows, and needs the repository no more
    about = {"num_classes": 1000, "rows": [0, 217, 574], "digest": teacher.digest}
    assert narrowed.config["narrowed"] == about | home
    again = Teacher.from_pretrained(narrowed.save_pretrained(tmp_path))
    check_same(again, narrowed)
    assert again.test_frame == Frame(18, "bilinear")
    card = (tmp_path / "README.md").read_text()
    assert f"a part of a teacher of 1,000 classes, `{teacher.digest}`, of timm/resnet18.tv_in1k (`{commit}`)" in card
    with pytest.raises(ValueError, match=r"1 of these 2 are not among them: 'axolotol' \(near: .*'axolotl, mud puppy"):
        teacher.narrowed(["tench", "axolotol"])


def test_classes_of_data_that_a_teacher_calls_otherwise_are_logged_once(caplog):
    teacher = make(names=["n02124075", "Black_Dog", "fish"])
    with caplog.at_level("INFO", logger="hf_distill.networks.teachers"):
        for _ in range(2):
            assert teacher.narrowed(["black dog", "Egyptian cat"]).spec.num_classes == 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("'black dog' -> 'Black_Dog', 'Egyptian cat' -> 'n02124075' = 'Egyptian cat'")
    with pytest.raises(ValueError, match="no classes to narrow the teacher test_resnet to"):
        teacher.narrowed([])


def test_names_of_classes_come_from_a_file_where_the_repository_has_none(tmp_path):
    plain(tmp_path / "plain", label_names=None)
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    teacher = Teacher.from_pretrained(tmp_path / "plain", class_names=path)
    assert teacher.class_names == NAMES
    real, options = Images(NAMES[2:]), {"seed": 0, "accelerator": None}
    (named,) = find_teachers([str(tmp_path / "plain")], real, None, TeacherConfig(), class_names=str(path), **options)
    assert named.narrowed(real.class_names).class_names == NAMES[2:]
    path.write_text("\n".join(NAMES[1:]), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"names\.txt names 3 classes, and .*plain has 4; expected a name for each"
    ) as error:
        Teacher.from_pretrained(tmp_path / "plain", class_names=str(path))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="--teacher_class_names is x without --teachers"):
        find_teachers(None, real, None, TeacherConfig(), class_names="x", **options)


def test_a_file_of_names_is_for_those_of_several_teachers_that_it_fits(tmp_path, caplog):
    make(names=NAMES[:2]).save_pretrained(tmp_path / "named")
    plain(tmp_path / "plain", label_names=None)
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")

    def read(*folders: str) -> list[list[str]]:
        names, options = [str(tmp_path / folder) for folder in folders], {"seed": 0, "accelerator": None}
        teachers = find_teachers(names, Images(NAMES), None, TeacherConfig(), class_names=str(path), **options)
        return [teacher.class_names for teacher in teachers]

    assert read("named", "plain") == [NAMES[:2], NAMES]
    with pytest.raises(ValueError, match=r"names\.txt names 4 classes, and .*named has 2"):
        read("named")
    path.write_text("katze\nHund\n", encoding="utf-8")
    with caplog.at_level("WARNING", logger="hf_distill.networks.teachers"):
        assert read("named") == [["katze", "Hund"]]
    assert "1 of the 2 classes of" in caplog.text
    assert "such as 'katze' for 'cat'" in caplog.text
    path.write_text("Hund\nkatze\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"class 0 is called 'Hund' here, and .* calls class 0 'cat' and class 1 'Hund'"
    ):
        read("named")


def test_classes_that_nobody_names_must_be_given_and_names_must_not_change_places(tmp_path):
    plain(tmp_path, label_names=None)
    with pytest.raises(ValueError, match=r"does not name its 4 classes.*--teacher_class_names, or class_names"):
        Teacher.from_pretrained(tmp_path)
    teacher = Teacher.from_pretrained(tmp_path, class_names=NAMES)
    assert teacher.class_names == NAMES
    with pytest.raises(ValueError, match="3 class names"):
        Teacher.from_pretrained(tmp_path, class_names=NAMES[1:])
    folder = teacher.save_pretrained(tmp_path / "own")
    assert Teacher.from_pretrained(folder, class_names=["w", "x", "y", "z"]).class_names == ["w", "x", "y", "z"]
    with pytest.raises(
        ValueError, match=r"class 0 is called 'a/b . c' here, and .* calls class 0 'cat' and class 3 'a/b"
    ):
        Teacher.from_pretrained(folder, class_names=NAMES[::-1])


def test_a_network_of_timm_can_be_taken_without_weights():
    preprocessing = Preprocessing(3, (16, 24), (0.0,) * 3, (1.0,) * 3)
    one, same, other = (
        Teacher.from_timm("test_resnet", NAMES, pretrained=False, preprocessing=preprocessing, seed=seed)
        for seed in (0, 0, 1)
    )
    assert one.digest == same.digest != other.digest
    with pytest.raises(ValueError, match="timm knows no weights of 'convnet_d3'"):
        Teacher.from_timm("convnet_d3", NAMES)


# Classes


def ending_in(head: str) -> Teacher:
    """A teacher whose classifier is linear, or a convolution, as some of timm's networks end."""
    teacher = make()
    if head == "convolution":
        fc = teacher.model.fc
        layer = nn.Conv2d(fc.in_features, fc.out_features, 1)
        layer.weight.data, layer.bias.data = fc.weight.data[:, :, None, None], fc.bias.data
        teacher.model.global_pool = nn.AdaptiveAvgPool2d(1)
        teacher.model.fc = nn.Sequential(layer, nn.Flatten())
        teacher.model.pretrained_cfg = {**teacher.model.pretrained_cfg, "classifier": "fc.0"}
    return teacher


def test_classes_are_the_same_names_in_the_same_order_or_one_error():
    teacher = make()
    teacher.check_classes(tuple(NAMES))
    with pytest.raises(ValueError, match=r"calls class 1 'Hund', and here it is 'dog'; use a teacher of these classes"):
        teacher.check_classes(["cat", "dog", "犬", "a/b | c"])
    with pytest.raises(ValueError, match="has 4 classes, and there are 3"):
        teacher.check_classes(NAMES[:3])
    with pytest.raises(ValueError, match=r"calls class 0 'cat', and here it is 'Hund'.*teacher\.narrowed\(names\)"):
        teacher.check_classes(["Hund", "cat", "犬", "a/b | c"])


class Images:
    """What a teacher that is named is looked up for: images of some classes."""

    def __init__(self, class_names: list[str]) -> None:
        self.class_names = class_names


@pytest.mark.parametrize("head", ["linear", "convolution"])
def test_a_narrowed_teacher_says_the_same_of_its_classes_and_has_a_softmax_over_them(head):
    teacher = ending_in(head)
    part = teacher.narrowed([NAMES[2], NAMES[0]])
    images = teacher.preprocessing(pixels(teacher))
    torch.testing.assert_close(part.logits(images), teacher.logits(images)[:, [2, 0]], rtol=1e-6, atol=1e-6)
    assert (part.spec.num_classes, part.results) == (2, {})
    assert teacher.narrowed(NAMES) is teacher


@pytest.mark.parametrize("head", ["linear", "convolution"])
def test_a_reordered_teacher_says_the_same_of_every_class(head):
    teacher, order = ending_in(head), [2, 0, 3, 1]
    names = [NAMES[index] for index in order]
    again = teacher.narrowed(names)
    again.check_classes(names)
    images = teacher.preprocessing(pixels(teacher))
    torch.testing.assert_close(again.logits(images), teacher.logits(images)[:, order], rtol=1e-6, atol=1e-6)
    assert again.digest != teacher.digest
    assert again.narrowed(NAMES).digest == teacher.digest


def test_a_teacher_cannot_be_reordered_into_other_classes_or_without_a_linear_layer():
    with pytest.raises(ValueError, match="has 4 classes, and 1 of these 4 are not among them: 'dog'"):
        make().narrowed([*NAMES[:3], "dog"])
    teacher = make()
    teacher.model.pretrained_cfg = {**teacher.model.pretrained_cfg, "classifier": "layer4"}
    with pytest.raises(ValueError, match="can neither be taken out of it nor reordered"):
        teacher.narrowed(NAMES[::-1])


# Bad input


def broken(folder: Path, how: str) -> None:
    """Damage a saved teacher."""
    path, index, weights = folder / "config.json", folder / "teacher_config.json", folder / "model.safetensors"
    if how == "pickle":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    elif how == "pickle under another name":
        torch.save({"fc.weight": torch.zeros(1)}, weights)
    elif how == "cut short":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "other weights":
        save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    elif how == "not finite":
        save_file({**load_file(weights), "bn1.running_var": torch.full((32,), math.nan)}, weights)
    elif how == "class count":
        save_json(index, {**load_json(index), "class_names": NAMES[:3]})
    elif how == "weights for other classes":
        held = load_file(weights)
        save_file({**held, "fc.weight": held["fc.weight"][:3], "fc.bias": held["fc.bias"][:3]}, weights)
    elif how == "no json":
        index.write_text("{")
    elif how == "newer":
        save_json(index, {**load_json(index), "format_version": 99})
    elif how == "loads a file":
        student = load_json(index)["student"]
        save_json(index, {**load_json(index), "student": {**student, "kwargs": {"checkpoint_path": "x.pt"}}})
    elif how == "nothing of timm":
        path.unlink()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("pickle", r"has no model\.safetensors.*pickles"),
        ("pickle under another name", "is no whole safetensors file"),
        ("cut short", "is no whole safetensors file"),
        ("other weights", r"does not hold the weights that teacher_config\.json speaks of"),
        ("not finite", r"values in bn1\.running_var that are not finite"),
        ("class count", "3 class names.*4 logits"),
        ("weights for other classes", r"has \(3,\) for fc\.bias.*for 4 classes \(4,\)"),
        ("no json", "is not valid JSON"),
        ("newer", "format_version 99.*upgrade hf_distill"),
        ("loads a file", "checkpoint_path, which loads weights"),
        ("nothing of timm", r"has no config\.json"),
    ],
)
def test_a_damaged_teacher_is_one_line(how, says, tmp_path):
    broken(make().save_pretrained(tmp_path / "t"), how)
    with pytest.raises(ValueError, match=says) as caught:
        Teacher.from_pretrained(tmp_path / "t")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_classes": "ten"}, "num_classes 'ten'"),
        ({"architecture": "resnet_of_mine"}, "is no timm model"),
        ({"architecture": None}, "architecture None"),
        ({"pretrained_cfg": {"input_size": [3, 16, 24], "std": [1, 1, 1]}}, "has mean None"),
        ({"pretrained_cfg": []}, "has input_size None"),
        ({"model_args": {"pretrained_cfg": {}}}, "pretrained_cfg"),
        ({"num_classes": 5}, r"has \(4,\) for fc\.bias"),
    ],
)
def test_a_repository_of_timm_with_a_broken_description_is_one_line(changes, says, tmp_path):
    plain(tmp_path)
    save_json(tmp_path / "config.json", {**load_json(tmp_path / "config.json"), **changes})
    with pytest.raises(ValueError, match=says) as caught:
        Teacher.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_of_somebody_else_is_not_replaced(tmp_path):
    plain(tmp_path)
    with pytest.raises(ValueError, match=r"has a config\.json and no teacher_config\.json"):
        make().save_pretrained(tmp_path)


# The card


def test_the_card_is_kept_as_a_golden_and_has_the_accuracy_as_the_hub_reads_it(hub, tmp_path):
    teacher = make()
    for tensor in teacher.model.state_dict().values():
        tensor.fill_(1)  # the card names the weights, and initial ones differ in the last bits between machines
    teacher.push_to_hub("org/pets-teacher", tag="v1.0.0", token=hub.token)  # which the Hub refuses if invalid
    published = hub.files("model", "org/pets-teacher")
    card = published["README.md"].decode()
    check_golden("teacher.md", card)
    (tmp_path / "card.md").write_text(card)
    name, results = model_index_to_eval_results(metadata_load(tmp_path / "card.md")["model-index"])
    assert (name, [(r.dataset_split, r.metric_value) for r in results]) == (
        "pets-teacher",
        [("train", 0.995), ("test", 0.596)],
    )
    about = ModelCard(card).data.to_dict()
    assert (about["library_name"], about["datasets"], about["license"]) == ("timm", ["org/pets"], "cc-by-nc-4.0")
    assert not [path for path in published if path.startswith(".eval_results")]  # for registered benchmarks alone


def test_a_save_removes_the_results_that_older_versions_wrote_for_benchmarks(tmp_path):
    folder = make().save_pretrained(tmp_path / "teacher")
    old = folder / ".eval_results" / "hf_distill.yaml"
    old.parent.mkdir()
    old.write_text("- dataset: {id: org/pets, task_id: image-classification}\n  value: 0.596\n")
    teacher = Teacher.from_pretrained(folder)
    teacher.save_pretrained(folder)
    assert not old.exists()


COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    ("config", "base", "relation"),
    [
        ({"training": {"pretrained_weights": "org/net", "pretrained_revision": COMMIT}}, "org/net", "finetune"),
        (
            {"training": {"pretrained_weights": "timm:resnet18.tv_in1k", "pretrained_revision": COMMIT}},
            "timm/resnet18.tv_in1k",
            "finetune",
        ),
        (
            {"training": {"pretrained_weights": "timm:hf-hub:org/net@v1", "pretrained_revision": COMMIT}},
            "org/net",
            "finetune",
        ),
        ({"weights": {"repo_id": "org/net", "revision": COMMIT}}, "org/net", None),
        ({"training": {"pretrained_weights": "my/folder", "pretrained_revision": "01234567"}}, None, None),
        ({"training": {"pretrained_weights": "timm:no_such_net", "pretrained_revision": COMMIT}}, None, None),
        ({"training": {"pretrained_weights": None}}, None, None),
        ({"weights": {"repo_id": "../up: [x", "revision": None}}, None, None),
        ({}, None, None),
    ],
)
def test_the_card_names_the_repository_whose_weights_were_the_first(config, base, relation, tmp_path):
    teacher = make()
    teacher.config |= config
    card = ModelCard.load(teacher.save_pretrained(tmp_path / "teacher") / "README.md")
    assert (card.data.base_model, card.data.get("base_model_relation")) == (base, relation)


# Small ResNets


def test_a_small_resnet_is_timms_with_another_stem():
    small, usual = (timm.create_model(name, num_classes=10).eval() for name in ("resnet18_small", "resnet18"))
    assert sum(p.numel() for p in small.parameters()) == 11_173_962  # the ResNet-18 of CIFAR-10, known everywhere
    usual.conv1, usual.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    usual.load_state_dict(small.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(small(images), usual(images))
    assert [stage.shape[-1] for stage in timm.create_model("resnet50_small", features_only=True)(images)] == [
        *(32, 32, 16, 8, 4)
    ]


# Training


def test_the_learning_rate_is_that_of_torchs_schedulers():
    steps, epochs = 7, 12
    model = nn.Linear(1, 1)
    sgd = torch.optim.SGD(model.parameters(), 0.2)
    warm = torch.optim.lr_scheduler.LinearLR(sgd, start_factor=0.01, total_iters=5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=epochs - 5)
    schedule = torch.optim.lr_scheduler.SequentialLR(sgd, [warm, cosine], [5])
    config = TeacherConfig(teacher_epochs=epochs, warmup_epochs=5, lr_teacher=0.2)
    for epoch in range(epochs):
        for step in range(steps):
            assert config.lr(epoch * steps + step, steps) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9)
        sgd.step()
        schedule.step()

    sgd = torch.optim.SGD(model.parameters(), 0.2)
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, [epochs // 2], gamma=0.1)
    config = TeacherConfig(teacher_epochs=epochs, lr_teacher=0.2, teacher_schedule="step")
    for epoch in range(epochs):
        assert config.lr(epoch * steps + steps - 1, steps) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9)
        sgd.step()
        schedule.step()

    config = TeacherConfig(
        teacher_epochs=epochs, lr_teacher=3e-4, teacher_schedule="onecycle", teacher_optimizer="adam"
    )
    adam = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        adam, 3e-4, epochs=epochs, steps_per_epoch=steps, pct_start=0.1, div_factor=20, cycle_momentum=False
    )
    for step in range(epochs * steps):
        assert config.lr(step, steps) == pytest.approx(adam.param_groups[0]["lr"], rel=1e-6)
        adam.step()
        if step + 1 < epochs * steps:
            schedule.step()


def test_only_matrices_decay_under_adam_and_everything_under_sgd():
    model = timm_like()
    for kind in ("adam", "adamw"):
        matrices, others = TeacherConfig(teacher_optimizer=kind, l2_teacher=0.1).optimizer(model).param_groups
        assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0)
        assert min(p.ndim for p in matrices["params"]) > 1 >= max(p.ndim for p in others["params"])
    (everything,) = TeacherConfig(l2_teacher=0.1).optimizer(model).param_groups
    assert len(everything["params"]) == len(list(model.parameters()))


def test_crop_flip_is_padding_cutting_and_mirroring():
    images = torch.randint(0, 256, (64, 3, 6, 9), dtype=torch.uint8)
    u = torch.rand(64, 3)
    found = crop_flip(images, u)
    for image, (down, right, mirrored), cut in zip(images.numpy(), u.tolist(), found.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
        wanted = padded[:, int(down * 9) : int(down * 9) + 6, int(right * 9) : int(right * 9) + 9]
        assert np.array_equal(cut, wanted[:, :, ::-1] if mirrored < 0.5 else wanted)


@pytest.mark.parametrize("side", ["source", "30"])
def test_random_crops_of_kept_images_are_pillows(tmp_path, monkeypatch, side):
    cache_in(tmp_path / "cache", monkeypatch)
    images = photographs(12)
    store(tmp_path / "photos", "train", images)
    data = DataArguments(dataset_name=str(tmp_path / "photos"), resolution=[16], keep_side=side, normalization="none")
    real = RealImages.from_arguments(data)
    shown = _Augmented(_pool(real, torch.device("cpu"), "nothing"), TeacherConfig(teacher_augment="rrc"), seed=3)
    rows = torch.tensor([5, 0, 11, 2, 7, 4])
    found, labels = shown.augmented(rows, slice(1, None), epoch=2, step=0)
    assert torch.equal(labels, real.labels[rows[1:]])
    crops = draw_crops(uniform(shown.seed, (2,), rows[1:], CROP_DRAWS), real.kept_sizes(rows[1:]))
    assert crops.flip.unique().tolist() == [False, True]
    for image, row, box, flip in zip(found, rows[1:].tolist(), crops.boxes.tolist(), crops.flip.tolist(), strict=True):
        original = images[row]
        if side == "30" and min(original.size) > 30:
            original = vision.resize(original, 30, vision.InterpolationMode.BICUBIC)
        expected = cropped(original, box, (16, 16))
        assert np.abs(255 * image.numpy() - (expected[:, :, ::-1] if flip else expected)).max() < 1.01


def test_settings_that_cannot_be_are_refused():
    for changes, says in (
        ({"warmup_epochs": 9, "teacher_epochs": 9}, "--warmup_epochs is 9"),
        ({"warmup_epochs": 1, "teacher_schedule": "onecycle"}, "a warm-up of its own"),
        ({"warmup_epochs": 1, "teacher_schedule": "step"}, "is for --teacher_schedule cosine"),
        ({"label_smoothing": 1.0}, "--label_smoothing is 1"),
        ({"teacher_augment": "mixup"}, "--teacher_augment is 'mixup'"),
        ({"teacher_optimizer": "lion"}, "--teacher_optimizer is 'lion'"),
        ({"batch_train": 1}, "--batch_train is 1"),
    ):
        with pytest.raises(ValueError, match=says):
            TeacherConfig(**changes)


@pytest.fixture(scope="module")
def digits() -> tuple[RealImages, RealImages]:
    return RealImages.train_and_test(DataArguments(max_train_samples=120, max_test_samples=40))


@pytest.mark.parametrize(
    ("augment", "optimizer"),
    [*itertools.product(["rrc", "dsa", "none"], ["sgd", "adamw"]), ("cutout_randaugment", "adam")],
)
def test_every_way_of_training_learns_and_goes_on_to_the_bit(digits, tmp_path, augment, optimizer):
    train, test = digits
    lr = {"sgd": 0.05, "adamw": 3e-3, "adam": 3e-3}[optimizer]
    config = TeacherConfig(
        student="convnet_d1", student_width=8, teacher_epochs=3, batch_train=40, teacher_augment=augment
    )
    config.teacher_optimizer, config.lr_teacher, config.label_smoothing = optimizer, lr, 0.1
    accelerator = make_accelerator()

    def run(name: str, resume: str | None = None) -> Teacher:
        where = {"resume_from_checkpoint": resume, "disable_tqdm": True}
        return train_teacher(train, test, config, tmp_path / name, seed=1, accelerator=accelerator, **where)

    whole = run("whole")
    assert whole.results["epoch_loss"][-1] < whole.results["epoch_loss"][0]
    assert whole.model.features[1].num_batches_tracked == 9
    with torch.no_grad():
        right = (whole.logits(test.images(range(len(test)))).argmax(1) == test.labels).double().mean().item()
    assert whole.results["test_accuracy"] == pytest.approx(right)

    stop = RuntimeError("stopped")
    real_lr = TeacherConfig.lr

    def dies(self: TeacherConfig, step: int, steps: int) -> float:
        if step == 2 * steps + 1:
            raise stop
        return real_lr(self, step, steps)

    TeacherConfig.lr = dies
    try:
        with pytest.raises(RuntimeError, match="stopped"):
            run("parts")
    finally:
        TeacherConfig.lr = real_lr
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint-2"]
    again = run("parts", resume="latest")
    assert again.digest == whole.digest
    assert again.results == whole.results


def test_other_settings_have_another_folder_and_the_same_have_the_same(digits):
    accelerator, config = make_accelerator(), TeacherConfig()
    folder = teacher_folder(digits[0], config, 0, accelerator)
    assert folder == teacher_folder(digits[0], TeacherConfig(), 0, accelerator)
    others = [TeacherConfig(lr_teacher=0.3), TeacherConfig(student="resnet50_small")]
    assert len({folder, *(teacher_folder(digits[0], other, 0, accelerator) for other in others)}) == 3


def test_teachers_along_a_training_are_the_network_after_these_epochs(digits, tmp_path, monkeypatch, caplog):
    config = TeacherConfig(**{**SMALL, "teacher_epochs": 5})
    options = {"seed": 1, "accelerator": make_accelerator(), "disable_tqdm": True}
    real_lr = TeacherConfig.lr

    def dies(self: TeacherConfig, step: int, steps: int) -> float:
        if step == 3 * steps:
            raise RuntimeError("stopped")
        return real_lr(self, step, steps)

    monkeypatch.setattr(TeacherConfig, "lr", dies)
    with pytest.raises(RuntimeError, match="stopped"):
        train_teacher(digits[0], None, config, tmp_path / "run", along=3, **options)
    monkeypatch.undo()
    kept, state = load_checkpoint(tmp_path / "run" / "checkpoint-3")
    (tmp_path / "run" / "checkpoint-3" / "SHA256SUMS").unlink()
    save_json(tmp_path / "run" / "checkpoint-3" / "trainer_state.json", {**state, "processes": 2})
    again = {"resume_from_checkpoint": "latest", **options}
    last = train_teacher(digits[0], None, config, tmp_path / "run", along=3, **again)
    assert "checkpoint-3 was made with: processes 2 -> 1" in caplog.text
    assert sorted(path.name for path in (tmp_path / "run" / "along").iterdir()) == ["epoch-0002", "epoch-0003"]
    third = Teacher.from_pretrained(tmp_path / "run" / "along" / "epoch-0003")
    assert all(torch.equal(value, kept[f"model.{name}"]) for name, value in third.model.state_dict().items())
    alone = train_teacher(digits[0], None, config, tmp_path / "alone", **options)
    assert alone.digest == last.digest  # keeping them changes nothing

    monkeypatch.chdir(tmp_path)
    names = {teacher.digest for teacher in find_teachers(None, digits[0], None, config, along=3, **options)}
    assert len(names) == 3
    assert last.digest in names
    with pytest.raises(ValueError, match="6 teachers along 5 --teacher_epochs; expected no more teachers than epochs"):
        find_teachers(None, digits[0], None, config, along=6, **options)


class Checkpoints(Notes):
    """Every event; a checkpoint is there when it is told of."""

    def on_save(self, state: RunState) -> None:
        assert state.folder.is_dir()
        super().on_save(state)


def test_callbacks_see_each_step_each_checkpoint_and_the_accuracy_also_of_a_run_that_goes_on(
    digits, tmp_path, monkeypatch
):
    config = TeacherConfig(**{**SMALL, "teacher_epochs": 3})
    whole, real_lr = Checkpoints(), TeacherConfig.lr
    teacher = train_teacher(*digits, config, tmp_path / "whole", disable_tqdm=True, callbacks=[whole])
    epoch = ["step", "step", "step", "save"]
    assert [name for name, _ in whole.events] == ["begin", *3 * epoch, "evaluate", "end"]
    assert [state.done for name, state in whole.events if name == "step"] == list(range(1, 10))
    assert {state.total for _, state in whole.events} == {9}
    saved = [state for name, state in whole.events if name == "save"]
    assert [state.folder.name for state in saved] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert [state.values["loss"] for state in saved] == teacher.results["epoch_loss"]
    assert [state.values["accuracy"] for state in saved] == teacher.results["epoch_accuracy"]
    assert whole.events[-2][1].values == {"accuracy": teacher.results["test_accuracy"]}

    def dies(self: TeacherConfig, step: int, steps: int) -> float:
        if step == 2 * steps:
            raise RuntimeError("stopped")
        return real_lr(self, step, steps)

    monkeypatch.setattr(TeacherConfig, "lr", dies)
    with pytest.raises(RuntimeError, match="stopped"):
        train_teacher(*digits, config, tmp_path / "parts", disable_tqdm=True)
    monkeypatch.undo()
    rest, options = Checkpoints(), {"resume_from_checkpoint": "latest", "disable_tqdm": True}
    train_teacher(*digits, config, tmp_path / "parts", callbacks=[rest], **options)
    assert [name for name, _ in rest.events] == ["begin", *epoch, "evaluate", "end"]
    assert (rest.events[0][1].done, rest.events[0][1].values) == (6, saved[1].values)
    assert rest.events[-1][1].values == saved[2].values


def test_images_alone_give_a_teacher_in_the_folder_of_its_settings_and_again_the_same(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(teachers_module, "TeacherConfig", partial(TeacherConfig, **{**SMALL, "teacher_epochs": 2}))
    teacher = train_teacher(digits[0])
    folder = teacher_folder(digits[0], teachers_module.TeacherConfig(), 0, make_accelerator())
    assert teacher.digest == Teacher.from_pretrained(folder).digest
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert train_teacher(digits[0]).digest == teacher.digest
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert train_teacher(digits[0], seed=1).digest != teacher.digest
    assert len(list(folder.parent.iterdir())) == 2


# Pretrained weights


SMALL = {"student": "convnet_d1", "student_width": 8, "batch_train": 40, "teacher_augment": "none"}


def trained(digits, folder: Path, resume: str | None = None, **changes: Any) -> Teacher:
    config, (train, test) = TeacherConfig(**{**SMALL, "teacher_epochs": 1, **changes}), digits
    where = {"resume_from_checkpoint": resume, "disable_tqdm": True}
    return train_teacher(train, test, config, folder, seed=1, accelerator=make_accelerator(), **where)


@pytest.fixture(scope="module")
def start(digits, tmp_path_factory) -> Path:
    """The folder of a teacher of the digits."""
    folder = tmp_path_factory.mktemp("start") / "digits"
    trained(digits, folder, teacher_epochs=8, lr_teacher=0.05)
    return folder


def test_training_goes_on_from_pretrained_weights_and_knows_what_they_know(digits, start, tmp_path):
    fresh = trained(digits, tmp_path / "fresh", lr_teacher=1e-4)
    tuned = trained(digits, tmp_path / "tuned", lr_teacher=1e-4, pretrained_weights=str(start))
    began = Teacher.from_pretrained(start)
    assert began.results["test_accuracy"] > 0.6
    assert tuned.results["test_accuracy"] > began.results["test_accuracy"] - 0.1 > fresh.results["test_accuracy"] + 0.2
    assert tuned.config["training"]["pretrained_revision"] == began.digest
    said = f"Training began from the pretrained weights {start} (`{began.digest}`)"
    assert said in (tmp_path / "tuned" / "README.md").read_text()
    assert "Training began" not in (tmp_path / "fresh" / "README.md").read_text()


def test_the_first_step_sees_the_parameters_and_the_running_statistics_of_the_start(digits, start, tmp_path):
    # One step with all images and no learning rate: parameters stay, and statistics take that one batch in.
    still = {"lr_teacher": 0, "l2_teacher": 0, "batch_train": 1000, "pretrained_weights": str(start)}
    tuned = trained(digits, tmp_path / "tuned", **still).model
    began = Teacher.from_pretrained(start).model
    began.train()(digits[0].images(range(len(digits[0]))))
    for name, tensor in began.named_parameters():
        assert torch.equal(tuned.get_parameter(name), tensor), name
    for name, tensor in began.named_buffers():
        torch.testing.assert_close(tuned.get_buffer(name), tensor, rtol=1e-5, atol=1e-6, msg=name)


def renamed(real: RealImages, names: list[str]) -> RealImages:
    return RealImages(real._pixels, real._positions, real.labels, names, real.preprocessing, real.provenance)


def test_the_classifier_stays_for_the_same_classes_alone(digits, start, tmp_path):
    still = {"lr_teacher": 0, "l2_teacher": 0, "pretrained_weights": str(start)}
    began = Teacher.from_pretrained(start)
    others = tuple(renamed(real, [f"digit {name}" for name in real.class_names]) for real in digits)
    tuned = trained(others, tmp_path / "tuned", **still)
    for name, tensor in began.model.named_parameters():
        assert torch.equal(tuned.model.get_parameter(name), tensor) != name.startswith("classifier."), name
    assert tuned.model.classifier.weight.std() > 0
    three = [real.subset(torch.nonzero(real.labels < 3).flatten()) for real in digits]
    fewer = tuple(renamed(real, digits[0].class_names[:3]) for real in three)
    assert trained(fewer, tmp_path / "fewer", **still).model.classifier.weight.shape[0] == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"student_width": 4},
            r"are of convnet_d1 and have \(10, 128\) for classifier.weight, .* has \(10, 64\); expected",
        ),
        ({"student": "test_resnet"}, "nothing for bn1.bias, where --student test_resnet"),
        ({"pretrained_weights": "timm:convnet_d1"}, "timm knows no weights of 'convnet_d1'"),
        ({"pretrained_weights": "."}, "has no config.json"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_weights_of_another_network_are_one_line(digits, start, tmp_path, changes, says):
    with pytest.raises(ValueError, match=says) as caught:
        trained(digits, tmp_path / "tuned", **{"pretrained_weights": str(start), **changes})
    assert "\n" not in str(caught.value)


def test_a_run_that_goes_on_needs_its_start_no_more(digits, start, tmp_path):
    shutil.copytree(start, tmp_path / "start")
    flags = {"teacher_epochs": 3, "lr_teacher": 0.01, "pretrained_weights": str(tmp_path / "start")}
    whole = trained(digits, tmp_path / "whole", **flags)
    stop, real_lr = RuntimeError("stopped"), TeacherConfig.lr

    def dies(self: TeacherConfig, step: int, steps: int) -> float:
        if step == steps:
            raise stop
        return real_lr(self, step, steps)

    TeacherConfig.lr = dies
    try:
        with pytest.raises(RuntimeError, match="stopped"):
            trained(digits, tmp_path / "parts", **flags)
    finally:
        TeacherConfig.lr = real_lr
    shutil.rmtree(tmp_path / "start")
    for _ in range(2):  # gone on with, then finished and only loaded
        again = trained(digits, tmp_path / "parts", resume="latest", **flags)
        assert (again.digest, again.results) == (whole.digest, whole.results)
        assert again.config["training"] == whole.config["training"]
    with pytest.raises(ValueError, match=r"its pretrained_weights is .*start and here it is None"):
        trained(digits, tmp_path / "parts", resume="latest", **{**flags, "pretrained_weights": None})


def test_weights_come_from_a_repository_that_names_no_classes(digits, hub, tmp_path):
    model = remember(timm.create_model("test_resnet", in_chans=1, num_classes=7)).eval()
    model.pretrained_cfg.update(mean=(0.5,), std=(0.5,), input_size=(1, 16, 24))
    save_for_hf(model, tmp_path / "plain", model_args={"in_chans": 1}, safe_serialization=True)
    repo = f"{hub.namespace}/plain"
    hub.put("model", repo, files(tmp_path / "plain"))
    flags = {"student": "test_resnet", "pretrained_weights": repo, "lr_teacher": 0, "l2_teacher": 0}
    tuned = trained(digits, tmp_path / "tuned", **flags)
    assert tuned.config["training"]["pretrained_revision"] == hub.head("model", repo)
    assert ModelCard.load(tmp_path / "tuned" / "README.md").data.base_model == repo
    assert tuned.model.fc.weight.shape[0] == 10
    for name, tensor in model.named_parameters():
        assert name.startswith("fc.") or torch.equal(tuned.model.get_parameter(name), tensor), name

    accelerator, config = make_accelerator(), TeacherConfig(**{**SMALL, **flags})
    before = teacher_folder(digits[0], config, 0, accelerator)
    hub.put("model", repo, {"NOTES.md": b"another version"})
    assert teacher_folder(digits[0], config, 0, accelerator) != before


@pytest.mark.parametrize(("lr", "warned"), [(0.0, True), (0.05, False)])
def test_a_teacher_that_has_learned_nothing_is_warned_of(digits, tmp_path, caplog, lr, warned):
    with caplog.at_level("WARNING", logger="hf_distill.training.teachers"):
        teacher = trained(digits, tmp_path / "t", lr_teacher=lr, teacher_epochs=8 if lr else 1)
    said = [record.getMessage() for record in caplog.records]
    assert bool(said) == warned
    if warned:
        assert f"is right on {100 * teacher.results['train_accuracy']:.1f} % of its training images" in said[0]
        assert "--teacher_epochs" in said[0]


# The recipe


@pytest.fixture(scope="module")
def home(recipes, tmp_path_factory) -> Path:
    """A folder with a finished teacher in `whole`."""
    home = tmp_path_factory.mktemp("teachers")
    done = recipes("teacher", {**TINY, "output_dir": "whole"}, home)
    assert done.status == [0], done.err
    assert "test accuracy" in done.out
    return home


def test_a_killed_recipe_goes_on_to_the_same_bits_and_a_finished_one_is_only_loaded(recipes, home):
    flags = {**TINY, "output_dir": "killed"}
    assert recipes("teacher", flags, home, before=DIES_AT_THIRD_STATE).status == [-9]
    assert [path.name for path in (home / "killed").glob("checkpoint-*")] == ["checkpoint-2"]
    done = recipes("teacher", {**flags, "resume_from_checkpoint": "latest"}, home)
    assert done.status == [0], done.err
    assert not list((home / "killed").glob(".*partial"))
    for name in ("model.safetensors", "teacher_config.json", "config.json"):
        assert (home / "killed" / name).read_bytes() == (home / "whole" / name).read_bytes(), name
    before = {path: path.stat().st_mtime_ns for path in (home / "whole").rglob("*")}
    done = recipes("teacher", {**flags, "output_dir": "whole", "resume_from_checkpoint": "latest"}, home)
    assert done.status == [0], done.err
    assert before == {path: path.stat().st_mtime_ns for path in (home / "whole").rglob("*")}


# A cluster's signal to the last of two processes, in the first step of the second epoch.
SIGNAL = """
import os, signal
from hf_distill.training.teachers import TeacherConfig
known = TeacherConfig.lr
def lr(self, step, steps):
    if step == steps and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGUSR1)
    return known(self, step, steps)
TeacherConfig.lr = lr
"""

APART = """
import hf_distill.training.batchnorm
hf_distill.training.batchnorm.share_statistics = lambda model, device: model
"""


def test_two_processes_make_the_network_that_one_makes(recipes, home):
    # 51 images, shared out as 25 and 26.
    flags = {**TINY, "student": "convnet_d2", "student_norm": "batch", "teacher_epochs": 2, "batch_train": 51}
    for processes in (1, 2):
        done = recipes("teacher", {**flags, "output_dir": f"by-{processes}"}, home, processes=processes)
        assert done.status == [0] * processes, done.err
    one, two = (load_file(home / f"by-{processes}" / "model.safetensors") for processes in (1, 2))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    results = [load_json(home / f"by-{processes}" / "teacher_config.json")["results"] for processes in (1, 2)]
    assert results[0]["epoch_loss"] == pytest.approx(results[1]["epoch_loss"], rel=1e-4)
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]
    stopped = {**flags, "output_dir": "stopped"}
    ended = recipes("teacher", stopped, home, processes=2, before=SIGNAL)
    assert ended.status == [1, 1]
    assert [line[:12] for line in ended.err.splitlines() if "interrupted" in line] == ["interrupted:"]
    assert load_checkpoint(home / "stopped" / "checkpoint-1")[1]["behind"] == 2
    done = recipes("teacher", {**stopped, "resume_from_checkpoint": "latest"}, home, processes=2)
    assert done.status == [0, 0], done.err
    for name in ("model.safetensors", "teacher_config.json"):
        assert (home / "stopped" / name).read_bytes() == (home / "by-2" / name).read_bytes(), name
    # Statistics of each half alone would be far from that.
    done = recipes("teacher", {**flags, "output_dir": "apart"}, home, processes=2, before=APART)
    assert done.status == [0, 0], done.err
    apart = load_file(home / "apart" / "model.safetensors")
    assert not torch.allclose(apart["features.5.running_var"], one["features.5.running_var"], rtol=1e-3)


def test_two_processes_start_from_the_same_weights_and_tell_a_mistake_once(recipes, home):
    flags = {**TINY, "teacher_epochs": 1, "lr_teacher": 0, "l2_teacher": 0, "pretrained_weights": "whole"}
    done = recipes("teacher", {**flags, "output_dir": "tuned"}, home, processes=2)
    assert done.status == [0, 0], done.err
    whole, tuned = Teacher.from_pretrained(home / "whole"), Teacher.from_pretrained(home / "tuned")
    assert all(torch.equal(tuned.model.get_parameter(name), value) for name, value in whole.model.named_parameters())
    assert tuned.config["training"]["pretrained_revision"] == whole.digest
    done = recipes("teacher", {**flags, "output_dir": "wrong", "student_width": 4}, home, processes=2)
    assert done.status == [1, 1]
    assert done.err.count("expected weights of the same network") == 1


@pytest.mark.parametrize("momentum", [0.1, None])
def test_shared_statistics_of_one_process_are_those_of_batchnorm(tmp_path, momentum):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        # With timm's BatchNorm that has an activation.
        networks = [StudentSpec("test_efficientnet", 3, 3, (32, 32)).build(0).double() for _ in range(2)]
        for network in networks:
            for layer in network.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = momentum
        before = {name: id(value) for name, value in networks[1].state_dict(keep_vars=True).items()}
        networks[1] = share_statistics(networks[1], torch.device("cpu"))
        assert {name: id(value) for name, value in networks[1].state_dict(keep_vars=True).items()} == before
        images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=generator(0, "images"))
        outs = [network.train()(images) for network in networks]
        for out in outs:
            out.square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(outs[1], outs[0], **close)
    for (name, one), shared in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(shared.grad, one.grad, msg=name, **close)
    for (name, one), shared in zip(networks[0].named_buffers(), networks[1].buffers(), strict=True):
        torch.testing.assert_close(shared, one, msg=name, **close)
    networks[1].load_state_dict(networks[0].state_dict())
    with torch.no_grad():
        assert torch.equal(networks[1].eval()(images), networks[0].eval()(images))


def test_accelerators_have_torchs_own_shared_batchnorm():
    network = share_statistics(StudentSpec("test_efficientnet", 3, 3, (32, 32)).build(0), torch.device("cuda"))
    layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert layers
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in layers)
    plain = StudentSpec("test_efficientnet", 3, 3, (32, 32)).build(0)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"output_dir": "whole"}, "--output_dir whole already holds a teacher; use --resume_from_checkpoint latest"),
        ({"output_dir": "whole", "resume_from_checkpoint": "latest", "lr_teacher": 0.3}, "its lr_teacher is 0.05"),
        ({"output_dir": "new", "resume_from_checkpoint": "nowhere"}, "nowhere is no folder"),
        ({"output_dir": "whole/README.md"}, "is a file"),
        ({"output_dir": "new", "student": "convnet_d9"}, "is no timm model; did you mean convnet"),
        ({"output_dir": "new", "student": "convnet_d7"}, "halves its images 7 times"),
        ({"output_dir": "new", "lr_teacher": 1e30}, "is not finite in epoch"),
        ({"output_dir": "new", "pretrained_weights": "nowhere"}, "nowhere"),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line(recipes, home, flags, says):
    done = recipes("teacher", {**TINY, **flags}, home)
    assert done.status == [1]
    (line,) = [line for line in done.err.splitlines() if "error" in line.lower()]
    assert line.startswith("error: ")
    assert says in line
    assert not (home / "new" / "config.json").exists()


def test_recipes_take_two_of_a_teachers_ten_classes_and_say_in_one_line_what_does_not_fit(recipes, home):
    few = {"max_train_samples": 40, "max_test_samples": 20, "ipc": 1, "max_steps": 2, "jitter": 1, "eval_seeds": 1}
    flags = {**few, "teachers": "whole", "eval_protocol": "crops-tiny", "eval_full_data": False, "disable_tqdm": True}
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    two = ["--classes", "7", "3", "--eval_baselines", "random"]
    done = recipes("cda", [*words, *two, "--output_dir", "two"], home)
    assert done.status == [0], done.err
    back = DistilledSet.from_pretrained(home / "two")
    assert back.teacher.teacher.config["narrowed"]["rows"] == [7, 3]
    assert (back.class_names, back.config["student"]["num_classes"]) == (["7", "3"], 2)
    (home / "names.txt").write_text("\n".join(f"digit {number}" for number in range(9)))
    for more, says in (
        (["--teacher_class_names", "names.txt"], "names.txt names 9 classes, and whole has 10"),
        (["--teacher_class_names", "nowhere.txt"], "the class names in nowhere.txt cannot be read"),
    ):
        done = recipes("cda", [*words, *two, *more, "--output_dir", "none"], home)
        assert done.status == [1]
        (line,) = [line for line in done.err.splitlines() if "error" in line.lower()]
        assert line.startswith("error: ")
        assert says in line


def test_the_recipe_publishes_its_teacher(recipes, hub, home):
    repo = f"{hub.namespace}/digits-teacher"
    push = {"push_to_hub": True, "hub_model_id": repo, "hub_tag": "v1", "hub_token": hub.token}
    flags = {**TINY, "output_dir": "whole", "resume_from_checkpoint": "latest"}
    done = recipes("teacher", {**flags, **push}, home)
    assert done.status == [0], done.err
    assert f'load: Teacher.from_pretrained("{repo}", revision="v1")' in done.out
    assert set(hub.files("model", repo)) - {".gitattributes"} == {
        *("README.md", "SHA256SUMS", "config.json", "making.json", "model.safetensors", "teacher_config.json")
    }
    assert Teacher.from_pretrained(repo, revision="v1").digest == Teacher.from_pretrained(home / "whole").digest


@pytest.mark.slow
def test_the_demo_reads_digits(recipes, tmp_path):
    done = recipes("teacher", ["--disable_tqdm", "true", "--output_dir", "demo"], tmp_path)
    assert done.status == [0], done.err
    assert Teacher.from_pretrained(tmp_path / "demo").results["test_accuracy"] > 0.97


# How its test images were framed


@pytest.mark.parametrize(
    ("description", "frame"),
    [
        ({"crop_pct": 0.875, "interpolation": "bilinear"}, Frame(256, "bilinear")),
        ({"crop_pct": 0.95, "interpolation": "bicubic", "crop_mode": "center"}, Frame(235)),
        ({"crop_pct": 1.0, "interpolation": "bilinear"}, Frame(None, "bilinear")),
        ({"crop_pct": 0.9, "crop_mode": "squash", "interpolation": "lanczos"}, Frame()),
        ({"crop_pct": "0.875", "interpolation": 3}, Frame()),
        ({"crop_pct": 1e-300}, Frame()),
        ({}, Frame()),
    ],
)
def test_the_frame_in_a_description_is_that_of_timms_own_transform(description, frame):
    assert frame_in_timm(description, (224, 224)) == frame
    if description.get("crop_mode") != "squash" and isinstance(description.get("crop_pct"), float) and frame != Frame():
        resize = create_transform((3, 224, 224), is_training=False, **description).transforms[0]
        assert resize.size == (frame.side or 224)
        assert resize.interpolation.value == frame.interpolation


def test_timm_computes_the_side_of_a_frame_again_from_what_is_written():
    for size in (32, 64, 224, 299):
        for side in range(size, 2 * size):
            again = frame_in_timm(frame_to_timm(Frame(side), (size, size)), (size, size)).side
            assert again == (side if side > size else None)


def test_a_teacher_says_how_its_test_images_were_framed_and_timm_reads_it(tmp_path):
    own = make(size=(16, 16), config={**CONFIG, "test_frame": {"side": 20, "interpolation": "bilinear"}})
    own.save_pretrained(tmp_path / "own")
    assert Teacher.frame_of(str(tmp_path / "own")) == Frame(20, "bilinear") == own.test_frame
    known = load_json(tmp_path / "own" / "config.json")["pretrained_cfg"]
    assert math.floor(16 / known["crop_pct"]) == 20
    assert known["interpolation"] == "bilinear"
    (tmp_path / "own" / "teacher_config.json").unlink()  # what is left is timm's
    assert Teacher.frame_of(str(tmp_path / "own")) == Frame(20, "bilinear")
    assert Teacher.from_pretrained(tmp_path / "own").test_frame == Frame(20, "bilinear")
    # One that says nothing was tested on whole images, whatever timm's weights of that name were.
    make("resnet18", size=(16, 16)).save_pretrained(tmp_path / "silent")
    assert Teacher.frame_of(str(tmp_path / "silent")) == Frame()
    assert load_json(tmp_path / "silent" / "config.json")["pretrained_cfg"]["crop_pct"] == 1


@pytest.mark.parametrize("frame", [[], {"side": 3}, {"side": -1, "interpolation": "bicubic"}])
def test_a_frame_that_is_none_is_one_line(tmp_path, frame):
    make().save_pretrained(tmp_path / "t")
    index = tmp_path / "t" / "teacher_config.json"
    save_json(index, {**load_json(index), "test_frame": frame})
    for read in (Teacher.frame_of, Teacher.from_pretrained):
        with pytest.raises(
            ValueError, match=r"teacher_config\.json has test_frame .*; expected null, or an object of a"
        ):
            read(str(tmp_path / "t"))


def test_a_frame_that_is_far_larger_than_the_images_is_one_line(tmp_path):
    index = without_sums(make(size=(16, 24)).save_pretrained(tmp_path / "t")) / "teacher_config.json"
    for side, fits in ((160, True), (161, False)):
        save_json(index, {**load_json(index), "test_frame": {"side": side, "interpolation": "bicubic"}})
        for read in (Teacher.frame_of, Teacher.from_pretrained):
            if fits:
                read(str(tmp_path / "t"))
                continue
            with pytest.raises(ValueError, match="shorter side of 161 pixels for a crop of 16; expected at most 10"):
                read(str(tmp_path / "t"))


def test_data_are_framed_as_the_last_teacher_was_unless_a_flag_says_otherwise(tmp_path):
    framed = {"test_frame": {"side": 20, "interpolation": "bilinear"}}
    make(size=(16, 16), config={**CONFIG, **framed}).save_pretrained(tmp_path / "last")
    make(size=(16, 16)).save_pretrained(tmp_path / "silent")
    names = [str(tmp_path / "silent"), str(tmp_path / "last")]

    def read(names: list[str] | None, **flags) -> tuple[int | None, str | None]:
        data = framed_by_teacher(DataArguments(**flags), names, -1)
        return data.resize, data.interpolation

    assert read(names, resolution=[16]) == (20, "bilinear")
    assert read(names, resolution=[16], resize=18) == (18, "bilinear")
    assert read(names, resolution=[16], resize=18, interpolation="bicubic") == (18, "bicubic")
    assert read(names) == read(names[:1], resolution=[16]) == read(None, resolution=[16]) == (None, None)
    # Of SRe2L's teachers the first one labels, and its frame counts; RDED and HeLlO have the last one score.
    assert [method.labelled_by for method in (SRe2L, CDA, APM, RDED, HeLlO)] == [0, 0, 0, -1, -1]
    assert framed_by_teacher(DataArguments(resolution=[16]), names, 0) == DataArguments(resolution=[16])
    # Where the teacher takes other sizes, it says so itself, and nobody gave --resize.
    assert read(names, resolution=[32]) == read(names, resolution=[1]) == (None, None)


def test_a_trained_teacher_remembers_how_it_was_tested(tmp_path, monkeypatch):
    cache_in(tmp_path / "cache", monkeypatch)
    for split in ("train", "test"):
        store(tmp_path / "photos", split, photographs(12))
    data = DataArguments(dataset_name=str(tmp_path / "photos"), resolution=[16], resize=20, keep_side="source")
    digits = RealImages.train_and_test(data)
    teacher = trained(digits, tmp_path / "teacher", batch_train=6, teacher_augment="rrc")
    assert Teacher.frame_of(str(tmp_path / "teacher")) == teacher.test_frame == Frame(20)
    assert teacher.config["training"]["keep_side"] == "source"
