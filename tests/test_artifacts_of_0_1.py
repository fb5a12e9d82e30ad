"""What version 0.1 wrote is read, evaluated and published again: one small folder of each kind in `artifacts-0.1`."""

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from datasets import load_dataset
from PIL import Image

from hf_distill import DistilledSet, EpochLabels, ExpertTrajectories, LabelProjector, Teacher

WRITTEN = Path(__file__).parent / "artifacts-0.1"
KINDS = {
    "set-stored": DistilledSet,
    "set-pictures": DistilledSet,
    "set-projector": DistilledSet,
    "epoch-labels": EpochLabels,
    "experts-float32": ExpertTrajectories,
    "experts-compact": ExpertTrajectories,
    "teacher": Teacher,
    "projector": LabelProjector,
}
SETS = [name for name, kind in KINDS.items() if kind is DistilledSet]
FORMAT = {"set-stored": 1, "set-pictures": 2, "set-projector": 3}
# The first 16 hex digits of the SHA-256 of all tables and tensors, each after its path.
SHA256 = {
    "set-stored": "2632325e792399a2",
    "set-pictures": "e55218e0737983cb",
    "set-projector": "f117f481ceca01af",
    "epoch-labels": "a7897a7be86a88e3",
    "experts-float32": "b31079a5100ad2aa",
    "experts-compact": "3f1b88f2cd444c40",
    "teacher": "d4b32aa9e01f3918",
    "projector": "4d3eaeb047bf4c1c",
}
NAMES = ["0", "1", "2"]
LEARNED_LR = 0.1486239026232721
# Of the two images of `ramp`, by version 0.1.
TEACHER_SAYS = [[0.07724031, -0.09931016, -0.08479945], [0.16559157, -0.21595415, -0.32921627]]
PROJECTOR_SAYS = [[-2.22404432, -2.47345567, -2.35508251], [-2.74150658, -2.72240162, -2.84050632]]
TINY = {"num_seeds": 1, "full_data": False, "baselines": "random", "disable_tqdm": True}

pytestmark = pytest.mark.usefixtures("one_thread")


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds, by the path inside."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bulk(content: dict[str, bytes]) -> dict[str, Any]:
    """The tables and tensors among files, as pyarrow and safetensors alone read them."""
    tables = {name: pq.read_table(io.BytesIO(data)) for name, data in content.items() if name.endswith(".parquet")}
    tensors = {name: safetensors.numpy.load(data) for name, data in content.items() if name.endswith(".safetensors")}
    return {**tables, **tensors}


