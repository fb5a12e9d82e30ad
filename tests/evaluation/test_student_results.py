"""What students reached, kept as they finish: an interrupted table goes on, and nothing is taken for something else."""

import copy
import dataclasses
import hashlib
import itertools
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin
from torch import Tensor, nn

from hf_distill.augmentation.views import Views
from hf_distill.config import DataArguments
from hf_distill.data.feed import Pool
from hf_distill.data.images import RealImages
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.epoch_labels import relabel
from hf_distill.distilled.labels import HardLabels, LabelSource, MeanLabels, NetworkLabels, StoredLabels, TeacherLabels
from hf_distill.evaluation import student_results
from hf_distill.evaluation import trainer as trainer_module
from hf_distill.evaluation.evaluate import evaluate
from hf_distill.evaluation.label_comparison import compare_labels
from hf_distill.evaluation.protocols import Budget, CropProtocol, EvalProtocol
from hf_distill.evaluation.student_results import StudentResults
from hf_distill.evaluation.trainer import Case, Trainer
from hf_distill.hub.results import EvalRow
from hf_distill.networks.architectures import FlatModel, StudentSpec
from hf_distill.networks.teachers import Teacher

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def uncached(monkeypatch) -> None:
    """Nothing is found of what another test trained."""
    monkeypatch.setattr(datasets, "is_caching_enabled", lambda: False)


SPEC = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 8})
TINY = EvalProtocol("tiny", epochs=2, full_data_epochs=1, lrs=(0.1, 0.02))


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def data() -> tuple[RealImages, RealImages, RealImages]:
    train, test = RealImages.train_and_test(DataArguments(max_train_samples=100, max_test_samples=50))
    train, held_out = train.split(0.2, seed=0)
    return train, held_out, test


@pytest.fixture
def trained(monkeypatch) -> list[list[int]]:
    """The seeds of students that are trained, of those side by side together."""
    seen: list[list[int]] = []
    train = trainer_module.train_students

    def count(*args: Any, seeds: list[int], **options: Any) -> list[nn.Module]:
        seen.append(list(seeds))
        return train(*args, seeds=seeds, **options)

    monkeypatch.setattr(trainer_module, "train_students", count)
    return seen


@pytest.fixture
def untrained(monkeypatch) -> list[int]:
    """The seeds of students that would be trained and tested."""
    seen: list[int] = []

    def fresh(*args: Any, seeds: list[int], **options: Any) -> list[nn.Module]:
        seen.extend(seeds)
        return [nn.Identity() for _ in seeds]

    monkeypatch.setattr(trainer_module, "train_students", fresh)
    monkeypatch.setattr(trainer_module, "accuracy", lambda model, pool: 0.5)
    return seen


def distilled_set(train: RealImages) -> DistilledSet:
    rows = torch.cat([train.class_rows(label)[:1] for label in range(10)])
    images, labels = train.images(rows), train.labels[rows]
    teacher = TeacherLabels(SPEC, FlatModel.from_spec(SPEC).init(5))
    soft = teacher(images, labels, rows)
    config = {"student": SPEC.to_dict(), "source": {"name": "digits"}}
    return DistilledSet(
        images, labels, train.class_names, train.preprocessing, soft_labels=soft, teacher=teacher, config=config
    )


def evaluated(data: tuple[RealImages, RealImages, RealImages], folder: Path, **options: Any) -> dict[str, Any]:
    train, held_out, test = data
    options = {"num_seeds": 2, "protocol": TINY, "disable_tqdm": True, **options}
    return evaluate(distilled_set(train), train, test, held_out=held_out, output_dir=folder, **options).to_json()


# A table


def test_a_table_that_is_there_is_not_trained_again_and_further_students_alone_are(data, trained, tmp_path):
    report = evaluated(data, tmp_path)
    first = len(trained)
    assert evaluated(data, tmp_path) == report
    assert len(trained) == first
    wider = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4})
    further = evaluated(data, tmp_path, students=[SPEC, wider])
    assert len(further["rows"]) == 2 * len(report["rows"])
    assert all(row in further["rows"] for row in report["rows"])
    assert first < len(trained) <= 2 * first


