"""Sets of other projects that are evaluated as they are: datasets, class folders and files of tensors."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value, load_dataset

from hf_distill.data.images import RealImages
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.evaluation.protocols import PROTOCOLS
from hf_distill.importing import foreign_set, import_dataset
from hf_distill.importing.classes import match_classes
from tests.helpers import ROOT
from tests.helpers.photographs import photograph
from tests.helpers.protocols import SHORT

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["great white shark", "tench", "hen", "a/b"]
INT, TEXT = Value("int64"), Value("string")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The real data: 12 small photographs of each of four classes, with names, as a folder of parquet files."""
    folder = tmp_path_factory.mktemp("source") / "photographs"
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    for split, count, first in (("train", 48, 0), ("test", 12, 100)):
        images = [photograph(8, 8, first + row) for row in range(count)]
        content = {"image": images, "label": [row % 4 for row in range(count)]}
        folder.mkdir(exist_ok=True)
        Dataset.from_dict(content, features=features).to_parquet(str(folder / f"{split}-00000.parquet"))
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    return folder


@pytest.fixture(scope="module")
def real(source) -> RealImages:
    return RealImages.from_hub(source)


PICTURES = [photograph(8, 8, 1000 + row) for row in range(8)]  # two of each class, in the order of CLASSES
CLASSES = [3, 0, 1, 2, 2, 1, 0, 3]
PIXELS = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in PICTURES])


def table(folder: Path, labels: list, feature=INT, column: str = "class_id", pictures=PICTURES, **more) -> Path:
    """A folder with a parquet file of pictures and classes, as somebody uploads it."""
    folder.mkdir(parents=True)
    features = {"image": Image(), column: feature, **dict.fromkeys(more, TEXT)}
    dataset = Dataset.from_dict({"image": pictures, column: labels, **more}, features=Features(features))
    dataset.to_parquet(str(folder / "train-00000-of-00001.parquet"))
    return folder


def check(distilled: DistilledSet, real: RealImages) -> None:
    """These very pixels and classes, and what the real data say."""
    order = distilled.labels.argsort(stable=True), np.argsort(CLASSES, kind="stable")
    assert np.array_equal(distilled.images_uint8()[order[0]].numpy(), PIXELS[order[1]])
    assert sorted(distilled.labels.tolist()) == sorted(CLASSES)
    assert distilled.class_names == NAMES
    assert distilled.preprocessing.fingerprint() == real.preprocessing.fingerprint()
    assert "method" not in distilled.config
    assert distilled.config["imported_from"]["source_known"] is False


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        (CLASSES, INT),
        ([str(label) for label in CLASSES], TEXT),
        ([NAMES[label] for label in CLASSES], TEXT),
        (["Great_White_Shark", "a/b", "HEN", "tench", "tench", "HEN", "a/b", "Great_White_Shark"], TEXT),
        ([2, 3, 1, 0, 0, 1, 3, 2], ClassLabel(names=["hen", "tench", "a_b", "great white shark"])),
        (CLASSES, ClassLabel(names=["new000", "new001", "new002", "new003", "new004"])),
    ],
    ids=["numbers", "numbers in words", "names", "names written otherwise", "a ClassLabel", "a ClassLabel of numbers"],
)
def test_a_table_of_images_and_classes_is_a_set(labels, feature, real, tmp_path):
    if "HEN" in labels:
        labels = [["Great_White_Shark", "tench", "HEN", "a/b"][label] for label in CLASSES]
    if isinstance(feature, ClassLabel) and "hen" in feature.names:
        labels = [feature.names.index(NAMES[label].replace("/", "_")) for label in CLASSES]
    check(import_dataset(table(tmp_path / "theirs", labels, feature, "anything"), real), real)


def test_one_image_of_each_class_has_no_column_that_could_be_ids(real, tmp_path):
    folder = table(tmp_path / "theirs", [2, 0, 1, 3], column="number", pictures=PICTURES[:4])
    assert import_dataset(folder, real).labels.tolist() == [2, 0, 1, 3]


