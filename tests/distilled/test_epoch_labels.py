"""Stored labels: of the very views that students see, the same bytes from any run, at the price that they are said to
have."""

import json
import math
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import config as datasets_config
from datasets import load_dataset
from huggingface_hub import DatasetCard
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from hf_distill.augmentation.views import Views
from hf_distill.data.feed import Pool
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.distilled import epoch_labels
from hf_distill.distilled.epoch_labels import Codec, EpochLabels, relabel
from hf_distill.distilled.labels import BatchLabels, HardLabels, LabelSource, MeanLabels, NetworkLabels, TeacherLabels
from hf_distill.evaluation import crop_students
from hf_distill.evaluation.protocols import CropProtocol
from hf_distill.importing.epoch_labels import import_epoch_labels, sampler_order, whole_pixels
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import generator
from tests.helpers import flips, without_sums

SIZE, CLASSES, COUNT, EPOCHS = (12, 14), 6, 150, 5
NAMES = [f"class {number}" for number in range(CLASSES)]
SPEC = StudentSpec("convnet_d1", CLASSES, 3, SIZE, {"width": 8, "norm": "batch"})
VIEWS = Views(seed=11, shuffle=2)  # one field more than the first descriptions have


def make_teacher(scale: float = 3.0) -> NetworkLabels:
    model = SPEC.build(1)
    draw = generator(0, "statistics")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=draw))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=draw))
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.mul_(scale)
    return NetworkLabels(Teacher(model, SPEC, NAMES, Preprocessing(3, SIZE, (0.4,) * 3, (0.3,) * 3)))


def make_pool(count: int = COUNT) -> Pool:
    images = torch.randn(count, 3, *SIZE, generator=generator(0, "images"))
    return Pool(images, torch.arange(count) % CLASSES)


