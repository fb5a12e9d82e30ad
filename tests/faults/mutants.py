"""Changes one line of the package at a time and runs the tests of its room, which should fail.

    python -m tests.faults.mutants hub engine --lines 20 --seed 1 --output mutants.jsonl
    python -m tests.faults.mutants hub --again mutants.jsonl --tests tests/hub tests/distilled

Draws lines that do something, changes each in one of the ways below in a copy of the checkout, and runs the room's own
tests, those of the file's name first, until one fails or the time is over. What no test noticed is a
line that nobody needs, one that no test looks at, or a change that changes nothing.
"""

import argparse
import ast
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tests.helpers import ROOT

PACKAGE = "hf_distill"
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "outputs", "__pycache__", "*.egg-info", ".*_cache")
SWAPPED: dict[type, type] = {
    left: right
    for one, other in (
        *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
        *((ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.FloorDiv, ast.Mod), (ast.Pow, ast.FloorDiv)),
    )
    for left, right in ((one, other), (other, one))
}


@dataclass(frozen=True)
class Mutant:
    """A change: `before`, which begins at the byte `start` of a file of the package, becomes `after`."""

    path: str
    line: int
    start: int
    before: str
    after: str


def mutants(path: Path, name: str) -> Iterator[Mutant]:
    """All changes of a file, which is called `name`."""
    text = path.read_bytes()
    begins = [0]
    for line in text.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    for node, after in _changes(ast.parse(text)):
        start = begins[node.lineno - 1] + node.col_offset
        end = begins[node.end_lineno - 1] + node.end_col_offset
        yield Mutant(name, node.lineno, start, text[start:end].decode(), after)