def test_class_folders_and_files_of_tensors_are_sets_too(real, tmp_path):
    for row, (picture, label) in enumerate(zip(PICTURES, CLASSES, strict=True)):
        (tmp_path / "folders" / f"{label:05d}").mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "folders" / f"{label:05d}" / f"{row}.png")
    check(foreign_set(tmp_path / "folders", real), real)
    check(foreign_set(import_dataset(tmp_path / "folders", real).export_image_folder(tmp_path / "out"), real), real)
    (tmp_path / "file").mkdir()
    torch.save({"images": torch.from_numpy(PIXELS), "labels": torch.tensor(CLASSES)}, tmp_path / "file" / "images.pt")
    check(foreign_set(tmp_path / "file" / "images.pt", real), real)
    check(foreign_set(tmp_path / "file", real), real)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "code.pt")
    with pytest.raises(ValueError, match="is refused: reading it would run code"):
        foreign_set(tmp_path / "code.pt", real)


def test_numbers_count_in_all_classes_of_the_source_where_some_are_kept(source, tmp_path):
    some = RealImages.from_hub(source, classes=["hen", "tench"])
    few = [row for row, label in enumerate(CLASSES) if label in (1, 2)]
    labels, pictures = [CLASSES[row] for row in few], [PICTURES[row] for row in few]
    folder = table(tmp_path / "theirs", labels, pictures=pictures)
    distilled = import_dataset(folder, some, original_classes=NAMES)
    assert [distilled.class_names[label] for label in distilled.labels] == [NAMES[label] for label in labels]
    whole = table(tmp_path / "whole", CLASSES)
    with pytest.raises(ValueError, match=r"of 2 classes that the real data lack \(great white shark, a/b\)"):
        import_dataset(whole, some, original_classes=NAMES)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"labels": [label + 1 for label in CLASSES]},
            r"1 of 4 classes of .* are no class of the source \(4\); expected",
        ),
        ({"labels": [*range(8)]}, r"4 of 8 classes .* are no class of the source \(4, 5, 6, 7\)"),
        ({"labels": [label - 1 for label in CLASSES]}, "row 1 of split 'train' of theirs: label -1"),
        ({"labels": ["cat", "dog"] * 4, "feature": TEXT}, r"2 of 2 classes .* are no class of the source \(cat, dog\)"),
        ({"labels": [label % 2 for label in CLASSES]}, r"no image of 2 of 4 classes \(hen, a/b\)"),
        ({"labels": [float(label) for label in CLASSES], "feature": Value("float32")}, "no label column among image"),
        ({"labels": CLASSES, "more": ["x"] * 8, "column": "a"}, "2 columns .* --distilled_label_column_name"),
        ({"labels": CLASSES, "pictures": [each.resize((9, 8)) for each in PICTURES]}, "images of 8x9 pixels .* 8x8"),
        ({"labels": CLASSES, "pictures": [*PICTURES[:7], PICTURES[7].resize((9, 8))]}, "row 7 .* is 8x9"),
    ],
    ids=["one too high", "more classes", "below 0", "others", "fewer", "no labels", "two", "size", "sizes"],
)
def test_what_does_not_fit_the_real_data_is_one_line(changes, says, real, tmp_path):
    folder = table(tmp_path / "theirs", **changes)
    for known in (real.outline, real):
        if "row 7" in says and known is not real:
            continue  # which only decoding tells, or a header beyond the first thousand
        with pytest.raises(ValueError, match=says) as caught:
            import_dataset(folder, known)
        assert "\n" not in str(caught.value)
        assert not any(flag in str(caught.value) for flag in ("--dataset_", " --label_column", " --image_column"))


def test_an_outline_of_the_real_data_tells_all_but_the_pixels(real, tmp_path):
    blank = import_dataset(table(tmp_path / "theirs", CLASSES), real.outline)
    assert blank.labels.tolist() == CLASSES
    assert blank.images_uint8().shape == PIXELS.shape
    assert not blank.images_uint8().any()


