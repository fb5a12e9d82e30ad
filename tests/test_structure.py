"""The house: imports point down only, and methods do not know each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hf_distill"
# From the roof to the cellar; a file imports from its own room and from those below.
ROOMS = [
    {"methods"},
    {"distiller", "blocks", "shards", "method", "teacher_training", "projector_training", "small_clip"}
    | {"checkpoints", "runs"},
    {"label_comparison", "evaluation", "students", "crop_students", "protocols"},
    {"epoch_labels", "importing", "coresets", "metrics", "pools"},
    {"distilled", "tables", "experts", "teachers", "trajectories", "projector", "labels", "priors", "compiling"},
    {"hub", "repository", "cards", "results", "accounting", "plots"},
    {"data", "source", "pixels", "digits", "transforms"},
    {"views", "recorded", "unroll", "functional", "augment", "randaugment", "crops", "statistics", "memory", "models"}
    | {"rng"},
    {"config", "checks", "files", "_version"},
]
LEVEL = {name: level for level, room in enumerate(ROOMS) for name in room}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module(path: Path) -> str:
    """`methods.tesla` for hf_distill/methods/tesla.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def runtime(tree: ast.AST) -> list[ast.stmt]:
    """All import statements, in functions too, but those for type checkers."""
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [node for node in nodes if id(node) not in typing_only]


def ours(path: Path) -> dict[str, set[str]]:
    """The modules of this package that a file imports, and what it takes from each."""
    folder = ["hf_distill", *path.relative_to(PACKAGE).parent.parts]
    found: dict[str, set[str]] = {}
    for node in runtime(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = {alias.name: set() for alias in node.names}
        else:
            base = folder[: len(folder) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            taken = {alias.name for alias in node.names}
            names = {source: taken} if node.module else {f"{source}.{name}": set() for name in taken}
        for name, taken in names.items():
            if name.startswith("hf_distill."):
                found.setdefault(name.removeprefix("hf_distill."), set()).update(taken)
    return found


IMPORTS = {module(path): ours(path) for path in FILES}


@pytest.mark.parametrize("name", IMPORTS)
def test_imports_point_down_only(name):
    room = name.split(".")[0]
    assert room in LEVEL, f"say in ROOMS where {name} lives"
    for imported in IMPORTS[name]:
        below = imported.split(".")[0]
        assert LEVEL[below] >= LEVEL[room], f"{name} looks up at {imported}"


def test_no_two_files_import_each_other_even_by_a_detour():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done and name in IMPORTS:
            for imported in IMPORTS[name]:
                visit(imported, (*path, name))
            done.add(name)

    for name in IMPORTS:
        visit(name, ())


def test_a_method_never_imports_the_class_of_another():
    homes = IMPORTS["methods"]  # methods/__init__.py names every method
    for name in IMPORTS:
        if name.startswith("methods."):
            assert not set(IMPORTS[name]) & set(homes), name


@pytest.mark.parametrize("name", ["config", "files", "results", "cards", "accounting", "plots", "repository", "hub"])
def test_what_reads_cards_and_flags_imports_no_torch(name):
    for node in runtime(ast.parse((PACKAGE / f"{name}.py").read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        assert not any(imported.split(".")[0] in ("torch", "torchvision", "accelerate") for imported in names)


@pytest.mark.parametrize("name", sorted(ROOMS[-2]))
def test_leaves_know_arrays_and_networks_and_nothing_of_data_or_hubs(name):
    for node in runtime(ast.parse((PACKAGE / f"{name}.py").read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for imported in names:
            assert imported.split(".")[0] not in ("datasets", "huggingface_hub", "transformers", "accelerate", "PIL")


@pytest.mark.parametrize("path", FILES, ids=module)
def test_the_package_raises_for_users_and_catches_by_name(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: an assert is gone under python -O"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), f"line {node.lineno}"
