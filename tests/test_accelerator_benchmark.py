"""A visit to an accelerator: parts end on time, leave their JSON and are not run twice; and all of it at toy size."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image

from hf_distill.engine.memory import SavedBytes
from hf_distill.runs.rehearsal import Ledger

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def visits() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("visit", BENCHMARKS / "visit.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up to read its annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def part(visits):
    """Makes a part of one or more Python texts."""

    def make(name: str, *texts: str, estimate: float = 0, box: float = 20, **options):
        def commands(folder: Path):
            for text in texts:
                yield visits.Command(["-S", "-c", text])

        return visits.Part(name, "all", commands, estimate, box, **options)

    return make


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def is_running(pid: int) -> bool:
    """A process that ended and waits for its parent to ask is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_is_stopped_when_its_time_is_over_with_all_that_it_started_and_the_next_begins(visits, part, tmp_path):
    starts = "import os, subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; "
    starts += "time.sleep(60)']); open('pids', 'w').write(f'{os.getpid()} {child.pid}'); print('so far'); "
    long = part("long", starts + "sys.stdout.flush(); time.sleep(60)", box=5, figures=lambda folder: {
        "left": sorted(path.name for path in folder.iterdir())})  # fmt: skip
    assert not visits.Visit(tmp_path, 60).run([long, part("short", "print('well')")])
    record = read(tmp_path, "long")
    assert record["status"] == "stopped"
    assert record["figures"] == {"left": ["log.txt", "pids"]}
    assert record["end_of_log"] == "so far\n"
    pids = [int(pid) for pid in (tmp_path / "long" / "pids").read_text().split()]
    assert len(pids) == 2
    assert not any(map(is_running, pids))
    assert read(tmp_path, "short")["status"] == "done"


def test_what_is_done_is_not_run_again_and_what_failed_is(visits, part, tmp_path):
    count = "import pathlib; path = pathlib.Path('../{}'); path.open('a').write('x')"
    breaks = f"{count.format('fails')}; print('about to'); assert path.read_text() == 'xx', 'broken'"
    parts = [part("well", count.format("counts")), part("breaks", breaks, "print('the second command')")]
    assert not visits.Visit(tmp_path, 60, about={"device": "this one"}).run(parts)
    failed = read(tmp_path, "breaks")
    assert failed["status"] == "failed"
    assert "status 1" in failed["reason"]
    assert failed["end_of_log"].startswith("about to")
    assert "AssertionError: broken" in failed["end_of_log"]
    assert [command["status"] for command in failed["commands"]] == [1]
    assert failed["device"] == "this one"
    assert visits.Visit(tmp_path, 60).run(parts)
    assert (tmp_path / "counts").read_text() == "x"
    assert read(tmp_path, "breaks")["status"] == "done"
    assert [command["status"] for command in read(tmp_path, "breaks")["commands"]] == [0, 0]


def test_what_does_not_fit_or_lacks_something_is_not_begun_and_says_so(visits, part, tmp_path, capsys):
    parts = [
        part("long", "", estimate=1000),
        part("alone", "", lacks="no folder is given"),
        part("after", "", needs="long"),
        part("short", ""),
    ]
    assert visits.Visit(tmp_path, 30).run(parts)
    out = capsys.readouterr().out
    assert "long: not begun: it takes about 1000 s" in out
    assert "alone: not begun: no folder is given" in out
    assert "after: not begun: long is not done" in out
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["short.json"]
    plan, ran = out.index("to do"), out.index("short: begins")
    assert plan < ran < out.index("together")


def test_a_command_with_a_length_of_its_own_is_ended_then_and_the_next_sees_what_it_left(visits, tmp_path):
    def commands(folder: Path):
        text = "import time; open('steps', 'a').write('1'); time.sleep(60)"
        yield visits.Command(["-S", "-c", text], seconds=4)
        yield visits.Command(["-S", "-c", f"print({len((folder / 'steps').read_text())})"])

    assert visits.Visit(tmp_path, 60).run([visits.Part("timed", "all", commands, 2, 30)])
    record = read(tmp_path, "timed")
    assert [command["status"] for command in record["commands"]] == ["ended", 0]
    assert (tmp_path / "timed" / "log.txt").read_text() == "1\n"


