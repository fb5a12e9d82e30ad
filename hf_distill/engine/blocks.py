"""`BlockDistiller`: for methods whose images are made in blocks that know nothing of each other.

Blocks are spread over the processes, and everything random in one derives from its number: so the images do not depend
on how many processes there are, which of them died, or when. A block that is done is on disk with its checksum, and a
run that is continued makes only the others, the one that it was asked to stop in from there on.
"""

import dataclasses
import hashlib
import json
import logging
import math
import shutil
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import OptimizedConfig
from ..data.images import RealImages
from ..data.preprocessing import Preprocessing
from ..distilled.distilled_set import DistilledSet
from ..evaluation.accuracy import device_name
from ..hub.checks import is_whole
from ..hub.files import load_json, reserve, save_json
from ..hub.making import Work, add_up, read_making, save_making
from ..networks.compiling import say_uncompiled
from ..runs.callbacks import RunState
from ..runs.checkpoints import BLOCKS, list_checkpoints, load_checkpoint, save_checkpoint
from ..runs.clock import Clock
from ..runs.folder import check_same_run
from ..runs.processes import on_main
from ..runs.rehearsal import Ledger, Stage
from ..runs.stopping import Stop, stopping
from .method import FREE_TO_CHANGE, DistillationDiverged, Method

