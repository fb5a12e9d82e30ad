"""The one loop of trainings in epochs: processes share each batch, and after each epoch a stopped one can go on."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor

from ..rng import generator
from ..runs.callbacks import Callback, Callbacks, RunState
from ..runs.checkpoints import load_checkpoint, pack_optimizers, save_checkpoint, unpack_optimizers
from ..runs.processes import on_main

__all__ = ["EpochTraining"]

logger = logging.getLogger(__name__)


def say_left_out(name: str, size: int, batch: int) -> None:
    """Log how many of `size` images each epoch of the training `name` leaves out, for it takes whole batches."""
    if size % batch:
        logger.info(
            "the %s takes whole batches of %s: an epoch leaves out %s of %s images, others each time",
            *(name, f"{batch:,}", f"{size % batch:,}", f"{size:,}"),
        )


class EpochTraining(ABC):
    """One training in epochs of whole batches; the few images that are left over wait for the next epoch.

    The order of an epoch is a function of (seed, epoch), so a training that goes on from a checkpoint takes the steps
    that it would have taken. What is trained, and how a step is taken, a subclass says.

    Args:
        name: Of what is trained; it names the random streams too.
        sizes: How many images each epoch looks at (E numbers).
        batch: Images per step, of all processes together; where an epoch has fewer, all of them.
        folder: For checkpoints.
        training: Everything that decides the result, as JSON types.
        seed: The one seed.
        accelerator: Processes and device.
        callbacks: Look on; a step is one of the optimizer. `values` are the means of the last epoch that is done.

    Attributes:
        network: What is trained.
        optimizer: What trains it.
        steps: How many steps each epoch has (E numbers).
        curves: The means of every epoch that is done, by the names in `measures`.
    """

    measures: ClassVar[dict[str, str]]  # what `epoch` sums up, the loss first -> its key in a checkpoint
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        name: str,
        sizes: Sequence[int],
        batch: int,
        folder: Path,
        training: dict[str, Any],
        seed: int,
        accelerator: Accelerator,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.name, self.sizes, self.folder, self.training = name, list(sizes), folder, training
        self.seed, self.accelerator, self.callbacks = seed, accelerator, Callbacks(callbacks)
        self.batches = [min(batch, size) for size in sizes]
        self.steps = [size // batch for size, batch in zip(self.sizes, self.batches, strict=True)]
        self.curves: dict[str, list[float]] = {measure: [] for measure in self.measures}

    @abstractmethod
    def epoch(self, epoch: int, batches: Tensor, part: slice, draw: torch.Generator) -> Iterator[Tensor]:
        """Take the steps of an epoch; after each, give what `measures` names, summed over this process's images.

        Args:
            epoch: Its number, from 0.
            batches: (steps, B) rows, on the CPU: one batch for each step, of all processes together.
            part: Of each batch, what this process takes.
            draw: The stream of this epoch, which the order was drawn from.

        Returns:
            After each step (len(measures),) on the device.
        """

    @abstractmethod
    def network_tensors(self) -> dict[str, Tensor]:
        """The part of the network that belongs into a checkpoint, under keys that begin with "model."."""

    @abstractmethod
    def load_network(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `network_tensors` gave, without the "model." of the keys."""

    @abstractmethod
    def advice(self) -> str:
        """The end of the message of a loss that is not finite: why it may be so, and what to do."""

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """Measurements after the last epoch, as JSON types; "test_accuracy" where there are test images.

        All processes call it.
        """

    @property
    def done(self) -> int:
        """The number of epochs that are behind."""
        return min(len(curve) for curve in self.curves.values())

    def train(self) -> dict[str, Any]:
        """The results of the training, whose lacking epochs are trained first. All processes call it.

        Raises:
            ValueError: The loss stops being finite; the checkpoints before stay.
            OSError: A checkpoint could not be written; those before it are whole.
        """
        for size, batch in dict.fromkeys(zip(self.sizes, self.batches, strict=True)):
            say_left_out(self.name, size, batch)
        behind = sum(self.steps[: self.done])
        state = RunState(
            self.name,
            step=behind,
            total=sum(self.steps),
            done=behind,
            values=self._means(),
            is_main_process=self.accelerator.is_main_process,
            unit="step",
            artifact=self.network,
        )
        self.callbacks.on_begin(state)
        try:
            while self.done < len(self.sizes):
                state = self._train_epoch(self.done, state)
                self.callbacks.on_save(replace(state, folder=self.save()))
            results = self.results()
            if results.get("test_accuracy") is not None:
                self.callbacks.on_evaluate(replace(state, values={"accuracy": results["test_accuracy"]}))
        finally:
            self.callbacks.on_end(state)
        return results

    def _train_epoch(self, epoch: int, state: RunState) -> RunState:
        """Train through an epoch and keep its means; the state after it."""
        size, world, rank = self.batches[epoch], self.accelerator.num_processes, self.accelerator.process_index
        draw = generator(self.seed, self.name, "order", epoch)
        order = torch.randperm(self.sizes[epoch], generator=draw)
        batches = order[: self.steps[epoch] * size].view(-1, size)
        part = slice(size * rank // world, size * (rank + 1) // world)
        sums = torch.zeros(len(self.measures), device=self.accelerator.device, dtype=torch.float64)
        for step, summed in enumerate(self.epoch(epoch, batches, part, draw), 1):
            sums += summed
            state = replace(state, step=state.step + 1, done=state.done + 1)
            if step < len(batches):  # the last one is told of with the means of the epoch
                with torch.random.fork_rng(devices=self._random_devices):  # an epoch may draw, and so may they
                    self.callbacks.on_step(state)
        means = (self.accelerator.reduce(sums) / batches.numel()).tolist()
        if not math.isfinite(means[0]):
            raise ValueError(f"the {self.name}'s loss is not finite in epoch {epoch + 1}{self.advice()}")
        for curve, mean in zip(self.curves.values(), means, strict=True):
            curve.append(mean)
        state = replace(state, values=self._means())
        self.callbacks.on_step(state)
        return state

    @property
    def _random_devices(self) -> list[torch.device]:
        """Accelerators with a stream of random numbers, for `fork_rng`."""
        return [self.accelerator.device] if self.accelerator.device.type == "cuda" else []

    def _means(self) -> dict[str, float]:
        """The means of the last epoch that is done, and its number; nothing before the first."""
        if not self.done:
            return {}
        return {"epoch": self.done, **{measure: curve[-1] for measure, curve in self.curves.items()}}

    # Checkpoints

    def save(self) -> Path:
        """The checkpoint of the epochs that are done, once it is written. All processes call it."""
        return Path(on_main(self.accelerator, self._write))

    def _write(self) -> str:
        tensors = {**self.network_tensors(), **pack_optimizers([self.optimizer])}
        curves = {self.measures[measure]: curve for measure, curve in self.curves.items()}
        processes = self.accelerator.num_processes
        state = {"step": self.done, "training": self.training, "processes": processes, **curves}
        return str(save_checkpoint(self.folder, tensors, state, limit=1))

    def resume(self, checkpoint: Path) -> None:
        """Take up the state that a checkpoint of this very training holds."""
        tensors, state = load_checkpoint(checkpoint)
        model = {key: value for key, value in tensors.items() if key.startswith("model.")}
        self.load_network({key.removeprefix("model."): value for key, value in model.items()})
        unpack_optimizers([self.optimizer], tensors)
        self.curves = {measure: state[key] for measure, key in self.measures.items()}
        self.training = state["training"]  # which may say more, such as what the network started from
        before, now = state.get("processes"), self.accelerator.num_processes  # version 0.1 does not say
        if before not in (None, now):
            logger.warning(
                "going on with other settings than %s was made with: processes %s -> %s", checkpoint, before, now
            )
        logger.info("going on from %s", checkpoint)
