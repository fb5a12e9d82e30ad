"""The library as Python calls it: the ten lines of README, one way for all methods, and mistakes in one line."""

import dataclasses
import functools
import inspect
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture

import hf_distill as hd
from hf_distill.config import presets
from hf_distill.data.digits import digits_folder
from hf_distill.evaluation.protocols import PROTOCOLS
from hf_distill.runs.settings import nearest_preset
from tests.helpers import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = hd.EvalProtocol("short", epochs=3, full_data_epochs=1, lrs=(0.05,))
TINY = {
    "student": "convnet_d1",
    "student_width": 8,
    "num_experts": 2,
    "experts_at_once": 2,
    "expert_train_epochs": 2,
    "batch_train": 50,
    "syn_steps": 3,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "max_steps": 2,
    "eval_nets": 1,
    "eval_protocol": "short",
    "disable_tqdm": True,
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PROTOCOLS, "short", SHORT)
    return tmp_path


def pictures(n: int = 40, classes: int = 2, size: int = 8, seed: int = 0) -> Dataset:
    """A dataset that was never saved: noise, with a label each."""
    random = np.random.default_rng(seed)
    images = [Picture.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(n)]
    features = Features({"picture": Image(), "kind": ClassLabel(names=[f"kind {i}" for i in range(classes)])})
    return Dataset.from_dict({"picture": images, "kind": [i % classes for i in range(n)]}, features=features)


# The ten lines


def ten_lines() -> str:
    (block,) = (
        part
        for part in re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.M | re.S)
        if "hd.TESLA.distill" in part
    )
    return block


@pytest.mark.slow
def test_the_ten_lines_of_the_readme_run_as_they_stand(hub, monkeypatch):
    folder = digits_folder()  # under the name that the lines have
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.put("dataset", "uoft-cs/cifar10", files)
    hub.add_user("me", hub.token)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setattr(hd, "TESLA", type("TESLA", (hd.TESLA,), {}))
    monkeypatch.setattr(hd.TESLA, "distill", functools.partial(hd.TESLA.distill, **TINY))
    monkeypatch.setattr(hd, "evaluate", functools.partial(hd.evaluate, num_seeds=1, protocol="short"))
    names: dict = {}
    exec(compile(ten_lines(), "README.md", "exec"), names)
    distilled, report = names["distilled"], names["report"]
    assert distilled.pixel_values.shape == (100, 1, 32, 32)
    assert {row.set for row in report.rows} == {"full data", "random", "herding", "k-center", "distilled"}
    again = hd.DistilledSet.from_pretrained("me/cifar10-ipc10", revision="v1.0.0")
    assert torch.equal(again.pixel_values, distilled.pixel_values)
    assert again.report.rows == report.rows  # on the card too
    assert again.config["source"]["name"] == "uoft-cs/cifar10"
    plain = datasets.load_dataset("me/cifar10-ipc10", revision="v1.0.0", split="train")
    assert plain.num_rows == 100
    (local,) = [path for path in Path("outputs").iterdir() if (path / "distill_config.json").exists()]
    assert local.name == "mine"


# All methods alike


@pytest.mark.parametrize("method", hd.METHODS, ids=lambda method: method.__name__)
def test_every_method_has_the_same_calls(method):
    assert getattr(hd, method.__name__) is method
    for name in ("prepare", "distill", "learn", "check"):
        assert inspect.signature(getattr(method, name)).parameters.keys() == (
            inspect.signature(getattr(hd.Method, name)).parameters.keys()
        )
    fields = [field.name for part in (*method.learns_from, method.config_class) for field in dataclasses.fields(part)]
    assert len(fields) == len(set(fields))
    assert method.config_class().output_dir is None


def test_a_loop_over_the_methods_finds_what_is_wrong_before_anything_is_trained(here):
    train = hd.RealImages.from_dataset(pictures(6))
    for method in hd.METHODS:
        with pytest.raises(
            ValueError,
            match=r"^--ipc (is 5|5 with .*) and some classes lack training images: 'kind 0' has 3 of (4|5|20), 'k",
        ):
            method.prepare(train, config=method.config_class(ipc=5, output_dir="x"))
    assert not (here / "x").exists()


# Settings