def test_a_table_that_is_interrupted_again_and_again_becomes_the_same_report(data, monkeypatch, tmp_path):
    whole, train, left = evaluated(data, tmp_path / "whole"), trainer_module.train_students, [0]

    def interrupted(*args: Any, **options: Any) -> list[nn.Module]:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return train(*args, **options)

    monkeypatch.setattr(trainer_module, "train_students", interrupted)
    for done in (1, 1, 7, 99):
        left[0] = done
        with nullcontext() if done == 99 else pytest.raises(KeyboardInterrupt):
            report = evaluated(data, tmp_path / "part")
    assert report == whole
    kept = [(tmp_path / run / "students").iterdir() for run in ("whole", "part")]
    one, other = ({path.name: path.read_bytes() for path in paths} for paths in kept)
    assert one == other


def test_another_set_of_the_same_images_finds_what_students_reached_on_all_of_them(
    data, trained, monkeypatch, tmp_path
):
    monkeypatch.setattr(datasets, "is_caching_enabled", lambda: True)
    monkeypatch.setattr(student_results, "cache_folder", lambda: tmp_path / "cache")
    train, held_out, test = data
    options = {"num_seeds": 2, "protocol": TINY, "disable_tqdm": True, "held_out": held_out, "baselines": []}

    def rows(name: str, shown: int, **changes: Any) -> dict[str, Any]:
        distilled = distilled_set(train)
        distilled.pixel_values.data[0] += shown  # another set
        report = evaluate(distilled, train, test, output_dir=tmp_path / name, **{**options, **changes})
        return {f"{row.set}, {row.labels}": row.accuracies for row in report.rows if row.set == "full data"}

    one, first = rows("one", 0), len(trained)
    assert rows("other", 1) == one
    again = len(trained) - first
    assert rows("other", 1) == one
    assert len(trained) == first + again  # what the cache had is in the folder too
    monkeypatch.setattr(student_results, "cache_folder", lambda: tmp_path / "empty")
    assert rows("third", 1) == one
    assert len(trained) - first - again == first > again
    for changes in ({"seed": 1}, {"protocol": replace(TINY, full_data_epochs=2)}):
        before = len(trained)
        rows("other", 1, **changes)
        assert len(trained) - before == first
    monkeypatch.setattr(datasets, "is_caching_enabled", lambda: False)
    before = len(trained)
    rows("fourth", 1)
    assert len(trained) - before == first


def test_sets_of_other_sizes_and_baselines_find_what_students_reached_on_all_images(data, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "is_caching_enabled", lambda: True)
    monkeypatch.setattr(trainer_module, "students_at_once", lambda *args: 1)
    train, held_out, test = data
    train_students, seen = trainer_module.train_students, []

    def count(pool: Pool, targets: Any, rows: Tensor, *args: Any, **options: Any) -> list[nn.Module]:
        seen.append(rows.shape[1] == len(train) and len(options["lrs"]) == 1)
        return train_students(pool, targets, rows, *args, **options)

    monkeypatch.setattr(trainer_module, "train_students", count)
    calls = itertools.count()

    def trained_on_all(ipc: int, *baselines: str) -> tuple[int, list[EvalRow]]:
        """The networks that were trained on all images, and the rows of full data and herding."""
        seen.clear()
        rows = torch.cat([train.class_rows(label)[:ipc] for label in range(10)])
        names, options = train.class_names, {"held_out": held_out.subset([]), "num_seeds": 2, "disable_tqdm": True}
        config = {"student": SPEC.to_dict()}
        distilled = DistilledSet(train.images(rows), train.labels[rows], names, train.preprocessing, config=config)
        options |= {"protocol": TINY, "baselines": baselines, "output_dir": tmp_path / str(next(calls))}
        report = evaluate(distilled, train, test, **options)
        return sum(seen), [row for row in report.rows if row.set in ("full data", "herding")]

    monkeypatch.setattr(student_results, "cache_folder", lambda: tmp_path / "cache")
    first, rows = trained_on_all(1, "random")
    assert first == 2
    assert trained_on_all(2, "random") == trained_on_all(2) == (0, rows)
    assert [trained_on_all(ipc, "herding")[0] for ipc in (1, 2, 1, 2)] == [1, 1, 0, 0]  # the one that chooses
    found = trained_on_all(2, "herding", "random")[1]
    monkeypatch.setattr(student_results, "cache_folder", lambda: tmp_path / "another")
    assert trained_on_all(2, "herding", "random") == (2, found)  # one network for both questions
    assert trained_on_all(1, "random") == (0, rows)


