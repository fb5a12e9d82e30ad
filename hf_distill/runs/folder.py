"""The folder of a run: what it may hold, and where a run in it begins."""

import logging
import os
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import DistillConfig
from ..hub.files import load_json, someone_elses
from .checkpoints import ARTIFACT_FILE, BLOCKS, STATE_FILE, find_checkpoint, list_checkpoints, remove

logger = logging.getLogger(__name__)


def where_to_start(
    folder: Path,
    index: str,
    training: dict[str, Any],
    held: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    what: str,
    resume: str | None,
    overwrite: bool,
) -> str:
    """Where a training begins whose result goes into `folder`, which is made. One process calls it.

    Args:
        folder: Of the result and its checkpoints.
        index: The file by which a finished result is known.
        training: Everything that decides the result, as JSON types; what is there may say more.
        held: What the index of a finished result says of its training.
        what: The result, for messages.
        resume: `latest`, a checkpoint folder, or None.
        overwrite: Replace what is there.

    Returns:
        A checkpoint folder, `index` where the result is there already, or "" for the beginning.

    Raises:
        ValueError: The folder holds another run or something else, or cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file; expected a folder, or a name that is free")
    finished = (folder / index).exists()
    if (finished or list_checkpoints(folder)) and not (resume or overwrite):
        raise ValueError(
            f"--output_dir {folder} already holds a {what}; use --resume_from_checkpoint latest to go on with it, "
            "--overwrite_output_dir to replace it, or another folder"
        )
    if not finished and ((folder / "README.md").exists() or (folder / "config.json").exists()):
        raise ValueError(f"--output_dir {folder} holds something else; expected another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".checkpoint-*.partial"):
            shutil.rmtree(leftover)
    except OSError as error:
        raise ValueError(
            f"--output_dir {folder} cannot be written to ({error.strerror}); expected a folder to write to"
        ) from error
    if resume is None:
        return ""
    was = held(load_json(folder / index)) if finished else {}
    if resume == "latest" and all(was.get(name) == value for name, value in training.items()):
        return index
    found = find_checkpoint(folder, resume)
    if found is None:
        if finished:
            _check_same(folder, was, training)
        logger.info("%s holds no checkpoint yet; starting from the beginning", folder)
        return ""
    _check_same(found, load_json(found / STATE_FILE).get("training"), training)
    return str(found)


def _check_same(where: Path, was: Any, now: dict[str, Any]) -> None:
    """Raise unless a result was trained with the settings of this run."""
    for name, value in now.items():
        held = was.get(name) if isinstance(was, dict) else None
        if held != value:
            before, here = (textwrap.shorten(str(it), 100) for it in (held, value))
            raise ValueError(
                f"{where} is of another run: its {name} is {before} and here it is {here}; use the flags of that run, "
                "or another --output_dir"
            )


def prepare_output_dir(config: DistillConfig, name: str) -> Path:
    """The folder of this run, made or emptied as the flags say. One process calls it, before the long work.

    Without `--output_dir` it is the first free one of `outputs/<name>`, `outputs/<name>-2`, …, or when resuming the
    last of them that exists.

    Raises:
        ValueError: The folder holds a run already, and neither resuming nor overwriting was asked for; or the
            checkpoint to resume from is not there.
    """
    if config.output_dir is None:
        folder, number = Path("outputs", name), 1
        while folder.exists():
            last, number = folder, number + 1
            folder = Path("outputs", f"{name}-{number}")
        if config.resume_from_checkpoint and number > 1:
            folder = last
    else:
        folder = Path(config.output_dir)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--output_dir {folder} is a file; expected a folder, or a name that is free")
        taken = (folder / ARTIFACT_FILE).exists() or list_checkpoints(folder) or (folder / BLOCKS).exists()
        if taken and not (config.resume_from_checkpoint or config.overwrite_output_dir):
            raise ValueError(
                f"--output_dir {folder} already holds a run; use --resume_from_checkpoint latest to go on with it, "
                "--overwrite_output_dir to replace it, or another folder"
            )
    foreign = someone_elses(folder, ("README.md", "data/*", "tensor/*"), ARTIFACT_FILE)
    if foreign is not None:
        raise ValueError(f"--output_dir {folder} holds the {foreign} of something else; expected another folder")
    if config.resume_from_checkpoint:
        find_checkpoint(folder, config.resume_from_checkpoint)
    elif config.overwrite_output_dir:
        for path in list_checkpoints(folder):
            remove(path)
        shutil.rmtree(folder / BLOCKS, ignore_errors=True)
    for leftover in folder.glob(".checkpoint-*.partial"):
        shutil.rmtree(leftover)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--output_dir {folder} cannot be made ({error.strerror}); expected a folder to write to"
        ) from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--output_dir {folder} cannot be written to; expected a folder to write to")
    return folder
