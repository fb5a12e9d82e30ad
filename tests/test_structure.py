"""The house: its rooms are the folders, imports point down only, and methods do not know each other."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / "hf_distill"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
HEAVY = {"torch", "torchvision", "accelerate", "timm", "peft", "open_clip"}


def module(path: Path) -> str:
    """`methods.tesla` for hf_distill/methods/tesla.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> str:
    """The folder of a module: what stands at the package's top is a room of its own."""
    return name.split(".")[0]


def at_runtime(tree: ast.AST) -> list[ast.stmt]:
    """All import statements, in functions too, but those for type checkers."""
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [node for node in nodes if id(node) not in typing_only]


def packages(path: Path) -> set[str]:
    """The packages of other people that a file imports."""
    imported: set[str] = set()
    for node in at_runtime(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif not node.level:
            imported.add((node.module or "").split(".")[0])
    return imported


def ours(path: Path) -> set[str]:
    """The modules of this package that a file imports."""
    folder = ["hf_distill", *path.relative_to(PACKAGE).parent.parts]
    imported: set[str] = set()
    for node in at_runtime(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
            continue
        base = folder[: len(folder) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        imported |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("hf_distill.") for name in imported} & NAMES


NAMES = {module(path) for path in FILES}
IMPORTS = {module(path): ours(path) for path in FILES}
ROOMS = sorted({room(name) for name in NAMES if (PACKAGE / room(name)).is_dir()})


def floors(graph: dict[str, set[str]]) -> list[str]:
    """What is imported before who imports it; a `CycleError` where some import each other, even by a detour."""
    return list(TopologicalSorter(graph).static_order())


def test_no_two_files_import_each_other_even_by_a_detour():
    floors(IMPORTS)


def test_imports_between_rooms_point_down_only():
    below: dict[str, set[str]] = {}
    for name, imported in IMPORTS.items():
        below.setdefault(room(name), set()).update({room(other) for other in imported} - {room(name)})
    try:
        floors(below)
    except CycleError as error:
        circle = error.args[1]
        arrows = [
            f"{name} -> {other}"
            for low, high in pairwise(circle)
            for name, imported in IMPORTS.items()
            for other in imported
            if (room(name), room(other)) == (high, low)
        ]
        pytest.fail(f"rooms that import each other: {'; '.join(arrows)}")


def test_the_top_of_the_package_holds_rooms_and_the_ground_they_stand_on():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {
        "__init__",
        "__main__",
        "_version",
        "config",
        "rng",
        "shipped",
        "starting",
    }
    for name in ("rng", "_version", "shipped"):
        assert not IMPORTS[name], f"{name} is the ground and imports nothing of ours"
    assert IMPORTS["config"] == IMPORTS["starting"] == {"shipped"}
    # imported where they are asked for
    pages = {"hub.board", "hub.board_page", "hub.gallery", "runs.beside", "demo.page", "demo.sets", "demo.space"}
    assert IMPORTS["__main__"] - pages == {"shipped", "_version", "starting"}, "the list of recipes is there at once"


@pytest.mark.parametrize("name", ROOMS)
def test_every_room_says_what_lives_there_and_belongs_to_the_wheel(name):
    assert ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text()))
    assert f'"hf_distill.{name}",' in (ROOT / "pyproject.toml").read_text()


def test_a_method_never_imports_the_class_of_another():
    papers = {name for name in IMPORTS["methods"] if name.startswith("methods.")}  # its __init__ names every method
    for name in IMPORTS:
        if name.startswith("methods."):
            assert not IMPORTS[name] & papers, name


@pytest.mark.parametrize("path", [path for path in FILES if room(module(path)) in ("hub", "config")], ids=module)
def test_what_reads_cards_and_flags_imports_no_torch(path):
    assert not packages(path) & HEAVY


@pytest.mark.parametrize("path", [path for path in FILES if room(module(path)) == "augmentation"], ids=module)
def test_augmentations_know_tensors_and_nothing_of_data_or_hubs(path):
    assert not packages(path) & {"datasets", "huggingface_hub", "transformers", "accelerate", "PIL"}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_the_package_raises_for_users_and_catches_by_name(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: an assert is gone under python -O"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), f"line {node.lineno}"


@pytest.mark.slow
def test_no_test_module_is_imported_by_another_file():
    tests = ROOT / "tests"
    modules = {path.stem for path in tests.rglob("*.py") if path.name.startswith(("test_", "conftest"))}
    for path in tests.rglob("*.py"):
        for node in at_runtime(ast.parse(path.read_text())):
            source = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            parts = {part for name in [source, *(alias.name for alias in node.names)] for part in name.split(".")}
            assert not parts & modules, f"{path}, line {node.lineno}: what tests share stands in tests/helpers/"


def test_tests_lie_in_the_rooms_of_what_they_test():
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("*.py")}
    assert folders <= {".", "helpers", "faults", *ROOMS}


@pytest.mark.parametrize("page", ["AGENTS.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_pages_for_contributors_name_files_and_folders_that_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"\]\((\S+?)\)", text) + re.findall(r"`([\w./]+(?:/|\.py|\.md|\.toml))`", text)
    named = [name for name in named if "new" not in name]  # the example of a method that is to come
    assert named
    for name in named:
        assert (ROOT / name).exists() or (PACKAGE / name).exists(), name