def test_who_trains_side_by_side_is_part_of_what_is_kept(data, monkeypatch, trained, tmp_path):
    monkeypatch.setattr(trainer_module, "students_at_once", lambda *args: 2)
    options = {"full_data": False, "baselines": []}
    evaluated(data, tmp_path / "grown", num_seeds=3, **options)
    before = len(trained)
    grown = evaluated(data, tmp_path / "grown", num_seeds=4, **options)
    assert [len(seeds) for seeds in trained[before:]] == [2, 2]  # of each row the fourth, and the third, once alone
    assert evaluated(data, tmp_path / "anew", num_seeds=4, **options) == grown


def test_compared_labels_are_kept_too_and_are_those_of_the_table(data, trained, tmp_path):
    train, held_out, test = data
    distilled = distilled_set(train)
    options = {"held_out": held_out, "protocol": TINY, "num_seeds": 2, "disable_tqdm": True, "output_dir": tmp_path}
    evaluate(distilled, train, test, full_data=False, baselines=[], **options)
    before, sources = len(trained), {"own": distilled.label_source, "hard": HardLabels()}
    rows = compare_labels(distilled, sources, test, **options)
    after = len(trained)
    assert after > before  # for hard labels the seeds are those of the soft row
    assert compare_labels(distilled, sources, test, **options) == rows
    assert compare_labels(distilled, {"own": distilled.label_source}, test, **options) == rows[:1]
    assert len(trained) == after


def forged(results: Any) -> Callable[[bytes], bytes]:
    """Other results, with their checksum."""

    def write(whole: bytes) -> bytes:
        digest = hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()
        return json.dumps({**json.loads(whole), "results": results, "sha256": digest}).encode()

    return write


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[:40],
    "changed": lambda whole: json.dumps({**json.loads(whole), "results": [0.125]}).encode(),
    "nothing in it": lambda whole: b"{}",
    "a list": lambda whole: b"[1]",
    "of other students": lambda whole: whole.replace(b'"seeds": [', b'"seeds": [1'),
    **{f"results {value!r}": forged(value) for value in ([0.5, 0.5], [], ["0.5"], [2], None, {"0": 0.5}, [[0.5, {}]])},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_said_in_one_line_and_trained_again(data, accelerator, untrained, tmp_path, caplog, damage):
    trainer, case = trainer_of(data, tmp_path, accelerator), case_of(data, rows=torch.arange(20)[None])
    (result,) = trainer.measure([case])
    (path,) = (tmp_path / "students").iterdir()
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    with caplog.at_level(logging.WARNING):
        assert trainer.measure([case]) == [result]
    (record,) = caplog.records
    assert str(path) in record.message
    assert "\n" not in record.message
    assert len(untrained) == 2
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "rows", [{}, {"herding": [0], "k-center": [0]}, {"herding": [10**6] * 10, "k-center": [0] * 10}]
)
def test_rows_of_subsets_that_cannot_be_are_chosen_again(data, trained, tmp_path, rows):
    report, before = evaluated(data, tmp_path), len(trained)
    for path in (tmp_path / "students").iterdir():
        if isinstance(json.loads(path.read_bytes())["results"][0], dict):  # what the network that guides said
            path.write_bytes(forged([rows])(path.read_bytes()))
    assert evaluated(data, tmp_path) == report
    assert len(trained) == before + 1


# What decides