def label(folder: Path, teacher: LabelSource | None = None, pool: Pool | None = None, **options) -> EpochLabels:
    options = {"views": VIEWS, "epochs": EPOCHS, "disable_tqdm": True, **options}
    views, epochs = options.pop("views"), options.pop("epochs")
    return relabel(teacher or make_teacher(), pool or make_pool(), views, epochs, folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors(columns: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in columns.items()}


def small_files() -> None:
    """Two epochs in a file, and three row groups in each."""
    epoch_labels.FILE_VIEWS, epoch_labels.GROUP_BYTES = 2 * COUNT, 2 * CLASSES * 120


@pytest.fixture
def files_of_two(monkeypatch):
    for name in ("FILE_VIEWS", "GROUP_BYTES"):
        monkeypatch.setattr(epoch_labels, name, getattr(epoch_labels, name))
    small_files()


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> EpochLabels:
    return label(tmp_path_factory.mktemp("whole") / "labels")


class Watched(NetworkLabels):
    """A teacher that remembers what it saw, and what it said."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__(teacher)
        self.seen, self.said = {}, {}

    def __call__(self, images, labels, rows, epoch=None):
        logits = super().__call__(images, labels, rows, epoch)
        for index, row in enumerate(rows.tolist()):
            self.seen[epoch, row], self.said[epoch, row] = images[index].clone(), logits[index].clone()
        return logits


# --- what is labelled, and what is seen -------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_students_see_the_bits_that_were_labelled_in_any_order_and_batch(tmp_path, mix):
    teacher, pool = Watched(make_teacher().teacher), make_pool()
    found = label(tmp_path / "labels", teacher, pool, views=Views(seed=3, mix=mix), epochs=2)
    assert set(teacher.seen) == {(epoch, row) for epoch in range(2) for row in range(COUNT)}
    assert not torch.equal(teacher.seen[0, 5], teacher.seen[1, 5])
    for epoch, size in ((0, 1), (1, 7), (0, 64), (1, COUNT)):
        for rows in torch.randperm(COUNT, generator=generator(0, epoch, size)).split(size):
            x = found.views(pool.images, rows, epoch, COUNT, pool.black)
            assert torch.equal(x, torch.stack([teacher.seen[epoch, row] for row in rows.tolist()]))
            said = torch.stack([teacher.said[epoch, row] for row in rows.tolist()])
            assert torch.equal(found(x, pool.labels[rows], rows, epoch), said.half().float())


def test_stored_logits_are_those_of_the_network_on_these_views_to_the_last_bit_of_float16(labels):
    pool, answer = make_pool(), make_teacher().teacher.logits
    for epoch in range(EPOCHS):
        for rows in torch.arange(COUNT).split(epoch_labels.AT_ONCE):
            x = VIEWS(pool.images, rows, epoch, COUNT)
            with torch.no_grad():
                assert torch.equal(labels(x, rows, rows, epoch), answer(x).half().float())


@pytest.mark.parametrize("stored", [6, 2])
def test_training_on_stored_labels_is_training_with_the_teacher_online(tmp_path, monkeypatch, stored):
    pool, online = make_pool(), make_teacher(12.0)
    found = label(tmp_path / "labels", online, pool, epochs=stored)
    protocol = CropProtocol("tiny", 6, 6, batch_size=32, lrs=(0.001,), temperature=1.0)
    curves = []

    def remembered(*args, **kwargs):
        curves[-1].append(loss := real(*args, **kwargs))
        return loss

    real = crop_students.distillation_loss
    monkeypatch.setattr(crop_students, "distillation_loss", remembered)

    for source, views in ((found, found.views), (online, found.views), (online, Views(seed=12))):
        curves.append([])
        source.views = views
        crop_students.train_on_crops(pool, source, torch.arange(COUNT), SPEC, protocol, 6, 0.001, 0)
    stored_curve, online_curve, other = (torch.stack(curve).detach() for curve in curves)
    assert len(stored_curve) == 6 * math.ceil(COUNT / 32)
    torch.testing.assert_close(stored_curve, online_curve, rtol=1e-3, atol=1e-6)
    assert ((other - online_curve).abs() > 1e-2 * online_curve).sum() > len(other) / 2


def test_fewer_stored_epochs_are_the_first_ones_again_with_their_views(labels, tmp_path):
    pool, rows = make_pool(), torch.tensor([149, 0, 77])
    pruned = label(tmp_path / "pruned", epochs=2)
    for epoch in range(7):
        x = pruned.views(pool.images, rows, epoch, COUNT)
        assert torch.equal(x, VIEWS(pool.images, rows, epoch % 2, COUNT))
        assert torch.equal(pruned(x, rows, rows, epoch), labels(x, rows, rows, epoch % 2))
    assert pruned.num_bytes < 0.5 * labels.num_bytes


def test_teachers_that_are_parameter_vectors_label_too(tmp_path):
    spec = StudentSpec("convnet_d1", CLASSES, 3, SIZE, {"width": 8})
    thetas = torch.randn(2, spec.num_params(), generator=generator(0, "theta")) * 0.1
    pool, rows = make_pool(20), torch.arange(20)
    found = label(tmp_path / "labels", TeacherLabels(spec, thetas), pool, epochs=1)
    x = VIEWS(pool.images, rows, 0, 20)
    expected = TeacherLabels(spec, thetas)(x, rows, rows)
    assert torch.equal(found(x, rows, rows, 0), expected.half().float())
    with pytest.raises(ValueError, match=r"labels of kind 'hard' cannot label views; expected a teacher"):
        label(tmp_path / "hard", HardLabels())


# --- codecs and bytes -------------------------------------------------------------------------------------------------


def halves(*shape: int) -> torch.Tensor:
    """Logits that float16 holds exactly."""
    return (4 * torch.randn(*shape, generator=generator(0, "logits"))).half().float()


@pytest.mark.parametrize("kept", [1, 10, 99])
def test_top_k_keeps_the_largest_exactly_and_the_mass_of_the_rest(kept):
    logits = halves(50, 100)
    columns = Codec(kept).encode(logits)
    found = Codec(kept).decode(columns, 100)
    order = logits.numpy().argsort(1)[:, ::-1]
    largest = np.take_along_axis(logits.numpy(), order[:, :kept].copy(), 1)
    assert np.array_equal(np.sort(columns["values"].float().numpy(), 1)[:, ::-1], largest)
    ids = columns["ids"].long()
    assert torch.equal(found.gather(1, ids), logits.gather(1, ids))
    true, decoded = logits.double().softmax(1), found.double().softmax(1)
    torch.testing.assert_close(decoded.gather(1, ids), true.gather(1, ids), rtol=1e-5, atol=0)
    torch.testing.assert_close(1 - decoded.gather(1, ids).sum(1), 1 - true.gather(1, ids).sum(1), rtol=1e-4, atol=1e-9)
    absent = torch.ones(50, 100, dtype=torch.bool).scatter(1, ids, False)
    rest = found[absent].view(50, 100 - kept)
    assert torch.equal(rest, rest[:, :1].expand_as(rest))
    # Another temperature is that of these logits: the shares of the kept classes among each other are the true ones.
    warm, truth = (found / 20).softmax(1).gather(1, ids), (logits / 20).softmax(1).gather(1, ids)
    torch.testing.assert_close(warm / warm[:, :1], truth / truth[:, :1])


def test_to_keep_all_logits_is_the_same_as_not_to_choose():
    logits = torch.randn(20, 9, generator=generator(0))
    assert torch.equal(Codec(9).decode(Codec(9).encode(logits), 9), logits.half().float())
    assert torch.equal(Codec().decode(Codec().encode(logits), 9), logits.half().float())
    with pytest.raises(ValueError, match="10 logits of 9 classes are to be kept"):
        Codec(10).encode(logits)


def test_top_k_labels_come_back_from_their_files(labels, tmp_path, files_of_two):
    found = label(tmp_path / "top", codec=Codec(2))
    rows, x = torch.arange(COUNT), torch.zeros(COUNT, 1)
    for epoch in (4, 0, 3):
        whole = labels(x, rows, rows, epoch)
        assert torch.equal(found(x, rows, rows, epoch).topk(2).values, whole.topk(2).values)
    again = EpochLabels.from_pretrained(tmp_path / "top")
    assert torch.equal(again(x, rows, rows, 1), found(x, rows, rows, 1))


@pytest.mark.parametrize(
    ("kept", "classes", "count", "epochs"),
    [(None, 10, 500, 40), (None, 1000, 200, 10), (10, 1000, 500, 60), (100, 1000, 500, 10), (3, 70_000, 200, 50)],
)
def test_files_cost_what_the_formula_says_and_at_most_a_hundredth_more(tmp_path, kept, classes, count, epochs):
    codec, draw = Codec(kept), np.random.default_rng(0)
    width = kept or classes
    # Every bit is drawn: nothing can be compressed, as little as the noise in real logits.
    values = draw.integers(0, 2**16, (epochs * count, width)).astype(np.uint16).view(np.float16)
    columns = {"logits": values}
    if kept:
        ids = draw.integers(0, classes, (epochs * count, width), dtype=np.int32)
        columns = {"ids": ids, "values": values, "tail": draw.standard_normal(epochs * count).astype(np.float32)}
    epoch_labels._write_file(tmp_path / "file", range(epochs), [tensors(columns)], codec.schema(classes), count)
    wide = 4 if classes > 2**16 else 2
    formula = epochs * count * (2 * classes if kept is None else kept * (2 + wide) + 4)
    assert codec.label_bytes(classes) * epochs * count == formula
    assert (tmp_path / "file").stat().st_size <= 1.01 * formula


def test_bytes_are_those_of_the_files(labels):
    sizes = [path.stat().st_size for path in labels.folder.glob("soft_labels/*")]
    assert labels.num_bytes == sum(sizes)
    # A few kilobytes of labels: what a file costs by itself shows.
    assert COUNT * EPOCHS * 2 * CLASSES * 0.5 < labels.num_bytes < COUNT * EPOCHS * 2 * CLASSES + 4000


# --- files ------------------------------------------------------------------------------------------------------------

# Two ranks that finish, and one that is killed: in one process that imports once.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import torch
from tests.distilled import test_epoch_labels as shared
from accelerate import Accelerator

class Slow(shared.NetworkLabels):
    def __call__(self, *arguments):
        time.sleep(0.05)
        return super().__call__(*arguments)

def start(folder, ranks, teacher):
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1")
                shared.small_files()
                source = teacher(shared.make_teacher().teacher)
                shared.label(Path(folder), source, accelerator=Accelerator(cpu=True))
                Path(f"{folder}-{rank}").write_text(str(len(source.seen)))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    return children

root, os.environ["MASTER_PORT"] = sys.argv[1:]
for child in start(root + "/two", 2, shared.Watched):
    assert os.waitpid(child, 0)[1] == 0
(child,) = start(root + "/killed", 1, Slow)
while len(list(Path(root, "killed").glob("soft_labels/epochs-*"))) < 1:
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    time.sleep(0.001)
os.kill(child, signal.SIGKILL)
assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


def test_two_processes_and_a_run_that_was_killed_leave_the_bytes_of_one(recipes, tmp_path, files_of_two):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "runs.py").write_text(SCRIPT)
    done = recipes(tmp_path / "runs.py", [str(tmp_path), str(port)], tmp_path)
    assert done.status == [0], done.err[-3000:]
    # Epochs 0, 1 and 4; and 2 and 3, with the two views by which a teacher shows how many logits it has.
    assert [int((tmp_path / f"two-{rank}").read_text()) for rank in range(2)] == [3 * COUNT, 2 * COUNT + 2]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = label(tmp_path / "one")
        expected = {name: data for name, data in contents(whole.folder).items() if name.endswith(".parquet")}
        assert len(expected) == 3
        before = {path.name: path.stat() for path in (tmp_path / "killed").glob("soft_labels/epochs-*")}
        assert 1 <= len(before) < 3
        (tmp_path / "killed" / "soft_labels" / ".epochs-00002-00003.parquet.77.tmp").write_bytes(b"half")
        with pytest.raises(ValueError, match=r"killed has no labels_config\.json"):
            EpochLabels.from_pretrained(tmp_path / "killed")
        resumed = label(tmp_path / "killed")
    finally:
        torch.set_num_threads(threads)
    after = {path.name: path.stat() for path in resumed.folder.glob("soft_labels/epochs-*")}
    for name, status in before.items():
        assert (status.st_ino, status.st_mtime_ns) == (after[name].st_ino, after[name].st_mtime_ns)
    for folder in ("killed", "two"):
        found = contents(tmp_path / folder)
        assert {name: data for name, data in found.items() if name.startswith("soft_labels/")} == expected
        assert json.loads(found["labels_config.json"]) == whole.config


def test_labels_that_were_damaged_before_the_last_ones_are_made_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(epoch_labels, "FILE_VIEWS", COUNT)
    whole = contents(label(tmp_path / "whole").folder)

    def stop(*args) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochLabels, "_write_about", stop)
        with pytest.raises(KeyboardInterrupt):
            label(tmp_path / "stopped")
    first = min((tmp_path / "stopped").glob("soft_labels/epochs-*"))
    first.write_bytes(first.read_bytes()[:-9] + b"?" + first.read_bytes()[-8:])
    assert contents(label(tmp_path / "stopped").folder).keys() == whole.keys()
    assert f"{first} is damaged: its checksum is another; its labels are made again" in caplog.text
    assert first.read_bytes() == whole[f"soft_labels/{first.name}"]


def test_what_decides_the_labels_names_them_and_replaces_others_when_it_is_complete(tmp_path):
    folder = tmp_path / "labels"
    names = set()
    for options in ({}, {"views": Views(seed=12)}, {"teacher": make_teacher(2.0)}, {"codec": Codec(3)}, {"epochs": 2}):
        found = label(folder, **options)
        (path,) = folder.glob("soft_labels/*")
        names.add(path.name.rsplit("-", 1)[1])
        assert found.config["id"] in path.name
    pool = make_pool()
    pool.source[3, 0, 0, 0] += 1
    names.add(label(folder, pool=pool).config["id"])
    assert len(names) == 6


def test_files_are_cut_into_pages_and_indexed_as_datasets_writes_them(labels):
    options = json.dumps(datasets_config.DEFAULT_CDC_OPTIONS).encode()
    for path in labels.folder.glob("soft_labels/*.parquet"):
        about = pq.ParquetFile(path).metadata
        assert about.metadata[b"content_defined_chunking"] == options
        columns = [about.row_group(0).column(place) for place in range(about.num_columns)]
        assert all(column.has_offset_index and column.has_column_index for column in columns)


def test_the_card_names_the_dataset_of_the_images(tmp_path):
    for name, expected in (("org/pets", ["org/pets"]), ("here/../pets", None)):
        made = label(tmp_path / "labels")
        made.config["source"] = {"name": name}
        card = DatasetCard.load(made.save_pretrained(tmp_path / "copy") / "README.md")
        assert card.data.source_datasets == expected


def test_plain_load_dataset_reads_the_same_numbers(labels, tmp_path):
    data = load_dataset(str(labels.folder), split="train", cache_dir=str(tmp_path))
    assert data.num_rows == COUNT * EPOCHS
    table = data.with_format("numpy")[:]
    rows = torch.arange(COUNT)
    for epoch in (0, EPOCHS - 1):
        inside = table["epoch"] == epoch
        assert np.array_equal(table["row"][inside], rows)
        expected = labels(torch.zeros(1), rows, rows, epoch).numpy()
        assert np.array_equal(np.asarray(table["logits"][inside], np.float32), expected)


def test_an_epoch_is_read_row_group_by_row_group_and_held_alone(tmp_path, files_of_two):
    found = label(tmp_path / "labels")
    rows = torch.arange(COUNT)
    decoded = found._read_epoch(1)
    assert decoded.rows == range(120, 2 * COUNT)  # groups of 120 rows; the first is not touched
    assert len(decoded.columns["logits"]) == 2 * COUNT - 120
    said = [found(torch.zeros(1), rows, rows, epoch) for epoch in range(EPOCHS)]
    assert len(found._loaded.columns["logits"]) < 2 * COUNT
    for epoch in (2, 0, 4, 4, 1, 3):
        assert torch.equal(found(torch.zeros(1), rows, rows, epoch), said[epoch])


@pytest.mark.parametrize("codec", [Codec(), Codec(2)], ids=["all", "two"])
def test_neither_who_writes_nor_who_reads_holds_more_than_a_few_row_groups(tmp_path, monkeypatch, codec):
    monkeypatch.setattr(epoch_labels, "AT_ONCE", 6)
    rows, size = torch.randperm(COUNT, generator=generator(0)), 20
    whole = label(tmp_path / "once", codec=codec, epochs=2)
    said = [whole(torch.zeros(1), rows, rows, epoch) for epoch in range(2)]
    width = 2 * CLASSES if codec.kept is None else codec.kept * (2 + 4)
    monkeypatch.setattr(epoch_labels, "GROUP_BYTES", size * width)
    monkeypatch.setattr(epoch_labels, "HELD_BYTES", 0)
    labelled, written, ahead, read = [0], [0], [], []
    label_batch, write_group, array = epoch_labels._label, epoch_labels._RowGroups._write_group, epoch_labels._array

    def labelling(*args):
        labelled[0] += len(args[4])
        ahead.append(labelled[0] - written[0])
        return label_batch(*args)

    def writing(groups, columns):
        write_group(groups, columns)
        written[0] += len(columns["logits" if codec.kept is None else "values"])

    def reading(column):
        read.append(len(column))
        return array(column)

    monkeypatch.setattr(epoch_labels, "_label", labelling)
    monkeypatch.setattr(epoch_labels._RowGroups, "_write_group", writing)
    monkeypatch.setattr(epoch_labels, "_array", reading)
    found = label(tmp_path / "labels", codec=codec, epochs=2)
    assert written == [2 * COUNT]
    # What waits, what is being written and made, and the two images that show the classes.
    assert max(ahead) < size + 6 * (epoch_labels.BEHIND + 2) + 2
    for epoch in (1, 0):
        assert torch.equal(found(torch.zeros(1), rows, rows, epoch), said[epoch])
        assert found._loaded.mapped
    assert max(read) == size


def test_the_next_epoch_is_decoded_ahead_and_what_is_wrong_with_it_said_when_it_is_asked_for(tmp_path, files_of_two):
    found, rows = label(tmp_path / "labels"), torch.arange(COUNT)
    names, read = [], found._read_epoch
    found._read_epoch = lambda epoch: names.append((threading.current_thread().name, epoch)) or read(epoch)
    expected = [label(tmp_path / "labels")(torch.zeros(1), rows, rows, epoch) for epoch in range(EPOCHS)]
    (last,) = found.folder.glob("soft_labels/epochs-00004-*")
    last.write_bytes(last.read_bytes()[:-100])
    for epoch in range(EPOCHS - 1):
        assert torch.equal(found(torch.zeros(1), rows, rows, epoch), expected[epoch])
    with one_line("damaged|another"):
        found(torch.zeros(1), rows, rows, 4)
    own = threading.current_thread().name
    assert [epoch for name, epoch in names if name == own] == [0]
    assert [epoch for name, epoch in names if name != own] == [1, 2, 3, 4]


@pytest.mark.parametrize("at_once", [64, 512])
def test_how_many_images_the_teacher_sees_together_is_part_of_what_labels_are(tmp_path, monkeypatch, at_once):
    rows, usual = torch.arange(COUNT), label(tmp_path / "labels")
    said, files = usual(torch.zeros(1), rows, rows, 2), set(usual.folder.glob("soft_labels/*.parquet"))
    teacher = Watched(make_teacher().teacher)
    monkeypatch.setattr(epoch_labels, "_at_once", lambda *_: at_once)
    sizes, ask = [], epoch_labels._label
    monkeypatch.setattr(epoch_labels, "_label", lambda *args: sizes.append(len(args[4])) or ask(*args))
    other = label(tmp_path / "labels", teacher)
    assert max(sizes) == min(at_once, COUNT)
    assert "at_once" not in usual.config
    assert other.config["at_once"] == at_once
    assert not files & set(other.folder.glob("soft_labels/*.parquet"))  # none of them are gone on with
    torch.testing.assert_close(other(torch.zeros(1), rows, rows, 2), said, rtol=0, atol=0.01)


def test_on_an_accelerator_the_teacher_sees_as_many_images_as_fit_unless_its_labels_depend_on_them(monkeypatch):
    pool, accelerator = make_pool(), Accelerator(cpu=True)
    assert epoch_labels._at_once(make_teacher(), pool, accelerator) == 128
    monkeypatch.setattr(pool, "device", torch.device("cuda"))
    monkeypatch.setattr(pool, "images", lambda rows: pool.source[rows])
    values = 8 * math.prod(SIZE)  # of what comes out of a block
    monkeypatch.setattr(epoch_labels, "LOOK_BYTES", 70 * 2 * 4 * values)
    teacher, x, rows = make_teacher(), pool.source[:2], torch.arange(2)
    teacher(x, rows, rows)
    mean = MeanLabels([teacher, teacher])
    assert [epoch_labels._at_once(teacher, pool, accelerator) for teacher in (teacher, mean)] == [64, 64]
    for norm, expected in (("batch", 128), ("instance", 64)):
        spec = StudentSpec("convnet_d1", CLASSES, 3, SIZE, {"width": 8, "norm": norm})
        assert epoch_labels._at_once(TeacherLabels(spec, torch.ones(spec.num_params())), pool, accelerator) == expected


# --- labels by the statistics of batches ------------------------------------------------------------------------------


def by_batch(teacher: Teacher, x: torch.Tensor) -> torch.Tensor:
    """What convnet_d1 says of a group of views whose statistics are its own, written out in float64."""
    weights = {name: value.double() for name, value in teacher.model.state_dict().items()}
    hidden = F.conv2d(x.double(), weights["features.0.weight"], weights["features.0.bias"], padding=1)
    mean = hidden.mean((0, 2, 3), keepdim=True)
    variance = ((hidden - mean) ** 2).mean((0, 2, 3), keepdim=True)
    scale, shift = (weights[f"features.1.{name}"].view(1, -1, 1, 1) for name in ("weight", "bias"))
    hidden = F.avg_pool2d(((hidden - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0), 2)
    return hidden.flatten(1) @ weights["classifier.weight"].T + weights["classifier.bias"]


def test_views_of_a_group_are_each_others_statistics_and_the_running_ones_stay():
    wide = StudentSpec("convnet_d1", CLASSES + 2, 3, SIZE, {"width": 4, "norm": "batch"})
    more = Teacher(wide.build(3), wide, ["x", *NAMES[::-1], "y"], make_teacher().teacher.preprocessing)
    teachers = [make_teacher().teacher, more.narrowed(NAMES)]
    source = BatchLabels([NetworkLabels(teacher) for teacher in teachers], 8)
    before = [{name: value.clone() for name, value in teacher.model.state_dict().items()} for teacher in teachers]
    x, rows = make_pool(24).source, torch.arange(24)
    found = source(x, rows, rows, 0)
    expected = torch.cat([sum(by_batch(each, group) for each in teachers) / 2 for group in x.split(8)])
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, MeanLabels(source.sources)(x, rows, rows), atol=0.1)
    for teacher, tensors_ in zip(teachers, before, strict=True):
        assert all(torch.equal(value, tensors_[name]) for name, value in teacher.model.state_dict().items())
        assert not any(module.training for module in teacher.model.modules())
    assert source.num_bytes == sum(teacher.num_bytes for teacher in teachers)


class Groups(BatchLabels):
    """Remembers the rows that went through together, with their views."""

    def __call__(self, images, labels, rows, epoch=None):
        self.calls = [*getattr(self, "calls", []), (epoch, images.clone(), rows.clone())]
        return super().__call__(images, labels, rows, epoch)


def test_groups_are_drawn_anew_for_each_epoch_and_what_is_left_completes_its_own(tmp_path, files_of_two):
    teacher, size = make_teacher(), 8
    source, pool = Groups([teacher], size), make_pool()  # 150 views: 18 groups, and 6 views
    found = label(tmp_path / "labels", source, pool, epochs=3, codec=Codec(kept=4))
    members: dict[int, list[tuple[int, ...]]] = {}
    for epoch, images, rows in source.calls[1:]:  # the first says how many classes there are
        for x, group in zip(images.split(size), rows.split(size), strict=True):
            first = size - COUNT % size if len(members.setdefault(epoch, [])) == COUNT // size else 0
            members[epoch].append(tuple(group.tolist()))
            own, wanted = group[first:], by_batch(teacher.teacher, x)[first:].sort(1, descending=True)
            stored = found(x[first:], own, own, epoch)
            torch.testing.assert_close(
                stored.gather(1, wanted.indices)[:, :4].double(), wanted.values[:, :4], atol=2e-2, rtol=2e-3
            )
    for groups in members.values():
        once = [row for group in groups[:-1] for row in group] + list(groups[-1][2:])
        assert sorted(once) == list(range(COUNT)) != once
        assert set(groups[-1][:2]) <= set(groups[-2])
    assert len({tuple(groups) for groups in members.values()}) == 3

    (whole, *_), kept = sorted(found.folder.glob("soft_labels/*")), contents(found.folder)
    whole.unlink()
    label(found.folder, BatchLabels([teacher], size), pool, epochs=3, codec=Codec(kept=4))
    assert {name: data for name, data in contents(found.folder).items() if "parquet" in name} == {
        name: data for name, data in kept.items() if "parquet" in name
    }


def test_the_card_says_that_labels_by_batches_cannot_be_asked_again_and_how_many_count(tmp_path):
    pool, teacher = make_pool(12), make_teacher()
    made = [
        label(tmp_path / f"{size}", teacher if size is None else BatchLabels([teacher], size), pool, epochs=1)
        for size in (None, 5, 6)
    ]
    assert len({each.config["id"] for each in made}) == 3
    sentence = "**Nobody can ask for these labels again view by view**"
    assert [sentence in (each.folder / "README.md").read_text() for each in made] == [False, True, True]
    assert "by the statistics of 6 views at a time" in (made[2].folder / "README.md").read_text()
    index = made[2].folder / "labels_config.json"
    index.write_text(index.read_text().replace('"batch_statistics": 6', '"batch_statistics": "6"'))
    with pytest.raises(ValueError, match=r"has teacher.batch_statistics '6'; expected a whole number from 2"):
        EpochLabels.from_pretrained(made[2].folder)


def test_groups_that_cannot_be_are_one_line(tmp_path):
    plain = StudentSpec("convnet_d1", CLASSES, 3, SIZE, {"width": 4, "norm": "instance"})
    without = NetworkLabels(Teacher(plain.build(0), plain, NAMES, make_teacher().teacher.preprocessing))
    thetas = TeacherLabels(plain, torch.ones(plain.num_params()))
    for sources, size, message in (
        ([make_teacher()], 1, r"--batch_statistics is 1; expected at least 2"),
        ([without], 8, r"--batch_statistics is 8 and convnet_d1 has no BatchNorm, whose statistics it means"),
        ([thetas], 8, r"the labels are those of a TeacherLabels; expected networks with BatchNorm"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            BatchLabels(sources, size)
        assert "\n" not in str(error.value)
    BatchLabels([make_teacher(), without], 8)  # one that has none beside one that has
    with pytest.raises(ValueError, match=r"--batch_statistics is 8 and the set has 7 images; expected at most"):
        label(tmp_path / "labels", BatchLabels([make_teacher()], 8), make_pool(7))
    with pytest.raises(ValueError, match=r"7 views do not divide into groups of 8"):
        BatchLabels([make_teacher()], 8)(make_pool(7).source, torch.arange(7), torch.arange(7))


def test_published_labels_come_file_by_file_and_are_saved_whole(hub, tmp_path, files_of_two):
    made, repo = label(tmp_path / "labels"), f"{hub.namespace}/labels"
    made.push_to_hub(repo, tag="v1", token=hub.token)
    there = EpochLabels.from_pretrained(repo, revision="v1", token=hub.token)
    files = {path.name for path in made.folder.glob("soft_labels/*")}

    def fetched() -> set[str]:
        return {path.name for path in Path(os.environ["HF_HOME"]).rglob("epochs-*.parquet")} & files

    assert there.num_bytes == made.num_bytes
    assert fetched() == set()
    rows = torch.arange(COUNT)
    assert torch.equal(there(torch.zeros(1), rows, rows, 3), made(torch.zeros(1), rows, rows, 3))
    assert fetched() == {name for name in files if name.startswith("epochs-00002-00003-")}
    saved = there.save_pretrained(tmp_path / "saved")
    expected = contents(made.folder)
    found = contents(saved)
    assert {name: data for name, data in found.items() if "soft" in name} == {
        name: data for name, data in expected.items() if "soft" in name
    }
    card = hub.files("dataset", repo, "v1")["README.md"].decode()
    assert f'EpochLabels.from_pretrained("{repo}", revision="v1")' in card


# --- bad input --------------------------------------------------------------------------------------------------------


def one_line(match: str):
    return pytest.raises(ValueError, match=rf"(?s)^[^\n]*{match}[^\n]*$")


def test_a_flipped_bit_of_any_file_of_labels_is_refused(labels, tmp_path):
    folder = labels.save_pretrained(tmp_path / "copy")
    for _ in flips(folder, "[!RS]*", 60):
        with one_line(str(folder)):
            EpochLabels.from_pretrained(folder)(torch.zeros(1), torch.tensor([0]), torch.tensor([0]), 0)


@pytest.mark.parametrize("damage", ["short", "rubbish", "empty", "missing", "other epochs", "other columns", "nan"])
def test_a_damaged_file_is_named_in_one_line(labels, tmp_path, damage):
    copy = EpochLabels.from_pretrained(without_sums(labels.save_pretrained(tmp_path / "copy")))
    (path,) = copy.folder.glob("soft_labels/*")
    data = path.read_bytes()
    path.unlink()
    codec, count = copy.codec, COUNT * EPOCHS
    columns = {"logits": torch.zeros((count, CLASSES), dtype=torch.float16)}
    if damage == "short":
        path.write_bytes(data[: len(data) // 2])
    elif damage in ("rubbish", "empty"):
        path.write_bytes(b"no parquet" * 9 if damage == "rubbish" else b"")
    elif damage == "other epochs":
        epoch_labels._write_file(path, range(1, 1 + EPOCHS), [columns], codec.schema(CLASSES), COUNT)
    elif damage == "other columns":
        columns = {"logits": torch.zeros((count, 7), dtype=torch.float16)}
        epoch_labels._write_file(path, range(EPOCHS), [columns], codec.schema(7), COUNT)
    elif damage == "nan":
        columns["logits"][-1, 0] = math.nan
        epoch_labels._write_file(path, range(EPOCHS), [columns], codec.schema(CLASSES), COUNT)
    what = {"missing": "lacks", "nan": "not finite", "other epochs": "other rows or epochs"}
    with one_line(f"{path.name}.*|{what.get(damage, 'damaged or cut short')}") as error:
        copy(torch.zeros(1), torch.tensor([0]), torch.tensor([0]), 0)
    assert what.get(damage, "damaged or cut short") in str(error.value)
    assert path.name in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "../../abc"),
        ("images", 0),
        ("classes", "6"),
        ("epochs", -1),
        ("epochs_per_file", 0),
        ("kept", 7),
        ("views", {"seed": 1}),
        ("views", {**VIEWS.to_config(), "mix": "blend"}),
        ("views", {**VIEWS.to_config(), "shuffle": 0}),
        ("views", {**VIEWS.to_config(), "shuffle": 10**9}),
        ("views", {**VIEWS.to_config(), "scale": [0, math.nan]}),
        ("bytes", None),
        ("views", {"kind": "recorded", "mix": "blend", "size": [12, 14]}),
        ("views", {"kind": "recorded", "mix": "cutmix", "size": [12]}),
        ("teacher", "resnet"),
        ("format_version", 2),
        ("class_names", NAMES[:-1]),
        ("class_names", [*NAMES[:-1], NAMES[0]]),
        ("class_names", "abcdef"),
    ],
)
def test_an_index_that_says_nonsense_is_refused_in_one_line(labels, tmp_path, name, value):
    folder = labels.save_pretrained(tmp_path / "copy")
    config = json.loads((folder / "labels_config.json").read_text())
    (folder / "labels_config.json").write_text(json.dumps({**config, name: value}))
    with one_line(r"labels_config\.json"):
        EpochLabels.from_pretrained(folder)


def test_labels_of_other_images_or_classes_are_refused_in_one_line(labels):
    pool, rows = make_pool(), torch.arange(COUNT)
    labels.check_matches(pool, NAMES)
    with one_line("are 6 logits, and the images have 7 classes"):
        labels.check_matches(pool, [*NAMES, "another"])
    shuffled = Pool(pool.source.flip(0), pool.labels)
    scaled = Pool((pool.source * 9).byte(), pool.labels, preprocessing=make_teacher().teacher.preprocessing)
    for other in (shuffled, make_pool(COUNT - 1), scaled):
        with one_line("of 150 other images than these"):
            labels.check_matches(other)
    with one_line("labels of 150 images for a student on 149"):
        labels.views(pool.images, rows[:5], 0, COUNT - 1)
    with one_line("no epoch was given"):
        labels(pool.source, pool.labels, rows)


def test_labels_know_the_order_of_their_classes_and_are_named_alike(labels, tmp_path):
    named = label(tmp_path / "named", class_names=NAMES)
    assert (named.class_names, labels.class_names) == (NAMES, None)
    assert {"class_names": NAMES, **labels.config} == named.config, "names decide no logit"
    named.check_matches(make_pool(), NAMES)
    with one_line(f"whoever made the labels in .* calls class 0 '{NAMES[0]}', and here it is '{NAMES[-1]}'"):
        named.check_matches(make_pool(), NAMES[::-1])


def test_a_folder_of_something_else_and_a_teacher_gone_wrong_are_refused_in_one_line(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("mine")
    with one_line("holds something else"):
        label(tmp_path / "other")
    (tmp_path / "file").touch()
    with one_line("is a file"):
        label(tmp_path / "file")
    with one_line("epochs"):
        label(tmp_path / "none", epochs=0)
    for scale in (1e6, math.inf):
        with one_line("not finite, or beyond 65,504, in epochs 0 to 4"):
            label(tmp_path / "wrong", make_teacher(scale))
    assert not list((tmp_path / "wrong").rglob("*.parquet"))
    with one_line("7 logits of 6 classes are to be kept"):
        label(tmp_path / "wide", codec=Codec(7))


# --- the authors' files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("side", [64, 224, 256, 500])
def test_rounding_recovers_every_pixel_of_a_fraction_and_cutting_off_does_not(side, dtype):
    pixels = torch.arange(side + 1)
    fractions = (pixels.double() / side).to(dtype)[:, None].repeat(1, 4)
    assert torch.equal(whole_pixels(fractions, (side, side)), pixels[:, None].expand(-1, 4))
    wrong = int(((fractions[:, 0] * side).long() != pixels).sum())
    # Sides that are powers of two have exact fractions in float32.
    assert (wrong > 0) == (side not in (64, 256))


def foreign(folder: Path, order: torch.Tensor, mix: str, batch: int = 8, known_by: float = 3) -> dict:
    """The authors' layout for images of SIZE, with the types that their scripts pickle; what they mean, by epoch."""
    height, width = SIZE
    draw, known = np.random.default_rng(0), {}
    for epoch, rows in enumerate(order):
        (folder / f"epoch_{epoch}").mkdir(parents=True)
        for number, own in enumerate(rows.split(batch)):
            n = len(own)
            tall, wide = draw.integers(1, height + 1, n), draw.integers(1, width + 1, n)
            top, left = draw.integers(0, height - tall + 1), draw.integers(0, width - wide + 1)
            coords = torch.FloatTensor(np.stack([top / height, left / width, tall / height, wide / width], 1))
            flip, partners = torch.from_numpy(draw.random(n) < 0.5), torch.from_numpy(draw.permutation(n))
            logits = torch.from_numpy(draw.normal(size=(n, CLASSES))).half()
            weight, box = draw.beta(0.8, 0.8), None
            seen = own[partners] if mix == "mixup" and weight < 0.5 else own  # the larger part of each view
            logits[torch.arange(n), seen % CLASSES] += known_by  # a teacher that knows most of them
            if mix == "cutmix":
                box = [np.clip(number, 0, height), 2, np.clip(number + 5, 0, height), np.int64(9)]
            state = [coords, flip, partners, weight, box, logits]
            if mix == "none":
                state[2:5] = [None] * 3
            torch.save(state, folder / f"epoch_{epoch}" / f"batch_{number}.tar")
            known[epoch, number] = (own, (top, left, tall, wide), flip, partners, weight, box, logits)
    return known


def imported(folder: Path, directory: Path, pool: Pool, **options) -> EpochLabels:
    return import_epoch_labels(folder, pool, NAMES, directory, disable_tqdm=True, **options)


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_the_authors_files_are_replayed_crop_by_crop(tmp_path, mix):
    pool, order = make_pool(20), sampler_order(20, 2)
    known = foreign(tmp_path / "theirs", order, mix)
    whole = imported(tmp_path / "theirs", tmp_path / "ours", pool)
    source = EpochLabels.from_pretrained(whole.save_pretrained(tmp_path / "copy"))
    source.check_matches(pool, NAMES)
    assert (source.num_images, source.num_classes, source.num_epochs) == (20, CLASSES, 2)
    assert source.num_bytes == sum(path.stat().st_size for path in source.folder.rglob("*.parquet"))
    shuffled = torch.randperm(20, generator=generator(0))
    for epoch in range(2):
        views, said = torch.empty(20, 3, *SIZE), torch.empty(20, CLASSES)
        other, share = torch.empty(20, dtype=torch.long), torch.empty(20)
        for rows in shuffled.split(6):  # other batches than those of the files
            views[rows] = x = source.views(pool.images, rows, epoch, 20)
            said[rows] = source(x, pool.labels[rows], rows, epoch)
            other[rows], share[rows] = source.views.mixing(rows, epoch, 20, SIZE)
        for number in range(3):
            own, boxes, flip, partners, weight, box, logits = known[epoch, number]
            crops = []
            for row, top, left, tall, wide, mirrored in zip(own, *boxes, flip, strict=True):
                part = pool.source[row : row + 1, :, top : top + tall, left : left + wide]
                part = F.interpolate(part, SIZE, mode="bilinear", align_corners=False)[0]
                crops.append(part.flip(2) if mirrored else part)
            crops = torch.stack(crops)
            expected, kept = crops.clone(), torch.ones(len(own))
            if mix == "cutmix":  # as in the authors' loop
                expected[:, :, box[0] : box[2], box[1] : box[3]] = crops[partners][
                    :, :, box[0] : box[2], box[1] : box[3]
                ]
                kept[:] = 1 - (box[2] - box[0]) * (box[3] - box[1]) / math.prod(SIZE)
            elif mix == "mixup":
                expected, kept[:] = crops * weight + crops[partners] * (1 - weight), weight
            torch.testing.assert_close(views[own], expected.float(), rtol=0, atol=1e-5)
            torch.testing.assert_close(share[own], kept)
            assert torch.equal(other[own], own if mix == "none" else own[partners])
            assert torch.equal(said[own], logits.float())
    rows = torch.arange(4)
    assert torch.equal(source.views(pool.images, rows, 3, 20), source.views(pool.images, rows, 1, 20))
    protocol = CropProtocol("tiny", 3, 3, batch_size=6, lrs=(0.01,))
    student = crop_students.train_on_crops(pool, source, torch.arange(20), SPEC, protocol, 3, 0.01, 0)
    assert all(parameter.isfinite().all() for parameter in student.parameters())


def test_imported_labels_are_columns_that_plain_load_dataset_reads(tmp_path):
    known = foreign(tmp_path / "theirs", sampler_order(20, 1), "cutmix")
    labels = imported(tmp_path / "theirs", tmp_path / "ours", make_pool(20), source={"name": "org/pets"})
    data = load_dataset(str(labels.folder), split="train", cache_dir=str(tmp_path / "cache")).with_format("numpy")
    own, boxes, flip, partners, _, box, logits = known[0, 2]
    part = data[own.tolist()]
    assert np.array_equal(part["crop"], np.stack(boxes, 1))
    assert np.array_equal(part["flip"], flip.int().numpy())
    assert np.array_equal(part["partner"], own[partners].numpy())
    assert (part["mix_box"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]).all()
    assert np.array_equal(part["logits"], logits.numpy())
    card = (labels.folder / "README.md").read_text()
    assert "`crop`, `flip`, `partner` and `mix_box`" in card
    assert "Imported from: layout folders of epochs, files 3" in card
    assert "org/pets" in card
    assert "Teacher" not in card


def test_labels_of_images_in_another_order_are_found_out(tmp_path):
    pool = make_pool()
    foreign(tmp_path / "theirs", sampler_order(COUNT, 2, seed=7), "cutmix")
    with one_line("epoch_0 labels .* no more than chance: a sampler with the seed 42 did not deal"):
        imported(tmp_path / "theirs", tmp_path / "ours", pool)
    assert not list((tmp_path / "ours").rglob("*.parquet"))
    assert imported(tmp_path / "theirs", tmp_path / "ours", pool, order_seed=7).num_epochs == 2
    # As by a sampler that draws once for each epoch, and not twice: the first one is the same.
    other = sampler_order(COUNT, 2)
    other[1] = other[1].flip(0).roll(31)
    foreign(tmp_path / "later", other, "none")
    with one_line("epoch_1 labels .* no more than chance"):
        imported(tmp_path / "later", tmp_path / "second", pool)


def test_weak_labels_are_believed_by_all_their_epochs_and_warned_of_where_these_are_few(tmp_path, caplog):
    pool = make_pool(30)
    foreign(tmp_path / "theirs", sampler_order(30, 12), "mixup", known_by=0.8)
    assert imported(tmp_path / "theirs", tmp_path / "ours", pool).num_epochs == 12
    assert "too few or too weak" not in caplog.text
    foreign(tmp_path / "few", sampler_order(30, 1), "mixup", known_by=0.3)
    assert imported(tmp_path / "few", tmp_path / "doubtful", pool).num_epochs == 1
    assert "too few or too weak to show that a sampler with the seed 42 dealt these images" in caplog.text
    foreign(tmp_path / "wrong", sampler_order(30, 12, seed=7), "mixup", known_by=0.8)
    with one_line("no more than chance"):
        imported(tmp_path / "wrong", tmp_path / "refused", pool)


def test_the_order_is_that_of_a_loader_with_such_a_sampler():
    sampler = RandomSampler(range(23), generator=torch.Generator().manual_seed(42))
    loader = DataLoader(range(23), batch_size=5, sampler=sampler)
    assert torch.equal(sampler_order(23, 3), torch.stack([torch.cat(list(loader)) for _ in range(3)]))


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ("code", "is refused: reading it would run code"),
        ("short", "cannot be read"),
        ("gap", r"holds 2 of batch_<number>.tar; expected batch_0.tar and all after it"),
        ("no epochs", r"holds 0 of epoch_<number>; expected epoch_0 and all after it"),
        ("parts", "not six parts"),
        ("crops", "crops beyond images of 12x14 pixels"),
        ("partners", "partners that are no permutation of 8"),
        ("box", "a box beyond images"),
        ("nan", "logits that are not finite"),
        ("fewer", "labels 12 images, and there are 20"),
        ("classes", "differ from the first of all in classes or in how they are mixed"),
        ("names", "are 6 logits, and the images have 5 classes"),
    ],
)
def test_a_bad_file_of_the_authors_is_refused_in_one_line(tmp_path, damage, match):
    known = foreign(tmp_path, sampler_order(20, 1), "cutmix")
    path = tmp_path / "epoch_0" / "batch_1.tar"
    _, _, flip, partners, weight, box, logits = known[0, 1]
    coords = torch.tensor([[0.0, 0, 1, 1]]).repeat(8, 1)
    parts = [coords, flip, partners, weight, box, logits]
    if damage == "code":
        torch.save(Evil(), path)
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "gap":
        path.unlink()
    elif damage == "no epochs":
        path.parent.rename(tmp_path / "first")
    elif damage != "names":
        if damage == "parts":
            parts = parts[:5]
        elif damage == "crops":
            coords[3, 0] = 0.5
        elif damage == "partners":
            parts[2] = torch.zeros(8, dtype=torch.long)
        elif damage == "box":
            parts[4] = [0, 0, 5, 15]
        elif damage == "nan":
            logits[0, 0] = math.nan
        elif damage == "fewer":
            parts = [part[:0] if isinstance(part, torch.Tensor) else part for part in parts]
            (tmp_path / "epoch_0" / "batch_2.tar").rename(path)
            parts = torch.load(path, weights_only=False)
        elif damage == "classes":
            parts[5] = logits[:, :3]
        torch.save(parts, path)
    with one_line(match):
        import_epoch_labels(tmp_path, make_pool(20), NAMES[: 5 if damage == "names" else 6], tmp_path / "ours")
    assert not list((tmp_path / "ours").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("crop", [0, 0, 13, 3], "boxes in crop that lie beyond images of 12x14 pixels"),
        ("crop", [0, 0, 0, 3], "or hold nothing"),
        ("mix_box", [9, 0, 4, 3], "boxes in mix_box"),
        ("flip", 2, "flip that are neither 0 nor 1"),
        ("partner", 20, "partners that are none of 20 images"),
        ("partner", -1, "partners that are none of 20 images"),
        ("mix_weight", 1.5, "weights in mix_weight"),
        ("mix_weight", math.nan, "weights in mix_weight"),
    ],
)
def test_views_in_a_file_that_cannot_be_are_refused_in_one_line(tmp_path, column, value, match):
    foreign(tmp_path / "theirs", sampler_order(20, 1), "mixup" if column == "mix_weight" else "cutmix")
    labels = imported(tmp_path / "theirs", tmp_path / "ours", make_pool(20))
    labels = EpochLabels.from_pretrained(without_sums(labels.folder))
    (path,) = labels.folder.glob("soft_labels/*")
    table = pq.read_table(path)
    columns = {name: epoch_labels._array(table[name]) for name in table.column_names if name not in ("row", "epoch")}
    columns[column][7] = value
    epoch_labels._write_file(path, range(1), [tensors(columns)], labels.schema, 20)
    with one_line(match):
        labels(torch.zeros(1), torch.tensor([0]), torch.tensor([0]), 0)