def test_where_settings_come_from_is_said_and_the_nearest_preset(caplog):
    train = hd.RealImages.from_dataset(pictures())
    with caplog.at_level("INFO", logger="hf_distill"):
        distilled = hd.TESLA.distill(train, ipc=1, **{**TINY, "max_steps": 0})
    text = caplog.text
    assert "the defaults of TESLAConfig, and ipc=1" in text
    assert "students train for 3 epochs (protocol short)" in text
    assert re.search(r"the nearest preset is (\S+): preset='\1'", text)
    folder = re.search(r"its folder is (\S+)", text)[1]
    assert hd.DistilledSet.from_pretrained(folder).config["hyperparameters"]["max_steps"] == 0
    assert torch.equal(hd.DistilledSet.from_pretrained(folder).pixel_values, distilled.pixel_values)


@pytest.mark.parametrize(
    ("name", "size", "ipc", "preset"),
    [
        ("cifar10", 32, 10, "cifar10-ipc10"),
        ("cifar10", 32, 30, "cifar10-ipc50"),
        ("cifar100", 32, 1, "cifar100-ipc1"),
        ("digits", 8, 1, "digits-ipc1"),
        ("elsewhere", 64, 12, "imagenet1k-64-ipc10"),
    ],
)
def test_the_nearest_preset_is_of_the_same_dataset_then_size_then_ipc(name, size, ipc, preset):
    train = hd.RealImages.from_dataset(pictures(size=size))
    train.provenance["name"] = name
    assert nearest_preset("tesla", train, ipc) == preset


@pytest.mark.parametrize("method", ["sre2l", "cda", "fadrm", "rded"])
def test_images_as_large_as_tiny_imagenets_are_nearest_to_its_preset(method):
    train = hd.RealImages.from_dataset(pictures(size=64))
    train.provenance["name"] = "elsewhere"
    assert nearest_preset(method, train, 50) == "tiny-imagenet-ipc50"


def test_what_is_held_out_and_who_learned_from_other_images_is_said(caplog, tmp_path):
    train = hd.RealImages.from_dataset(pictures(80))
    with caplog.at_level("INFO", logger="hf_distill"):
        hd.RDED.distill(train, ipc=1, validation_fraction=0.25, output_dir=tmp_path / "a", **RDED)
        assert "20 of 80 training images (25.0 %) are held out, and this run chooses nothing by them" in caplog.text
        caplog.clear()
        (teacher,) = Path("outputs").glob("teacher-*")
        hd.RDED.distill(train, ipc=1, validation_fraction=0, teachers=[str(teacher)], output_dir=tmp_path / "b", **RDED)
    assert "held out" not in caplog.text
    assert "a teacher learned from 60 images, and this run has 80" in caplog.text


def test_a_preset_is_taken_by_name_and_settings_win_over_it(caplog):
    train, _ = hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=100, max_test_samples=20))
    with caplog.at_level("INFO", logger="hf_distill"):
        distilled = hd.TESLA.distill(train, preset="digits-ipc1", **{**TINY, "max_steps": 1})
    settings = distilled.config["hyperparameters"]
    assert (settings["ipc"], settings["max_steps"], settings["syn_steps"]) == (1, 1, 3)
    other = hd.TESLA.config_class()
    assert settings["lr_img"] != other.lr_img  # the preset's
    assert "digits-ipc1.yaml" in caplog.text
    with caplog.at_level("INFO", logger="hf_distill"):
        hd.MTT.distill(train, preset="cifar10-ipc1", **{**TINY, "max_steps": 0, "ipc": 1, "dsa_strategy": "none"})
    assert re.search(r"cifar10-ipc1 is for other images than these: .*normalization zca", caplog.text)