def _changes(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Nodes, and the text that may stand for each; not in annotations, in texts, or in what is only said."""
    for node in _active(tree):
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in SWAPPED:
                yield node, f"({ast.unparse(ast.Compare(left, [SWAPPED[type(op)]()], [right]))})"
            case ast.BinOp(left=left, op=op, right=right) if type(op) in SWAPPED:
                yield node, f"({ast.unparse(ast.BinOp(left, SWAPPED[type(op)](), right))})"
            case ast.BoolOp(op=op, values=values):
                yield node, f"({ast.unparse(ast.BoolOp(SWAPPED[type(op)](), values))})"
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
                yield node, f"({ast.unparse(operand)})"
            case ast.Constant(value=bool() as value):
                yield node, str(not value)
            case ast.Constant(value=int() as value):
                yield node, str(value + 1)
            case ast.Constant(value=float() as value):
                yield node, repr(value * 2 if value else 1.0)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                yield node, f"({ast.unparse(ast.IfExp(test, orelse, body))})"
            case ast.If(test=test) | ast.While(test=test):
                yield test, f"(not ({ast.unparse(test)}))"
            case ast.Return(value=value) if value is not None:
                yield node, "return None"
            case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
                yield node, "pass"
            case ast.Call(func=func, args=args, keywords=[*some, last]) if last.arg is not None:
                yield node, f"({ast.unparse(ast.Call(func, args, some))})"


def _active(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.JoinedStr() | ast.Expr(value=ast.Constant()):
            return
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="logger")))):
            return
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        if name == "exc":  # of a `raise`: its message
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _active(child)


def draw(room: str, checkout: Path, lines: int, rng: random.Random) -> list[Mutant]:
    """One change of each of so many lines of a room."""
    by_line: dict[tuple[str, int], list[Mutant]] = {}
    for path in sorted((checkout / PACKAGE / room).glob("*.py")):
        for mutant in mutants(path, f"{room}/{path.name}"):
            by_line.setdefault((mutant.path, mutant.line), []).append(mutant)
    return [rng.choice(by_line[line]) for line in rng.sample(sorted(by_line), min(lines, len(by_line)))]


def read(path: Path, room: str) -> list[Mutant]:
    """The changes of a room that no test noticed, by the lines that `--output` wrote."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = [field.name for field in fields(Mutant)]
    return [
        Mutant(**{name: line[name] for name in names})
        for line in lines
        if line["room"] == room and line["outcome"] in ("passed", "time")
    ]


def test(mutant: Mutant, tests: list[str], checkout: Path, seconds: float) -> str:
    """The end of tests in a copy of the checkout: the first that fails, "passed", "time", or "gone" with the line."""
    target = checkout / PACKAGE / mutant.path
    text, before = target.read_bytes(), mutant.before.encode()
    places = [found.start() for found in re.finditer(re.escape(before), text)]
    if not places:
        return "gone"
    start = min(places, key=lambda place: abs(place - mutant.start))  # where the file was changed since it was drawn
    target.write_bytes(text[:start] + mutant.after.encode() + text[start + len(before) :])
    try:
        return _run(mutant, tests, checkout, seconds)
    finally:
        target.write_bytes(text)


def _run(mutant: Mutant, tests: list[str], checkout: Path, seconds: float) -> str:
    places = [checkout / place for place in tests]
    files = [file for place in places for file in (sorted(place.glob("test_*.py")) if place.is_dir() else [place])]
    files.sort(key=lambda path: path.name != f"test_{Path(mutant.path).name}")
    outcome = checkout / "outcome"
    outcome.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        _pytest(checkout, files, outcome)
    end = time.monotonic() + seconds
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return outcome.read_text() if outcome.exists() else "time"
        time.sleep(0.05)
    return outcome.read_text() if outcome.exists() else "died"


def _pytest(checkout: Path, files: list[Path], outcome: Path) -> None:
    """Run the tests in this process, which ends with them; the first that fails is written down at once."""

    class FirstFailure:
        def pytest_runtest_logreport(self, report) -> None:
            if report.failed and not outcome.exists():
                outcome.write_text(report.nodeid)

        def pytest_collectreport(self, report) -> None:
            if report.failed and not outcome.exists():
                outcome.write_text(f"{report.nodeid} cannot be imported: {str(report.longrepr)[-500:]}")

    os.chdir(checkout)
    sys.path[:0] = [str(checkout)]
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", PACKAGE)]:
        del sys.modules[name]
    os.environ.update(PYTHONPATH=str(checkout), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    quiet = os.open(checkout / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not gpu"]
    code = pytest.main([*options, *map(str, files)], plugins=[FirstFailure()])
    if not outcome.exists():
        outcome.write_text("passed" if code == 0 else f"pytest ended with {int(code)}")
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="+", help="folders of the package, such as hub")
    parser.add_argument("--lines", type=int, default=20, help="how many lines of each room")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="what draws them")
    parser.add_argument("--seconds", type=float, default=30, help="for the tests of one change")
    parser.add_argument("--tests", nargs="+", help="files and folders of tests, in place of the room's own")
    parser.add_argument("--again", type=Path, help="in place of drawing, what survived by a file of --output")
    parser.add_argument("--output", type=Path, help="a file for one line of JSON per change")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    import sklearn  # noqa: F401  # once for all children; what reads the environment is left to them
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    counts = Counter()
    with tempfile.TemporaryDirectory(prefix="hf_distill-mutants-") as folder:
        checkout = Path(folder, "checkout")
        shutil.copytree(ROOT, checkout, ignore=LEFT_OUT)
        for room in args.rooms:
            rng = random.Random(f"{args.seed} {room}")
            changes = draw(room, checkout, args.lines, rng) if args.again is None else read(args.again, room)
            for number, mutant in enumerate(changes, 1):
                begin = time.monotonic()
                outcome = test(mutant, args.tests or [f"tests/{room}"], checkout, args.seconds)
                took = round(time.monotonic() - begin, 1)
                end = {"passed": "SURVIVED", "time": "NOT IN TIME", "gone": "GONE"}.get(outcome, "killed")
                counts[room, end] += 1
                text = f"{room} {number}: {end} {mutant.path}:{mutant.line} {mutant.before} -> {mutant.after}"
                print(" ".join(text.split()), f"[{outcome}, {took} s]", flush=True)
                if args.output is not None:
                    with args.output.open("a") as file:
                        print(
                            json.dumps({"room": room, "outcome": outcome, "seconds": took, **asdict(mutant)}), file=file
                        )
    for (room, end), count in sorted(counts.items()):
        print(f"{room}: {count} {end.lower()}")


if __name__ == "__main__":
    main()