def case_of(data: tuple[RealImages, ...], **changed: Any) -> Case:
    train, _, _ = data
    pool = Pool(train, train.labels, preprocessing=train.preprocessing)
    rows = torch.arange(20)
    case = Case("distilled", "hard", SPEC, pool, pool.labels, rows.expand(2, -1), rows, (0.1,), 2, TINY)
    return replace(case, **changed)


def trainer_of(data: tuple[RealImages, ...], folder: Path, accelerator: Accelerator, **changed: Any) -> Trainer:
    _, held_out, test = data
    pools = [Pool(real, real.labels, preprocessing=real.preprocessing) for real in (test, held_out)]
    return replace(Trainer(accelerator, 0, *pools, True, StudentResults(folder, accelerator)), **changed)


def another(value: Any) -> Any:
    """A value of the same kind that differs."""
    if isinstance(value, Views):
        return replace(value, flip=value.flip / 2)
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, tuple):
        return (*value, 0.625)
    return value + (0.125 if isinstance(value, float) else "x" if isinstance(value, str) else 1)


KINDS = {"EvalProtocol": TINY, "CropProtocol": CropProtocol("tiny", epochs=2, full_data_epochs=1)}
FIELDS = [(kind, field.name) for kind, known in KINDS.items() for field in dataclasses.fields(known)]


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_every_field_of_a_protocol_decides(data, accelerator, untrained, tmp_path, kind, field):
    trainer, protocol = trainer_of(data, tmp_path, accelerator), copy.copy(KINDS[kind])
    for expected in (2, 2):
        trainer.measure([case_of(data, protocol=protocol)])
        assert len(untrained) == expected
    value = Budget("budget", 1) if field == "budget" else another(getattr(protocol, field))
    object.__setattr__(protocol, field, value)
    trainer.measure([case_of(data, protocol=protocol)])
    assert len(untrained) == 4


def test_every_field_of_views_decides(data, accelerator, untrained, tmp_path):
    trainer, protocol = trainer_of(data, tmp_path, accelerator), KINDS["CropProtocol"]
    for number, field in enumerate(dataclasses.fields(Views)):
        views = copy.copy(protocol.views)
        object.__setattr__(views, field.name, another(getattr(views, field.name)))
        trainer.measure([case_of(data, protocol=replace(protocol, views=views))])
        assert len(untrained) == 2 * (number + 1), field.name


def shifted(pool: Pool, index: int) -> Pool:
    """The same images, but for one value of one of them."""
    images = pool.source.uint8(range(len(pool))).clone()
    images[index, 0, 0, 0] ^= 1
    return Pool(images, pool.labels.clone(), preprocessing=pool.preprocessing)


def relabelled(pool: Pool, index: int) -> Pool:
    labels = pool.labels.clone()
    labels[index] = (labels[index] + 1) % 10
    return Pool(pool.source, labels, preprocessing=pool.preprocessing)


def seen_otherwise(pool: Pool) -> Pool:
    known = pool.preprocessing
    return Pool(pool.source, pool.labels, preprocessing=Preprocessing(1, (8, 8), (0.25,), known.std))


def classes(labels: Tensor, index: int) -> Tensor:
    labels = labels.clone()
    labels[index] = (labels[index] + 1) % 10
    return labels


CASES: dict[str, Callable[[Case], dict[str, Any]]] = {
    "an image": lambda case: {"pool": shifted(case.pool, 3)},
    "a class": lambda case: {"targets": classes(case.targets, 3)},
    "preprocessing": lambda case: {"pool": seen_otherwise(case.pool)},
    "order": lambda case: {"rows": case.rows.flip(1)},
    "one row": lambda case: {"rows": torch.cat([case.rows[:, :-1], torch.full((2, 1), 30)], dim=1)},
    "fewer": lambda case: {"rows": case.rows[:, :-1]},
    "width": lambda case: {"spec": replace(SPEC, kwargs={"width": 4})},
    "rate": lambda case: {"lrs": (0.2,)},
    "epochs": lambda case: {"epochs": 3},
    "kind of labels, which names streams": lambda case: {"labels": "soft"},
    "soft labels": lambda case: {"targets": StoredLabels(torch.eye(10).repeat(10, 1)[: len(case.pool)])},
}