def test_a_part_whose_figures_cannot_be_read_has_failed_and_the_next_begins(visits, part, tmp_path):
    lost = part("lost", "", figures=lambda folder: json.loads((folder / "result.json").read_text()))
    assert not visits.Visit(tmp_path, 60).run([lost, part("next", "")])
    assert read(tmp_path, "lost")["status"] == "failed"
    assert "result.json" in read(tmp_path, "lost")["reason"]
    assert read(tmp_path, "next")["status"] == "done"


def test_a_json_file_is_whole_or_as_it_was(visits, part, tmp_path, monkeypatch):
    visits.Visit(tmp_path, 60).run([part("one", "raise SystemExit(3)")])
    before = (tmp_path / "one.json").read_bytes()

    def dies(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            visits.Visit(tmp_path, 60).run([part("one", "print(1)")])
    assert (tmp_path / "one.json").read_bytes() == before


# At toy size


def call(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), "--device", "cpu", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_on_a_cpu_the_same_parts_run_at_toy_size(tmp_path):
    cifar10 = tmp_path / "cifar10"
    features = Features({"img": Image(), "label": ClassLabel(num_classes=3)})
    (cifar10 / "data").mkdir(parents=True)
    for split, count in (("train", 60), ("test", 15)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        columns = {"img": list(pixels), "label": [row % 3 for row in range(count)]}
        Dataset.from_dict(columns, features=features).to_parquet(cifar10 / "data" / f"{split}-00000-of-00001.parquet")
    parts = ["recipe-cda", "recipe-relabel", "unroll-imagenet1k", "dm-cifar100", "experts-cifar10", "cifar10-experts"]
    parts.append("cifar10-tesla-truncated-ipc10")
    words = ["--minutes", "5", "--output", "visit", "--cifar10", str(cifar10), "--only", *parts]
    done = call(*words, cwd=tmp_path)
    records = {part: read(tmp_path / "visit", part) for part in parts}
    assert {part: record["status"] for part, record in records.items()} == dict.fromkeys(parts, "done"), done.stdout
    assert done.returncode == 0, done.stderr
    for part, record in records.items():
        assert record["seconds"] > 0, part
        assert record["estimate"] > 0
        assert record["versions"]["torch"]
        assert record["seed"] == 0
        assert record["arguments"]["device"] == "cpu"
        assert all(command["command"].startswith("python ") for command in record["commands"])
    figures = {part: record["figures"] for part, record in records.items()}
    assert {row["device"] for row in figures["recipe-cda"]["rows"]} == {"cpu"}
    unrolled = figures["unroll-imagenet1k"]["rows"]
    assert [row["variant"] for row in unrolled] == ["full unroll", "exact", "exact, labels", "truncated"] * 3
    assert [row["how"] for row in unrolled[::4]] == ["eager", "norm", "bf16"]
    assert all(row["gap"] > 0 < row["floor_s"] for row in unrolled)
    matched = figures["dm-cifar100"]["rows"]
    assert [row["images_at_once"] for row in matched] == ["4", "100", "plain"]
    assert matched[0]["graph_bytes"] < matched[1]["graph_bytes"] == pytest.approx(matched[2]["graph_bytes"], rel=0.05)
    assert [row["experts_at_once"] for row in figures["experts-cifar10"]["rows"]] == [1, 2]
    tesla = figures["cifar10-tesla-truncated-ipc10"]
    assert tesla["steps"] > 0
    assert tesla["seconds_per_step"] > 0
    assert {row["images"] for row in tesla["rows"] if row["set"] == "distilled"} == {30}

    again = call(*words, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") == len(parts)
    wrong = call("--output", "visit", "--only", "recipes", "unrol", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --only unrol is no part; expected one of apm, apm-imagenet1k")
    assert wrong.stderr.count("\n") == 1


@pytest.fixture
def benchmark(monkeypatch) -> Callable[[str], ModuleType]:
    """Imports a benchmark, as its script would be run, and those that it takes parts of."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for path in BENCHMARKS.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return importlib.import_module


def test_plain_loops_come_to_what_the_library_comes_to(benchmark, tmp_path):
    plain = benchmark("plain")
    small = {"depth": 1, "width": 4, "resolution": 8, "images": 40, "batch_train": 16, "test_images": 20}
    small |= {"num_students": 2, "student_epochs": 4, "epochs": 3, "syn_steps": [3, 2]}
    small |= {"teacher": "test_resnet", "teacher_resolution": 32, "batch_recover": 2, "recover_steps": 3}
    args = plain.BenchmarkArguments(**small, repeats=2)
    for name, part in plain.PARTS.items():
        (tmp_path / name).mkdir()
        found = part(args, tmp_path / name)
        assert found.difference < 1e-4, name
        assert len(found.seconds) == 2, name
        assert found.ratio > 0, name


def test_operations_are_counted_with_the_bytes_that_they_read_and_write(benchmark):
    floor, kernels = benchmark("floor"), benchmark("kernels")
    x = torch.ones(3, 4)
    found = floor.count(lambda: (x.T.add(torch.ones(1).expand(4, 3)), x[0, 0].item()))
    assert found == floor.Count(operations=2, bytes=4 * (1 + 12 + 1 + 12), reads=1)  # of ones and add
    rows = torch.tensor([0, 2])
    assert floor.count(lambda: x.index_select(0, rows)).bytes == 2 * 8 + 2 * (4 * 2 * 4)
    assert floor.count(lambda: x.index_add_(0, rows, torch.empty(2, 4))).bytes == 2 * (2 * 8 + 4 * 2 * 4)
    images, weight = torch.ones(2, 4, 5, 5, requires_grad=True), torch.ones(6, 2, 3, 3)  # two groups
    convolved = functools.partial(torch.nn.functional.conv2d, images, weight.requires_grad_(), groups=2)
    once = 2 * (2 * 3 * 3 * 6) * (2 * 3 * 3)  # places, and what is summed at each
    assert floor.count(convolved).flop == once
    assert floor.count(lambda: torch.autograd.grad(convolved().sum(), [images, weight])).flop == 3 * once
    assert floor.count(lambda: torch.autograd.grad(convolved().sum(), [weight])).flop == 2 * once
    least = floor.Floor.of(lambda: x @ x.T, floor.Rates(flop=9.0, bytes=16.0))
    assert (least.flop, least.bytes) == (2 * 3 * 3 * 4, 4 * (12 + 12 + 9))
    assert (least.seconds, least.gap(16.5)) == (8.25, 2.0)  # the larger of 8 s and 8.25 s
    small = {"student": "convnet_d1", "width": 4, "resolution": 16, "batch": 3, "classes": 3, "teacher": "test_resnet"}
    problem = kernels.Problem(kernels.BenchmarkArguments(**small, num_students=1, compiler=False, repeats=1))
    rows = {(row["method"], row["norm"]): row for row in kernels.rows_of(problem)}
    assert len(rows) == 8
    for (method, norm), row in rows.items():
        assert row["operations"] > 0 < row["bytes"]
        if norm == "closed":
            assert row["operations"] < rows[method, "torch"]["operations"]
    assert set(kernels.times_of(problem)) == {"TESLA", "MTT"}


def test_what_is_alive_is_counted_until_nobody_holds_it():
    x = torch.ones(1000)
    with SavedBytes() as saved:
        loss = x.requires_grad_().exp().tanh().sum()  # which keep what they give
    with Ledger() as live:
        y = torch.empty(1000, device="meta").requires_grad_()
        double = y * 2
        z = y.exp().tanh().sum()
        assert live.peak.total() == live.now.total() == 4 * 1000 * 2 + saved.now + 4
        del double
        assert live.now.total() == 4 * 1000 + saved.now + 4
        z.backward()
        del z
        assert live.now.total() == 4 * 1000 * 2  # y and its gradient
        assert live.peak.total() > live.now.total()
    del loss


@pytest.mark.parametrize("count", [1, 3])
def test_an_iteration_holds_the_images_once_and_gradients_of_those_that_it_takes(count, benchmark):
    memory = benchmark("memory")
    small = {"classes": 10, "ipc": 4, "resolution": 16, "student": "convnet_d1", "width": 4}
    found, work = memory.iteration(memory.BenchmarkArguments(**small, batch_syn=5, syn_steps=2), count)
    image = 4 * 3 * 16 * 16
    assert 40 * image <= found["images"] < 41 * image  # and nothing of what they were made of
    assert 40 * image <= found["state of their optimizer"] < 41 * image
    rows = found["gradients"] // image
    assert rows == 10 if count == 1 else 10 < rows <= 10 * count
    assert found["graph of a step"] > 0
    # Two steps: a forward pass of a convolution and a classifier of ten, and several times that going back.
    forward = 2 * 5 * 2 * (16 * 16 * 27 * 4 + 8 * 8 * 4 * 10)
    assert 4 * forward < work.flop < 12 * forward
