"""Ends recipes at any moment, goes on, and compares what they leave with that of a run that nobody ended.

    python -m tests.faults.kills --count 40 --seed 1

Launcher, number of processes, signal and moment are drawn, the moment from when a run has its folder. SIGKILL meets all
processes at once, as the end of a machine does; SIGTERM meets the launcher alone, and must end all of them without a
traceback. The same command, with `--resume_from_checkpoint latest` where there is that, then has to leave the same
bytes.
"""

import argparse
import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from tests.faults.short import ENVIRONMENT, FLAGS, command, inputs

WAYS = (("python", 1), ("python", 2), ("accelerate", 1), ("accelerate", 1))
ONE_PROCESS = {"import", "join"}
TIMES = re.compile(rb"\n### The making\n.*?\n(?=## )", re.DOTALL)  # of a card
PATIENCE = 120  # seconds for all processes to end


def contents(folder: Path) -> dict[str, str]:
    """The checksum of every file that a run leaves but for checkpoints, which are those of where it went on, and for
    the times that it took, which are in files of their own and in one part of the card."""
    return {
        name: hashlib.sha256(TIMES.sub(b"", path.read_bytes())).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and "checkpoint-" not in (name := path.relative_to(folder).as_posix())
        and not name.startswith("log-")
        and not path.name.startswith("making")
    }


def until_there(process: subprocess.Popen, folder: Path) -> None:
    """Wait until a run has a folder of its own, or has ended: before that it only imports."""
    while process.poll() is None and not (folder / "run").exists():
        time.sleep(0.05)


def start(words: list[str], folder: Path, log: str) -> subprocess.Popen:
    with (folder / log).open("w") as file:
        return subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT)


def end(process: subprocess.Popen, number: int) -> str:
    """Send a signal; what was wrong with the way in which all processes ended, or nothing."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return ""
    for each in family if number == signal.SIGKILL else family[:1]:
        try:
            each.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(family, PATIENCE)
    process.poll()
    for each in alive:
        each.kill()
    return f"{len(alive)} process(es) still ran after {PATIENCE} s" if alive else ""


def trial(recipe: str, launcher: str, processes: int, number: int, after: float, folder: Path, whole: dict) -> str:
    """What was wrong with a run that was ended so long after it had its folder, and with how it went on; or nothing."""
    folder.mkdir()
    process = start(command(recipe, launcher, processes), folder, "log-ended")
    until_there(process, folder)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        wrong = end(process, number)
        if wrong:
            return wrong
    log = (folder / "log-ended").read_text()
    if number == signal.SIGTERM and launcher == "python" and processes == 1 and "Traceback" in log:
        return f"a traceback: {log}"
    if contents(folder) == whole:  # its last word came too late
        return ""
    done = start(command(recipe, launcher, processes, resume=True), folder, "log-resumed")
    if done.wait():
        return f"it did not go on: {(folder / 'log-resumed').read_text()}"
    left = contents(folder)
    differs = sorted(name for name in whole | left if whole.get(name) != left.get(name))
    return f"not the same: {', '.join(differs)}" if differs else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="how many runs are ended")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="what draws them")
    parser.add_argument("--recipes", nargs="+", default=list(FLAGS), choices=list(FLAGS), help="of these")
    parser.add_argument("--output", type=Path, help="a file for one line of JSON per run")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    rng = random.Random(args.seed)
    wrongs = 0
    whole: dict[tuple[str, int], tuple[dict[str, str], float]] = {}
    with tempfile.TemporaryDirectory(prefix="hf_distill-kills-") as home:
        inputs(Path(home))
        order = [recipe for _ in range(args.count) for recipe in rng.sample(args.recipes, len(args.recipes))]
        for index, recipe in enumerate(order[: args.count]):
            launcher, processes = rng.choice(WAYS)
            processes = 1 if recipe in ONE_PROCESS else processes
            number = rng.choice((signal.SIGKILL, signal.SIGTERM))
            if (recipe, processes) not in whole:
                folder = Path(home, f"whole-{recipe}-{processes}")
                folder.mkdir()
                done = start(command(recipe, "python", processes), folder, "log-whole")
                until_there(done, folder)
                begin = time.monotonic()
                if done.wait():
                    raise SystemExit(f"{recipe} on {processes} process(es): {(folder / 'log-whole').read_text()}")
                whole[recipe, processes] = contents(folder), time.monotonic() - begin
            expected, seconds = whole[recipe, processes]
            after = rng.uniform(0, seconds)
            folder = Path(home, f"trial-{index}")
            wrong = trial(recipe, launcher, processes, number, after, folder, expected)
            wrongs += bool(wrong)
            about = {"recipe": recipe, "launcher": launcher, "processes": processes, "signal": number.name}
            about |= {"after": round(after, 1), "of": round(seconds, 1), "wrong": wrong}
            print(index, *about.values(), "" if wrong else "same bytes", flush=True)
            if args.output is not None:
                with args.output.open("a") as file:
                    print(json.dumps(about), file=file)
            if not wrong:
                shutil.rmtree(folder)
    print(f"{args.count - wrongs} of {args.count} left the same bytes")


if __name__ == "__main__":
    main()
