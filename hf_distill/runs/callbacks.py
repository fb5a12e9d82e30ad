"""Callbacks: what looks on while a run goes on, after the pattern of transformers. Bars and trackers are callbacks too.

class Notes(Callback):
    def on_evaluate(self, state):
        print(state.step, state.values["accuracy"])

hd.TESLA.distill(train, ipc=10, callbacks=[Notes()])
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..distilled.card import small_grid

__all__ = ["Callback", "Callbacks", "ProgressBar", "RunState", "Trackers"]


@dataclass
class RunState:
    """The state of a run, which every callback of every process is given.

    Example:
        >>> state = hd.RunState("distil (tesla)", step=5, total=10, values={"loss": 0.5})
        >>> state.step, state.values["loss"]
        (5, 0.5)

    Attributes:
        name: Of the run, such as "distil (tesla)".
        step: Steps of the whole run, as trackers count them.
        total: Steps that this process is to make until the end of the run.
        done: Steps that this process has made, of `total`; beside `step` where processes share blocks.
        values: What was computed in this step, by name: "loss" and others; "accuracy" in [0, 1] after an evaluation.
        is_main_process: True in one process.
        unit: One of `total`, as a bar names it.
        folder: What was saved, in `on_save`.
        look: Gives what is made, as it is now.
        shown: Steps that the images of `look` have behind them, in `on_images`; of a block, those of the block.
    """

    name: str
    step: int = 0
    total: int = 0
    done: int = 0
    values: dict[str, float] = field(default_factory=dict)
    is_main_process: bool = True
    unit: str = "it"
    folder: Path | None = None
    look: Callable[[], Any] = lambda: None
    shown: int = 0

    @property
    def artifact(self) -> Any:
        """What is made, as it is now: a `DistilledSet`, or a network in training. To look at, not to change."""
        return self.look()


class Callback:
    """Looks on while something is distilled or trained. Each method does nothing unless it is overridden.

    Every process calls its own, so `state.is_main_process` tells where to print or to write. Processes that share one
    loop call them at the same steps; those that share out blocks or experts each tell of their own, and a small CLIP is
    trained by one: a callback must not wait for other processes.

    Example:
        >>> class Losses(hd.Callback):
        ...     def __init__(self):
        ...         self.values = []
        ...     def on_step(self, state):
        ...         self.values.append(state.values["loss"])
        >>> losses = Losses()
        >>> losses.on_step(hd.RunState("distil (tesla)", step=1, total=10, values={"loss": 0.5}))
        >>> losses.values
        [0.5]
    """

    def on_begin(self, state: RunState) -> None:
        """Called once before the first step, `state.done` of which may be there already in a run that is continued."""

    def on_step(self, state: RunState) -> None:
        """Called after each step, or where steps are too many to look at each, every `logging_steps`."""

    def on_evaluate(self, state: RunState) -> None:
        """Called after each evaluation on held-out images."""

    def on_images(self, state: RunState) -> None:
        """Called where images are to be looked at, as `state.artifact` after `state.shown` of their steps.

        That is before the first step, every `save_frames` or else at evaluations, and at the end. Where images are made
        in blocks it is the first one, ten times without `save_frames`; of a method without steps it is its end alone.
        """

    def on_save(self, state: RunState) -> None:
        """Called once `state.folder` is written."""

    def on_end(self, state: RunState) -> None:
        """Called at the end, also of a run that fails."""


class Callbacks(Callback):
    """Several callbacks as one; each event reaches them in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)

    def on_begin(self, state: RunState) -> None:
        for callback in self.callbacks:
            callback.on_begin(state)

    def on_step(self, state: RunState) -> None:
        for callback in self.callbacks:
            callback.on_step(state)

    def on_evaluate(self, state: RunState) -> None:
        for callback in self.callbacks:
            callback.on_evaluate(state)

    def on_images(self, state: RunState) -> None:
        for callback in self.callbacks:
            callback.on_images(state)

    def on_save(self, state: RunState) -> None:
        for callback in self.callbacks:
            callback.on_save(state)

    def on_end(self, state: RunState) -> None:
        for callback in self.callbacks:
            callback.on_end(state)


class ProgressBar(Callback):
    """A bar of the main process, with the values of the last step beside it.

    Args:
        disable: No bar.
    """

    def __init__(self, disable: bool = False) -> None:
        self.disable = disable
        self._bar: tqdm | None = None

    def on_begin(self, state: RunState) -> None:
        self._bar = tqdm(
            total=state.total,
            initial=state.done,
            desc=state.name,
            unit=state.unit,
            disable=self.disable or not state.is_main_process,
        )

    def on_step(self, state: RunState) -> None:
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in state.values.items()}, refresh=False)
            self._bar.update(state.done - self._bar.n)

    def on_end(self, state: RunState) -> None:
        if self._bar is not None:
            self._bar.close()


class Trackers(Callback):
    """The trackers that `--report_to` names: values of steps as train/<name>, of evaluations as eval/<name>, pictures.

    Args:
        accelerator: Made with these trackers.
        config: A dataclass of hyper-parameters, which trackers show; `report_to` is one of them.
        every: Steps between two lines; the last step has one too.
    """

    def __init__(self, accelerator: Accelerator, config: Any, every: int = 1) -> None:
        self.accelerator, self.config, self.every = accelerator, config, every

    def on_begin(self, state: RunState) -> None:
        if self.config.report_to != "none":
            fields = dataclasses.asdict(self.config)
            flat = {name: it if isinstance(it, int | float | str) else str(it) for name, it in fields.items()}
            self.accelerator.init_trackers("hf_distill", config=flat)

    def on_step(self, state: RunState) -> None:
        if state.done % self.every == 0 or state.done == state.total:
            self.accelerator.log({f"train/{name}": value for name, value in state.values.items()}, step=state.step)

    def on_evaluate(self, state: RunState) -> None:
        self.accelerator.log({f"eval/{name}": value for name, value in state.values.items()}, step=state.step)

    def on_images(self, state: RunState) -> None:
        if not (self.accelerator.trackers and state.is_main_process):
            return
        picture = np.asarray(small_grid(state.artifact))  # (height, width, 3) uint8
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"images": picture[None]}, step=state.step, dataformats="NHWC")
            elif tracker.name == "trackio":  # to which Accelerate hands numbers alone
                import trackio

                tracker.log({"images": trackio.Image(picture)}, step=state.step)
            else:
                tracker.log_images({"images": [picture]}, step=state.step)

    def on_end(self, state: RunState) -> None:
        # `Accelerator.end_training` would end the process group as well.
        for tracker in self.accelerator.trackers:
            tracker.finish()