def check_same_bulk(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    """The same tables and tensors under the same names, whatever compressed them."""
    there, here = bulk(one), bulk(other)
    assert there
    assert there.keys() == here.keys()
    for name, expected in there.items():
        if isinstance(expected, pa.Table):
            assert expected.equals(here[name]), name
        else:
            assert expected.keys() == here[name].keys(), name
            for key, array in expected.items():
                assert array.dtype == here[name][key].dtype
                assert np.array_equal(array, here[name][key]), (name, key)


def only(folder: Path, pattern: str) -> Path:
    """The one file of a folder that matches."""
    (path,) = folder.glob(pattern)
    return path


def config(content: dict[str, bytes]) -> dict[str, Any]:
    """What the JSON file says that has a format version."""
    (about,) = [
        about
        for name, data in content.items()
        if name.count("/") == 0 and name.endswith(".json") and "format_version" in (about := json.loads(data))
    ]
    return about


def ramp(channels: int = 1) -> torch.Tensor:
    """Two images (2, C, 8, 8) that are easy to make again."""
    return torch.linspace(-1, 2, 128).view(2, 1, 8, 8).expand(-1, channels, -1, -1)


# The files


def test_the_folders_are_small_and_hold_what_was_written():
    content = files(WRITTEN)
    assert sum(map(len, content.values())) < 300_000
    for name, expected in SHA256.items():
        parts = files(WRITTEN / name)
        joined = hashlib.sha256()
        for path in sorted(path for path in parts if path.endswith((".parquet", ".safetensors"))):
            joined.update(path.encode() + parts[path])
        assert joined.hexdigest()[:16] == expected, name
    assert SHA256.keys() == KINDS.keys()


# Read


def test_floats_soft_labels_and_the_learned_rate_of_a_set_are_those_of_its_table():
    folder = WRITTEN / "set-stored"
    distilled, table = DistilledSet.from_pretrained(folder), pq.read_table(only(folder, "tensor/*.parquet"))
    pixels = np.array(table["pixel_values"].to_pylist(), np.float32)
    assert pixels.shape == (6, 1, 8, 8)
    assert np.array_equal(distilled.pixel_values.detach().numpy(), pixels)
    assert distilled.labels.tolist() == table["label"].to_pylist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(distilled.soft_labels.numpy(), np.array(table["soft_label"].to_pylist(), np.float16))
    about = json.loads((folder / "distill_config.json").read_text())
    assert distilled.lr.item() == pytest.approx(about["learned_lr"], rel=1e-6)
    assert about["learned_lr"] == pytest.approx(LEARNED_LR, rel=1e-6)
    thetas = safetensors.numpy.load_file(only(folder, "teacher-*.safetensors"))
    assert np.array_equal(distilled.teacher.thetas.numpy(), *thetas.values())


@pytest.mark.parametrize("name", ["set-pictures", "set-projector"])
def test_bytes_of_a_set_are_those_of_its_pictures(name):
    folder = WRITTEN / name
    distilled, table = DistilledSet.from_pretrained(folder), pq.read_table(only(folder, "data/*.parquet"))
    pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    assert np.array_equal(distilled.images_uint8().numpy()[:, 0], np.stack(pictures))
    assert distilled.labels.tolist() == table["label"].to_pylist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("name", SETS)
def test_a_set_comes_with_its_names_results_and_version(name):
    folder = WRITTEN / name
    distilled, results = DistilledSet.from_pretrained(folder), json.loads((folder / "results.json").read_text())
    assert distilled.class_names == NAMES
    assert config(files(folder))["format_version"] == FORMAT[name]
    assert {row.set for row in distilled.report.rows} == {"distilled", "random"}
    assert distilled.report.to_json()["rows"] == results["rows"]
    assert [row.labels for row in distilled.report.labels] == [row["labels"] for row in results.get("labels", [])]


@pytest.mark.parametrize("name", SETS)
def test_datasets_alone_reads_a_set(name, tmp_path):
    distilled = DistilledSet.from_pretrained(WRITTEN / name)
    rows = load_dataset(str(WRITTEN / name), split="train", cache_dir=str(tmp_path))
    assert rows.features["label"].names == NAMES
    assert rows["label"] == distilled.labels.tolist()
    pictures = np.stack([np.asarray(image) for image in rows["image"]])
    assert np.array_equal(pictures, distilled.images_uint8().numpy()[:, 0])
    if name == "set-stored":
        floats = load_dataset(str(WRITTEN / name), "tensor", split="train", cache_dir=str(tmp_path))
        stacked = np.stack(list(floats.with_format("numpy")["pixel_values"]))
        assert np.array_equal(stacked, distilled.pixel_values.detach().numpy())


def test_labels_of_epochs_are_those_of_their_table():
    folder = WRITTEN / "epoch-labels"
    labels, table = EpochLabels.from_pretrained(folder), pq.read_table(only(folder, "soft_labels/*.parquet"))
    assert (labels.num_epochs, labels.num_images, labels.num_classes) == (3, 6, 3)
    rows = torch.arange(6)
    for epoch in range(3):
        logits = labels(torch.zeros(6, 1, 8, 8), torch.zeros(6, dtype=torch.long), rows, epoch)
        stored = {row["row"]: row for row in table.to_pylist() if row["epoch"] == epoch}
        for row in range(6):
            kept = logits[row, stored[row]["ids"]]
            assert kept.tolist() == stored[row]["values"]
            (rest,) = set(range(3)) - set(stored[row]["ids"])  # one class is left, and it has all the mass
            assert logits[row, rest].item() == pytest.approx(stored[row]["tail"], rel=1e-5, abs=1e-5)


def test_rows_of_experts_are_those_of_their_files_in_both_formats():
    exact = ExpertTrajectories.from_pretrained(WRITTEN / "experts-float32")
    compact = ExpertTrajectories.from_pretrained(WRITTEN / "experts-compact")
    for expert in range(2):
        params = safetensors.numpy.load_file(WRITTEN / "experts-float32" / f"expert-{expert:05d}.safetensors")["params"]
        small = safetensors.numpy.load_file(WRITTEN / "experts-compact" / f"expert-{expert:05d}.safetensors")
        assert len(params) == 3
        for epoch in range(3):
            assert np.array_equal(exact.row(expert, epoch).numpy(), params[epoch])
            expected = small["anchors"][0]
            if epoch:
                scaled = small["deltas"][epoch - 1].astype(np.float32) * small["scales"][epoch - 1]
                expected = expected + scaled
            np.testing.assert_allclose(compact.row(expert, epoch).numpy(), expected, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(expected, params[epoch], atol=1e-3)
        start, end = exact.segment(expert, 1, 1)
        assert np.array_equal(np.stack([start, end]), params[1:])


def test_a_teacher_says_what_it_said():
    teacher = Teacher.from_pretrained(WRITTEN / "teacher")
    weights = safetensors.numpy.load_file(WRITTEN / "teacher" / "model.safetensors")
    state = teacher.model.state_dict()
    assert weights.keys() == state.keys()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in weights.items())
    torch.testing.assert_close(teacher.logits(ramp()), torch.tensor(TEACHER_SAYS), rtol=1e-3, atol=1e-3)
    of_set = DistilledSet.from_pretrained(WRITTEN / "set-pictures").teacher
    said = of_set(ramp(), torch.zeros(2, dtype=torch.long), torch.arange(2))
    torch.testing.assert_close(said, torch.tensor(TEACHER_SAYS), rtol=1e-3, atol=1e-3)


def test_a_projector_says_what_it_said():
    projector = LabelProjector.from_pretrained(WRITTEN / "projector")
    with torch.no_grad():
        torch.testing.assert_close(projector.logits(ramp()), torch.tensor(PROJECTOR_SAYS), rtol=1e-3, atol=1e-3)
    of_set = DistilledSet.from_pretrained(WRITTEN / "set-projector").teacher
    said = of_set(ramp(), torch.zeros(2, dtype=torch.long), torch.arange(2))
    torch.testing.assert_close(said, torch.tensor(PROJECTOR_SAYS), rtol=1e-3, atol=1e-3)


# Evaluated


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("set-stored", {"protocol": "tiny"}),
        ("set-projector", {"protocol": "hello-tiny"}),
        ("set-pictures", {"protocol": "crops-tiny", "labels": WRITTEN / "epoch-labels"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_set_is_evaluated_and_keeps_what_was_known_of_it(recipes, name, flags, tmp_path):
    done = recipes(
        "evaluate", {"distilled_dataset": WRITTEN / name, **TINY, **flags, "output_dir": tmp_path / "set"}, tmp_path
    )
    assert done.status == [0], done.err
    before = DistilledSet.from_pretrained(WRITTEN / name).report.rows
    after = DistilledSet.from_pretrained(tmp_path / "set").report.rows
    assert after[: len(before)] == before
    added = after[len(before) :]
    assert {(row.set, row.labels) for row in added} >= {("distilled", "soft"), ("distilled", "hard")}
    assert {(row.protocol.split(",")[0], row.images, row.n) for row in added} == {(flags["protocol"], 6, 1)}
    by_stored_labels = {row.labels for row in added if "stored labels" in row.protocol}
    assert by_stored_labels == ({"soft"} if "labels" in flags else set())
    check_same_bulk(files(WRITTEN / name), files(tmp_path / "set"))


# Published again


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_an_artifact_is_saved_again_with_its_tables_and_tensors(name, tmp_path):
    saved = KINDS[name].from_pretrained(WRITTEN / name).save_pretrained(tmp_path / "again")
    check_same_bulk(files(WRITTEN / name), files(saved))
    assert config(files(saved))["format_version"] >= config(files(WRITTEN / name))["format_version"]
    third = KINDS[name].from_pretrained(saved).save_pretrained(tmp_path / "third")
    check_same_bulk(files(WRITTEN / name), files(third))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_an_artifact_is_published_from_its_folder_and_comes_back(hub, name, tmp_path):
    copy = shutil.copytree(WRITTEN / name, tmp_path / "copy")
    repo = f"{hub.namespace}/{name}"
    KINDS[name].from_pretrained(copy).push_to_hub(repo, tag="v1.0.0", token=hub.token)
    there = hub.files("dataset" if KINDS[name] in (DistilledSet, EpochLabels) else "model", repo, "v1.0.0")
    check_same_bulk(files(WRITTEN / name), there)
    shutil.rmtree(copy)
    back = KINDS[name].from_pretrained(repo, revision="v1.0.0").save_pretrained(tmp_path / "back")
    check_same_bulk(files(WRITTEN / name), files(back))
