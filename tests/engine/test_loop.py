"""The loop: what is learned beside the set is kept like the set, and callbacks see what happens."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from PIL import Image, ImageSequence
from safetensors.torch import load_file

import hf_distill as hd
from hf_distill.evaluation.protocols import PROTOCOLS
from hf_distill.runs.callbacks import Trackers
from hf_distill.runs.frames import Frames, frames_of, remove_frames
from tests.helpers import ROOT
from tests.helpers.learned_state import Mirror, MirrorConfig
from tests.helpers.recipes import Recipes

FLAGS = {
    "max_train_samples": 100,
    "max_test_samples": 20,
    "ipc": 1,
    "max_steps": 6,
    "save_steps": 3,
    "eval_steps": 3,
    "eval_nets": 1,
    "eval_protocol": "tiny",
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def mirror(recipes: Recipes, tmp_path_factory) -> Any:
    """Runs the method with state, in processes of its own, and gives its folder."""
    home = tmp_path_factory.mktemp("mirror")

    def run(name: str, processes: int = 1, **flags: Any) -> Path:
        flags = {**FLAGS, "output_dir": home / name, **flags}
        done = recipes(ROOT / "tests" / "helpers" / "learned_state.py", flags, home, processes=processes)
        assert done.status == [0] * processes, done.err
        return home / name

    return run


def state(folder: Path, step: int = 6) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoint-{step}" / "state.safetensors")


@pytest.mark.slow
def test_state_beside_the_set_goes_on_bit_for_bit_after_a_stop(mirror):
    whole, stopped = mirror("whole"), mirror("stopped", max_steps=3)
    resumed = mirror("stopped", resume_from_checkpoint="latest")
    expected, tensors = state(whole), state(resumed)
    assert expected.keys() == tensors.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name
    for name in ("0.running_mean", "0.num_batches_tracked", "1.weight"):
        assert not torch.equal(expected[f"set.module.head.{name}"], state(stopped, 3)[f"set.module.head.{name}"])
    heads = [torch.load(folder / "head.pt", weights_only=True) for folder in (whole, resumed)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


@pytest.mark.slow
def test_two_processes_average_its_gradients_as_accumulation_does(mirror):
    two = state(mirror("two", processes=2, select="last"))
    one = state(mirror("one", gradient_accumulation_steps=2, select="last"))
    alone = state(mirror("alone", select="last"))
    for name in ("set.pixel_values", "set.module.head.1.weight", "set.module.head.1.bias", "set.module.head.0.weight"):
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(one[name], alone[name], rtol=1e-3, atol=1e-4)


def test_gradients_that_a_step_puts_in_place_of_others_are_averaged_too(small, tmp_path, monkeypatch):
    def last(folder: str) -> torch.Tensor:
        return made(small, tmp_path / folder, select="last", gradient_accumulation_steps=2).run().pixel_values.detach()

    expected, known = last("plain"), Mirror.step

    def step(self: Mirror, draw: int) -> dict[str, Any]:
        logs = known(self, draw)
        for parameter in (self.distilled.pixel_values, *self.head.parameters()):
            parameter.grad = parameter.grad.clone()
        return logs

    monkeypatch.setattr(Mirror, "step", step)
    assert torch.equal(last("replaced"), expected)


@pytest.fixture
def small(monkeypatch, one_thread) -> tuple[hd.RealImages, hd.RealImages]:
    monkeypatch.setitem(PROTOCOLS, "tiny", hd.EvalProtocol("tiny", epochs=2, full_data_epochs=1, lrs=(0.05,)))
    train, _ = hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=100, max_test_samples=20))
    return train.split(0.2, seed=0)


def made(small: tuple[hd.RealImages, hd.RealImages], folder: Path, **flags: Any) -> Mirror:
    train, held_out = small
    settings = {name: value for name, value in FLAGS.items() if not name.startswith("max_t")} | flags
    callbacks = settings.pop("callbacks", ())
    config = MirrorConfig(output_dir=str(folder), **settings)
    return Mirror.prepare(train, config=config, held_out=held_out, callbacks=callbacks)


def test_the_best_step_brings_back_the_state_that_it_had(small, tmp_path, monkeypatch):
    accuracies = iter([0.1, 0.9, 0.2])
    monkeypatch.setattr("hf_distill.engine.loop.validation_accuracy", lambda *_: next(accuracies))
    mirror = made(small, tmp_path)
    distilled = mirror.run()
    assert distilled.config["selected_step"] == 3
    kept = state(tmp_path, 3)
    assert torch.equal(distilled.pixel_values, kept["set.pixel_values"])
    for name, tensor in mirror.head.state_dict().items():
        assert torch.equal(tensor, kept[f"set.module.head.{name}"]), name


def test_a_checkpoint_without_the_state_or_with_more_of_it_is_not_gone_on_with(small, tmp_path, monkeypatch):
    made(small, tmp_path, max_steps=3, select="last").run()
    monkeypatch.setattr(Mirror, "modules", lambda self: {})
    with pytest.raises(
        ValueError, match=r"holds module\.head\.\d\.\w+, which this run does not learn; .*'head'"
    ) as error:
        made(small, tmp_path, resume_from_checkpoint="latest").run()
    assert len(str(error.value).splitlines()) == 1
    monkeypatch.setattr(Mirror, "modules", lambda self: {"head": self.head, "other": self.head[1]})
    with pytest.raises(
        ValueError, match=r"holds nothing for module\.other\.weight .* settings that 'other' is learned"
    ):
        made(small, tmp_path, resume_from_checkpoint="latest").run()


def test_tied_layers_are_kept_and_learn_once(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Mirror, "modules", lambda self: {"head": self.head, "last": self.head[1]})
    tied = made(small, tmp_path / "tied", max_steps=2, save_steps=1, select="last", gradient_accumulation_steps=2)
    tied.run()
    monkeypatch.undo()
    monkeypatch.setitem(PROTOCOLS, "tiny", hd.EvalProtocol("tiny", epochs=2, full_data_epochs=1, lrs=(0.05,)))
    plain = made(small, tmp_path / "plain", max_steps=2, select="last", gradient_accumulation_steps=2)
    plain.run()
    for name, tensor in plain.head.state_dict().items():
        assert torch.equal(tied.head.state_dict()[name], tensor), name
    assert torch.equal(state(tmp_path / "tied", 2)["set.module.last.weight"], plain.head[1].weight)


class Notes(hd.Callback):
    """Writes down every event."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    def on_begin(self, run: hd.RunState) -> None:
        self.events.append(("begin", run.name, run.step, run.total))

    def on_step(self, run: hd.RunState) -> None:
        self.events.append(("step", run.step, sorted(run.values)))

    def on_evaluate(self, run: hd.RunState) -> None:
        self.events.append(("evaluate", run.step, sorted(run.values)))

    def on_save(self, run: hd.RunState) -> None:
        self.events.append(("save", run.step, run.folder.name, (run.folder / "state.safetensors").is_file()))

    def on_end(self, run: hd.RunState) -> None:
        self.events.append(("end", run.step))


