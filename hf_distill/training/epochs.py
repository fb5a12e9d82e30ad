"""The one loop of trainings in epochs: processes share each batch, and one that was stopped goes on after its last
epoch, or after the step in which it was asked to stop."""

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

from ..evaluation.accuracy import device_name
from ..hub.making import Work
from ..rng import derive_seed, generator
from ..runs.callbacks import Callback, Callbacks, RunState
from ..runs.checkpoints import load_checkpoint, pack_optimizers, save_checkpoint, unpack_optimizers
from ..runs.clock import Clock
from ..runs.processes import on_main
from ..runs.stopping import Agreement, stopping

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

    The order of an epoch is a function of (seed, epoch), and what a step draws from torch's default stream is one of
    (seed, epoch, step, process); so a training that goes on from a checkpoint takes the steps that it would have taken.
    What is trained, and how a step is taken, a subclass says.

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
        behind: How many steps of the next one are done.
        sums: (len(measures),) float64 what they gave, on the device.
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
        self._clock = Clock(accelerator.num_processes)
        self._begin_epoch()

    @abstractmethod
    def epoch(self, epoch: int, first: int, batches: Tensor, part: slice, draw: torch.Generator) -> Iterator[Tensor]:
        """Take the steps of an epoch; after each, give what `measures` names, summed over this process's images.

        Args:
            epoch: Its number, from 0.
            first: The step to begin with, from 0: those before it are done.
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
    def making(self) -> dict[str, Work | None]:
        """What the training took until its last checkpoint."""
        steps = sum(self.steps[: self.done]) + self.behind
        return {"training": Work(steps, self._clock.kept, device_name(self.accelerator.device), self.flop())}

    def flop(self) -> int | None:
        """Those of the steps that are done, by arithmetic; None where nobody counts."""
        return None

    @property
    def done(self) -> int:
        """The number of epochs that are behind."""
        return min(len(curve) for curve in self.curves.values())

    def train(self) -> dict[str, Any]:
        """The results of the training, whose lacking epochs are trained first. All processes call it.

        Raises:
            KeyboardInterrupt: A recipe was asked to stop (SIGTERM, SIGUSR1): the state is in a checkpoint.
            ValueError: The loss stops being finite; the checkpoints before stay.
            OSError: A checkpoint could not be written; those before it are whole.
        """
        for size, batch in dict.fromkeys(zip(self.sizes, self.batches, strict=True)):
            say_left_out(self.name, size, batch)
        behind = sum(self.steps[: self.done]) + self.behind
        state = RunState(
            self.name,
            step=behind,
            total=sum(self.steps),
            done=behind,
            values=self._means(),
            is_main_process=self.accelerator.is_main_process,
            unit="step",
            look=lambda: self.network,
        )
        self._clock.go_on(self._clock.kept)  # from now on, and not from when it was made
        self.callbacks.on_begin(state)
        try:
            with stopping() as stop:
                agreed = Agreement(stop, self.accelerator)
                while self.done < len(self.sizes):
                    state = self._train_epoch(self.done, state, agreed)
            results = self.results()
            if results.get("test_accuracy") is not None:
                self.callbacks.on_evaluate(replace(state, values={"accuracy": results["test_accuracy"]}))
        finally:
            self.callbacks.on_end(state)
        return results

    def _train_epoch(self, epoch: int, state: RunState, agreed: Agreement) -> RunState:
        """Train through an epoch, keep its means and write its checkpoint; the state after it."""
        size, world, rank = self.batches[epoch], self.accelerator.num_processes, self.accelerator.process_index
        draw = generator(self.seed, self.name, "order", epoch)
        order = torch.randperm(self.sizes[epoch], generator=draw)
        batches = order[: self.steps[epoch] * size].view(-1, size)
        part = slice(size * rank // world, size * (rank + 1) // world)
        steps = self.epoch(epoch, self.behind, batches, part, draw)
        with torch.random.fork_rng(devices=self._random_devices):
            for step in range(self.behind, len(batches)):
                torch.manual_seed(derive_seed(self.seed, self.name, "dropout", epoch, step, rank))
                self.sums += next(steps)
                state = replace(state, step=state.step + 1, done=state.done + 1)
                self.behind = step + 1
                if self.behind < len(batches):  # the last one is told of with the means of the epoch
                    self.callbacks.on_step(state)
                    if agreed.to_stop():
                        self._save(state)
                        agreed.stop.end()
        means = (self.accelerator.reduce(self.sums) / batches.numel()).tolist()
        if not math.isfinite(means[0]):
            raise ValueError(f"the {self.name}'s loss is not finite in epoch {epoch + 1}{self.advice()}")
        for curve, mean in zip(self.curves.values(), means, strict=True):
            curve.append(mean)
        self._begin_epoch()
        state = replace(state, values=self._means())
        self.callbacks.on_step(state)
        self._save(state)
        if agreed.to_stop():
            agreed.stop.end()
        return state

    def _begin_epoch(self) -> None:
        self.behind = 0
        self.sums = torch.zeros(len(self.measures), device=self.accelerator.device, dtype=torch.float64)

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

    def _save(self, state: RunState) -> None:
        self.callbacks.on_save(replace(state, folder=self.save()))

    def save(self) -> Path:
        """The checkpoint of all that is done, once it is written. All processes call it."""
        tensors = {"sums": self.accelerator.gather(self.sums[None])} if self.behind else {}
        return Path(on_main(self.accelerator, lambda: self._write(tensors)))

    def _write(self, tensors: dict[str, Tensor]) -> str:
        tensors = {**self.network_tensors(), **pack_optimizers([self.optimizer]), **tensors}
        curves = {self.measures[measure]: curve for measure, curve in self.curves.items()}
        processes = self.accelerator.num_processes
        state = {"step": self.done, "training": self.training, "processes": processes, **curves}
        state["seconds"] = self._clock.keep()
        if self.behind:
            state["behind"] = self.behind
        return str(save_checkpoint(self.folder, tensors, state, limit=1))

    def resume(self, checkpoint: Path) -> None:
        """Take up the state that a checkpoint of this very training holds."""
        tensors, state = load_checkpoint(checkpoint)
        model = {key: value for key, value in tensors.items() if key.startswith("model.")}
        self.load_network({key.removeprefix("model."): value for key, value in model.items()})
        unpack_optimizers([self.optimizer], tensors)
        self.curves = {measure: state[key] for measure, key in self.measures.items()}
        self.training = state["training"]  # which may say more, such as what the network started from
        self._clock.go_on(state.get("seconds"))
        before, now = state.get("processes"), self.accelerator.num_processes  # version 0.1 does not say
        self._begin_epoch()
        if "behind" in state:  # the sums of each process go to one of these
            self.behind = state["behind"]
            self.sums += tensors["sums"][self.accelerator.process_index :: now].sum(0).to(self.sums.device)
        if before not in (None, now):
            logger.warning(
                "going on with other settings than %s was made with: processes %s -> %s", checkpoint, before, now
            )
        steps = f", and {self.behind:,} steps of epoch {self.done + 1}" if self.behind else ""
        logger.info("going on from %s%s", checkpoint, steps)