__all__ = ["Block", "BlockDistiller"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """Images that are made together.

    Example:
        >>> import torch
        >>> hd.Block(number=0, rows=torch.tensor([0, 1]), labels=torch.tensor([3, 4])).labels.tolist()
        [3, 4]

    Attributes:
        number: From 0; what is random in the block is a function of it.
        rows: (B,) where in the set its images go.
        labels: (B,) their classes.
    """

    number: int
    rows: Tensor
    labels: Tensor


class BlockDistiller(Method):
    """Runs a method that says which blocks there are and makes the images of one; see `Method` for the arguments.

    Example:
        >>> [method.__name__ for method in hd.METHODS if issubclass(method, hd.BlockDistiller)]
        ['SRe2L', 'CDA', 'FADRM', 'RDED', 'HeLlO', 'APM']

    Attributes:
        pixels: What images are kept as: pictures are "uint8", and images that were optimised "float32".
        preprocessing: Of the set: that of `train`, unless a teacher brings its own.
        free: Settings that the images do not depend on, so that a continued run may have others; those of evaluations
            (`eval_`) are free as well.
    """

    pixels: ClassVar[str] = "uint8"
    free: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.preprocessing: Preprocessing = self.train.preprocessing
        self._first: int | None = None  # the block that is shown, once the run begins
        self._stop = Stop()  # which nobody asks until the run begins
        self._clock = Clock()  # of a block

    @abstractmethod
    def blocks(self) -> list[Block]:
        """All blocks; together they fill the set, row by row."""

    @abstractmethod
    def make(self, block: Block, log: Callable[[int, dict[str, float]], None]) -> Tensor:
        """The images of a block, (B, C, H, W) in the type that `pixels` names.

        One of many iterations begins with what was `kept`, and calls `keep` where it could begin again.

        Args:
            block: Which one.
            log: To be called with how many of the block's iterations are done, from 1 to `iterations`, and with what
                is to be seen of them.
        """

    @property
    def iterations(self) -> int:
        """Of a block, for progress."""
        return 1

    @abstractmethod
    def assemble(self, images: Tensor, labels: Tensor) -> DistilledSet:
        """The set of all images (N, C, H, W), in the type that `pixels` names, and their labels (N,)."""

    def begin(self) -> None:
        """Find out, once the folder is there, what the first block needs: nothing for most. All processes call it."""

    @property
    def folder(self) -> Path:
        """The folder of the blocks; the set reads its images from there until it is saved."""
        return self.output_dir / BLOCKS

    def run(self) -> DistilledSet:
        """The set, with blocks that are there already taken from disk. All processes call it, on storage they share.

        Raises:
            DistillationDiverged: Numbers of a block stopped being finite; blocks that were done stay.
            KeyboardInterrupt: A recipe was asked to stop (SIGTERM, SIGUSR1): the block is done, or it is kept.
            ValueError: The folder holds blocks of another run.
        """
        blocks = self.blocks()
        self._first = blocks[0].number
        labels = torch.empty(sum(len(block.rows) for block in blocks), dtype=torch.long)
        for block in blocks:
            labels[block.rows] = block.labels
        shape = (len(labels), *self.train.shape)
        self._start(shape)
        self.begin()
        images = np.memmap(self._images, self.pixels, "r+", shape=shape)
        # Reading and summing all images is the work of one.
        lacking = on_main(self.accelerator, lambda: {block.number for block in blocks if not self._done(block, images)})
        if lacking and self.uncompiled is not None:
            say_uncompiled(self.accelerator, self.uncompiled)
        todo = [block for block in blocks if block.number in lacking]
        mine = todo[self.accelerator.process_index :: self.accelerator.num_processes]
        state = self._beginning(len(mine))
        self.callbacks.on_begin(dataclasses.replace(state))
        try:
            with stopping() as self._stop:
                for index, block in enumerate(mine):
                    self._make(block, images, index * self.iterations, state)
                    if self._stop.asked:
                        self._stop.end()
        finally:
            self.callbacks.on_end(dataclasses.replace(state))
        self.accelerator.wait_for_everyone()
        unfinished = [block.number for block in todo if not self._marker(block).exists()]
        if unfinished:
            raise ValueError(
                f"block {unfinished[0]} is not in {self.folder}; expected a folder that all processes share"
            )
        images = np.memmap(self._images, self.pixels, "c", shape=shape)
        self.distilled = self.assemble(torch.from_numpy(images), labels)
        self.distilled.config |= self._provenance()
        self.distilled.making = self._making(add_up([self._work(block) for block in blocks]))
        return self.distilled

    def rehearse(self, ledger: Ledger, held_out: RealImages, tested: RealImages) -> list[Stage]:
        """As `Method.rehearse`: the largest block, and the set of all."""
        blocks = self.blocks()
        largest, count = max(blocks, key=lambda block: len(block.rows)), sum(len(block.rows) for block in blocks)
        self.rehearse_ready()
        ledger.forget()
        before = ledger.flop
        self.make(largest, lambda iteration, values: None)
        flop = (ledger.flop - before) * count / len(largest.rows)
        number = f"{len(blocks):,} block{'s' * (len(blocks) > 1)}"
        stage = ledger.stage("distillation", flop, number, parts=len(blocks))
        self.assembled(blocks)
        return [stage]

    def rehearse_ready(self) -> None:
        """Make what networks make once, when they are first asked."""

    def assembled(self, blocks: Sequence[Block]) -> None:
        """Let `distilled` be the set of all blocks, on the meta device, without any being made; its bytes are one image
        on the CPU, seen many times."""
        labels = torch.empty(sum(len(block.rows) for block in blocks), dtype=torch.long)
        for block in blocks:
            labels[block.rows] = block.labels
        images = torch.zeros(self.train.shape, dtype=getattr(torch, self.pixels)).expand(len(labels), -1, -1, -1)
        self.distilled = self.assemble(images if self.pixels == "uint8" else images.to(self.device), labels)

    def foreseen_files(self) -> dict[str, int]:
        """As `Method.foreseen_files`: the images in the making."""
        return {"images in the making": self.distilled.pixel_values.nbytes}

    def _beginning(self, blocks: int) -> RunState:
        unit = "block" if self.iterations == 1 else "it"
        several = "" if blocks == 1 or unit == "block" else f", {blocks:,} blocks"
        return RunState(
            f"distil ({self.name}{several})",
            total=blocks * self.iterations,
            unit=unit,
            is_main_process=self.accelerator.is_main_process,
        )

    def _make(self, block: Block, images: np.ndarray, before: int, state: RunState) -> None:
        """Make a block, and keep it with its checksum; `before` iterations of other blocks were made here."""

        def log(iteration: int, values: dict[str, float]) -> None:
            state.step, state.done = self._step(block, iteration), before + iteration
            state.values = values
            self.callbacks.on_step(dataclasses.replace(state))

        rows, self._clock = block.rows.numpy(), Clock()
        self._state = state
        made = self.make(block, log)
        self._show(block, self.iterations, made)
        images[rows] = made.cpu().numpy()
        images.flush()
        work = Work(self.iterations, self._clock.keep(), device_name(self.device))
        save_making(self._measured(block), {"block": work})
        save_json(self._marker(block), {"sha256": _checksum(images, rows)})
        shutil.rmtree(self._unfinished(block), ignore_errors=True)
        state.folder = self.folder
        self.callbacks.on_save(dataclasses.replace(state))

    def show(self, block: Block, iteration: int, images: Tensor) -> None:
        """Let callbacks see the images of the first block, every `look_steps` of the config, before they are done.

        Args:
            block: Which one.
            iteration: How many of its iterations are done, from 0.
            images: (B, C, h, w) as they are now, in the space of `pixels`, or floats as a network sees them.
        """
        config = self.config
        if isinstance(config, OptimizedConfig) and iteration < self.iterations and iteration % config.look_steps == 0:
            self._show(block, iteration, images)

    def _show(self, block: Block, iteration: int, images: Tensor) -> None:
        def look() -> DistilledSet:
            x, size = images.detach(), self.train.shape[1:]
            if x.shape[2:] != size:  # of a stage
                x = F.interpolate(x, size)
            x = x.cpu() if x.dtype == torch.uint8 else x
            return DistilledSet(x, block.labels.to(x.device), self.train.class_names, self.preprocessing)

        if block.number == self._first:
            step = self._step(block, iteration)
            self.callbacks.on_images(dataclasses.replace(self._state, step=step, shown=iteration, look=look))

    def _step(self, block: Block, iteration: int) -> int:
        """A step of the whole run, as trackers count them: an iteration of a block, from 0."""
        return block.number * self.iterations + iteration

    # Blocks that are not done

    def keep(
        self, block: Block, iteration: int, tensors: Callable[[], dict[str, Tensor]], *, due: bool = False
    ) -> None:
        """Keep a block that is not done, where the run is asked to stop, which then ends, or where that is due.

        Args:
            block: Which one.
            iteration: How many of its iterations are done.
            tensors: Gives all that it goes on from, its images (B, C, H, W) as "x".
            due: Whether or not the run is asked to stop.

        Raises:
            KeyboardInterrupt: It is.
        """
        if 0 < iteration < self.iterations and (due or self._stop.asked):
            about = {"step": iteration, "seconds": self._clock.keep()}
            save_checkpoint(self._unfinished(block), tensors(), about, limit=1)
        if iteration < self.iterations and self._stop.asked:
            self._stop.end()

    def kept(self, block: Block) -> tuple[dict[str, Tensor], int]:
        """The tensors that were kept of a block, on the CPU, and how many iterations are done; none of one that begins.

        What is damaged is passed over, and that is said.
        """
        for checkpoint in reversed(list_checkpoints(self._unfinished(block))):
            try:
                tensors, about = load_checkpoint(checkpoint)
                step = about.get("step")
                whole = is_whole(step, 1, self.iterations)
                shape = (len(block.rows), *(self.shape_after(step) if whole else self.train.shape))
                if not whole or "x" not in tensors or tensors["x"].shape != shape:
                    raise ValueError(f"{checkpoint} holds no images {shape} after 1 to {self.iterations} iterations")
            except ValueError as error:
                logger.warning("block %s begins without what was kept of it: %s", block.number, error)
            else:
                logger.info("going on from %s", checkpoint)
                self._clock.go_on(about.get("seconds"))
                return tensors, step
        return {}, 0

    def shape_after(self, iteration: int) -> tuple[int, ...]:
        """(C, H, W) of the images that are kept after so many iterations of a block, from 1: that of train for most."""
        return self.train.shape

    def _unfinished(self, block: Block) -> Path:
        return self.folder / f"unfinished-{block.number:06d}"

    # The folder

    @property
    def _images(self) -> Path:
        return self.folder / f"images.{self.pixels}"

    def _start(self, shape: tuple[int, ...]) -> None:
        """Make the folder, or check that what it holds is of this run."""
        resume = self.config.resume_from_checkpoint
        if resume not in (None, "latest") and Path(resume).resolve() not in (
            self.folder.resolve(),
            self.output_dir.resolve(),
        ):
            raise ValueError(
                f"--resume_from_checkpoint {resume}: blocks are kept in the folder of their run; give that as "
                "--output_dir, and latest here"
            )
        config = json.loads(json.dumps(dataclasses.asdict(self.config)))
        free = FREE_TO_CHANGE - {"max_steps"} | {key for key in config if key.startswith("eval_")} | self.free
        run = {"shape": list(shape), **{key: value for key, value in config.items() if key not in free}}
        run = json.loads(json.dumps({**run, **self.identity()}))
        on_main(self.accelerator, lambda: self._prepare(run, shape))

    def _prepare(self, run: dict[str, Any], shape: tuple[int, ...]) -> None:
        index = self.folder / "run.json"
        if index.exists():
            try:
                was = load_json(index)
            except ValueError as error:
                raise ValueError(f"{error}; or remove {self.folder}, and the run begins anew") from error
            check_same_run(self.folder, was, run)
        if not (index.exists() and self._images.exists()):
            shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            reserve(self._images, math.prod(shape) * np.dtype(self.pixels).itemsize)
            if not index.exists():
                save_json(index, run)
        except OSError as error:
            if not index.exists():
                shutil.rmtree(self.folder, ignore_errors=True)
            raise ValueError(
                f"{error.filename} cannot be written ({error.strerror}); make room, or give another folder"
            ) from error

    def _marker(self, block: Block) -> Path:
        return self.folder / f"block-{block.number:06d}.json"

    def _measured(self, block: Block) -> Path:
        return self.folder / f"making-{block.number:06d}.json"

    def _work(self, block: Block) -> Work:
        """What a block took; without seconds where that is not known, as of blocks of version 0.1."""
        try:
            work = read_making(self._measured(block)).get("block")
        except ValueError:  # damaged; the block itself is there
            work = None
        return work or Work(self.iterations, None, device_name(self.device))

    def _done(self, block: Block, images: np.ndarray) -> bool:
        try:
            return load_json(self._marker(block)).get("sha256") == _checksum(images, block.rows.numpy())
        except ValueError:  # absent, or damaged: the block is made again
            return False

    def check_finite(self, values: dict[str, float], block: Block, iteration: int, advice: str) -> None:
        """Raise unless all of `values` are numbers."""
        bad = [key for key, value in values.items() if not np.isfinite(value)]
        if bad:
            raise DistillationDiverged(
                f"{bad[0]} of block {block.number} is {values[bad[0]]} at iteration {iteration}; {advice}. Blocks that "
                f"were done are in {self.folder}"
            )


def _checksum(images: np.ndarray, rows: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(images[rows])).hexdigest()
