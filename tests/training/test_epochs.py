"""The loop of epochs: the same steps whoever looks on, whatever was stopped, however many images are left over."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_distill.runs.callbacks import Callback, RunState
from hf_distill.runs.checkpoints import find_checkpoint
from hf_distill.runs.finish import run_recipe
from hf_distill.training.epochs import EpochTraining
from tests.helpers.events import Notes, Signals, Ticks


class Toy(EpochTraining):
    """One number that moves by what is drawn; it remembers which rows it was shown."""

    measures: ClassVar = {"loss": "losses", "share": "shares"}

    def __init__(self, folder: Path, callbacks: tuple[Callback, ...] = (), stop: int | None = None) -> None:
        training = {"what": "toy"}
        super().__init__("toy", [10, 10, 3], 4, folder, training, 0, Accelerator(cpu=True), callbacks)
        self.network, self.stop, self.rows = nn.Linear(1, 1, bias=False), stop, []
        nn.init.zeros_(self.network.weight)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.5, momentum=0.9)

    def epoch(self, epoch: int, first: int, batches: Tensor, part: slice, draw: torch.Generator) -> Iterator[Tensor]:
        for step in range(first, len(batches)):
            rows = batches[step]
            if epoch == self.stop:
                raise RuntimeError("stopped")
            self.rows.append((epoch, rows[part].tolist()))
            self.network.weight.grad = torch.rand(1, 1)
            self.optimizer.step()
            yield torch.stack([self.network.weight.detach().sum(), torch.tensor(1.0)]) * len(rows)

    def network_tensors(self) -> dict[str, Tensor]:
        return {"model.weight": self.network.weight.detach()}

    def load_network(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(tensors)

    def advice(self) -> str:
        return "; lower it"

    def results(self) -> dict[str, Any]:
        return {"test_accuracy": None}


class Draws(Callback):
    """Draws from the default stream, at every step."""

    def on_step(self, state: RunState) -> None:
        torch.rand(3)


def test_the_images_that_whole_batches_leave_out_are_counted_once_for_each_size(tmp_path, caplog):
    toy = Toy(tmp_path)
    with caplog.at_level("INFO", logger="hf_distill.training.epochs"):
        toy.train()
    shown = [row for epoch, rows in toy.rows if epoch == 0 for row in rows]
    assert len(set(shown)) == 10 - 2
    says = "the toy takes whole batches of 4: an epoch leaves out 2 of 10 images, others each time"
    assert caplog.messages == [says]


def test_epochs_are_whole_batches_of_rows_in_an_order_of_their_own(tmp_path):
    toy = Toy(tmp_path)
    toy.train()
    assert [(epoch, len(rows)) for epoch, rows in toy.rows] == [(0, 4), (0, 4), (1, 4), (1, 4), (2, 3)]
    shown = [[row for number, rows in toy.rows if number == epoch for row in rows] for epoch in range(3)]
    assert all(len(set(rows)) == len(rows) for rows in shown)
    assert set(shown[2]) == {0, 1, 2}
    assert shown[0] != shown[1]
    assert toy.curves["share"] == [1, 1, 1]


def test_what_a_callback_draws_changes_no_step(tmp_path):
    alone, watched = Toy(tmp_path / "alone"), Toy(tmp_path / "watched", (Draws(),))
    before = torch.get_rng_state()
    for toy in (alone, watched):
        toy.train()
    assert watched.curves == alone.curves
    assert not torch.equal(torch.get_rng_state(), before)  # it did draw


@pytest.mark.parametrize("stop", [1, 2])
def test_a_stopped_training_takes_the_steps_that_lack(tmp_path, stop):
    whole = Toy(tmp_path / "whole")
    whole.train()
    with pytest.raises(RuntimeError, match="stopped"):
        Toy(tmp_path / "parts", stop=stop).train()
    rest = Toy(tmp_path / "parts")
    rest.resume(tmp_path / "parts" / f"checkpoint-{stop}")
    rest.train()
    assert rest.curves == whole.curves
    assert rest.rows == [step for step in whole.rows if step[0] >= stop]
    assert torch.equal(rest.network.weight, whole.network.weight)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint-3"]


@pytest.mark.parametrize(("step", "kept"), [(1, "checkpoint-0"), (2, "checkpoint-1"), (3, "checkpoint-1")])
def test_a_training_that_a_cluster_ends_keeps_its_next_step_in_the_middle_of_an_epoch_too(tmp_path, step, kept):
    whole = Toy(tmp_path / "whole")
    whole.train()
    ended = Toy(tmp_path / "parts", (Signals(step),))
    with pytest.raises(SystemExit, match=r"^interrupted: go on$"):
        run_recipe(ended.train, "go on")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [kept]
    notes = Notes()
    rest = Toy(tmp_path / "parts", (notes,))
    rest.resume(find_checkpoint(tmp_path / "parts", "latest"))
    rest.train()
    assert notes.events[0][1].done == step
    assert ended.rows + rest.rows == whole.rows
    assert rest.curves == whole.curves
    assert torch.equal(rest.network.weight, whole.network.weight)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint-3"]


@pytest.mark.parametrize("ended", [1, 2, 3])
def test_the_seconds_of_a_training_are_those_of_all_its_sessions(tmp_path, monkeypatch, ended):
    clock = Ticks(monkeypatch)
    with pytest.raises(SystemExit):
        run_recipe(Toy(tmp_path, (clock, Signals(ended))).train, "go on")
    clock.now += 500  # nobody works
    rest = Toy(tmp_path, (clock,))
    rest.resume(find_checkpoint(tmp_path, "latest"))
    clock.now += 70  # nor yet
    rest.train()
    work = rest.making["training"]
    assert (work.steps, work.seconds, work.device) == (5, 5.0, "cpu")
    again = Toy(tmp_path, (clock,))  # which has nothing to do
    again.resume(find_checkpoint(tmp_path, "latest"))
    clock.now += 70
    again.train()
    assert again.making == rest.making


def test_what_is_lost_with_a_session_is_not_counted_and_what_was_not_measured_is_not_made_up(tmp_path, monkeypatch):
    clock = Ticks(monkeypatch)
    with pytest.raises(RuntimeError, match="stopped"):
        Toy(tmp_path, (clock,), stop=1).train()
    clock.now += 500
    rest = Toy(tmp_path, (clock,))
    rest.resume(tmp_path / "checkpoint-1")
    rest.train()
    assert rest.making["training"].seconds == 5.0
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    old = {name: value for name, value in state.items() if name != "seconds"}
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text(json.dumps(old))
    (tmp_path / "checkpoint-3" / "SHA256SUMS").unlink()
    rest = Toy(tmp_path, (clock,))
    rest.resume(tmp_path / "checkpoint-3")
    rest.train()
    assert rest.making["training"].seconds is None


def test_a_loss_that_is_no_number_ends_it_in_one_line_and_keeps_the_checkpoint_before(tmp_path):
    class Broken(Toy):
        def epoch(self, epoch: int, *args: Any) -> Iterator[Tensor]:
            for summed in super().epoch(epoch, *args):
                yield summed * (math.nan if epoch == 1 else 1)

    with pytest.raises(ValueError, match=r"^the toy's loss is not finite in epoch 2; lower it$"):
        Broken(tmp_path).train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