# Mistakes


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ipcc": 1}, "settings: unknown key 'ipcc'; did you mean 'ipc'?"),
        ({"ipc": "ten"}, "argument --ipc: invalid int value: 'ten'"),
        ({"ipc": 0}, "--ipc is 0; expected at least 1"),
        ({"ipc": None}, "settings: ipc is empty; expected a value like 1"),
        ({"eval_baselines": ["nearest"]}, "--eval_baselines is 'nearest'; expected one of random, herding, k-center"),
        (
            {"eval_unaugmented": True, "eval_baselines": ["herding"]},
            "--eval_unaugmented compares with random images; add",
        ),
        (
            {"ipc": 500, "output_dir": "taken", "overwrite_output_dir": True},
            "--ipc is 500 and some classes lack training images: 'kind 0' has 18",
        ),
        ({"max_start_epoch": 9, "expert_train_epochs": 3}, "--expert_train_epochs is 3, and --max_start_epoch 9 with"),
        ({"resolution": 32}, "resolution is a setting of the images; give it to RealImages.from_dataset or from_hub"),
        ({"preset": "cifar10-ipc11"}, "tesla has no preset 'cifar10-ipc11'; did you mean cifar10-ipc1"),
        ({"preset": "nowhere.yaml"}, "--config nowhere.yaml cannot be read"),
        ({"eval_protocol": "mt"}, "--eval_protocol is 'mt'; expected one of "),
        ({"report_to": "pigeons"}, "--report_to is 'pigeons'; expected one of "),
        ({"ipc": 1, "output_dir": "taken"}, "--output_dir taken already holds a run; use --resume_from_checkpoint"),
        ({"ipc": 1, "output_dir": "foreign"}, "--output_dir foreign holds the README.md of something else"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_in_a_call_is_one_line_and_nothing_is_touched(here, settings, says):
    (here / "taken" / "checkpoint-1").mkdir(parents=True)
    (here / "foreign").mkdir()
    (here / "foreign" / "README.md").write_text("mine")
    before = sorted(here.rglob("*"))
    train = hd.RealImages.from_dataset(pictures())
    with pytest.raises(ValueError, match=f"^{re.escape(says)}") as error:
        hd.TESLA.distill(train, **settings)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(here.rglob("*")) == before


def test_a_name_that_is_misspelt_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match="no attribute 'TESLLA'; did you mean TESLA"):
        hd.TESLLA  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'DistiledSet'; did you mean DistilledSet"):
        hd.DistiledSet  # noqa: B018


def test_another_run_is_not_gone_on_with(here):
    train = hd.RealImages.from_dataset(pictures())
    hd.RDED.distill(train, ipc=1, output_dir="run", **RDED)
    with pytest.raises(ValueError, match=r"^--output_dir run already holds a run; use --resume"):
        hd.RDED.distill(train, ipc=1, output_dir="run", **RDED)
    with pytest.raises(ValueError, match=r"is of another run: its num_crops is 2 and here it is 3") as error:
        hd.RDED.distill(
            train,
            ipc=1,
            output_dir="run",
            resume_from_checkpoint="latest",
            **{**RDED, "num_crops": 3},
        )
    assert len(str(error.value).splitlines()) == 1


RDED = {
    "student": "convnet_d1",
    "student_width": 4,
    "batch_train": 10,
    "num_crops": 2,
    "factor": 1,
    "teacher_epochs": 1,
    "eval_protocol": "crops-quick",
    "disable_tqdm": True,
}


# Datasets in hand


def test_a_dataset_that_was_never_saved_is_read_as_it_is():
    table = pictures(20, classes=3)
    real = hd.RealImages.from_dataset(table)
    expected = np.stack([np.asarray(row["picture"]) for row in table])
    assert np.array_equal(real.uint8(range(20)).permute(0, 2, 3, 1).numpy(), expected)
    assert real.labels.tolist() == table["kind"]
    assert real.class_names == ["kind 0", "kind 1", "kind 2"]
    pixels = expected.reshape(-1, 3) / 255
    assert real.preprocessing.mean == pytest.approx(pixels.mean(0))
    assert real.preprocessing.std == pytest.approx(pixels.std(0), rel=1e-3)
    half = hd.RealImages.from_dataset(table.select(range(0, 20, 2)), like=real)
    assert half.preprocessing is real.preprocessing
    assert torch.equal(half.uint8([3]), real.uint8([6]))


def test_it_is_known_by_its_pixels():
    table = pictures(20)
    revision = hd.RealImages.from_dataset(table).revision
    assert revision == hd.RealImages.from_dataset(pictures(20)).revision
    assert revision != hd.RealImages.from_dataset(pictures(20, seed=1)).revision
    assert revision != hd.RealImages.from_dataset(table.select(range(19))).revision
    swapped = table.map(lambda row: {"kind": 1 - row["kind"]}, features=table.features)
    assert revision != hd.RealImages.from_dataset(swapped).revision