@pytest.mark.parametrize("what", CASES)
def test_everything_about_a_case_decides(data, accelerator, untrained, tmp_path, what):
    trainer, case = trainer_of(data, tmp_path, accelerator), case_of(data)
    trainer.measure([case])
    trainer.measure([replace(case, set="random", trial=case.trial[:5])])  # the same work, whatever else the case is for
    assert len(untrained) == 2
    trainer.measure([replace(case, **CASES[what](case))])
    assert len(untrained) == 4


def test_images_of_which_nobody_learns_decide_nothing(data, accelerator, untrained, tmp_path):
    trainer, case = trainer_of(data, tmp_path, accelerator), case_of(data)
    trainer.measure([case])
    trainer.measure([replace(case, pool=shifted(case.pool, 25))])
    assert len(untrained) == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"test": lambda pool: shifted(pool, 7)},
        {"test": lambda pool: relabelled(pool, 7)},
        {"test": seen_otherwise},
    ],
)
def test_seed_and_test_images_decide(data, accelerator, untrained, tmp_path, changed):
    trainer = trainer_of(data, tmp_path, accelerator)
    trainer.measure([case_of(data)])
    values = {name: value(trainer.test) if callable(value) else value for name, value in changed.items()}
    replace(trainer, **values).measure([case_of(data)])
    assert len(untrained) == 4


def test_held_out_images_decide_the_trials_alone(data, accelerator, untrained, tmp_path):
    trainer, case = trainer_of(data, tmp_path, accelerator), case_of(data, lrs=(0.1, 0.1))
    trainer.measure([case])
    replace(trainer, held_out=relabelled(trainer.held_out, 2)).measure([case])
    assert len(untrained) == 2 + 2 + 2  # two trials, two students, two trials


def launches(monkeypatch, accelerator: Accelerator) -> dict[str, Callable[[], None]]:
    state, cudnn = accelerator.state, torch.backends.cudnn
    versions = student_results.package_versions
    plugin = TorchDynamoPlugin(backend="aot_eager")
    return {
        "precision": lambda: monkeypatch.setattr(state, "_mixed_precision", "bf16"),
        "compiled": lambda: monkeypatch.setattr(state, "dynamo_plugin", plugin),
        "threads": lambda: monkeypatch.setattr(torch, "get_num_threads", lambda: 7),
        "tf32": lambda: monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high"),
        "cudnn's tf32": lambda: monkeypatch.setattr(cudnn, "allow_tf32", not cudnn.allow_tf32),
        "cudnn's choice": lambda: monkeypatch.setattr(cudnn, "deterministic", not cudnn.deterministic),
        "device": lambda: monkeypatch.setattr(student_results, "device_name", lambda device: "another"),
        **{
            f"version of {name}": lambda name=name: monkeypatch.setattr(
                student_results, "package_versions", lambda: {**versions(), name: "0"}
            )
            for name in ("hf_distill", "torch", "timm")
        },
    }


@pytest.mark.parametrize("what", launches(pytest.MonkeyPatch(), Accelerator(cpu=True)))
def test_everything_about_the_launch_decides(data, accelerator, untrained, monkeypatch, tmp_path, what):
    trainer_of(data, tmp_path, accelerator).measure([case_of(data)])
    trainer_of(data, tmp_path, accelerator).measure([case_of(data)])
    assert len(untrained) == 2
    launches(monkeypatch, accelerator)[what]()
    trainer_of(data, tmp_path, accelerator).measure([case_of(data)])
    assert len(untrained) == 4


@pytest.mark.slow  # in a process of its own: what the newer switches are set to cannot be taken back
def test_precision_decides_by_whichever_switches_it_is_set():
    code = """
    import torch
    from accelerate import Accelerator
    from hf_distill.evaluation.student_results import StudentResults
    told = [StudentResults(".", Accelerator(cpu=True)).complete({})]
    for backend in (torch.backends.mkldnn, torch.backends.cuda):
        for precision in ("bf16", "tf32") if backend is torch.backends.mkldnn else ("tf32", "ieee"):
            backend.matmul.fp32_precision = precision
            told.append(StudentResults(".", Accelerator(cpu=True)).complete({}))
    assert all(one != other for number, one in enumerate(told) for other in told[:number]), told
    """
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this version of PyTorch has the older switches alone")
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


