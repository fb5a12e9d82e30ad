"""A repository or folder of anybody's can only be refused: in one line, with nothing run and nothing left outside."""

import json
import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import DatasetCard, constants
from PIL import Image
from safetensors.torch import save

from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.labels import NetworkLabels
from hf_distill.hub.checks import MOST_CLASSES
from hf_distill.hub.folder import HubFolder
from hf_distill.networks.trajectories import ExpertTrajectories
from tests.helpers import without_sums
from tests.helpers.experts import FLAT, make_experts
from tests.helpers.sets import CONFIG, REPORT, change_config, files, make, network, pictures, same

pytestmark = pytest.mark.slow

HUGE = 10**12
NETWORK = {"name": "convnet_d1", "num_classes": 4, "in_chans": 3, "img_size": [6, 8], "kwargs": {"width": 4}}


class Payload:
    """Unpickled, it makes the folder `target`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def tensors_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header whatever."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(offsets: list[Any], shape: Any = (2, 3), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}


BROKEN_TENSORS = {
    "huge": tensors_file({"params": entry([0, 4 * HUGE * HUGE], (HUGE, HUGE))}),
    "more than it holds": tensors_file({"params": entry([0, 8], (HUGE,))}, bytes(8)),
    "negative": tensors_file({"params": entry([-24, 0])}, bytes(24)),
    "negative shape": tensors_file({"params": entry([0, 24], (-2, -3))}, bytes(24)),
    "overlapping": tensors_file({"params": entry([0, 24]), "thetas": entry([12, 36])}, bytes(36)),
    "dtype": tensors_file({"params": entry([0, 24], dtype="evil")}, bytes(24)),
    "dtype list": tensors_file({"params": entry([0, 24], dtype=[])}, bytes(24)),
    "no json": tensors_file(b"}{ this is no JSON"),
    "deep": tensors_file(b"[" * 100_000),
    "a list": tensors_file([1, 2]),
    "no entry": tensors_file({"params": 7}),
    "no keys": tensors_file({"params": {}}),
    "texts": tensors_file({"params": entry(["a", "b"])}),
    "length": tensors_file({"params": entry([0, 24])}, bytes(24), length=2**63),
    "length beyond": tensors_file({}, length=1000),
    "empty": b"",
    "short": b"\x01",
    "text": b"<html>not found</html>",
}


def surroundings(tmp_path: Path) -> set[Path]:
    """Every path around the test and the caches, except inside the Hub and the client's own cache."""
    home, cache = Path(constants.HF_HOME), Path(constants.HF_HUB_CACHE)
    inside = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "hub")}
    around = [*tmp_path.parent.glob("*"), *home.glob("*"), *Path.cwd().glob("*"), *home.parent.glob("*evil*")]
    return {*inside, *around, *Path("/").glob("*evil*"), *cache.glob("*evil*")} - {cache}


