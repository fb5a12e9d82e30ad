"""What all tests share: a cache of their own, a Hub on loopback and no other network, one thread, a quick way to run
recipes."""

import importlib.util
import itertools
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

ROOT = Path(__file__).resolve().parents[1]
# Run before a recipe, kills it while it writes down its third state.
DIES_AT_THIRD_STATE = """
import os, signal
import hf_distill.checkpoints as checkpoints
save, calls = checkpoints.save_json, []
def dies(*args):
    calls.append(args)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return save(*args)
checkpoints.save_json = dies
"""
_HOME = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    # Before anything is imported that reads these; processes that tests start inherit them.
    config.stash[_HOME] = tempfile.mkdtemp(prefix="hf_distill-tests-")
    for name in (
        *("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE"),
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH", "HUGGINGFACE_CO_STAGING"),
        *("HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    ):
        os.environ.pop(name, None)
    os.environ.update(
        HF_HOME=config.stash[_HOME],
        HF_ENDPOINT=f"http://127.0.0.1:{_free_port()}",
        HF_HUB_OFFLINE="0",  # also where the command line says otherwise: the endpoint is this machine
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_UPDATE_CHECK="1",
        HF_UPDATE_DOWNLOAD_COUNTS="0",
        # Nothing listens on the discard port: a request to any other machine is refused at once.
        ALL_PROXY="http://127.0.0.1:9",
        NO_PROXY="127.0.0.1,localhost",
        ACCELERATE_USE_CPU="true",  # bit for bit is a promise per device; this one is everywhere
        OMP_NUM_THREADS="1",  # how many threads share a sum decides its last bit
        NVIDIA_TF32_OVERRIDE="0",  # single precision is compared with what CPUs make of it
        PYTORCH_NVML_BASED_CUDA_CHECK="1",  # asking the driver would leave the server of recipes unfit to fork
    )


def _free_port() -> int:
    # Below the range from which systems take the ports of outgoing connections, which would come to hold it.
    for port in random.sample(range(20_000, 30_000), 1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no port between 20000 and 30000 is free")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_HOME], ignore_errors=True)


@dataclass(frozen=True)
class Finished:
    """What a recipe left: the exit status of each process (negative: the signal) and what the main one wrote."""

    status: list[int]
    out: str
    err: str


class Recipes:
    """Runs recipes, each time in processes of its own (see `recipe_server.py`), on the CPU or on what there is."""

    folder = ROOT / "recipes"

    def __init__(self, *, cpu: bool = True) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if not cpu:
            del environment["ACCELERATE_USE_CPU"]
        self._server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "recipe_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(
        self, name: str, flags: dict[str, Any] | list[str], cwd: Path, *, processes: int = 1, before: str = ""
    ) -> Finished:
        """Run `recipes/<name>.py` in the folder `cwd`; each process executes the Python text `before` beforehand."""
        if isinstance(flags, dict):
            flags = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        job = {"recipe": str(self.folder / f"{name}.py"), "flags": flags, "cwd": str(cwd)}
        print(json.dumps({**job, "processes": processes, "before": before}), file=self._server.stdin, flush=True)
        return Finished(**json.loads(self._server.stdout.readline()))

    @classmethod
    def dataclasses(cls, name: str) -> tuple[type, ...]:
        """The dataclasses that `recipes/<name>.py` gives to `parse_args`."""
        spec = importlib.util.spec_from_file_location(f"recipe_{name}", cls.folder / f"{name}.py")
        recipe = importlib.util.module_from_spec(spec)
        # A dataclass looks its module up to read its annotations.
        sys.modules[spec.name] = recipe
        try:
            spec.loader.exec_module(recipe)
            return _classes(recipe)
        finally:
            del sys.modules[spec.name]

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()


class _Asked(Exception):
    pass


def _classes(recipe: Any) -> tuple[type, ...]:
    def parse_args(*classes: type, **_: Any) -> None:
        raise _Asked(classes)

    recipe.parse_args = parse_args
    try:
        recipe.main()
    except _Asked as asked:
        return asked.args[0]
    raise AssertionError(f"{recipe.__file__} does not parse its arguments first")


@pytest.fixture(scope="session")
def recipes() -> Iterator[Recipes]:
    server = Recipes()
    yield server
    server.close()


def _require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs an accelerator")


@pytest.fixture(scope="session")
def accelerated_recipes() -> Iterator[Recipes]:
    """Recipes as they run without a word about devices where there is an accelerator."""
    _require_cuda()
    server = Recipes(cpu=False)
    yield server
    server.close()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    """Each kind of device in turn."""
    import torch

    if request.param == "cuda":
        _require_cuda()
    return torch.device(request.param)


@pytest.fixture
def cuda() -> Any:
    """The accelerator, for what is marked `gpu` as a whole."""
    import torch

    _require_cuda()
    return torch.device("cuda")


class LoopbackHub(Hub):
    """The Hub of one test, where HF_ENDPOINT points.

    Attributes:
        token: Of the user "tester", who may write under "tester", "org" and `namespace`.
        read_token: Of the user "reader", who may write nowhere.
        namespace: No other test has it, so no cache knows its repositories.
    """

    _number = itertools.count()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, int(os.environ["HF_ENDPOINT"].rsplit(":", 1)[1]))
        self.token, self.read_token = (f"hf_{secrets.token_hex(17)}" for _ in range(2))
        self.namespace = f"space-{next(self._number)}"
        self.add_user("tester", self.token, orgs=["org", self.namespace])
        self.add_user("reader", self.read_token, role="read")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty Hub that listens during this test; nothing listens during others."""
    with LoopbackHub(tmp_path / "hub") as server:
        yield server


class Online:
    """Runs Python in processes of its own, with the Hub of the test and a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []
        folder.mkdir()

    def start(
        self, code: str | list[str], *args: Any, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start a Python text, or an interpreter with a list of arguments; its output is captured as text."""
        command = [sys.executable, *(["-c", code] if isinstance(code, str) else code), *map(str, args)]
        process = subprocess.Popen(
            command,
            cwd=cwd or self.folder,
            env={**os.environ, "HF_HOME": str(self.folder / "home"), **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def __call__(self, code: str | list[str], *args: Any, **options: Any) -> Finished:
        """What `start` with these arguments leaves."""
        process = self.start(code, *args, **options)
        out, err = process.communicate(timeout=120)
        return Finished([process.returncode], out, err)

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def online(hub: LoopbackHub, tmp_path: Path) -> Iterator[Online]:
    runner = Online(tmp_path / "online")
    yield runner
    runner.close()


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """An Accelerator of the precision, and on the kind of device, that is named; a process has one at a time."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    before = [(state, dict(state._shared_state)) for state in (AcceleratorState, PartialState)]

    def start(precision: str = "no", device: str = "cpu") -> Accelerator:
        AcceleratorState._reset_state(reset_partial_state=True)
        if device != "cpu":
            monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        return Accelerator(mixed_precision=precision, cpu=device == "cpu")

    yield start
    AcceleratorState._reset_state(reset_partial_state=True)
    for state, values in before:  # an Accelerator of the module is one again
        state._shared_state.update(values)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch with one thread: on networks this small others only cost, and sums then have one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