def test_callbacks_see_every_step_evaluation_and_checkpoint_in_order(small, tmp_path):
    notes = Notes()
    made(small, tmp_path, max_steps=2, save_steps=1, eval_steps=2, callbacks=[notes]).run()
    assert notes.events == [
        ("begin", "distil (mirror)", 0, 2),
        ("evaluate", 0, ["accuracy"]),
        ("step", 1, ["loss"]),
        ("save", 1, "checkpoint-1", True),
        ("step", 2, ["loss"]),
        ("evaluate", 2, ["accuracy"]),
        ("save", 2, "checkpoint-2", True),
        ("end", 2),
    ]


def test_callbacks_see_the_end_of_a_run_that_diverges_and_the_set_as_it_is(small, tmp_path):
    notes, seen = Notes(), []

    class Looks(hd.Callback):
        def on_step(self, run: hd.RunState) -> None:
            seen.append(run.artifact.pixel_values.detach().clone())

    with pytest.raises(hd.DistillationDiverged, match=r"step 1 of mirror: .*\. Lower the learning rates \(--lr_img"):
        made(small, tmp_path / "far", lr_img=1e30, callbacks=[notes]).run()
    assert [event[0] for event in notes.events] == ["begin", "evaluate", "save", "end"]
    mirror = made(small, tmp_path / "near", select="last", max_steps=2, callbacks=[Looks()])
    distilled = mirror.run()
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], distilled.pixel_values)


# Pictures of the images as they form


class Fails(hd.Callback):
    """The machine fails behind a step."""

    def on_step(self, run: hd.RunState) -> None:
        if run.step == 5:
            raise OSError("gone")


