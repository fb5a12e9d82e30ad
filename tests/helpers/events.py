"""Callbacks that write down all that a run tells them, or end it as a cluster does."""

import os
import signal

from hf_distill.runs.callbacks import Callback, RunState


class Notes(Callback):
    """Every event of a run, by name, with the state that it came with."""

    def __init__(self) -> None:
        self.events: list[tuple[str, RunState]] = []

    def on_begin(self, state: RunState) -> None:
        self.events.append(("begin", state))

    def on_step(self, state: RunState) -> None:
        self.events.append(("step", state))

    def on_evaluate(self, state: RunState) -> None:
        self.events.append(("evaluate", state))

    def on_save(self, state: RunState) -> None:
        self.events.append(("save", state))

    def on_end(self, state: RunState) -> None:
        self.events.append(("end", state))


class Signals(Callback):
    """A cluster ends the job behind a step.

    Args:
        step: Which one, as `RunState.step` counts.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state: RunState) -> None:
        if state.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class Ticks(Callback):
    """A clock for `hf_distill.runs.clock`, of which each step takes one second."""

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("hf_distill.runs.clock.monotonic", lambda: self.now)

    def on_step(self, state: RunState) -> None:
        self.now += 1
