"""The processes of a run: how they meet, wait for each other, and end together when one of them fails."""

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

# Processes share unequal work (experts, students) and meet at its end; the default of minutes would end them there.
PATIENCE = timedelta(days=7)

T = TypeVar("T")


def make_accelerator(report_to: str = "none", project_dir: str | None = None) -> Accelerator:
    """An Accelerator from the launcher's environment, and logging on the main process. All processes call it.

    Args:
        report_to: The tracker, or "none".
        project_dir: Where the tracker writes.

    Raises:
        ValueError: The tracker's package is not installed.
    """
    # Asked beforehand, for Accelerate leaves out a tracker that is not installed and goes on.
    if report_to != "none" and report_to not in [str(tracker) for tracker in get_available_trackers()]:
        raise ValueError(
            f"--report_to {report_to} is not available; install it with `pip install {report_to}`, or use "
            "--report_to none"
        )
    accelerator = Accelerator(
        log_with=None if report_to == "none" else report_to,
        project_dir=project_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    torch.backends.cudnn.deterministic = True  # the same seed, the same bits: experts are shared by their settings
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("hf_distill").setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    return accelerator


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """The result of `work` on the main process, on all of them; where it fails, that one says why and all end."""
    told: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = work()
        except (ValueError, OSError) as error:
            told[1] = str(error)
    given, problem = broadcast_object_list(told)
    if problem:
        if accelerator.is_main_process:
            raise ValueError(problem)
        raise SystemExit(1)
    return given
