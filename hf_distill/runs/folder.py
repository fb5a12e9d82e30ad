"""The folder of a run: what it may hold, whose run it is, and where a run in it begins."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ..config import INTERPOLATIONS, DistillConfig
from ..data.images import RealImages
from ..evaluation.student_results import remove_results
from ..hub.files import load_json, someone_elses
from .checkpoints import ARTIFACT_FILE, BLOCKS, STATE_FILE, find_checkpoint, list_checkpoints, remove
from .claims import claim
from .frames import remove_frames

logger = logging.getLogger(__name__)

DIFFERENCES_SHOWN = 3
LONGEST_VALUE = 80  # characters of a value in a message

# The identity of a run


def describe_images(real: RealImages) -> dict[str, Any]:
    """Everything about the images that decides what is learned from them, as JSON types; whoever has the images again
    has the same, wherever they lie."""
    side, interpolation = real.test_frame.side, real.test_frame.interpolation
    return {
        "class_names": list(real.class_names),
        "preprocessing": real.preprocessing.to_config(),
        "num_images": len(real),
        "labels_sha256": hashlib.sha256(real.labels.numpy().tobytes()).hexdigest()[:16],
        "revision": real.revision,
        # Of a dataset in hand, which somebody may have changed: its pixels.
        **({"pixels": real.provenance["pixels"]} if "pixels" in real.provenance else {}),
        **({"keep_side": real.keep_side} if real.keep_side else {}),
        **({"value_range": list(real.value_range)} if real.value_range else {}),
        **({"resize": side} if side else {}),  # of held-out images, which decide what is kept
        **({"interpolation": interpolation} if interpolation != INTERPOLATIONS[0] else {}),
    }


def differences(was: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each place where two JSON values differ, as its path (`training.seed`, `class_names[3]`) and both values there.

    A key that is absent counts as None. Of two lists only the first entry that differs is looked at.
    """
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*now, *was)):
            yield from differences(was.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(was, list) and isinstance(now, list):
        for index, (before, here) in enumerate(zip(was, now, strict=False)):
            inside = list(differences(before, here, f"{path}[{index}]"))
            if inside:
                yield from inside
                return
        if len(was) != len(now):
            yield f"number of {path}", len(was), len(now)
    elif was != now:
        yield path, was, now


def check_same_run(where: Path, was: Any, now: dict[str, Any], *, may_say_more: bool = False) -> None:
    """Raise unless what a folder or file says of its run is what this run says of itself.

    Args:
        where: The folder or file, for the message.
        was: What it says, as read from JSON; anything but an object says nothing.
        now: The identity of this run, as JSON types.
        may_say_more: Keys of `was` that `now` does not have do not count.

    Raises:
        ValueError: They differ; the message shows the first of the differences, with both values.
    """
    was = was if isinstance(was, dict) else {}
    if may_say_more:
        was = {key: value for key, value in was.items() if key in now}
    changed = list(differences(was, now))
    if not changed:
        return
    shown = [
        f"its {path} is {before} and here it is {here}"
        for path, before, here in ((path, *_shortened(str(a), str(b))) for path, a, b in changed[:DIFFERENCES_SHOWN])
    ]
    if len(changed) > DIFFERENCES_SHOWN:
        shown.append(f"and {len(changed) - DIFFERENCES_SHOWN} more differ")
    raise ValueError(
        f"{where} is of another run: {', '.join(shown)}; use the settings of that run, or another folder (--output_dir)"
    )


def _shortened(before: str, here: str) -> tuple[str, str]:
    """Two unequal texts in one line each, cut to the part where they first differ."""
    before, here = " ".join(before.split()), " ".join(here.split())
    if max(len(before), len(here)) <= LONGEST_VALUE:
        return before, here
    shorter = min(len(before), len(here))
    same = next((index for index in range(shorter) if before[index] != here[index]), shorter)
    start = max(0, same - LONGEST_VALUE // 2)

    def part(text: str) -> str:
        end = start + LONGEST_VALUE
        return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"

    return part(before), part(here)


# Where a run begins


def where_to_start(
    folder: Path,
    index: str,
    training: dict[str, Any],
    recorded: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    what: str,
    resume: str | None,
    overwrite: bool,
) -> str:
    """The place where a training begins whose result goes into `folder`, which is made. One process calls it.

    Args:
        folder: Of the result and its checkpoints.
        index: The file by which a finished result is known.
        training: Everything that decides the result, as JSON types; what is there may say more.
        recorded: Takes the index of a finished result, gives what it says of its training.
        what: The result, for messages.
        resume: `latest`, a checkpoint folder, or None.
        overwrite: Replace what is there.

    Returns:
        A checkpoint folder, `index` where the result is there already, or "" for the beginning.

    Raises:
        ValueError: The folder holds another run or something else, or cannot be written to.
    """
    if str(folder) in ("", "."):
        raise ValueError("--output_dir is empty, or this very folder; expected one of its own")
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
    was = recorded(load_json(folder / index)) if finished else {}
    if resume == "latest" and not any(differences({name: was.get(name) for name in training}, training)):
        return index
    checkpoint = find_checkpoint(folder, resume)
    if checkpoint is None:
        if finished:
            check_same_run(folder, was, training, may_say_more=True)
        logger.info("%s holds no checkpoint yet; starting from the beginning", folder)
        return ""
    check_same_run(checkpoint, load_json(checkpoint / STATE_FILE).get("training"), training, may_say_more=True)
    return str(checkpoint)


def _check_own(path: Path, index: str) -> None:
    """Raise a `ValueError` for a folder that no run of this library wrote."""
    if path.exists() and not (path / index).is_file():
        raise ValueError(f"{path} is of something else, for it has no {index}; move it away, or use another folder")


def prepare_output_dir(config: DistillConfig, name: str, held: ExitStack) -> Path:
    """The folder of this run, claimed, made or emptied as the flags say. One process calls it, before the long work.

    Without `--output_dir` it is the first free one of `outputs/<name>`, `outputs/<name>-2`, …, or when resuming the
    last of them that exists.

    Args:
        config: As parsed.
        name: Of the folder where `--output_dir` is not given.
        held: Closing it ends the claim.

    Raises:
        ValueError: Another run is at work in the folder; or it holds one already, and neither resuming nor overwriting
            was asked for; or the checkpoint to resume from is not there.
    """
    resume = config.resume_from_checkpoint
    folder = _default_folder(name, resume is not None) if config.output_dir is None else Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file; expected a folder, or a name that is free")
    claim(folder, held)
    if config.output_dir is not None:
        taken = (folder / ARTIFACT_FILE).exists() or list_checkpoints(folder) or (folder / BLOCKS).exists()
        within = set() if resume is None else {Path(resume).resolve(), Path(resume).resolve().parent}
        own = resume == "latest" or folder.resolve() in within
        if taken and not (own or config.overwrite_output_dir):
            raise ValueError(
                f"--output_dir {folder} already holds a run; use --resume_from_checkpoint latest to go on with it, "
                "--overwrite_output_dir to replace it, or another folder"
            )
    foreign = someone_elses(folder, ("README.md", "data/*", "tensor/*"), ARTIFACT_FILE)
    if foreign is not None:
        raise ValueError(f"--output_dir {folder} holds the {foreign} of something else; expected another folder")
    if resume is not None:
        find_checkpoint(folder, resume)
    elif config.overwrite_output_dir:
        for path in list_checkpoints(folder):
            _check_own(path, STATE_FILE)
        _check_own(folder / BLOCKS, "run.json")
        for path in list_checkpoints(folder):
            remove(path)
        shutil.rmtree(folder / BLOCKS, ignore_errors=True)
        remove_frames(folder)
        remove_results(folder)
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


def _default_folder(name: str, resume: bool) -> Path:
    """The first folder of this name that is free, which is made; or the last one that is there, to go on with it."""
    folder, number = Path("outputs", name), 1
    while True:
        after = Path("outputs", f"{name}-{number + 1}")
        if resume and not after.exists():
            return folder
        if not resume:
            with suppress(FileExistsError):  # of before, or of a run that begins in this moment
                folder.mkdir(parents=True)
                return folder
        folder, number = after, number + 1
