"""Work in parts for a visit that ends on the minute: each part has a time box and leaves a JSON file when it ends.

Nothing here knows what the parts do. `benchmarks/accelerator.py` says which there are.
"""

import contextlib
import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOG = "log.txt"
TAIL = 3000  # characters of a log that go into the JSON of a part that failed
POLL = 0.05  # seconds between two looks at a command
MEMORY_POLL = 2.0  # seconds between two looks at the device's memory


@dataclass(frozen=True)
class Command:
    """Arguments of the Python interpreter: a script with its flags, or `-m` with a module.

    Attributes:
        seconds: The command is ended after so many, and that is no failure.
        environment: Variables that it has beside those of the visit.
    """

    words: list[str]
    seconds: float | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """What is run, counted and skipped as one.

    Attributes:
        name: Of the JSON file and of the folder in which the commands run.
        group: Name of several parts, which `--only` takes too.
        commands: From that folder, one after another; what comes later may depend on what the earlier ones left.
        figures: From that folder, whatever is there when the part ends.
        estimate: Seconds it is believed to take; it is not begun with less left.
        box: Seconds after which it is stopped.
        needs: Part that must be done before.
        lacks: What it lacks, so that it cannot begin.
        continues: A second attempt goes on with what the first one left in the folder.
        seed: Of everything random in it, where there is one.
    """

    name: str
    group: str
    commands: Callable[[Path], Iterator[Command]]
    estimate: float
    box: float
    figures: Callable[[Path], dict[str, Any]] = lambda folder: {}
    needs: str | None = None
    lacks: str | None = None
    continues: bool = False
    seed: int | None = None


class Stopped(Exception):
    """The time box of a part ended."""


class Failed(Exception):
    """A command ended with another status than 0."""