def test_what_was_downloaded_is_known_by_repository_and_commit_until_it_is_changed(hub, tmp_path):
    repo, folder = f"{hub.namespace}/digits", digits_folder()
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    commit = hub.put("dataset", repo, files)
    table = datasets.load_dataset(repo, split="train")
    source = hd.RealImages.from_dataset(table, max_samples=20).provenance
    assert (source["name"], source["revision"], source["license"]) == (repo, commit, "cc-by-4.0")
    inverted = [Picture.fromarray(255 - np.asarray(image)) for image in table["image"]]
    others = Dataset.from_dict({"image": inverted}, features=Features({"image": Image()}))
    for changed in (
        datasets.concatenate_datasets([table.remove_columns("image"), others], axis=1),
        table.select(range(100)),
        table.shuffle(seed=0),
        table.map(lambda row: row, load_from_cache_file=False),
    ):
        source = hd.RealImages.from_dataset(changed, max_samples=20).provenance
        assert source["name"] == repo
        assert source["revision"].startswith("pixels:")


def test_one_split_of_several_and_columns_by_name():
    table = pictures(20).add_column("id", list(range(20)))
    both = DatasetDict({"train": table, "test": table.select(range(10))})
    train = hd.RealImages.from_dataset(both, image_column="picture", label_column="kind", resolution=4)
    test = hd.RealImages.from_dataset(both, split="test", label_column="kind", like=train)
    assert (len(train), len(test)) == (20, 10)
    assert train.shape == test.shape == (3, 4, 4)
    few = hd.RealImages.from_dataset(table, label_column="kind", classes=["kind 1", "kind 0"], max_samples=6)
    assert few.class_names == ["kind 1", "kind 0"]
    assert few.labels.bincount().tolist() == [3, 3]


def test_from_hub_takes_a_name_and_the_same_keywords(here):
    train = hd.RealImages.from_hub(str(digits_folder()), normalization="zca", max_samples=50)
    test = hd.RealImages.from_hub(str(digits_folder()), split="test", like=train)
    assert train.preprocessing.zca is not None
    assert (len(train), test.shape) == (50, (1, 8, 8))
    given = inspect.signature(hd.RealImages.from_dataset).parameters.keys() - {"dataset"}
    assert given <= inspect.signature(hd.RealImages.from_hub).parameters.keys()


