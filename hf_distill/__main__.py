"""The console entry: `hf-distill tesla --ipc 1` is `python recipes/tesla.py --ipc 1` wherever the package is installed.

`python -m hf_distill tesla` is the same. `accelerate launch -m hf_distill tesla` is what `accelerate launch
recipes/tesla.py` is in a checkout. `hf-distill board`, `hf-distill gallery` and `hf-distill demo` are no recipes: they
show what these left, and the first two need no torch, but for real images.
"""

import argparse
import ast
import difflib
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
       hf-distill gallery SETS ...                              (their images, beside real ones)
       hf-distill demo SETS ...                                 (a page on which visitors train students and draw)
"""
BOARD, GALLERY, DEMO = "board", "gallery", "demo"


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
    """The flags of what puts many sets on one page."""

    def __init__(self, name: str, description: str, title: str) -> None:
        shape = argparse.RawDescriptionHelpFormatter
        super().__init__(f"hf-distill {name}", allow_abbrev=False, formatter_class=shape, description=description)
        where = "Folders of sets, folders that contain such, and repositories: owner/name, or owner/name@revision."
        self.add_argument("sets", nargs="+", metavar="SETS", help=where)
        self.add_argument("--title", default=title, help=f'Heading of the page ("{title}").')

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _places(given: Sequence[str]) -> list[str | Path]:
    return [Path(place).expanduser() if place.startswith("~") else place for place in given]


def board(words: Sequence[str]) -> None:
    """Put the results of the sets that the words name on one page; a mistake ends the process as a recipe's does."""
    parser = _Parser(
        BOARD,
        "Put the results of many sets on one page, index.html, which needs no server and is fit to be a\n"
        "static Space, and into one table, board.parquet.\n\n"
        f"  hf-distill {BOARD} outputs\n"
        f"  hf-distill {BOARD} outputs/mine org/name org/name@v1.0.0 --output_dir my-board",
        "Distilled sets",
    )
    parser.add_argument("--output_dir", default=BOARD, help=f"Folder to write ({BOARD}).")
    args = parser.parse_args(words)
    from .hub.board import read_sets
    from .hub.board_page import PAGE, check_board, save_board

    try:
        folder = Path(args.output_dir).expanduser()
        check_board(folder)  # before anything is fetched
        sets = read_sets(_places(args.sets))
        save_board(folder, sets, title=args.title)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    rows = sum(len(each.rows) for each in sets)
    print(f"{len(sets):,} sets with {rows:,} rows of results: open {folder / PAGE}")


def gallery(words: Sequence[str]) -> None:
    """Put the pictures of the sets that the words name on one page; a mistake ends the process as a recipe's does."""
    parser = _Parser(
        GALLERY,
        "Put the images of many sets on one page, index.html, beside random real ones of the same classes and with\n"
        "what students reach. It needs no server and is fit to be a static Space; images/ holds the pictures.\n\n"
        f"  hf-distill {GALLERY} outputs\n"
        f"  hf-distill {GALLERY} outputs/mine org/name --dataset_name uoft-cs/cifar10 path/to/photographs",
        "Distilled images",
    )
    parser.add_argument("--output_dir", default=GALLERY, help=f"Folder to write ({GALLERY}).")
    parser.add_argument(
        "--dataset_name",
        nargs="+",
        default=[],
        help="Where the real images are that sets were made of: Hub names or folders, each called as the source of a "
        "set. Without it: only those of scikit-learn's digits are shown. Their terms hold for who publishes the page.",
    )
    parser.add_argument("--no_real", action="store_true", help="No real images, not even digits.")
    parser.add_argument("--seed", type=int, default=0, help="Draws the real images (0).")
    args = parser.parse_args(words)
    if args.no_real and args.dataset_name:
        parser.error("--no_real and --dataset_name exclude each other")
    from .hub.board import read_sets
    from .hub.gallery import PAGE, check_gallery, save_gallery

    try:
        folder = Path(args.output_dir).expanduser()
        check_gallery(folder)  # before anything is fetched
        sets = read_sets(_places(args.sets))
        if args.no_real:
            real = {}
        else:
            from .runs.beside import real_beside

            real = real_beside(sets, list(map(str, _places(args.dataset_name))), seed=args.seed)
        save_gallery(folder, sets, real, title=args.title)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(sets):,} sets, {len(real):,} of them beside real images: open {folder / PAGE}")


def demo(words: Sequence[str]) -> None:
    """Serve a page with the sets that the words name, or save it as a Space; a mistake ends it as in `board`."""
    parser = _Parser(
        DEMO,
        "Serve a page on which visitors see distilled sets and their reports, train a small student on\n"
        'one, on the CPU, and let it name what they draw or upload. It needs the extra "demo".\n\n'
        f"  hf-distill {DEMO} outputs/dm-digits-ipc1\n"
        f"  hf-distill {DEMO} outputs org/name@v1.0.0 --space my-demo",
        "Sets to try",
    )
    parser.add_argument("--port", type=int, help="Port of the page, on this machine alone. Without it: a free one.")
    parser.add_argument("--space", metavar="FOLDER", help="Serve nothing, and save the page as a Space into a folder.")
    args = parser.parse_args(words)
    try:
        places = _places(args.sets)
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


PAGES = {BOARD: board, GALLERY: gallery, DEMO: demo}


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
    if name in PAGES:
        PAGES[name](flags)
        return
    known = recipes()
    if name not in known:
        words = sorted([*known, *PAGES])
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
