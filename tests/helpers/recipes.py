"""Runs recipes the quick way."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers import ROOT

# Run before a recipe, kills it while it writes down its third state.
DIES_AT_THIRD_STATE = """
import os, signal
import hf_distill.runs.checkpoints as checkpoints
save, calls = checkpoints.save_json, []
def dies(*args):
    calls.append(args)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return save(*args)
checkpoints.save_json = dies
"""


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
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        if not cpu:
            del environment["ACCELERATE_USE_CPU"]
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.recipe_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(
        self, name: str | Path, flags: dict[str, Any] | list[str], cwd: Path, *, processes: int = 1, before: str = ""
    ) -> Finished:
        """Run `recipes/<name>.py`, or the script at a `Path`, in the folder `cwd`.

        Each process executes the Python text `before` beforehand.
        """
        if isinstance(flags, dict):
            flags = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        script = name if isinstance(name, Path) else self.folder / f"{name}.py"
        job = {"recipe": str(script), "flags": flags, "cwd": str(cwd)}
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