def test_frames_are_of_their_steps_and_a_run_that_goes_on_leaves_those_of_one_that_nothing_stopped(small, tmp_path):
    seen = {}

    class Looks(hd.Callback):
        def on_images(self, run: hd.RunState) -> None:
            seen[run.step] = run.artifact.images_uint8()

    flags = {"save_frames": 2, "select": "last", "save_steps": 3}
    made(small, tmp_path / "whole", callbacks=[Looks()], **flags).run()
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "frames").iterdir()}
    assert list(seen) == [0, 2, 4, 6]
    assert files.keys() == {*(f"step-000000{step}.png" for step in seen), "animation.webp"}
    for step, images in seen.items():
        with Image.open(tmp_path / "whole" / "frames" / f"step-000000{step}.png") as picture:
            cells = np.asarray(picture)[4:108]  # two rows of five, eight by eight pixels six times as large
        for number, image in enumerate(images):
            top, left = 52 * (number // 5), 4 + 52 * (number % 5)
            assert np.array_equal(cells[top : top + 48 : 6, left : left + 48 : 6, 0], image[0].numpy())
    with Image.open(tmp_path / "whole" / "frames" / "animation.webp") as animation:
        assert animation.n_frames == 4
    with pytest.raises(OSError, match="gone"):
        made(small, tmp_path / "failed", callbacks=[Fails()], **flags).run()
    frames = tmp_path / "failed" / "frames"
    (frames / "step-0000006.png").write_bytes(b"of a run that got further")
    (frames / "mine.txt").touch()
    first = (frames / "step-0000000.png").stat().st_mtime_ns
    made(small, tmp_path / "failed", resume_from_checkpoint="latest", **flags).run()
    assert {path.name: path.read_bytes() for path in frames.iterdir()} == {**files, "mine.txt": b""}
    assert (frames / "step-0000000.png").stat().st_mtime_ns == first
    remove_frames(tmp_path / "failed")
    assert [path.name for path in frames.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("kept", [3, 6])
def test_a_run_of_photographs_that_goes_on_leaves_the_animation_of_one_that_nothing_stopped(kept, small, tmp_path):
    photographs, _ = hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=20, resolution=[64]))
    flags = {"save_frames": 3, "select": "last"}

    def animation(name: str, **more: Any) -> bytes:
        made((photographs, None), tmp_path / name, **flags, **more).run()
        return (tmp_path / name / "frames" / "animation.webp").read_bytes()

    whole = animation("whole")
    first = animation("stopped", max_steps=kept)
    assert (first == whole) == (kept == 6)
    assert animation("stopped", resume_from_checkpoint="latest") == whole


def test_an_animation_of_many_frames_shows_some_of_them_from_the_first_to_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_distill.runs.frames.MOST", 4)
    (tmp_path / "frames").mkdir()
    for step in range(11):
        Image.new("RGB", (8, 8), (20 * step, 0, 0)).save(tmp_path / "frames" / f"step-{step:07d}.png")
    Frames(tmp_path, side=8).on_end(hd.RunState("a run"))
    with Image.open(tmp_path / "frames" / "animation.webp") as animation:
        shades = [image.convert("RGB").getpixel((0, 0))[0] // 20 for image in ImageSequence.Iterator(animation)]
    assert shades == [0, 3, 7, 10]
    assert len(frames_of(tmp_path / "frames")) == 11


class Recorded:
    """A tracker that keeps what it is given."""

    def __init__(self, name: str) -> None:
        self.name, self.given = name, []

    def log(self, values: dict[str, Any], step: int) -> None:
        self.given.append(("log", values, step))

    def log_images(self, values: dict[str, Any], step: int) -> None:
        self.given.append(("log_images", values, step))


def test_trackers_are_shown_the_images_at_the_begin_and_at_evaluations(small, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board, wandb, trackio = TensorBoardTracker("run", tmp_path), Recorded("wandb"), Recorded("trackio")
    board.start()
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(Image=lambda pixels: ("an image", pixels)))
    looks = Trackers(SimpleNamespace(trackers=[board, wandb, trackio]), None)
    looks.on_begin = looks.on_step = looks.on_evaluate = looks.on_end = lambda run: None
    made(small, tmp_path / "mirror", callbacks=[looks], save_frames=3, select="last").run()
    board.finish()
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    shown = events.Images("images")
    assert [event.step for event in shown] == [0, 3, 6]
    for event, (kind, values, step), (how, also, at) in zip(shown, wandb.given, trackio.given, strict=True):
        assert (kind, how, step, at) == ("log_images", "log", event.step, event.step)
        picture = Image.open(tmp_path / "mirror" / "frames" / f"step-{step:07d}.png").convert("RGB")
        assert np.array_equal(picture, Image.open(io.BytesIO(event.encoded_image_string)))
        assert np.array_equal(picture, values["images"][0])
        assert also["images"][0] == "an image"
        assert np.array_equal(picture, also["images"][1])


def test_frames_every_no_steps_are_one_line():
    with pytest.raises(ValueError, match=r"^--save_frames is 0; expected"):
        hd.LoopConfig(save_frames=0)
