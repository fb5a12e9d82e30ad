"""The console entry: `hf-distill tesla --ipc 1` is `python recipes/tesla.py --ipc 1` wherever the package is installed.

`python -m hf_distill tesla` is the same. `accelerate launch -m hf_distill tesla` is what `accelerate launch
recipes/tesla.py` is in a checkout.
"""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from ._version import __version__
from .shipped import shipped
from .starting import begin

USAGE = """\
usage: hf-distill RECIPE [--config PRESET] [--flag value ...]   (hf-distill RECIPE --help)
       accelerate launch ... -m hf_distill RECIPE ...           (devices, processes, mixed precision)
"""


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(shipped("recipes").glob("*.py"))}


def overview() -> str:
    """The usage, and each recipe with the first line of its docstring; none of them is imported."""
    known = recipes()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}   {_first_line(path)}" for name, path in known.items()]
    return "\n".join([USAGE, "recipes:", *lines])


def _first_line(path: Path) -> str:
    """The line that the docstring of a file begins with."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return doc.splitlines()[0] if doc else ""


def main() -> None:
    """Run the recipe that the first word names, with the words behind it.

    A mistake ends the process as a recipe's own does: one line on stderr, and status 2 where a name is misspelt.
    """
    name, *flags = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return
    if name == "--version":
        print(f"hf_distill {__version__}")
        return
    begin()  # the recipe takes seconds to import
    known = recipes()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(known)}"
        sys.stderr.write(f"error: {name!r} is no recipe; {hint}\n")
        sys.exit(2)
    sys.argv[1:] = flags
    # `python -m` puts the working folder first on the path, and a datasets.py that lies there is not the package.
    package = Path(__file__).resolve().parent.parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() not in {Path.cwd()} - {package}]
    runpy.run_path(str(known[name]), run_name="__main__")


if __name__ == "__main__":
    main()
