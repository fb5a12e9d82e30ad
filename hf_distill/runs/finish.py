"""How a recipe ends: the artifact, then the Hub, then the table; or one line that says what went wrong."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from ..config import HubArguments
from ..distilled.distilled_set import DistilledSet
from ..hub.results import EvalReport
from ..shipped import shipped
from .publishing import push
from .stopping import interruptible

__all__ = ["DistillationDiverged", "finish", "run_recipe"]


class DistillationDiverged(RuntimeError):
    """The loss, a gradient or what is learned beside the images left the numbers that training can use.

    Example:
        >>> issubclass(hd.DistillationDiverged, RuntimeError)
        True
    """


def finish(
    distilled: DistilledSet,
    evaluate: Callable[[], EvalReport],
    folder: str | Path,
    hub: HubArguments,
    accelerator: Accelerator,
    *,
    publish: Callable[[], str] | None = None,
    more: str = "",
) -> None:
    """Save a set, evaluate it, save it with the results, say where it is, and publish it if asked to.

    All processes call it.

    Args:
        distilled: The set.
        evaluate: Gives the report, and puts it on the set; all processes take part.
        folder: Of the run.
        hub: Whether and where to publish.
        accelerator: The processes.
        publish: In place of `push`, on one process; returns what to print.
        more: What else to say of how to load the set.

    Raises:
        ValueError, OSError: As `push`, or the folder cannot be written to.
    """
    if accelerator.is_main_process:
        distilled.keep_results(folder)
        distilled.save_pretrained(folder)  # before the table, which can take longer than the distillation
    report = evaluate()
    if not accelerator.is_main_process:
        return
    labels = f"\n\n{report.labels_table()}" if report.labels else ""
    table = f"\n{report.table()}{labels}\n\nThe picture: {folder}/assets/grid.png. Load the images with:"
    load = f'  datasets.load_dataset("{folder}", split="train")' + (f"\n{more}" if more else "")
    published: list[str] = []
    try:  # before anything is shown, for which there may be no terminal any more
        distilled.save_pretrained(folder)
        if hub.push_to_hub:
            published.append(push(distilled, hub, folder) if publish is None else publish())
    finally:
        accelerator.print("\n".join([table, load, *published]))


def run_recipe(main: Callable[[], None], interrupted: str = "") -> None:
    """Run the `main` of a recipe; a mistake of the user's ends the process with one line and status 1.

    So do Ctrl-C, SIGTERM and SIGUSR1. The last two wait for the step of a loop that keeps checkpoints, and for its
    checkpoint.

    Args:
        main: Parses the command line and does the work.
        interrupted: What to do after Ctrl-C, such as "the same command with --resume_from_checkpoint latest goes on".
    """
    # Python puts a script's folder first on the path, and recipes/evaluate.py is not the package evaluate.
    recipes = shipped("recipes")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not know a sign such as ±
            stream.reconfigure(errors="replace")
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != recipes]
    try:
        with interruptible():
            main()
    except (ValueError, OSError, DistillationDiverged) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        told = f"interrupted: {interrupted}" if interrupted else "interrupted"
        sys.exit(told if os.environ.get("RANK", "0") == "0" else 1)  # one line, of however many processes
    # Threads of a process group that outlive the interpreter can abort the process, and with it all the others.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
