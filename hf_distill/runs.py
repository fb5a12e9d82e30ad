"""How every recipe begins: processes that know each other, a folder to write to, mistakes found before long work."""

import dataclasses
import logging
from datetime import timedelta
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from .checkpoints import prepare_output_dir
from .config import DistillConfig, check_choice
from .evaluation import PROTOCOLS

# Processes share unequal work (experts, students) and meet at its end; the default of minutes would end them there.
PATIENCE = timedelta(days=7)


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


def start_run(config: DistillConfig, name: str) -> tuple[DistillConfig, Accelerator]:
    """The config with its output folder made, and the accelerator. All processes call it.

    Args:
        config: As parsed.
        name: Of the folder under `outputs/` where `--output_dir` is not given.

    Raises:
        ValueError: The folder is taken, the protocol is unknown, or a tracker is not installed.
    """
    check_choice("eval_protocol", config.eval_protocol, list(PROTOCOLS))  # now, not after hours of expert training
    if config.disable_tqdm:
        datasets.disable_progress_bars()
    # A PartialState made first would overlook ACCELERATE_USE_CPU, and processes on CPUs would not know each other.
    accelerator = make_accelerator()
    told: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = str(prepare_output_dir(config, name))
        except (ValueError, OSError) as error:
            told[1] = str(error)
    folder, problem = broadcast_object_list(told)
    if problem:
        if accelerator.is_main_process:
            raise ValueError(problem)
        raise SystemExit(1)  # the main process says it
    config = dataclasses.replace(config, output_dir=folder)
    return config, accelerator if config.report_to == "none" else make_accelerator(config.report_to, folder)