@dataclass
class Visit:
    """Runs parts in order, and remembers in `folder` what is done.

    Attributes:
        folder: For the JSON files, and a folder for each part.
        seconds: How long the visit lasts, from now.
        about: What the JSON of each part says of the machine.
        warm: Scripts run in forks of this process, which has imported what they share, and not in new interpreters.
        memory: Bytes that are in use on the device, where somebody knows.
    """

    folder: Path
    seconds: float
    about: dict[str, Any] = field(default_factory=dict)
    warm: bool = False
    memory: Callable[[], int | None] = lambda: None

    def __post_init__(self) -> None:
        self.ends = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds until the visit ends."""
        return self.ends - time.monotonic()

    def record(self, part: Part | str) -> dict[str, Any] | None:
        """What a part left the last time, where it was begun."""
        path = self.folder / f"{part if isinstance(part, str) else part.name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def is_done(self, part: Part | str) -> bool:
        """The part needs no further attempt."""
        record = self.record(part)
        return record is not None and record["status"] == "done"

    def run(self, parts: Sequence[Part]) -> bool:
        """Run what is not done and fits into the time that is left; True where everything that was begun went well."""
        print(self._plan(parts), flush=True)
        begun: dict[str, dict[str, Any]] = {}
        for part in parts:
            reason = self._reason_to_pass_over(part)
            if reason is not None:
                print(f"{part.name}: {reason}", flush=True)
                continue
            print(f"{part.name}: begins, {self.left():.0f} s left", flush=True)
            begun[part.name] = self._run(part)
            print(f"{part.name}: {begun[part.name]['status']} after {begun[part.name]['seconds']:.1f} s", flush=True)
        print(_comparison(begun), flush=True)
        return all(record["status"] == "done" for record in begun.values())

    def _plan(self, parts: Sequence[Part]) -> str:
        todo = [part for part in parts if not self.is_done(part)]
        lines = [f"{'part':28} {'estimate':>9} {'time box':>9}"]
        lines += [
            f"{part.name:28} {part.estimate:7.0f} s {part.box:7.0f} s{'' if part in todo else '   done'}"
            for part in parts
        ]
        total = sum(part.estimate for part in todo)
        return "\n".join([*lines, f"{'to do':28} {total:7.0f} s, of {self.left():.0f} s left\n"])

    def _reason_to_pass_over(self, part: Part) -> str | None:
        if self.is_done(part):
            return "done before"
        if part.lacks is not None:
            return f"not begun: {part.lacks}"
        if part.needs is not None and not self.is_done(part.needs):
            return f"not begun: {part.needs} is not done"
        if part.estimate > self.left():
            return f"not begun: it takes about {part.estimate:.0f} s, and {max(self.left(), 0):.0f} s are left"
        return None

    def _run(self, part: Part) -> dict[str, Any]:
        folder = self.folder / part.name
        if not part.continues:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / LOG
        log.unlink(missing_ok=True)
        begin = time.monotonic()
        box = min(part.box, self.left())
        commands: list[dict[str, Any]] = []
        status, reason = "done", None
        try:
            for command in part.commands(folder):
                self._command(command, folder, begin + box, commands)
        except Stopped:
            status, reason = "stopped", f"its {box:.0f} s were over"
        except Failed as error:
            status, reason = "failed", str(error)
        except Exception:  # of the part's own code: the others are still to run
            status, reason = "failed", traceback.format_exc()
        seconds = time.monotonic() - begin
        try:
            figures = part.figures(folder)
        except Exception:
            figures = {}
            if status == "done":
                status, reason = "failed", traceback.format_exc()
        peaks = [command["peak_device_bytes"] for command in commands if command["peak_device_bytes"] is not None]
        record = {
            "part": part.name,
            "status": status,
            "reason": reason,
            "seconds": round(seconds, 3),
            "estimate": part.estimate,
            "time_box": round(box, 3),
            "seed": part.seed,
            "peak_device_bytes": max(peaks, default=None),
            "commands": commands,
            **self.about,
            "figures": figures,
        }
        if status != "done" and log.is_file():
            record["end_of_log"] = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        _write(self.folder / f"{part.name}.json", record)
        return record

    def _command(self, command: Command, folder: Path, deadline: float, commands: list[dict[str, Any]]) -> None:
        """Run one command, and append what it was and took.

        Raises:
            Stopped: The deadline came first.
            Failed: Its status is not 0.
        """
        begin = time.monotonic()
        own_end = begin + command.seconds if command.seconds is not None else float("inf")
        child = _start(command, folder, self.warm)
        peak, next_look, ended = None, begin, None
        try:
            while ended is None and time.monotonic() < min(deadline, own_end):
                if time.monotonic() >= next_look:
                    used = self.memory()
                    peak = used if peak is None or used is None else max(peak, used)
                    next_look = time.monotonic() + MEMORY_POLL
                time.sleep(POLL)
                pid, code, usage = os.wait4(child, os.WNOHANG)
                ended = (code, usage) if pid else None
        finally:  # also of an interrupted visit: nothing stays behind, neither the command nor what it started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            if ended is None:
                os.kill(child, signal.SIGKILL)  # it may not have come to lead a group yet
                code, usage = os.wait4(child, 0)[1:]
            else:
                code, usage = ended
        exit_status = os.waitstatus_to_exitcode(code)
        commands.append(
            {
                "command": shlex.join(
                    [*(f"{k}={v}" for k, v in command.environment.items()), "python", *command.words]
                ),
                "status": "ended" if ended is None else exit_status,
                "seconds": round(time.monotonic() - begin, 3),
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
                "peak_device_bytes": peak,
            }
        )
        if ended is None and own_end > deadline:
            raise Stopped
        if ended is not None and exit_status != 0:
            raise Failed(f"`{commands[-1]['command']}` ended with status {exit_status}")


def in_a_fork(work: Callable[[], Any], folder: Path) -> Any:
    """What `work` returns, as JSON has it, from a process of its own: this one stays fit to be forked.

    Raises:
        ValueError: What `work` raised.
    """
    answer = folder / ".answer.json"
    child = os.fork()
    if child == 0:
        try:
            value = {"value": work()}
        except ValueError as error:
            value = {"error": str(error)}
        _write(answer, value)
        os._exit(0)
    os.waitpid(child, 0)
    value = json.loads(answer.read_text(encoding="utf-8"))
    answer.unlink()
    if "error" in value:
        raise ValueError(value["error"])
    return value["value"]


def device_memory() -> int | None:
    """Bytes in use on the busiest GPU, of whichever process, as the driver's tool has them; None without the tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    numbers = [int(word) for word in answer if word.isdigit()]
    return max(numbers) * 2**20 if numbers else None


def _start(command: Command, folder: Path, warm: bool) -> int:
    """The process, leader of a group of its own, whose output goes to the log in `folder`."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(command.environment)
        if warm and command.words[0].endswith(".py"):
            status = _run_script(command.words)
        else:
            os.execv(sys.executable, [sys.executable, *command.words])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_script(words: list[str]) -> int:
    """The exit status of a script that is run as if the interpreter had been started with it."""
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _comparison(begun: dict[str, dict[str, Any]]) -> str:
    lines = [f"\n{'part':28} {'estimate':>9} {'took':>9}   status"]
    lines += [
        f"{name:28} {record['estimate']:7.0f} s {record['seconds']:7.1f} s   {record['status']}"
        for name, record in begun.items()
    ]
    total = sum(record["seconds"] for record in begun.values())
    return "\n".join([*lines, f"{'together':28} {sum(r['estimate'] for r in begun.values()):7.0f} s {total:7.1f} s"])


def _write(path: Path, value: dict[str, Any]) -> None:
    """The file is there whole, or not at all."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)
