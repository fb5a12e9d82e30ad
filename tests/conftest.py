"""What all tests share: a cache of their own, no network, one thread, and a quick way to run recipes."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
_HOME = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    # Before anything is imported that reads these; processes that tests start inherit them.
    config.stash[_HOME] = tempfile.mkdtemp(prefix="hf_distill-tests-")
    os.environ.update(
        HF_HOME=config.stash[_HOME],
        HF_HUB_OFFLINE="1",
        ACCELERATE_USE_CPU="true",  # bit for bit is a promise per device; this one is everywhere
        OMP_NUM_THREADS="1",  # how many threads share a sum decides its last bit
    )
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_HOME], ignore_errors=True)


@dataclass(frozen=True)
class Finished:
    """What a recipe left: the exit status of each process (negative: the signal) and what the main one wrote."""

    status: list[int]
    out: str
    err: str


class Recipes:
    """Runs recipes, each time in processes of its own (see `recipe_server.py`)."""

    folder = ROOT / "recipes"

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "recipe_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
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
