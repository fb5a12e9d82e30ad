"""The processes of a run: how they meet, wait for each other, and end together when one of them fails."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from ..config import check_at_least
from ..networks.compiling import check_backend
from ..starting import LAUNCHED

logger = logging.getLogger(__name__)

# Processes share unequal work (experts, students) and meet at its end; the default of minutes would end them there.
PATIENCE = timedelta(days=7)

# Where Linux says which share of the processors a container has.
QUOTA = Path("/sys/fs/cgroup/cpu.max")

T = TypeVar("T")


def make_accelerator(
    report_to: str = "none",
    project_dir: str | None = None,
    *,
    cpu_threads: int | None = None,
    cudnn_deterministic: bool = True,
    tf32: bool | None = None,
) -> Accelerator:
    """An Accelerator from the launcher's environment, and logging on the main process. All processes call it.

    Args:
        report_to: The tracker, or "none".
        project_dir: Where the tracker writes.
        cpu_threads: Of each process; without it as many as `threads` says.
        cudnn_deterministic, tf32: As in `set_up`.

    Raises:
        ValueError: The tracker's package is not installed, or `cpu_threads` is below 1.
    """
    check_at_least("cpu_threads", cpu_threads, 1)
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
    set_up(accelerator, cpu_threads, cudnn_deterministic, tf32)
    return accelerator


def set_up(
    accelerator: Accelerator,
    cpu_threads: int | None = None,
    cudnn_deterministic: bool = True,
    tf32: bool | None = None,
) -> None:
    """Log on the main process, and take the kernels and the CPU threads due. All processes call it.

    Args:
        accelerator: Of this process, whoever made it.
        cpu_threads: As in `make_accelerator`.
        cudnn_deterministic: The same kernels in every run: the same seed then gives the same bits, by which experts
            are shared.
        tf32: Whether convolutions and products of float32 round what they multiply, where a GPU can; None leaves it as
            it is.

    Raises:
        ValueError: The launcher asks for a compiler that is not there.
    """
    check_backend(accelerator)
    torch.backends.cudnn.deterministic = cudnn_deterministic
    if tf32 is not None:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("hf_distill").setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    number = threads(cpu_threads, os.environ, physical_cores(), here)
    if number is not None and number != torch.get_num_threads():
        torch.set_num_threads(number)
        logger.info("CPU threads of each process: %d", number)


def threads(asked: int | None, environment: Mapping[str, str], cores: int, processes: int) -> int | None:
    """The CPU threads of this process, or None to leave them as they are.

    A launcher gives each process one thread where OMP_NUM_THREADS is not set, whatever the machine has. That cannot be
    told from a user's own OMP_NUM_THREADS=1, and is taken for the launcher's; any other number is a user's.

    Args:
        asked: What the user asked for (`--cpu_threads`); it is what is given.
        environment: Of this process.
        cores: That all processes of this machine may use.
        processes: On this machine.
    """
    if asked is not None:
        return asked
    if environment.get("OMP_NUM_THREADS") == "1" and any(name in environment for name in LAUNCHED):
        return max(1, cores // processes)
    return None


def physical_cores() -> int:
    """The cores that this process may use: of the machine, of its affinity, and of its container's share."""
    limits = [psutil.cpu_count(logical=False) or os.cpu_count() or 1]
    if sys.platform == "linux":
        limits.append(len(os.sched_getaffinity(0)))
        if QUOTA.is_file():
            quota, period = QUOTA.read_text().split()
            if quota != "max":
                limits.append(max(1, int(quota) // int(period)))
    return min(limits)


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
