"""How every recipe begins: processes that know each other, a folder to write to, mistakes found before long work."""

import dataclasses
import logging
from contextlib import ExitStack
from typing import Any

import datasets
import huggingface_hub.utils
from accelerate import Accelerator
from transformers.utils import logging as transformers_logging

from ..config import DataArguments, DistillConfig, HubArguments, check_choice
from ..data.source import NOT_TOLD
from ..distilled.distilled_set import DistilledSet
from ..evaluation.evaluate import PROTOCOLS
from .claims import until_exit
from .folder import prepare_output_dir
from .processes import make_accelerator, on_main, set_up
from .publishing import prepare_push

logger = logging.getLogger(__name__)


def start_run(
    config: DistillConfig,
    hub: HubArguments | None = None,
    name: str = "run",
    *,
    projector: bool = False,
    accelerator: Accelerator | None = None,
    held: ExitStack | None = None,
) -> tuple[DistillConfig, Accelerator]:
    """The config with its output folder, which is made and claimed, and the accelerator. All processes call it.

    Args:
        config: As parsed.
        hub: Where the result is to be published; whether it can be is found out now.
        name: Of the folder under `outputs/` where `--output_dir` is not given.
        projector: A label projector is to be published too.
        accelerator: One that is there already; it has no trackers of this library.
        held: Closing it ends the claim; without it the end of this process does.

    Raises:
        ValueError: The folder is taken or in use, the protocol is unknown, a tracker is not installed, or nothing can
            be published there.
    """
    check_choice("eval_protocol", config.eval_protocol, list(PROTOCOLS))  # now, not after hours of expert training
    for name in config.eval_also:
        check_choice("eval_also", name, list(PROTOCOLS))
    if config.disable_tqdm:
        disable_progress_bars()
    # A PartialState made first would overlook ACCELERATE_USE_CPU, and processes on CPUs would not know each other.
    if accelerator is not None and config.report_to != "none":
        raise ValueError(
            f"report_to={config.report_to!r} is for a run that makes its accelerator; leave accelerator= out, or give "
            "callbacks that report"
        )
    processes = accelerator or make_accelerator(**config.for_processes)
    if accelerator is not None:
        set_up(accelerator, **config.for_processes)
    if hub is not None:
        prepare_push(hub, DistilledSet, processes, projector=projector)
    until = held or until_exit()
    folder = on_main(processes, lambda: str(prepare_output_dir(config, name, until)))
    config = dataclasses.replace(config, output_dir=folder)
    if accelerator is None and config.report_to != "none":
        processes = make_accelerator(config.report_to, folder, **config.for_processes)
    return config, processes


def source_arguments(distilled: DistilledSet, given: DataArguments) -> DataArguments:
    """The arguments that read again what a set was made of, in its classes and size; flags off their default win."""
    source, shape = distilled.config.get("source") or {}, tuple(distilled.pixel_values.shape[1:])
    return arguments_of(source, distilled.class_names, shape, given)


def arguments_of(
    source: dict[str, Any], class_names: list[str], shape: tuple[int, ...], given: DataArguments
) -> DataArguments:
    """The same for the provenance of a set, its classes, and the (C, H, W) of its images."""
    name = source.get("name")
    if given.dataset_name is None and name != "digits" and "/" not in (name or ""):
        raise ValueError(f"the set was made of {name!r}, no Hub name; say where it is: --dataset_name PATH")
    defaults = dataclasses.asdict(DataArguments())
    explicit = {key: value for key, value in dataclasses.asdict(given).items() if value != defaults[key]}
    # Older sets have no "arguments", only what stands beside them.
    told = defaults.keys() - {*NOT_TOLD}
    recorded = {key: value for key, value in (source.get("arguments") or {}).items() if key in told}
    recorded["dataset_config"] = source.get("config")
    recorded["dataset_train_split"] = source.get("split") or defaults["dataset_train_split"]
    if given.dataset_streaming:
        recorded["keep_side"] = None  # a stream is read once
    recorded["dataset_revision"] = None  # of one repository, and means nothing anywhere else
    if "/" in (name or "") and given.dataset_name in (None, name):
        revision = source.get("revision")
        if str(revision).startswith("pixels:"):
            logger.warning(
                "the set was made of images of %s that were changed once they were loaded; these are not", name
            )
        # Images that were changed once they were loaded are known by their pixels, and the repository has the others.
        recorded |= {
            "dataset_name": name,
            "dataset_revision": None if str(revision).startswith("pixels:") else revision,
        }
    channels, height, width = shape
    of_the_set = {
        "classes": class_names,
        "resolution": [height, width],
        "color": "gray" if channels == 1 else "rgb",
        "normalization": "none",  # the set brings its own
        "mean": None,
        "std": None,
    }
    return DataArguments(**{**recorded, **explicit, **of_the_set})


def disable_progress_bars() -> None:
    """Silence the bars of `datasets`, of transformers and of the Hub client."""
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