def refused(load: Callable[[], object], says: str = ".") -> str:
    """The message of the one-line `ValueError` that `load` ends with."""
    with pytest.raises(ValueError, match=says) as error:
        load()
    text = str(error.value)
    assert type(error.value) is ValueError, type(error.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 1000, text[:2000]
    return text


def memory(what: str) -> int:
    """A line of what the kernel says of this process, in bytes."""
    return 1024 * int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@contextmanager
def within(most: int) -> Iterator[None]:
    """Fails where what is done inside takes more than so many bytes of memory at any moment."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = memory("VmRSS")
    yield
    assert memory("VmHWM") - before < most


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    whole = make(lr=0.02, teacher=True, zca=True, config=CONFIG, report=REPORT)
    return without_sums(whole.save_pretrained(tmp_path / "saved"))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return make_experts(tmp_path / "trained")


def published(hub: Any, kind: type[HubFolder], folder: Path, changes: dict[str, bytes | None]) -> str:
    """A repository with the files of `folder`, some of them changed."""
    content = {**files(folder), **changes}
    repo = f"{hub.namespace}/hostile"
    hub.put(kind.repo_type, repo, {name: data for name, data in content.items() if data is not None})
    return repo


def change(folder: Path, name: str, **changes: Any) -> bytes:
    """The JSON file `name` of a folder with some values changed ("a.b" for one inside another)."""
    config = json.loads((folder / name).read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        inner = config
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return json.dumps(config).encode()


# Where files go

NAMES_THAT_LEAVE = [
    "../evil.parquet",
    "tensor/train-/../../../../../../evil.parquet",
    "tensor/train-/../../../evil-{}.parquet",
    "/tmp/evil.parquet",
    "tensor/train-\\..\\..\\..\\evil.parquet",
    "preprocessing-/../../../../evil.safetensors",
]


@pytest.mark.parametrize("name", NAMES_THAT_LEAVE)
def test_a_name_that_leaves_the_folder_writes_nothing_outside_the_cache(hub, tmp_path, saved, name):
    repo = published(hub, DistilledSet, saved, {name: b"evil"})
    before = surroundings(tmp_path)
    if name.startswith(("tensor", "preprocessing")):
        refused(lambda: DistilledSet.from_pretrained(repo), "path segment")
    else:  # not of the artifact, so not looked at
        assert same(DistilledSet.from_pretrained(repo), DistilledSet.from_pretrained(saved))
    assert surroundings(tmp_path) == before
    cache = Path(constants.HF_HUB_CACHE)
    own = cache / f"datasets--{repo.replace('/', '--')}"
    found = [path for path in cache.parent.rglob("*evil*") if own not in path.parents]
    assert not found
    snapshot = [path for path in own.rglob("*evil*") if "snapshots" in path.parts]
    assert all(own / "snapshots" in path.resolve().parents or own in path.resolve().parents for path in snapshot)


# What pretends to be tensors


@pytest.mark.parametrize("name", ["preprocessing", "teacher"])
@pytest.mark.parametrize("over_http", [True, False])
def test_a_pickle_instead_of_the_tensors_of_a_set_is_refused_and_not_run(hub, tmp_path, saved, name, over_http):
    (path,) = saved.glob(f"{name}-*.safetensors")
    buffer = BytesIO()
    torch.save({"thetas": Payload(tmp_path / "ran")}, buffer)
    for evil in (pickle.dumps(Payload(tmp_path / "ran")), buffer.getvalue()):
        path.write_bytes(evil)
        where = published(hub, DistilledSet, saved, {}) if over_http else saved
        refused(lambda where=where: DistilledSet.from_pretrained(where), f"{path.name} is damaged")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # so the payload works


@pytest.mark.parametrize("over_http", [True, False])
def test_a_pickle_instead_of_an_expert_is_refused_and_not_run(hub, tmp_path, trained, over_http):
    name = "expert-00000.safetensors"
    buffer = BytesIO()
    torch.save([Payload(tmp_path / "ran")], buffer)
    for evil in (pickle.dumps(Payload(tmp_path / "ran")), buffer.getvalue()):
        (trained / name).write_bytes(evil)
        where = published(hub, ExpertTrajectories, trained, {}) if over_http else trained
        refused(lambda where=where: ExpertTrajectories.from_pretrained(where).row(0, 0), f"{name} ")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("broken", BROKEN_TENSORS)
def test_broken_tensors_are_refused_in_one_line_and_little_memory(trained, saved, broken):
    data = BROKEN_TENSORS[broken]
    (trained / "expert-00000.safetensors").write_bytes(data)
    with within(200_000_000):
        for use in (lambda experts: experts.row(0, 0), lambda experts: experts.limited(1, 1)):
            says = r"expert-00000\.safetensors (is truncated|has a damaged header)"
            refused(lambda use=use: use(ExpertTrajectories.from_pretrained(trained)), says)
        for name in ("teacher", "preprocessing"):
            (path,) = saved.glob(f"{name}-*.safetensors")
            whole = path.read_bytes()
            path.write_bytes(data)
            refused(lambda: DistilledSet.from_pretrained(saved), name)
            path.write_bytes(whole)


EXPERT_TENSORS = {
    "one dimension": ({"params": torch.zeros(2 * FLAT)}, {}),
    "other names": ({"weights": torch.zeros(2, FLAT)}, {}),
    "other length": ({"params": torch.zeros(2, FLAT - 1)}, {}),
    "too few": ({"params": torch.zeros(1, FLAT)}, {}),
    "integers": ({"params": torch.zeros(2, FLAT, dtype=torch.int32)}, {}),
    "no anchors": ({"anchors": torch.zeros(0, FLAT), "deltas": torch.zeros(2, FLAT).half()}, {}),
    "no scales": ({"anchors": torch.zeros(1, FLAT), "deltas": torch.zeros(1, FLAT).half()}, {}),
    "other scales": (
        {"anchors": torch.zeros(1, FLAT), "deltas": torch.zeros(1, FLAT).half(), "scales": torch.zeros(7)},
        {},
    ),
    "metadata": ({"params": torch.zeros(2, FLAT)}, {"hf_distill": "[]"}),
    "metadata no json": ({"params": torch.zeros(2, FLAT)}, {"hf_distill": "}{"}),
    "metadata deep": ({"params": torch.zeros(2, FLAT)}, {"hf_distill": "[" * 100_000}),
}


@pytest.mark.parametrize("what", EXPERT_TENSORS)
def test_tensors_of_another_kind_than_an_expert_are_refused(trained, what):
    (trained / "expert-00001.safetensors").write_bytes(save(*EXPERT_TENSORS[what]))
    refused(lambda: ExpertTrajectories.from_pretrained(trained).row(1, 1), r"expert-00001\.safetensors")


@pytest.mark.parametrize(
    "tensors",
    [
        {"thetas": torch.zeros(2)},
        {"thetas": torch.zeros(3, 5)},
        {"thetas": torch.zeros(2, 5, dtype=torch.int64)},
        {"thetas": torch.full((2, 5), torch.nan)},
        {"other": torch.zeros(2, 5)},
        {},
    ],
)
def test_a_teacher_of_other_tensors_is_refused(saved, tensors):
    (path,) = saved.glob("teacher-*.safetensors")
    path.write_bytes(save(tensors))
    refused(lambda: DistilledSet.from_pretrained(saved), "distill_config.json does not describe .*teacher")


def test_a_teacher_of_another_size_is_refused_before_its_network_takes_memory(saved):
    spec = {**NETWORK, "kwargs": {"width": 10_000}, "name": "convnet_d2"}
    content = change(saved, "distill_config.json", label_source__teacher__spec=spec)
    (saved / "distill_config.json").write_bytes(content)
    distilled = DistilledSet.from_pretrained(saved)
    with within(200_000_000), pytest.raises(ValueError, match="expected parameters of that architecture"):
        distilled.teacher(distilled.pixel_values, distilled.labels, torch.arange(12))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("zca_vectors", torch.zeros(3, 3)),
        ("zca_mean", torch.zeros(3)),
        ("zca_values", torch.full((144,), torch.nan)),
        ("zca_values", torch.ones(144, dtype=torch.float64)),
        ("zca_mean", None),
    ],
)
def test_whitening_of_another_shape_is_refused(saved, name, tensor):
    (path,) = saved.glob("preprocessing-*.safetensors")
    parts = DistilledSet.from_pretrained(saved).preprocessing.tensors()
    parts[name] = tensor
    path.write_bytes(save({key: value for key, value in parts.items() if value is not None}))
    refused(lambda: DistilledSet.from_pretrained(saved), name)


# Cards


@pytest.mark.parametrize("card", [b"---\n: [broken\n\t}\n---\n", b"\xff\xfe\x00", b"", None])
def test_the_card_of_a_repository_does_not_matter_to_loading(hub, saved, trained, card):
    changes = {"README.md": card}
    assert same(
        DistilledSet.from_pretrained(published(hub, DistilledSet, saved, changes)), DistilledSet.from_pretrained(saved)
    )
    repo = published(hub, ExpertTrajectories, trained, changes)
    assert torch.equal(
        ExpertTrajectories.from_pretrained(repo).row(1, 1), ExpertTrajectories.from_pretrained(trained).row(1, 1)
    )


# Parquet


def rewritten(folder: Path, edit: Callable[[pa.Table], pa.Table]) -> Path:
    (path,) = (folder / "tensor").glob("*.parquet")
    pq.write_table(edit(pq.read_table(path)), path)
    return path


def with_column(name: str, values: Callable[[pa.Array], Any]) -> Callable[[pa.Table], pa.Table]:
    def edit(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        column = table.column(index).combine_chunks()
        return table.set_column(index, table.schema.field(index).with_type(values(column).type), values(column))

    return edit


def pixels(make_storage: Callable[[np.ndarray], Any]) -> Callable[[pa.Table], pa.Table]:
    """Other pixels, under the extension type of the right ones where their storage allows it."""

    def values(column: pa.Array) -> Any:
        flat = np.stack([np.asarray(row, np.float32) for row in column.storage.to_pylist()])
        storage = make_storage(flat)
        return (
            pa.ExtensionArray.from_storage(column.type, storage)
            if storage.type == column.type.storage_type
            else storage
        )

    return with_column("pixel_values", values)


def as_lists(rows: list[Any]) -> pa.Array:
    return pa.array(rows, pa.list_(pa.list_(pa.list_(pa.float32()))))


def ragged(flat: np.ndarray) -> pa.Array:
    rows = flat.tolist()
    rows[0][0].append(rows[1][0].pop())
    return as_lists(rows)


def holed(flat: np.ndarray) -> pa.Array:
    rows = flat.tolist()
    rows[0][0][0][0] = None
    return as_lists(rows)


def without(flat: np.ndarray) -> pa.Array:
    return as_lists([None, *flat.tolist()[1:]])


PARQUETS: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "no pixels": (lambda table: table.drop_columns(["pixel_values"]), "pixel_values"),
    "no labels": (lambda table: table.drop_columns(["label"]), "label"),
    "other columns": (lambda table: pa.table({"a": [1] * len(table)}), "pixel_values"),
    "double pixels": (
        pixels(lambda flat: pa.array(flat.astype(np.float64).tolist(), pa.list_(pa.list_(pa.list_(pa.float64()))))),
        "pixel_values",
    ),
    "ragged pixels": (pixels(ragged), "pixel_values"),
    "null in pixels": (pixels(holed), "pixel_values"),
    "null for pixels": (pixels(without), "pixel_values"),
    "turned pixels": (pixels(lambda flat: as_lists(flat.transpose(0, 1, 3, 2).tolist())), "pixel_values"),
    "text for pixels": (pixels(lambda flat: pa.array(["x"] * len(flat))), "pixel_values"),
    "records for pixels": (pixels(lambda flat: pa.array([{"a": [[1], [None]]}] * len(flat))), "pixel_values"),
    "null labels": (with_column("label", lambda c: pa.array([None, *c.to_pylist()[1:]], pa.int64())), "label"),
    "negative labels": (
        with_column("label", lambda c: pa.array([-1, *c.to_pylist()[1:]], pa.int64())),
        "labels go from",
    ),
    "large labels": (with_column("label", lambda c: pa.array([4, *c.to_pylist()[1:]], pa.int64())), "labels go from"),
    "text labels": (with_column("label", lambda c: pa.array(["a"] * len(c))), "label"),
    "float labels": (with_column("label", lambda c: pa.array([0.5] * len(c))), "label"),
    "short soft": (
        with_column("soft_label", lambda c: pa.array([row[:3] for row in c.to_pylist()], pa.list_(pa.float16()))),
        "soft_label",
    ),
    "uneven soft": (
        with_column(
            "soft_label",
            lambda c: pa.array([c[0].as_py()[:3], [*c[1].as_py(), 0.0], *c[2:].to_pylist()], pa.list_(pa.float16())),
        ),
        "soft_label",
    ),
    "null soft": (
        with_column("soft_label", lambda c: pa.array([None, *c[1:].to_pylist()], pa.list_(pa.float16()))),
        "soft_label",
    ),
    "text soft": (with_column("soft_label", lambda c: pa.array([["a"]] * len(c))), "soft_label"),
    "fewer rows": (lambda table: table.slice(1), "holds 11 images"),
    "more rows": (lambda table: pa.concat_tables([table, table]), "holds 24 images"),
    "schema no json": (lambda table: table.replace_schema_metadata({"huggingface": b"}{"}), "damaged"),
    "schema nonsense": (
        lambda table: table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": {"pixel_values": {"_type": "Array3D", "x": 1}}}})}
        ),
        "pixel_values|damaged",
    ),
}


@pytest.mark.parametrize("what", PARQUETS)
def test_a_parquet_of_something_else_is_refused_with_its_name(saved, what):
    edit, says = PARQUETS[what]
    rewritten(saved, edit)
    assert str(saved) in refused(lambda: DistilledSet.from_pretrained(saved), says)


def test_the_rewriting_of_these_tests_keeps_what_is_kept(saved):
    before = DistilledSet.from_pretrained(saved)
    rewritten(saved, pixels(lambda flat: as_lists(flat.tolist())))
    assert same(DistilledSet.from_pretrained(saved), before)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_named(saved, value):
    def poisoned(flat: np.ndarray) -> pa.Array:
        flat[5, 0, 0, 0] = value
        return as_lists(flat.tolist())

    rewritten(saved, pixels(poisoned))
    refused(lambda: DistilledSet.from_pretrained(saved), "image 5 in .* pixel_values that are not finite")


def test_a_parquet_extension_type_that_is_a_pickle_is_not_run(tmp_path, saved):
    (path,) = (saved / "tensor").glob("*.parquet")
    table = pq.read_table(path)
    evil = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Payload(tmp_path / "ran")),
    }
    storage = table.column("pixel_values").combine_chunks().storage
    field = pa.field("pixel_values", storage.type, metadata=evil)
    pq.write_table(table.set_column(0, field, storage), path)
    refused(lambda: DistilledSet.from_pretrained(saved), "pixel_values|damaged")
    assert not (tmp_path / "ran").exists()


def test_no_memory_is_taken_on_the_word_of_a_file(hub, saved):
    """A row count in the config, and a small file that unpacks to a large one."""
    for images in (10**6, HUGE, 2**62):
        changes = {"distill_config.json": change(saved, "distill_config.json", images=images)}
        repo = published(hub, DistilledSet, saved, changes)
        with within(200_000_000):
            refused(lambda repo=repo: DistilledSet.from_pretrained(repo), f"images {images}|expected {images}")
    size, rows = (500, 500), 500
    row = np.zeros((3, *size), np.float32)
    one = as_lists([row.tolist()])
    config = {"images": rows, "preprocessing__image_size": list(size), "preprocessing__zca": None}
    config |= {"preprocessing__mean": [0.5] * 3, "preprocessing__std": [0.5] * 3, "label_source__teacher": None}
    (path,) = (saved / "tensor").glob("*.parquet")
    (saved / "distill_config.json").write_bytes(change(saved, "distill_config.json", **config))
    schema = make(size=size)._rows("tensor").features.arrow_schema
    pixel_type = schema.field("pixel_values").type
    soft = pa.array([[0.0] * 4], pa.list_(pa.float16()))
    table = pa.Table.from_arrays(
        [pa.ExtensionArray.from_storage(pixel_type, one), pa.array([0]), soft.cast(schema.field(2).type)], schema=schema
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(rows):
            writer.write_table(table)
    with within(200_000_000):
        refused(lambda: DistilledSet.from_pretrained(saved), "bytes in train-")


# Pictures


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    return without_sums(pictures(soft=True, teacher=NetworkLabels(network())).save_pretrained(tmp_path / "shown"))


def png(mode: str = "RGB", size: tuple[int, int] = (8, 6), kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def claiming(**changes: int) -> bytes:
    """A PNG file whose first chunk claims another size or kind than its pixels have, with the right checksum."""
    data = png()
    names = ("width", "height", "bits", "colour", "compression", "filter", "interlace")
    values = dict(zip(names, struct.unpack(">IIBBBBB", data[16:29]), strict=True)) | changes
    chunk = b"IHDR" + struct.pack(">IIBBBBB", *values.values())
    return data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def with_text(count: int) -> bytes:
    """A PNG file with a compressed text of so many bytes before its pixels."""
    data, chunk = png(), b"zTXtComment\0\0" + zlib.compress(bytes(count), 9)
    return data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


EVIL_PICTURES: dict[str, bytes | None] = {
    "none": None,
    "empty": b"",
    "text": b"<html>not found</html>" * 10,
    "a pickle": pickle.dumps([1] * 100),
    "JPEG": png(kind="JPEG"),
    "GIF": png(kind="GIF"),
    "TIFF": png(kind="TIFF"),
    "gray": png("L"),
    "palette": png("P"),
    "with transparency": png("RGBA"),
    "16 bits": png("I;16"),
    "1 bit": png("1"),
    "turned": png(size=(6, 8)),
    "larger": png(size=(16, 12)),
    "a bomb": png("RGB", (12_000, 12_000)),
    "said to be larger": claiming(width=2**31 - 1, height=2**31 - 1),
    "said to be nothing": claiming(width=0),
    "said to be gray": claiming(colour=0),
    "an unknown kind": claiming(colour=7),
    "cut": png()[:60],
    "without pixels": png()[:33] + png()[-12:] + bytes(20),
    "a bit turned": png()[:45] + bytes([png()[45] ^ 1]) + png()[46:],
    "only its head": png()[:33] + bytes(30),
    "a bomb of text": with_text(10**9),
}


def with_picture(folder: Path, data: bytes | None, row: int = 5, **options: Any) -> Path:
    """Put `data` in the place of an image."""
    (path,) = (folder / "data").glob("*.parquet")
    table = pq.read_table(path)
    rows = table.column("image").to_pylist()
    rows[row] = {"bytes": data, "path": "/etc/hostname"}
    image = pa.array(rows, table.schema.field("image").type)
    options = {"compression": "none", "use_dictionary": ["label"], **options}
    pq.write_table(table.set_column(0, table.schema.field("image"), image), path, **options)
    return path


@pytest.mark.parametrize("what", EVIL_PICTURES)
def test_a_picture_of_another_kind_is_refused_with_its_number_in_little_memory(shown, what):
    path = with_picture(shown, EVIL_PICTURES[what])
    with within(200_000_000):
        message = refused(lambda: DistilledSet.from_pretrained(shown), "image 5: ")
    assert str(path) in message


def test_the_rewriting_of_pictures_keeps_what_is_kept(shown):
    made = pictures(soft=True)
    buffer = BytesIO()
    Image.fromarray(made.pixel_values[5].permute(1, 2, 0).numpy()).save(buffer, "PNG", compress_level=0)
    with_picture(shown, buffer.getvalue())
    assert torch.equal(DistilledSet.from_pretrained(shown).pixel_values, made.pixel_values)


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"use_dictionary": True}, {"compression": "snappy"}])
def test_pictures_that_could_unpack_to_more_than_their_file_are_refused(shown, options):
    with_picture(shown, png(), **options)
    refused(lambda: DistilledSet.from_pretrained(shown), "compressed with .* expected neither")


PICTURE_TABLES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "no images": (lambda table: table.drop_columns(["image"]), "has image None; expected PNG"),
    "two of them": (lambda table: table.append_column(table.schema.field(0), table.column(0)), "has image None"),
    "bytes alone": (with_column("image", lambda c: c.field("bytes")), "expected PNG images"),
    "text": (with_column("image", lambda c: pa.array(["x"] * len(c))), "expected PNG images"),
    "numbers": (with_column("image", lambda c: pa.array([{"bytes": 1, "path": 2}] * len(c))), "expected PNG images"),
    "a null": (with_column("image", lambda c: pa.array([None, *c.to_pylist()[1:]], c.type)), "image 0: "),
    "no labels": PARQUETS["no labels"],
    "null labels": PARQUETS["null labels"],
    "negative labels": PARQUETS["negative labels"],
    "short soft": PARQUETS["short soft"],
    "null soft": PARQUETS["null soft"],
    "fewer rows": PARQUETS["fewer rows"],
    "more rows": PARQUETS["more rows"],
    "infinite soft": (
        with_column("soft_label", lambda c: pa.array([[np.float16(np.inf)] * 4] * len(c), pa.list_(pa.float16()))),
        "soft_label that are not finite",
    ),
}


@pytest.mark.parametrize("what", PICTURE_TABLES)
def test_a_table_of_something_else_than_pictures_is_refused(shown, what):
    edit, says = PICTURE_TABLES[what]
    (path,) = (shown / "data").glob("*.parquet")
    pq.write_table(edit(pq.read_table(path)), path, compression="none", use_dictionary=["label"])
    assert str(shown) in refused(lambda: DistilledSet.from_pretrained(shown), says)


def test_no_memory_is_taken_on_the_word_of_a_config_of_pictures(shown):
    about = json.loads((shown / "distill_config.json").read_text())["preprocessing"]
    for changes in ({"images": HUGE}, {"images": 2**62}, {"preprocessing": {**about, "image_size": [60_000, 80_000]}}):
        before = (shown / "distill_config.json").read_bytes()
        change_config(shown, label_source={"kind": "hard"}, **changes)
        with within(200_000_000):
            refused(lambda: DistilledSet.from_pretrained(shown), "expected|take at least")
        (shown / "distill_config.json").write_bytes(before)


@pytest.mark.parametrize("kind", ["float32", "float16", None, 7, []])
def test_a_set_that_says_to_be_of_other_pixels_is_refused(hub, shown, kind):
    changes = {"distill_config.json": change(shown, "distill_config.json", pixels=kind)}
    refused(lambda: DistilledSet.from_pretrained(published(hub, DistilledSet, shown, changes)), "pixels|holds 0 images")


SHARED = {"repo_id": "org/teacher", "revision": "0" * 40}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        *(({"sha256": value}, "sha256") for value in (None, 7, "", "x" * 64, "A" * 64, "0" * 63)),
        ({"sha256": "0" * 64}, "holds the weights"),
        *(({"num_bytes": value}, "num_bytes") for value in (None, "many", -1, 2**70)),
        *(({"network": value}, "network") for value in (None, 7, "a" * 10**6)),
        *(({"shared": value}, "shared") for value in ("org/teacher", [], {}, {"repo_id": "org/teacher"})),
        *(
            ({"shared": {**SHARED, "repo_id": value}}, "shared")
            for value in ("teacher", "../..//x", "/etc", "a/b/c", "org/te acher", 7, "org/teacher\n")
        ),
        *(({"shared": {**SHARED, "revision": value}}, "shared") for value in (None, "main", "../x", 7, "0" * 39)),
    ],
)
def test_a_network_that_is_described_by_nonsense_is_refused(shown, changes, says):
    about = json.loads((shown / "distill_config.json").read_text())["label_source"]
    change_config(shown, label_source={**about, "teacher": {**about["teacher"], **changes}})
    refused(lambda: DistilledSet.from_pretrained(shown), says)


def test_a_pickle_instead_of_the_weights_of_a_network_is_refused_and_not_run(tmp_path, shown):
    (path,) = shown.glob("teacher/*/model.safetensors")
    path.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    refused(lambda: DistilledSet.from_pretrained(shown), "model.safetensors")
    path.rename(path.with_name("pytorch_model.bin"))
    refused(lambda: DistilledSet.from_pretrained(shown), "pickles")
    assert not (tmp_path / "ran").exists()


# What the JSON files say

CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"format_version": 4}, "upgrade hf_distill"),
    ({"format_version": "1"}, "format_version"),
    ({"format_version": None}, "format_version"),
    ({"data_id": "../../evil"}, "data_id"),
    ({"data_id": "*"}, "data_id"),
    ({"data_id": "[a-f]*00"}, "data_id"),
    ({"data_id": 12345678}, "data_id"),
    ({"data_id": "\n" * 8}, "data_id"),
    ({"data_id": "x" * 10**6}, "data_id"),
    ({"images": -1}, "images"),
    ({"images": "12"}, "images"),
    ({"images": 12.0}, "images"),
    ({"images": True}, "images"),
    ({"ipc": "three"}, "ipc"),
    ({"class_names": "abcd"}, "class_names"),
    ({"class_names": [1, 2, 3, 4]}, "class_names"),
    ({"class_names": ["a", "a", "b", "c"]}, "class_names"),
    ({"class_names": ["a", "b", "c", "\ud800"]}, "class_names"),
    ({"class_names": []}, "class_names"),
    ({"class_names": None}, "class_names"),
    ({"class_names": {"a": 1}}, "class_names"),
    ({"class_names": [[], [], [], []]}, "class_names"),
    ({"class_names": ["a", "b", "c"]}, "soft_label|teacher"),
    *(({"preprocessing": value}, "preprocessing") for value in (None, [], "zca", 7, {})),
    *(({"preprocessing__channels": value}, "channels") for value in ("3", 0, -1, HUGE, None, True, [3])),
    *(
        ({"preprocessing__image_size": value}, "pixels")
        for value in ([6], [6, 8, 1], "68", [0, 8], [-6, -8], [HUGE, HUGE], [6.0, 8], None, {"a": 1}, 6)
    ),
    *(({"preprocessing__mean": value}, "mean") for value in ("abc", [0.5], ["a"] * 3, [float("nan")] * 3, None)),
    *(({"preprocessing__std": value}, "std") for value in ([0, 1, 1], [-1, 1, 1], [float("inf")] * 3, [[]] * 3)),
    *(({"preprocessing__zca": value}, "ZCA") for value in ("yes", [], {"eps": "1", "digest": ""}, {"eps": 1})),
    ({"preprocessing__zca": {"eps": float("nan"), "digest": "a"}}, "ZCA"),
    ({"preprocessing__zca": {"eps": -1.0, "digest": "a"}}, "ZCA"),
    *(({"learned_lr": value}, "learned_lr") for value in (-1, 0, float("nan"), "0.1", [0.1], True, float("inf"))),
    ({"learned_lr": 1e-60}, "lr is 1e-60"),
    *(({"label_source": value}, "label_source") for value in (None, "soft", [], {"kind": "evil"}, {}, {"kind": []})),
    *(({"label_source__teacher": value}, "teacher") for value in ("a", 7, [], {}, {"num_networks": "2"})),
    ({"label_source__teacher__num_networks": HUGE}, "teacher"),
    ({"label_source__teacher__num_networks": -2}, "num_networks"),
    ({"source": "org/pets"}, "source"),
    ({"source": {"name": ["a"]}}, "source.name"),
    ({"source": {"num_images": "many"}}, "source.num_images"),
    ({"source": {"license": {"a": 1}}}, "source.license"),
    ({"hyperparameters": [1]}, "hyperparameters"),
    ({"versions": "1.0"}, "versions"),
    ({"student": "convnet"}, "student"),
    ({"experts": "here"}, "experts"),
    ({"experts": {"training": 7}}, "experts.training"),
    ({"paper": "here"}, "paper"),
    ({"paper": [{"title": 7}]}, "paper"),
    ({"method": ["a"]}, "method"),
    ({"seed": "zero"}, "seed"),
    ({"imported_from": {"files": [7]}}, "imported_from.files"),
    ({"release": "v1"}, "release"),
]


@pytest.mark.parametrize(("changes", "says"), CONFIGS, ids=[f"{i}-{next(iter(c))}" for i, (c, _) in enumerate(CONFIGS)])
def test_a_config_that_says_nonsense_is_refused_with_the_file_and_the_value(saved, changes, says):
    (saved / "distill_config.json").write_bytes(change(saved, "distill_config.json", **changes))
    message = refused(lambda: DistilledSet.from_pretrained(saved), says)
    assert str(saved) in message


def test_more_classes_than_there_can_be_are_refused(saved):
    # Not a parameter of the test above: what reports a failure would write all of them down, in gigabytes.
    names = [str(index) for index in range(MOST_CLASSES + 1)]
    (saved / "distill_config.json").write_bytes(change(saved, "distill_config.json", class_names=names))
    refused(lambda: DistilledSet.from_pretrained(saved), "class_names")


STUDENTS: list[Any] = [
    "convnet_d1",
    None,
    [],
    {},
    {**NETWORK, "name": "hf-hub:evil/model"},
    {**NETWORK, "name": "local-dir:/tmp/evil"},
    {**NETWORK, "name": "hf_hub:evil/model"},
    {**NETWORK, "name": "../evil"},
    {**NETWORK, "name": 7},
    {**NETWORK, "name": "a" * 10**5},
    {**NETWORK, "num_classes": HUGE},
    {**NETWORK, "num_classes": "4"},
    {**NETWORK, "in_chans": -3},
    {**NETWORK, "img_size": [HUGE, HUGE]},
    {**NETWORK, "img_size": ["6", "8"]},
    {**NETWORK, "img_size": 6},
    {**NETWORK, "extra": 1},
    {key: value for key, value in NETWORK.items() if key != "name"},
    *(
        {**NETWORK, "kwargs": kwargs}
        for kwargs in (
            "width",
            [1],
            {"pretrained": True},
            {"checkpoint_path": "/tmp/evil"},
            {"cache_dir": "/tmp/evil"},
            {"pretrained_cfg": {"file": "/tmp/evil"}},
            {"pretrained_cfg_overlay": {"url": "http://evil"}},
            {"pretrained_strict": False},
            {"model_cfg": 1},
            {"feature_cfg": 1},
            {"__class__": 1},
            {"_x": 1},
            {"A-b": 1},
            {"width": HUGE},
            {"width": {"a": 1}},
            {"width": [[1]]},
            {"width": float("nan")},
        )
    ),
]


@pytest.mark.parametrize("student", STUDENTS, ids=range(len(STUDENTS)))
def test_a_student_that_would_load_a_file_or_is_none_is_refused(saved, trained, student):
    teacher = {"label_source__teacher__spec": student}
    (saved / "distill_config.json").write_bytes(change(saved, "distill_config.json", **teacher))
    assert "distill_config.json" in refused(lambda: DistilledSet.from_pretrained(saved))
    (trained / "expert_config.json").write_bytes(change(trained, "expert_config.json", student=student))
    assert "expert_config.json" in refused(lambda: ExpertTrajectories.from_pretrained(trained))


@pytest.mark.parametrize(
    "student",
    [
        {"name": "nosuchmodel"},
        {"name": "convnet_d8"},
        {"kwargs": {"width": 10_000}},
        {"kwargs": {"nosuch": 1}},
        {"kwargs": {"norm": "evil"}},
        {"kwargs": {"width": "wide"}},
        {"kwargs": {"width": -1}},
        {"kwargs": {"num_classes": 3}},
        {"name": "test_vit", "kwargs": {"embed_dim": 10_000, "depth": 3}},
        {"name": "test_vit", "kwargs": {"num_heads": 7}},
    ],
    ids=str,
)
def test_a_network_that_cannot_be_built_is_refused_before_it_takes_memory(trained, student):
    network = {**json.loads((trained / "expert_config.json").read_text())["student"], **student}
    (trained / "expert_config.json").write_bytes(change(trained, "expert_config.json", student=network))
    experts = ExpertTrajectories.from_pretrained(trained)
    with within(200_000_000):
        refused(experts.flat_model)


INDEXES: list[tuple[dict[str, Any], str]] = [
    ({"format_version": 2}, "upgrade hf_distill"),
    *(({"num_experts": value}, "num_experts") for value in ("many", HUGE, -1, 0, None, 2.0, True, [2])),
    *(({"num_epochs": value}, "num_epochs") for value in ("many", HUGE, -1, None)),
    *(({"num_params": value}, "num_params") for value in ("many", -1, None, 1.5)),
    *(({"class_names": value}, "class_names") for value in ("ab", [1, 2], ["a", "a"], None, [])),
    ({"class_names": ["a", "b", "c"]}, "3 classes"),
    *(({"preprocessing": value}, "preprocessing") for value in (None, "zca", [1])),
    *(({"results": value}, "results") for value in (None, "good", [1], {})),
    *(({"results__test_accuracy": value}, "test_accuracy") for value in ("high", ["a"], [float("nan")], [2], 0.5)),
    *(
        ({"results__epoch_loss": value}, "epoch_loss")
        for value in (None, [], [[]], [["a"]], [[1], [1, 2]], [[None], [1]])
    ),
    ({"results__epoch_loss": [[None], [None]]}, "imported_from"),
    *(({"source": value}, "source") for value in (None, "pets", [1], {"name": [1]}, {"license": 7})),
    ({"training": [1]}, "training"),
    ({"versions": "1"}, "versions"),
    ({"device": ["cpu"]}, "device"),
    ({"bytes": "many"}, "bytes"),
    ({"release": "v1"}, "release"),
    ({"imported_from": "there"}, "imported_from"),
]


@pytest.mark.parametrize(("changes", "says"), INDEXES, ids=[f"{i}-{next(iter(c))}" for i, (c, _) in enumerate(INDEXES)])
def test_an_index_of_experts_that_says_nonsense_is_refused(trained, changes, says):
    (trained / "expert_config.json").write_bytes(change(trained, "expert_config.json", **changes))
    assert str(trained) in refused(lambda: ExpertTrajectories.from_pretrained(trained), says)


def test_experts_that_are_not_there_or_of_another_length_are_refused_where_they_are_used(hub, trained, tmp_path):
    changes = {"expert_config.json": change(trained, "expert_config.json", num_experts=10**6)}
    experts = ExpertTrajectories.from_pretrained(published(hub, ExpertTrajectories, trained, changes))
    assert experts.summary().startswith("1000000 experts")
    refused(lambda: experts.row(999_999, 0), "has no expert-999999")
    refused(lambda: experts.save_pretrained(tmp_path / "copy"), "has no expert-")
    assert not list((tmp_path / "copy").iterdir())
    (trained / "expert_config.json").write_bytes(change(trained, "expert_config.json", num_params=FLAT + 1))
    refused(lambda: ExpertTrajectories.from_pretrained(trained).row(0, 0), "mixes two trainings")


@pytest.mark.parametrize("zca", ["yes", {"eps": 1.0, "digest": "a"}])
def test_whitening_of_experts_that_is_not_there_is_refused(trained, zca):
    (trained / "expert_config.json").write_bytes(change(trained, "expert_config.json", preprocessing__zca=zca))
    refused(lambda: ExpertTrajectories.from_pretrained(trained).preprocessing, r"preprocessing\.safetensors")
    (trained / "preprocessing.safetensors").write_bytes(pickle.dumps([1]))
    refused(lambda: ExpertTrajectories.from_pretrained(trained).preprocessing, r"preprocessing\.safetensors is damaged")


@pytest.mark.parametrize("text", [b"not JSON", b"[1, 2]", b"7", b"", b"\xff\xfe", b'{"format_version": 1}', b"{}"])
def test_a_json_file_of_something_else_is_refused_over_http(hub, saved, trained, text):
    repo = published(hub, DistilledSet, saved, {"distill_config.json": text})
    assert "distill_config.json" in refused(lambda: DistilledSet.from_pretrained(repo))
    repo = published(hub, ExpertTrajectories, trained, {"expert_config.json": text})
    assert "expert_config.json" in refused(lambda: ExpertTrajectories.from_pretrained(repo))


@pytest.mark.parametrize("key", ["data_id", "images", "class_names", "preprocessing", "learned_lr", "label_source"])
def test_a_config_without_a_key_is_refused(saved, key):
    config = json.loads((saved / "distill_config.json").read_text())
    del config[key]
    (saved / "distill_config.json").write_text(json.dumps(config))
    refused(lambda: DistilledSet.from_pretrained(saved), f"distill_config.json lacks {key}")


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": None},
        {"rows": {"a": 1}},
        {"rows": [7]},
        {"rows": [{}]},
        {"meta": [1]},
        {"audit": [1]},
        {"version": 3},
        {"version": "2"},
        *(
            {"rows": [{**REPORT.to_json()["rows"][0], **row}]}
            for row in (
                {"accuracies": [float("nan")]},
                {"accuracies": ["0.5"]},
                {"accuracies": []},
                {"accuracies": 0.5},
                {"accuracies": [-1]},
                {"student": 7},
                {"student": ["a"]},
                {"images": "many"},
                {"images": -1},
                {"set": ["random"]},
                {"set": "evil"},
                {"labels": {}},
                {"protocol": None},
                {"extra": 1},
            )
        ),
    ],
    ids=str,
)
def test_results_that_are_nonsense_are_refused(saved, changes):
    (saved / "results.json").write_bytes(change(saved, "results.json", **changes))
    refused(lambda: DistilledSet.from_pretrained(saved), "results.json")


# Class names

EVIL_NAMES = [
    "<script>alert(1)</script>",
    "---",
    "a: [b, {c",
    "![x](javascript:alert(1))",
    "| a | b |",
    "# title\nof two lines",
    "\x00\x07\x1b[31m",
    "../../evil",
    "..",
    "/etc/passwd",
    "a\\..\\b",
    "{{ 7 * 7 }} {% raw %}",
    "'\"`$(touch evil)",
]


def test_class_names_of_any_text_give_a_valid_card_and_stay_in_their_folder(hub, tmp_path):
    repo = f"{hub.namespace}/names"
    made = make(ipc=1, names=EVIL_NAMES, config=CONFIG)
    made.push_to_hub(repo, tag="v1", token=hub.token)  # which the Hub refuses where the metadata is not valid
    text = hub.files("dataset", repo)["README.md"].decode()
    card = DatasetCard(text)
    assert [config["config_name"] for config in card.data.to_dict()["configs"]] == ["default", "tensor"]
    assert "<script" not in text
    assert "49" not in text.split("# Distilled")[1].split("## Load")[0]
    loaded = DistilledSet.from_pretrained(repo)
    assert loaded.class_names == EVIL_NAMES
    before = surroundings(tmp_path)
    loaded.export_image_folder(tmp_path / "deep" / "er" / "export")
    written = (
        surroundings(tmp_path) - before - {tmp_path / "deep", tmp_path / "deep" / "er", tmp_path / "deep/er/export"}
    )
    inside = (tmp_path / "deep/er/export").resolve()
    assert all(path.resolve().is_relative_to(inside) for path in written)
    assert len(list(inside.glob("train/*/*.png"))) == len(EVIL_NAMES)


# Repositories of something else


def test_the_other_kind_of_artifact_or_none_is_refused_by_its_missing_file(hub, saved, trained):
    refused(lambda: DistilledSet.from_pretrained(trained), "has no distill_config.json")
    refused(lambda: ExpertTrajectories.from_pretrained(saved), "has no expert_config.json")
    for kind, name in ((DistilledSet, "distill_config.json"), (ExpertTrajectories, "expert_config.json")):
        other = trained if kind is DistilledSet else saved
        repo = f"{hub.namespace}/other-{kind.repo_type}"
        hub.put(kind.repo_type, repo, files(other))
        refused(lambda kind=kind, repo=repo: kind.from_pretrained(repo), f"has no {name}")
        empty = f"{hub.namespace}/empty-{kind.repo_type}"
        hub.create(kind.repo_type, empty)
        refused(lambda kind=kind, empty=empty: kind.from_pretrained(empty), f"has no {name}")
    hub.put("model", f"{hub.namespace}/model", files(trained))
    refused(lambda: DistilledSet.from_pretrained(f"{hub.namespace}/model"), "no dataset repository")
    hub.put("dataset", f"{hub.namespace}/dataset", files(saved))
    refused(lambda: ExpertTrajectories.from_pretrained(f"{hub.namespace}/dataset"), "no model repository")
