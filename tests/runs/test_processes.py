"""How many CPU threads a process takes, told by what a launcher really starts; and which kernels."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from hf_distill.config import ProcessArguments, parse_args
from hf_distill.data.precision import precision_of, without_autocast
from hf_distill.runs import processes
from hf_distill.runs.processes import make_accelerator, physical_cores, set_up, threads

ROOT = Path(__file__).resolve().parents[2]
ACCELERATE = {"ACCELERATE_DYNAMO_MODE": "default"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("asked", "environment", "cores", "local", "number"),
    [
        (None, {}, 16, 1, None),
        (None, {"OMP_NUM_THREADS": "1"}, 16, 1, None),  # plain python: it is the user's
        (None, {"OMP_NUM_THREADS": "1", **ACCELERATE}, 16, 1, 16),
        (None, {"OMP_NUM_THREADS": "1", **TORCHRUN}, 16, 2, 8),
        (None, {"OMP_NUM_THREADS": "1", **ACCELERATE, **TORCHRUN}, 16, 3, 5),
        (None, {"OMP_NUM_THREADS": "1", **TORCHRUN}, 2, 4, 1),
        (None, {"OMP_NUM_THREADS": "4", **ACCELERATE}, 16, 1, None),
        (None, ACCELERATE, 16, 1, None),
        (3, {"OMP_NUM_THREADS": "1", **ACCELERATE}, 16, 1, 3),
        (1, {"OMP_NUM_THREADS": "1", **TORCHRUN}, 16, 2, 1),
        (20, {}, 16, 1, 20),
    ],
)
def test_the_number_is_the_users_else_the_cores_among_the_processes_that_a_launcher_started(
    asked, environment, cores, local, number
):
    assert threads(asked, environment, cores, local) == number


@pytest.mark.parametrize(
    ("physical", "affinity", "quota", "cores"),
    [
        (32, 64, None, 32),
        (32, 4, None, 4),
        (32, 64, "max 100000\n", 32),
        (32, 64, "800000 100000\n", 8),
        (32, 64, "50000 100000\n", 1),
        (None, 64, None, 5),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="affinity and control groups are Linux's")
def test_cores_are_those_that_the_process_may_use(monkeypatch, tmp_path, physical, affinity, quota, cores):
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
    monkeypatch.setattr(processes, "QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert physical_cores() == cores


def test_what_is_asked_for_is_set_and_nonsense_refused():
    before = torch.get_num_threads()
    try:
        make_accelerator(cpu_threads=before + 1)
        assert torch.get_num_threads() == before + 1
        with pytest.raises(ValueError, match="--cpu_threads is 0; expected at least 1"):
            make_accelerator(cpu_threads=0)
    finally:
        torch.set_num_threads(before)


KERNELS = (
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
)


@pytest.fixture
def kernels() -> Iterator[Callable[[], list[bool]]]:
    """Which kernels are asked for; they are set back."""
    before = [getattr(place, name) for place, name in KERNELS]
    yield lambda: [getattr(place, name) for place, name in KERNELS]
    for (place, name), value in zip(KERNELS, before, strict=True):
        setattr(place, name, value)


@pytest.mark.parametrize(
    ("words", "expected", "named"),
    [
        ([], [True, True, False], {}),
        (["--no_cudnn_deterministic"], [False, True, False], {}),
        (["--cudnn_deterministic", "false", "--tf32", "false"], [False, False, False], {"tf32": False}),
        (["--tf32", "true"], [True, True, True], {"tf32": True}),
    ],
)
def test_kernels_are_those_that_flags_ask_for_and_tf32_is_part_of_what_is_learned(kernels, words, expected, named):
    (arguments,) = parse_args(ProcessArguments, args=words)
    accelerator = make_accelerator(**arguments.for_processes)
    assert kernels() == expected
    assert precision_of(accelerator) == {"mixed_precision": "no"}  # on a CPU
    there = SimpleNamespace(mixed_precision="bf16", device=torch.device("cuda"))
    assert precision_of(there) == {"mixed_precision": "bf16", **named}
    torch.backends.cudnn.deterministic = torch.backends.cudnn.allow_tf32 = True
    set_up(accelerator, **arguments.for_processes)  # of somebody who brings an accelerator
    assert kernels() == expected


def test_pixels_are_moved_without_tf32(kernels, monkeypatch):
    torch.backends.cuda.matmul.allow_tf32 = True
    inside = without_autocast(lambda images: kernels()[-1])
    there = torch.empty(1)
    assert inside(there) is True  # a CPU has none
    monkeypatch.setattr("hf_distill.data.precision.Tensor", SimpleNamespace)
    assert inside(SimpleNamespace(device=torch.device("cuda"))) is False
    assert kernels()[-1] is True


@pytest.mark.parametrize("backend", ["TENSORRT", "NOTHING"])
def test_a_compiler_that_is_not_there_is_one_line(backend, monkeypatch):
    monkeypatch.setattr("hf_distill.networks.compiling.backend_of", lambda accelerator: backend.lower())
    with pytest.raises(
        ValueError, match=f"--dynamo_backend {backend.lower()} is not there .*expected no, or .*inductor"
    ):
        make_accelerator()


NEWER = """
import torch
from types import SimpleNamespace
from hf_distill.data import precision
products = torch.backends.cuda.matmul
products.fp32_precision = "tf32"  # after which the older switch cannot be read
there = SimpleNamespace(mixed_precision="no", device=torch.device("cuda"))
print(precision.precision_of(there))
precision.Tensor = SimpleNamespace
print(precision.without_autocast(lambda images: products.fp32_precision)(there), products.fp32_precision)
"""


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="an older PyTorch")
def test_the_newer_switches_of_pytorch_are_read_too():
    done = subprocess.run([sys.executable, "-c", NEWER], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["{'mixed_precision': 'no', 'tf32': True}", "ieee tf32"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "omp", "due"),
    [
        (["accelerate.commands.launch", "--num_processes", "1"], None, [6]),
        (["accelerate.commands.launch", "--num_processes", "1", "--num_cpu_threads_per_process", "2"], None, [None]),
        (["torch.distributed.run", "--standalone", "--nproc_per_node", "2"], None, [3, 3]),
        ([], "1", [1]),
    ],
    ids=["accelerate launch", "with a number", "torchrun", "python"],
)
def test_a_process_has_the_threads_that_are_due_to_it(tmp_path, launcher, omp, due):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from hf_distill.runs import processes\n"
        "processes.physical_cores = lambda: 6\n"
        "before = torch.get_num_threads()\n"
        "processes.make_accelerator()\n"
        "print('threads', before, torch.get_num_threads())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path)}
    del environment["OMP_NUM_THREADS"]
    if omp is not None:
        environment["OMP_NUM_THREADS"] = omp
    start = [sys.executable, *(["-m", *launcher] if launcher else []), str(script)]
    done = subprocess.run(start, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = [[int(word) for word in line.split()[1:]] for line in done.stdout.splitlines() if "threads" in line]
    # Torch makes less of a large OMP_NUM_THREADS on a small machine: None is what it began with.
    assert [after for _, after in seen] == [
        before if it is None else it for (before, _), it in zip(seen, due, strict=True)
    ]
