"""The console entry: `hf-distill tesla --ipc 1` is `python recipes/tesla.py --ipc 1` wherever the package is installed.

`python -m hf_distill tesla` is the same. `accelerate launch -m hf_distill tesla` is what `accelerate launch
recipes/tesla.py` is in a checkout. `hf-distill board` and `hf-distill demo` are no recipes: they show what these left,
and a board needs no torch.
"""

import argparse
import ast
import difflib
import os
import runpy
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ._version import __version__
from .shipped import shipped
from .starting import begin, has_begun

USAGE = """\
usage: hf-distill RECIPE [--config PRESET] [--flag value ...]   (hf-distill RECIPE --help)
       accelerate launch ... -m hf_distill RECIPE ...           (devices, processes, mixed precision)
       hf-distill board SETS ...                                (the results of many sets on one page)
       hf-distill demo SETS ...                                 (a page on which visitors train students and draw)
"""
BOARD, DEMO = "board", "demo"


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def board(words: Sequence[str]) -> None:
    """Put the results of the sets that the words name on one page; a mistake ends the process as a recipe's does."""
    parser = _Parser(
        prog=f"hf-distill {BOARD}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Put the results of many sets on one page, index.html, which needs no server and is fit to be a\n"
        "static Space, and into one table, board.parquet.\n\n"
        f"  hf-distill {BOARD} outputs\n"
        f"  hf-distill {BOARD} outputs/mine org/name org/name@v1.0.0 --output_dir my-board",
    )
    parser.add_argument(
        "sets",
        nargs="+",
        metavar="SETS",
        help="Folders of sets, folders that contain such, and repositories: owner/name, or owner/name@revision.",
    )
    parser.add_argument("--output_dir", default="board", help="Folder of the page and the table (board).")
    parser.add_argument("--title", default="Distilled sets", help='Heading of the page ("Distilled sets").')
    args = parser.parse_args(words)
    from .hub.board import read_sets
    from .hub.board_page import PAGE, check_board, save_board

    try:
        folder = Path(args.output_dir).expanduser()
        check_board(folder)  # before anything is fetched
        sets = read_sets([Path(place).expanduser() if place.startswith("~") else place for place in args.sets])
        save_board(folder, sets, title=args.title)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    rows = sum(len(each.rows) for each in sets)
    print(f"{len(sets):,} sets with {rows:,} rows of results: open {folder / PAGE}")


def demo(words: Sequence[str]) -> None:
    """Serve a page with the sets that the words name, or save it as a Space; a mistake ends it as in `board`."""
    parser = _Parser(
        prog=f"hf-distill {DEMO}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Serve a page on which visitors see distilled sets and their reports, train a small student on\n"
        'one, on the CPU, and let it name what they draw or upload. It needs the extra "demo".\n\n'
        f"  hf-distill {DEMO} outputs/dm-digits-ipc1\n"
        f"  hf-distill {DEMO} outputs org/name@v1.0.0 --space my-demo",
    )
    parser.add_argument(
        "sets",
        nargs="+",
        metavar="SETS",
        help="Folders of sets, folders that contain such, and repositories: owner/name, or owner/name@revision.",
    )
    parser.add_argument("--port", type=int, help="Port of the page, on this machine alone. Without it: a free one.")
    parser.add_argument("--space", metavar="FOLDER", help="Serve nothing, and save the page as a Space into a folder.")
    parser.add_argument("--title", default="Sets to try", help='Heading of the page ("Sets to try").')
    args = parser.parse_args(words)
    try:
        places = [os.path.expanduser(place) for place in args.sets]
        if args.space is None:
            _check_port(args.port)  # before anything is fetched
            from .demo.page import serve

            page = serve(places, title=args.title, port=args.port)
            has_begun()
            print(f"open {page.local_url}   (Ctrl-C ends it)")
            page.block_thread()
            return
        from .demo.sets import find_sets
        from .demo.space import check_space, save_space

        folder = Path(args.space).expanduser()
        check_space(folder)  # before anything is fetched
        save_space(folder, find_sets(places), title=args.title)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        sys.exit(f'error: hf-distill {DEMO} needs gradio, which is not installed: pip install "hf_distill[demo]"')
    print(f"saved {folder}: try it there (python app.py), or push it: hf upload NAME {folder} . --repo-type space")


def _check_port(port: int | None) -> None:
    """Raise a `ValueError` where nothing can listen on a port of this machine."""
    if port is None:
        return
    if not 0 < port < 2**16:
        raise ValueError(f"--port is {port}; expected a number from 1 to 65535, or none for a free one")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as whoever listens next has it
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason = error.strerror
            raise ValueError(
                f"--port {port} cannot be used ({reason}); give another, or none for a free one"
            ) from error


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
    if name in (BOARD, DEMO):
        (board if name == BOARD else demo)(flags)
        return
    known = recipes()
    if name not in known:
        words = sorted([*known, BOARD, DEMO])
        nearest = difflib.get_close_matches(name, words, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(words)}"
        sys.stderr.write(f"error: {name!r} is no recipe; {hint}\n")
        sys.exit(2)
    sys.argv[1:] = flags
    # `python -m` puts the working folder first on the path, and a datasets.py that lies there is not the package.
    package = Path(__file__).resolve().parent.parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() not in {Path.cwd()} - {package}]
    runpy.run_path(str(known[name]), run_name="__main__")


if __name__ == "__main__":
    main()
