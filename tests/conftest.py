"""What all tests share: a cache of their own, a Hub on loopback and no other network, one thread, a quick way to run
recipes."""

import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.loopback import LoopbackHub, Online
from tests.helpers.recipes import Recipes

_HOME = pytest.StashKey[str]()
# What starts processes takes seconds, and is left to `make test`.
_PROCESSES = {"recipes", "online"}


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


@pytest.hookimpl(tryfirst=True)  # before those are left out that were not asked for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _PROCESSES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    # Files that take long come first, so that none is begun when the other worker has nothing left to do.
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_HOME], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is made where nothing says where lies beside the folders of tests, which pytest removes."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("temporary"))
    yield
    tempfile.tempdir = before


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


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty Hub that listens during this test; nothing listens during others."""
    with LoopbackHub(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def digits_repo(hub: LoopbackHub) -> str:
    """scikit-learn's digits as a dataset repository."""
    from hf_distill.data.digits import digits_folder

    folder, repo = digits_folder(), f"{hub.namespace}/digits"
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.put("dataset", repo, files)
    return repo


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


@pytest.fixture(scope="session")
def browsers() -> Any:
    """What drives a browser; no browser is a skip, or a failure where one is required."""
    lacking = "chromium or chromedriver is not installed (Debian: chromium, chromium-driver)"
    try:
        from tests.helpers import browser

        if browser.found():
            return browser
    except ModuleNotFoundError as error:
        lacking = f"{error.name} is not installed"
    if os.environ.get("TEST_BROWSER") == "required":
        pytest.fail(lacking)
    pytest.skip(lacking)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a folder that is a disk of so many KiB."""
    disk = tmp_path / "disk"

    def make(size: int) -> Path:
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs more rights than this user has")
        return disk

    yield make
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # what is mapped may be in use


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch with one thread: on networks this small others only cost, and sums then have one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
