"""How a recipe ends."""

import io
import os
import signal
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hf_distill.config import HubArguments
from hf_distill.hub.results import EvalReport, EvalRow
from hf_distill.runs.finish import finish, run_recipe
from hf_distill.runs.stopping import stopping


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone, which is gone afterwards whatever a test does."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_a_recipe_leaves_no_process_group_whose_threads_outlive_the_interpreter(group):
    seen = []
    run_recipe(lambda: seen.append(torch.distributed.is_initialized()))
    assert seen == [True]
    assert not torch.distributed.is_initialized()


def test_a_recipe_without_a_process_group_ends_as_well():
    run_recipe(lambda: None)


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_a_recipe_that_is_told_to_stop_ends_in_one_line_of_all_its_processes(monkeypatch, told, rank):
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    if told == signal.SIGINT:  # which a shell has ignored in what it starts in the background
        restored = signal.signal(told, signal.default_int_handler)
    before = signal.getsignal(told)
    with pytest.raises(SystemExit) as stop:
        run_recipe(lambda: os.kill(os.getpid(), told), "the same command goes on")
    assert stop.value.code == (1 if rank == "1" else "interrupted: the same command goes on")
    assert signal.getsignal(told) is before
    if told == signal.SIGINT:
        signal.signal(told, restored)


def test_a_loop_that_can_be_stopped_is_asked_and_behind_its_last_step_the_recipe_ends():
    seen = []

    def main() -> None:
        with stopping() as stop:
            for _ in range(3):  # a cluster tells the launcher, and both tell this process
                os.kill(os.getpid(), signal.SIGTERM)
            seen.append(stop.asked)
        seen.append("not reached")

    with pytest.raises(SystemExit, match="interrupted"):
        run_recipe(main)
    assert seen == [True]


def test_outside_of_a_recipe_signals_are_what_the_program_made_of_them():
    before = signal.getsignal(signal.SIGTERM)
    with stopping() as stop:
        assert signal.getsignal(signal.SIGTERM) is before
    assert not stop.asked


def test_what_a_terminal_cannot_print_ends_no_recipe():
    with pytest.MonkeyPatch.context() as patch:
        terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
        patch.setattr(sys, "stdout", terminal)
        run_recipe(lambda: print("61.2 ± 3.1"))
    assert terminal.buffer.getvalue() == b"61.2 ? 3.1\n"


@pytest.mark.parametrize("fails", ["nothing", "the Hub", "the disk"])
def test_a_set_is_published_before_the_table_is_shown_which_is_shown_in_any_case(tmp_path, capsys, fails):
    report = EvalReport([EvalRow("distilled", "hard", "convnet_d1", "quick", 10, [0.5], "cpu")])
    saved: list[str] = []

    def save(folder: str) -> None:
        saved.append(folder)
        if fails == "the disk" and len(saved) == 2:  # once more, with the results
            raise OSError("the disk does not answer")

    def publish() -> str:
        assert not capsys.readouterr().out
        if fails == "the Hub":
            raise ValueError("the Hub does not answer")
        return "published: there"

    distilled = SimpleNamespace(keep_results=lambda folder: None, save_pretrained=save)
    where = (tmp_path, HubArguments(push_to_hub=True, hub_model_id="me/set"), Accelerator())
    raised = pytest.raises((ValueError, OSError), match=f"{fails} does not answer")
    with nullcontext() if fails == "nothing" else raised:
        finish(distilled, lambda: report, *where, publish=publish)
    shown = capsys.readouterr().out
    assert "50.0" in shown
    assert ("published: there" in shown) is (fails == "nothing")