@pytest.mark.parametrize(
    ("data", "keywords", "says"),
    [
        (lambda: [1, 2], {}, "from_dataset was given a list; expected a datasets.Dataset, such as load_dataset("),
        (lambda: pictures().to_iterable_dataset(), {}, "from_dataset was given a streamed dataset, which can be read"),
        (lambda: pictures().remove_columns("picture"), {}, "dataset has no image column among kind; expected one: "),
        (lambda: pictures().remove_columns("kind"), {}, "dataset has no label column among picture; expected one"),
        (lambda: pictures().select([]), {}, "split 'in hand' of dataset is empty; expected images"),
        (lambda: pictures(1), {}, "1 of 2 classes have no images in split 'in hand' of dataset: kind 1"),
        (lambda: DatasetDict({"a": pictures()}), {}, "split 'train' is not among those of the dataset: a; choose one"),
        (pictures, {"split": "train"}, "split='train' is for a DatasetDict, and this is one dataset; leave it out"),
        (pictures, {"label_column": "knid"}, "--label_column_name knid: dataset has no such column (nearest: 'kind')"),
        (pictures, {"normalization": "zac"}, "--normalization is 'zac'; expected one of mean_std, zca, none"),
        (
            lambda: pictures().with_transform(dict),
            {},
            "the dataset has a transform, which changes what is looked at and",
        ),
        (pictures, {"resolution": 0}, "--resolution is [0]; expected one or two positive numbers"),
        (pictures, {"mean": [0.5]}, "--mean and --std go together"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_refused_in_one_line(data, keywords, says):
    with pytest.raises(ValueError, match=f"^{re.escape(says)}") as error:
        hd.RealImages.from_dataset(data(), **keywords)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("given", [{"resolution": 4}, {"color": "gray"}, {"normalization": "zca"}, {"mean": [0.5] * 3}])
def test_what_like_brings_is_not_given_again(given):
    train = hd.RealImages.from_dataset(pictures())
    (name,) = given
    for read in (hd.RealImages.from_dataset, hd.RealImages.from_hub):
        with pytest.raises(ValueError, match=rf"^{name}=.* and like= say the same in two ways; leave {name} out$"):
            read(pictures() if read == hd.RealImages.from_dataset else "digits", like=train, **given)


def test_a_list_of_nothing_is_one(caplog):
    train = hd.RealImages.from_dataset(pictures())
    distilled = hd.RDED.distill(train, ipc=1, **{**RDED, "eval_baselines": []})
    assert distilled.config["hyperparameters"]["eval_baselines"] == []


def test_a_run_that_is_asked_for_again_keeps_the_results_of_its_set(here, monkeypatch):
    train = hd.RealImages.from_dataset(pictures())
    distilled = hd.RDED.distill(train, ipc=1, output_dir="run", **RDED)
    few = {"num_seeds": 1, "full_data": False, "baselines": ["random"]}
    report = hd.evaluate(distilled, train, train, protocol="short", **few)
    distilled.save_pretrained("run")
    again = hd.RDED.distill(train, ipc=1, output_dir="run", resume_from_checkpoint="latest", **RDED)
    assert again.report.rows == hd.DistilledSet.from_pretrained("run").report.rows == report.rows


def test_an_accelerator_that_is_given_gets_no_tracker_in_silence_and_the_threads_that_are_asked_for():
    from accelerate import Accelerator

    train = hd.RealImages.from_dataset(pictures())
    with pytest.raises(ValueError, match=r"^report_to='tensorboard' is for a run that makes its accelerator; leave"):
        hd.RDED.distill(train, ipc=1, accelerator=Accelerator(cpu=True), report_to="tensorboard", **RDED)
    hd.RDED.distill(train, ipc=1, accelerator=Accelerator(cpu=True), cpu_threads=2, **RDED)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_the_held_out_share_of_a_distillation_is_that_of_its_evaluation(monkeypatch):
    train = hd.RealImages.from_dataset(pictures(80))
    distilled = hd.RDED.distill(train, ipc=1, validation_fraction=0.25, **RDED)
    seen = []
    monkeypatch.setattr(
        hd.RealImages, "split", lambda self, fraction, seed: seen.append((fraction, seed)) or (self, None)
    )
    few = {"num_seeds": 1, "full_data": False, "baselines": []}
    hd.evaluate(distilled, train, train, protocol="short", **few)
    assert seen == [(0.25, 0)]


def test_values_that_are_no_images_are_refused_in_one_line():
    table = Dataset.from_dict(
        {"image": [b"no picture"] * 4, "label": [0, 1, 0, 1]},
        features=Features({"image": Value("binary"), "label": ClassLabel(names=["a", "b"])}),
    )
    with pytest.raises(ValueError, match=r"^row 0 of split 'in hand' of dataset: ") as error:
        hd.RealImages.from_dataset(table, image_column="image")
    assert len(str(error.value).splitlines()) == 1


# Everything that is exported


def test_every_method_has_presets_and_every_exported_name_is_there():
    for method in hd.METHODS:
        assert presets(method.__name__.lower())
    for name in hd.__all__:
        assert getattr(hd, name) is not None


# What is somebody's stays


def test_a_set_of_another_method_is_not_gone_on_with(here):
    train, _ = hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=100, max_test_samples=20))
    hd.TESLA.distill(train, ipc=1, output_dir="run", **TINY)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    for method, settings in ((hd.MTT, TINY), (hd.RDED, {**RDED, "num_crops": 2})):
        with pytest.raises(
            ValueError, match=r"^--output_dir run is of another run: its method is tesla and here it is"
        ):
            method.distill(train, ipc=1, output_dir="run", resume_from_checkpoint="latest", **settings)
    hd.TESLA.distill(train, ipc=1, output_dir="other", **TINY)
    with pytest.raises(ValueError, match=r"^--output_dir other already holds a run"):
        hd.TESLA.distill(train, ipc=1, output_dir="other", resume_from_checkpoint="run/checkpoint-2", **TINY)
    with pytest.raises(ValueError, match=r"checkpoint-2 is of step 2 and --max_steps is 1; expected no fewer$"):
        hd.TESLA.distill(train, ipc=1, output_dir="run", resume_from_checkpoint="latest", **{**TINY, "max_steps": 1})
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_what_no_run_wrote_is_not_removed(here):
    train = hd.RealImages.from_dataset(pictures())
    for name, index in (("checkpoint-7", "trainer_state.json"), ("blocks", "run.json")):
        thesis = here / "mine" / name / "thesis.txt"
        thesis.parent.mkdir(parents=True)
        thesis.write_text("mine")
        with pytest.raises(
            ValueError, match=rf"^mine/{name} is of something else, for it has no {index}; move it away"
        ):
            hd.RDED.distill(train, ipc=1, output_dir="mine", overwrite_output_dir=True, **RDED)
        assert thesis.read_text() == "mine"
        thesis.unlink()
        thesis.parent.rmdir()
    thesis = here / "experts" / "unfinished" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("mine")
    tiny = hd.ExpertConfig(student="convnet_d1", student_width=4, num_experts=1, dsa_strategy="none")
    hd.train_experts(train, tiny, "experts", epochs=1, disable_tqdm=True)
    assert thesis.read_text() == "mine"
    assert [path.name for path in thesis.parent.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda train: hd.RDED.distill("train"), "train is a str; expected such as RealImages.from_dataset(...)"),
        (lambda train: hd.RDED.distill(train, [1]), "test is a list; expected RealImages, read with like=train"),
        (lambda train: hd.RDED.distill(train, callbacks=[hd.Callback]), "callbacks is no list of callbacks"),
        (lambda train: hd.RDED.distill(train, callbacks=hd.Callback()), "callbacks is no list of callbacks"),
        (
            lambda train: hd.RDED.distill(train, accelerator="cpu"),
            "accelerator is a str; expected accelerate.Accelerator()",
        ),
        (
            lambda train: hd.RDED.distill(train, output_dir=""),
            "argument --output_dir/--output-dir: it is empty",
        ),
        (
            lambda train: hd.RDED.distill(train, resume_from_checkpoint="latest"),
            "resume_from_checkpoint needs the folder",
        ),
        (lambda train: hd.RDED.distill(train, train.subset([])), "test has no images; leave it out, or give some"),
        (
            lambda train: hd.RDED.prepare(train, config=hd.CDAConfig(output_dir="x")),
            "config is a CDAConfig; RDED takes",
        ),
        (
            lambda train: hd.TESLA.prepare(train, config=hd.TESLAConfig(output_dir="x"), networks=[hd.TeacherConfig()]),
            "networks has a TeacherConfig; TESLA learns from ExpertConfig",
        ),
        (lambda train: hd.RealImages.from_dataset(pictures(), resolution="32"), "resolution is '32'; expected a list"),
        (lambda train: hd.RealImages.from_dataset(pictures(), resolution=[8.0]), "resolution is 8.0; expected a whole"),
        (lambda train: hd.RealImages.from_dataset(pictures(), max_samples=2.5), "max_samples is 2.5; expected a whole"),
        (lambda train: hd.RealImages.from_dataset(pictures(), mean=[128] * 3, std=[1] * 3), "--mean is [128.0, 128.0"),
        (lambda train: hd.RealImages.from_dataset(pictures(), like="x"), "like is a str; expected RealImages"),
    ],
    ids=range(15),
)
def test_what_is_of_another_kind_is_one_line(here, call, says):
    train = hd.RealImages.from_dataset(pictures())
    with pytest.raises(ValueError, match=f"^{re.escape(says)}") as error:
        call(train)
    assert len(str(error.value).splitlines()) == 1
    assert not list(here.iterdir())


def test_numbers_of_numpy_and_none_are_taken_as_pythons_own():
    kinds = {"resolution": (np.int64(8), 8), "max_samples": np.int64(20), "mean": np.full(3, 0.5, np.float32)}
    real = hd.RealImages.from_dataset(pictures(), std=[0.5] * 3, **kinds)
    same = hd.RealImages.from_dataset(pictures(), std=[0.5] * 3, resolution=(8, 8), max_samples=20, mean=[0.5] * 3)
    assert real.provenance == same.provenance
    both = DatasetDict({"train": pictures(), "test": pictures(seed=1)})
    assert hd.RealImages.from_dataset(both, split="test", like=real).provenance["split"] == "test"
    distilled = hd.TESLA.distill(same, ipc=1, save_total_limit=None, **TINY)
    assert distilled.config["hyperparameters"]["max_steps"] == 2
