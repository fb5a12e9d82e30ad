"""Checkpoints that are whole or not there.

A checkpoint is `checkpoint-<step>/` with `state.safetensors` (every tensor), `trainer_state.json` (everything else) and
their checksums. It is written aside and renamed, so that a run killed while it writes leaves the one before it.
"""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from ..hub.files import check_sum, load_json, load_sums, room, save_json, save_sums, sha256_of_file, sync

logger = logging.getLogger(__name__)

NAME = re.compile(r"checkpoint-(\d+)")
STATE_FILE, TENSORS_FILE = "trainer_state.json", "state.safetensors"
ARTIFACT_FILE = "distill_config.json"
BLOCKS = "blocks"  # folder of methods that make images block by block


def list_checkpoints(directory: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    checkpoints = [path for path in directory.glob("checkpoint-*") if NAME.fullmatch(path.name)]
    return sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]))


def save_checkpoint(directory: Path, tensors: dict[str, Tensor], state: dict[str, Any], limit: int | None) -> Path:
    """Write `checkpoint-<state["step"]>`, keep the newest `limit`. One process calls it.

    Later steps are of a run that went on from an earlier checkpoint and that this one replaces: they go too, or
    `latest` would mean them.

    Raises:
        OSError: It could not be written (a full disk); the checkpoints before it are as they were.
    """
    final = directory / f"checkpoint-{state['step']}"
    aside = directory / f".{final.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        save_file(_apart(tensors), aside / TENSORS_FILE)
        sync(aside / TENSORS_FILE)
        save_json(aside / STATE_FILE, state)
        save_sums(aside, {name: sha256_of_file(aside / name) for name in (TENSORS_FILE, STATE_FILE)})
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        space = room(directory, sum(tensor.nbytes for tensor in tensors.values()))
        raise OSError(
            f"{final} could not be written ({error}; {space}); the checkpoints before it are whole. Make room on the "
            "disk and go on with --resume_from_checkpoint latest"
        ) from error
    replaced = directory / f".{final.name}.replaced.partial"
    if final.exists():  # moved, not deleted: a deletion takes time in which neither would be there
        os.replace(final, replaced)
    os.replace(aside, final)
    sync(directory)
    shutil.rmtree(replaced, ignore_errors=True)
    checkpoints = list_checkpoints(directory)
    own = checkpoints[: checkpoints.index(final) + 1]
    for later in checkpoints[len(own) :]:
        logger.warning("removing %s: this run went on from an earlier checkpoint", later)
        remove(later)
    if limit is not None:
        for old in own[:-limit]:
            remove(old)
    return final


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU of which no two share memory, as those of tied layers do, which a file of tensors refuses."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if place in seen else value
        seen.add(place)
    return apart


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint that is at no moment half there under its name."""
    aside = checkpoint.with_name(f".{checkpoint.name}.removed.partial")
    os.replace(checkpoint, aside)
    shutil.rmtree(aside)


def find_checkpoint(directory: Path, resume_from: str) -> Path | None:
    """The whole checkpoint that `--resume_from_checkpoint` means; None for `latest` where there is none yet.

    `latest` is the newest that is whole; one that is passed over is said.

    Raises:
        ValueError: There is no such folder, or it is damaged: for `latest`, all that there are.
    """
    if resume_from != "latest":
        folder = Path(resume_from)
        if not folder.is_dir():
            raise ValueError(
                f"--resume_from_checkpoint {resume_from} is no folder; expected `latest` or a checkpoint folder"
            )
        if (folder / STATE_FILE).exists():  # it may be the folder of a run too, for blocks
            _check(folder)
        return folder
    _put_back(directory)
    checkpoints = list_checkpoints(directory)
    for folder in reversed(checkpoints):
        try:
            _check(folder, "looking at the one before it")
        except ValueError as error:
            logger.warning("%s", error)
        else:
            return folder
    if checkpoints:
        raise ValueError(
            f"none of the {len(checkpoints)} checkpoint(s) in {directory} is whole; remove them to begin anew"
        )
    return None


def _put_back(directory: Path) -> None:
    """Give a checkpoint its name again that a kill left moved aside, before another one had it."""
    for aside in directory.glob(".checkpoint-*.replaced.partial"):
        final = directory / aside.name.removeprefix(".").removesuffix(".replaced.partial")
        with contextlib.suppress(FileNotFoundError):  # another process did
            if not final.exists():
                os.replace(aside, final)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint.

    Raises:
        ValueError: Something is missing in it or damaged.
    """
    state = _check(folder)
    return load_file(folder / TENSORS_FILE), state


def _check(folder: Path, advice: str = "resume from another one") -> dict[str, Any]:
    """The state of a checkpoint, whose tensors are whole too; `advice` ends the message where they are not.

    Raises:
        ValueError: Something is missing in it or damaged.
    """
    try:
        for name, digest in load_sums(folder).items():  # those of version 0.1 have none
            check_sum(folder / name, digest)
        with safe_open(folder / TENSORS_FILE, "pt"):
            return load_json(folder / STATE_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} is no whole checkpoint ({error}); {advice}") from error


def pack_optimizers(optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """The state tensors of `optimizers` as `optimizer.<index>.<name>`, for a checkpoint.

    The index counts the parameters of all optimizers, in order: two optimizers of one group each have the keys that one
    optimizer of these two groups has.
    """
    tensors = {}
    for first, optimizer in _with_first_index(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{first + index}.{name}"] = value
    return tensors


def unpack_optimizers(optimizers: Sequence[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Give `optimizers` the state that `pack_optimizers` packed; learning rates and other settings stay as they are.

    Args:
        optimizers: Over the same parameters in the same order, however these are shared out.
        tensors: Of a checkpoint; keys of anything else are passed over.
    """
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, *rest = key.split(".", 2)
        if part == "optimizer":
            index, name = rest
            states.setdefault(int(index), {})[name] = value
    for first, optimizer in _with_first_index(optimizers):
        own = range(_num_parameters(optimizer))
        state = {index: states[first + index] for index in own if first + index in states}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _with_first_index(optimizers: Sequence[Optimizer]) -> Iterator[tuple[int, Optimizer]]:
    """Each optimizer after how many parameters the ones before it have."""
    first = 0
    for optimizer in optimizers:
        yield first, optimizer
        first += _num_parameters(optimizer)


def _num_parameters(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)
