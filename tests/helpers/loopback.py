"""The Hub of one test, and processes that know it."""

import itertools
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers.hub_server import Hub
from tests.helpers.recipes import Finished


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
        out, err = process.communicate(timeout=300)
        return Finished([process.returncode], out, err)

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()