def test_numbers_that_could_be_names_are_not_guessed_at():
    with pytest.raises(
        ValueError, match="0 of the classes of x could be class '1' by its place or class '0' by its name"
    ):
        match_classes("classes of x", ["0", "1", "2"], ["1", "2", "3"])
    assert match_classes("classes of x", ["3", "1"], ["1", "2", "3"]) == {"3": "3", "1": "1"}


# The recipe


def run(monkeypatch, *flags: str) -> None:
    recipe = ROOT / "recipes" / "evaluate.py"
    few = ("--num_seeds", "1", "--full_data", "false", "--baselines", "random", "--disable_tqdm")
    monkeypatch.setattr(sys, "argv", [str(recipe), *few, *map(str, flags)])
    for name, protocol in SHORT.items():
        monkeypatch.setitem(PROTOCOLS, name, protocol)
    runpy.run_path(str(recipe), run_name="__main__")


@pytest.mark.slow
def test_the_recipe_evaluates_a_dataset_of_the_hub_and_keeps_it_apart(hub, source, monkeypatch, tmp_path, capsys):
    repo = f"{hub.namespace}/images-ipc2"
    folder = table(tmp_path / "theirs", CLASSES)
    content = {"data/train-00000-of-00001.parquet": (folder / "train-00000-of-00001.parquet").read_bytes()}
    hub.put("dataset", repo, {**content, "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n"})
    assert load_dataset(repo, split="train").features["class_id"] == INT
    where = ("--distilled_dataset", repo, "--dataset_name", source, "--student", "convnet_d1")
    out = tmp_path / "out"
    run(monkeypatch, *where, "--protocol", "tiny", "--output_dir", out)
    assert "distilled        8" in capsys.readouterr().out
    run(monkeypatch, *where, "--protocol", "tiny", "crops-tiny", "--output_dir", out)
    kept = DistilledSet.from_pretrained(out)
    assert {row.protocol for row in kept.report.rows} == {"tiny", "crops-tiny"}
    assert np.array_equal(kept.images_uint8().numpy(), PIXELS)
    file = kept.config["imported_from"]["files"][0]
    assert (file["file"], file["revision"]) == (repo, hub.head("dataset", repo))
    card = (out / "README.md").read_text()
    assert "By what method and with which settings they were made is not known here." in card
    assert "that they were made of it is not known here" in card
    assert "their licence is called cc-by-nc-4.0: these terms hold too" in card
    assert "license: other" in card
    assert load_dataset(str(out), split="train")["label"][:] == CLASSES


def test_results_of_what_is_no_artifact_go_nowhere_unasked(real, tmp_path):
    recipe = runpy.run_path(str(ROOT / "recipes" / "evaluate.py"))
    theirs, ours = table(tmp_path / "theirs", CLASSES), tmp_path / "ours"
    import_dataset(theirs, real).save_pretrained(ours)
    for folder, output, expected in ((theirs, None, None), (theirs, ours, ours), (ours, None, ours)):
        args = recipe["EvaluateArguments"](distilled_dataset=str(folder), output_dir=output and str(output))
        assert recipe["folder_of"](args) == expected


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "does not say what student it was made for; name one with --student"),
        (("--student", "convnet_d1", "--output_dir", "theirs"), "--output_dir theirs is the folder of the set"),
        (("--student", "convnet_d1", "--push_to_hub", "--hub_model_id", "a/b"), "has no card for results"),
        (("--student", "convnet_d1", "--distilled_split", "test"), "choose with --distilled_split"),
        (("--student", "convnet_d9"), "convnet_d9"),
    ],
)
def test_what_takes_an_artifact_is_refused_in_one_line(flags, says, source, monkeypatch, tmp_path):
    table(tmp_path / "theirs", CLASSES)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--distilled_dataset", "theirs", "--dataset_name", source, *flags)
    assert says in str(stop.value.code)
    assert "\n" not in str(stop.value.code)
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == {"train-00000-of-00001.parquet"}