class Unknown(LabelSource):
    """Labels of which nothing tells what they are."""

    kind = "teacher"

    @property
    def num_bytes(self) -> int:
        return 0

    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        return labels


class Otherwise(EvalProtocol):
    """A protocol with a schedule of its own, which no field tells."""

    def schedule(self, epochs: int) -> list[tuple[float, bool]]:
        return [(1.0, False)] * epochs


def test_what_nothing_tells_is_trained_every_time(data, accelerator, untrained, tmp_path):
    trainer = trainer_of(data, tmp_path, accelerator)
    for changed in ({"targets": Unknown()}, {"protocol": Otherwise("tiny", epochs=2, full_data_epochs=1)}):
        untrained.clear()
        for expected in (2, 4):
            trainer.measure([case_of(data, **changed)])
            assert len(untrained) == expected


def test_labels_of_every_kind_are_known_by_what_they_are(data, tmp_path):
    train, _, _ = data
    spec = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": "batch"})
    networks = [
        NetworkLabels(Teacher(spec.build(seed), spec, train.class_names, train.preprocessing)) for seed in (0, 1)
    ]
    theta = FlatModel.from_spec(SPEC).init(0)
    pool = Pool(train, train.labels, preprocessing=train.preprocessing)
    sources = [
        HardLabels(),
        *(StoredLabels(torch.full((20, 10), value)) for value in (0.0, 1.0)),
        *(
            TeacherLabels(SPEC, parameters, chunk_size=size)
            for parameters, size in ((theta, 8), (theta + 1, 8), (theta, 9))
        ),
        *networks,
        *(MeanLabels(several) for several in (networks, networks[:1])),
        *(
            relabel(networks[0], pool, Views(seed=seed), epochs, tmp_path / f"{seed}-{epochs}", disable_tqdm=True)
            for seed, epochs in ((0, 1), (0, 2), (1, 1))
        ),
    ]
    told = [json.dumps(source.identity(), sort_keys=True) for source in sources]
    assert len(set(told)) == len(told)
    assert "null" not in told
    again = NetworkLabels(Teacher(spec.build(0), spec, train.class_names, train.preprocessing))
    assert again.identity() == networks[0].identity()


# Where nothing can be kept


@pytest.mark.parametrize("way", ["a file", "a link to nothing", "full"])
def test_where_nothing_can_be_kept_that_is_said_once_and_the_table_is_made(
    data, accelerator, untrained, tmp_path, caplog, monkeypatch, way
):
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    if way == "a file":
        (tmp_path / "students").write_text("somebody's")
    elif way == "a link to nothing":
        (tmp_path / "students").symlink_to(tmp_path / "nowhere")
    else:
        monkeypatch.setattr(student_results, "atomic_write", full)
    trainer = trainer_of(data, tmp_path, accelerator)
    cases = [case_of(data, rows=torch.arange(first, first + 20)[None]) for first in (0, 20)]
    assert len(trainer.measure(cases)) == 2
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"what students reach is not kept in {tmp_path / 'students'}" in said
    assert "after an interruption they are trained again" in said


def test_what_is_removed_is_what_was_kept_and_left_by_killed_writers_and_no_link(tmp_path):
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    (tmp_path / "students").symlink_to(kept)
    name = "0" * 32 + ".json"
    for path in (kept / name, kept / f".{name}.123.tmp", kept / "mine.txt"):
        path.write_text("{}")
    student_results.remove_results(tmp_path)
    assert [path.name for path in kept.iterdir()] == ["mine.txt"]
    (kept / "mine.txt").unlink()
    student_results.remove_results(tmp_path)
    assert (tmp_path / "students").is_symlink()
