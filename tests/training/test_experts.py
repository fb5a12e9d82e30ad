"""Experts: the same many at once or alone, continued or not, on one process or two; and read lazily."""

import errno
import json
import math
import os
import runpy
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import save

from hf_distill.augmentation.dsa import DSA
from hf_distill.config import DataArguments, load_yaml
from hf_distill.data.images import RealImages
from hf_distill.evaluation.costs import student_flop
from hf_distill.networks import trajectories
from hf_distill.networks.trajectories import ExpertTrajectories
from hf_distill.rng import derive_seed, generator
from hf_distill.runs import claims
from hf_distill.runs.finish import run_recipe
from hf_distill.training import experts as experts_module
from hf_distill.training.experts import ExpertConfig, ExpertTrainer, train_experts
from tests.helpers import ROOT, flips, without_sums
from tests.helpers.events import Notes

EPOCHS = 6
FLAGS = {
    "student": "convnet_d2",
    "student_width": 16,
    "num_experts": 4,
    "lr_teacher": 0.02,
    "mom_teacher": 0.5,
    "l2_teacher": 1e-3,
    "batch_train": 32,
    "dsa_strategy": "color_crop_cutout_scale_rotate",
    "experts_at_once": "2",
}
DATA_FLAGS = {"max_train_samples": 200, "max_test_samples": 50}


def config(**changes) -> ExpertConfig:
    return ExpertConfig(**{**FLAGS, **changes})


# Sums over a batch depend on how many threads share it; subprocesses below have one too.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def data() -> tuple[RealImages, RealImages]:
    args = DataArguments(**DATA_FLAGS)
    train, test = RealImages.train_and_test(args)
    return train.split(args.validation_fraction, seed=0)[0], test


@pytest.fixture(scope="module")
def trained(data, accelerator, tmp_path_factory) -> ExpertTrajectories:
    folder = tmp_path_factory.mktemp("uninterrupted") / "experts"
    train, test = data
    return train_experts(train, config(), folder, epochs=EPOCHS, seed=0, accelerator=accelerator, test=test)


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained.folder, tmp_path / "copy"))


def expert_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("expert-*.safetensors"))}


# Two runs in one process that imports once: two ranks that finish, then one that is killed in its second group.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.training.experts import ExpertConfig, train_experts

flags, data_flags, epochs, root, port = json.loads(sys.argv[1])

def work(rank, folder, ranks):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    accelerator = Accelerator(cpu=True)
    args = DataArguments(**data_flags)
    train, test = RealImages.train_and_test(args)
    train = train.split(args.validation_fraction, seed=0)[0]
    train_experts(train, ExpertConfig(**flags), folder, epochs=epochs, seed=0, accelerator=accelerator, test=test)
    assert accelerator.num_processes == ranks

def die_after(name):
    # From now on this process is killed as soon as it has written a file of this name.
    replace = os.replace

    def replace_and_die(source, target):
        replace(source, target)
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_and_die

def start(folder, ranks, last=None):
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                die_after(last)
                work(rank, folder, ranks)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    return children

if __name__ == "__main__":
    for child in start(root + "/two", 2):
        assert os.waitpid(child, 0)[1] == 0
    (child,) = start(root + "/killed", 1, last="expert-00002-epoch-00002.safetensors")
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


@pytest.fixture(scope="module")
def runs(data, recipes, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (root / "runs.py").write_text(SCRIPT)
    done = recipes(root / "runs.py", [json.dumps([FLAGS, DATA_FLAGS, EPOCHS, str(root), port])], root)
    assert done.status == [0], done.err[-3000:]
    return root


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_experts_trained_together_are_those_trained_alone(data, accelerator, momentum):
    spec = config().student_spec(data[0])
    trainer = ExpertTrainer(data[0], spec, config(mom_teacher=momentum), 3, accelerator, torch.float64)
    numbers = [0, 1, 5]
    together = trainer.init(numbers)
    speeds = torch.zeros_like(together)
    losses = [trainer.epoch(numbers, epoch, together, speeds if momentum else None)[0] for epoch in (1, 2)]
    for row, number in enumerate(numbers):
        alone = trainer.init([number])
        speed = torch.zeros_like(alone)
        for epoch in (1, 2):
            loss, _ = trainer.epoch([number], epoch, alone, speed if momentum else None)
            torch.testing.assert_close(loss[0], losses[epoch - 1][row], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 5e-4)])
def test_an_epoch_is_that_of_a_plain_loop_with_torch_sgd(data, launch, momentum, decay, device):
    train, seed, number, batch = data[0], 7, 2, 64
    settings = config(mom_teacher=momentum, l2_teacher=decay, batch_train=batch, lr_teacher=0.05)
    spec = settings.student_spec(train)
    trainer = ExpertTrainer(train, spec, settings, seed, launch(device=device.type), torch.float64)
    thetas = trainer.init([number])
    speeds = torch.zeros_like(thetas) if momentum else None
    loss, accuracy = trainer.epoch([number], 1, thetas, speeds)

    network = spec.build(derive_seed(seed, "expert", number, "init")).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=momentum, weight_decay=decay)
    order = torch.randperm(len(train), generator=generator(seed, "expert", number, "order", 1))
    draws = generator(seed, "expert", number, "dsa", 1)
    dsa, total, right = DSA(settings.dsa_strategy), 0.0, 0
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        x = train.images(rows).double()
        x = DSA.apply(x, dsa.sample(len(rows), draws, tuple(train.shape[1:])))
        logits = network(x)
        step_loss = F.cross_entropy(logits, train.labels[rows])
        optimizer.zero_grad()
        step_loss.backward()
        optimizer.step()
        total += step_loss.item() * len(rows)
        right += int((logits.argmax(1) == train.labels[rows]).sum())

    expected = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    rounding = 1e-10 if device.type == "cpu" else 1e-8
    torch.testing.assert_close(thetas[0].cpu(), expected, rtol=rounding, atol=rounding)
    assert loss.item() == pytest.approx(total / len(order), rel=rounding)
    assert accuracy.item() == pytest.approx(right / len(order))


def test_rows_are_the_states_after_each_epoch_and_not_one_state(trained):
    first = trained.flat_model().init(derive_seed(0, "expert", 1, "init"))
    assert torch.equal(trained.row(1, 0), first)
    rows = [trained.row(1, epoch) for epoch in range(EPOCHS + 1)]
    moves = [(after - before).norm().item() for before, after in pairwise(rows)]
    assert min(moves) > 0
    assert len({row.data_ptr() for row in rows}) == EPOCHS + 1
    assert not torch.equal(trained.row(0, 0), trained.row(1, 0))


def test_the_stored_accuracies_are_those_of_the_last_rows(trained, data):
    for images, name in zip(data, ("train", "test"), strict=True):
        x, y = images.images(torch.arange(len(images))), images.labels
        for expert in range(trained.num_experts):
            with torch.no_grad():
                right = (trained.flat_model().load(trained.row(expert, EPOCHS))(x).argmax(1) == y).sum().item()
            assert trained.config["results"][f"{name}_accuracy"][expert] == pytest.approx(right / len(images))


def test_a_killed_run_continues_to_the_same_bytes(runs, trained, data, accelerator):
    folder, (train, test) = runs / "killed", data
    assert not (folder / "expert_config.json").exists()
    assert len(expert_bytes(folder)) == 2
    train_experts(train, config(), folder, epochs=EPOCHS, seed=0, accelerator=accelerator, test=test)
    assert expert_bytes(folder) == expert_bytes(trained.folder)
    assert not (folder / "unfinished").exists()


@contextmanager
def stopped_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What runs within stops as it is about to put the file of this number in its place."""

    class Stop(BaseException):
        pass

    replace, calls = os.replace, []

    def stop(source, target):
        calls.append(target)
        if len(calls) == moment:
            raise Stop
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stop)
        with pytest.raises(Stop):
            yield


@pytest.mark.parametrize("moment", [1, 5, 15, 17, 19, 30])
def test_a_run_that_stops_at_any_file_continues_to_the_same_bytes(
    trained, data, accelerator, tmp_path, monkeypatch, moment
):
    folder, (train, test) = tmp_path / "experts", data
    with stopped_at(moment, monkeypatch):
        train_experts(train, config(), folder, epochs=EPOCHS, seed=0, accelerator=accelerator, test=test)
    again = train_experts(train, config(), folder, epochs=EPOCHS, seed=0, accelerator=accelerator, test=test)
    assert expert_bytes(folder) == expert_bytes(trained.folder)
    assert again.config["results"] == trained.config["results"]


def test_two_processes_write_the_bytes_of_one(runs, trained):
    two = ExpertTrajectories.from_pretrained(runs / "two")
    assert expert_bytes(two.folder) == expert_bytes(trained.folder)
    assert two.config == trained.config


def test_the_recipe_trains_experts_and_says_how_to_load_them(trained, tmp_path, monkeypatch, capsys):
    flags = {**FLAGS, **DATA_FLAGS, "expert_train_epochs": EPOCHS, "output_dir": tmp_path, "disable_tqdm": True}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["experts.py", *words])
    runpy.run_path(str(ROOT / "recipes" / "experts.py"), run_name="__main__")
    assert expert_bytes(tmp_path) == expert_bytes(trained.folder)
    last = capsys.readouterr().out.splitlines()[-1]
    assert f'ExpertTrajectories.from_pretrained("{tmp_path}")' in last
    monkeypatch.setattr(sys, "argv", ["experts.py", *words, "--lr_teacher", "1.0"])
    with pytest.raises(SystemExit, match=r"error: .* is of another run: its lr_teacher is 0\.02 and here it is 1\.0;"):
        runpy.run_path(str(ROOT / "recipes" / "experts.py"), run_name="__main__")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["experts.py", *words, "--output_dir", str(tmp_path / "file" / "experts")])
    with pytest.raises(SystemExit, match=r"error: .*file.experts could not be written"):
        runpy.run_path(str(ROOT / "recipes" / "experts.py"), run_name="__main__")


def test_the_demo_preset_does_not_choose_by_the_clock():
    preset = load_yaml(ROOT / "recipes" / "configs" / "experts" / "digits.yaml")
    assert preset["experts_at_once"] == "1"


def test_complete_experts_are_reused_and_only_the_lacking_are_trained(trained, copy, data, accelerator):
    (copy / "expert-00001.safetensors").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in copy.glob("expert-*.safetensors")}
    more = train_experts(data[0], config(num_experts=5), copy, epochs=EPOCHS - 2, seed=0, accelerator=accelerator)
    after = {path.name: path.stat().st_mtime_ns for path in copy.glob("expert-*.safetensors")}
    assert {name: after[name] for name in before} == before
    assert (more.num_experts, more.num_epochs) == (5, EPOCHS - 2)
    everything = ExpertTrajectories.from_pretrained(copy)
    assert (everything.num_experts, everything.num_epochs) == (5, EPOCHS)
    assert everything.row(4, EPOCHS).isfinite().all()
    # Expert 1 had another neighbour this time.
    torch.testing.assert_close(everything.row(1, EPOCHS), trained.row(1, EPOCHS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("momentum", "first"), [(0.0, 3), (0.5, 1)])
def test_experts_trained_for_longer_later_are_those_trained_for_longer_at_once(
    data, accelerator, tmp_path, momentum, first
):
    settings = config(num_experts=3, mom_teacher=momentum)

    def train(name, epochs, settings):
        return train_experts(
            data[0], settings, tmp_path / name, epochs=epochs, seed=0, accelerator=accelerator, test=data[1]
        )

    at_once = train("at once", 12, settings)
    before = train("later", first, settings)
    rows = [before.row(2, epoch) for epoch in range(first + 1)]
    later = train("later", 12, config(**{**vars(settings), "experts_at_once": "auto"}))
    assert expert_bytes(later.folder) == expert_bytes(at_once.folder)
    assert later.config == at_once.config
    # A job that reads the experts meanwhile goes on reading what it read.
    assert all(torch.equal(before.row(2, epoch), row) for epoch, row in enumerate(rows))
    assert (before.num_experts, before.num_epochs) == (3, first)


@pytest.mark.parametrize("moment", [2, 7, 13, 17, 21])
def test_longer_training_that_stops_at_any_file_continues_to_the_same_bytes(
    trained, data, accelerator, tmp_path, monkeypatch, moment
):
    folder = tmp_path / "experts"

    def train(epochs):
        train_experts(data[0], config(), folder, epochs=epochs, seed=0, accelerator=accelerator, test=data[1])

    train(3)
    with stopped_at(moment, monkeypatch):
        train(EPOCHS)
    train(EPOCHS)
    assert expert_bytes(folder) == expert_bytes(trained.folder)
    assert ExpertTrajectories.from_pretrained(folder).config == trained.config
    assert not (folder / "unfinished").exists()


def test_a_run_gets_what_it_asked_for_whatever_else_the_folder_holds(trained, copy, data, accelerator, tmp_path):
    def ask(folder, num_experts, epochs):
        settings = config(num_experts=num_experts, experts_at_once="2")
        return train_experts(data[0], settings, folder, epochs=epochs, seed=0, accelerator=accelerator, test=data[1])

    before = expert_bytes(copy)
    held, fresh = ask(copy, 2, 2), ask(tmp_path / "fresh", 2, 2)
    assert expert_bytes(copy) == before
    assert (held.num_experts, held.num_epochs) == (fresh.num_experts, fresh.num_epochs) == (2, 2)
    for epoch in range(3):
        assert torch.equal(held.row(1, epoch), fresh.row(1, epoch))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        held.row(2, 0)
    with pytest.raises(ValueError, match="epoch 3"):
        held.segment(0, 1, 2)
    assert held.load_call.endswith(f'"{copy}").limited(2, 2)')
    # Their accuracies after two epochs are not known, and those after six are not theirs.
    assert "accuracy" not in held.summary()
    assert ask(copy, 2, EPOCHS).config["results"]["test_accuracy"] == trained.config["results"]["test_accuracy"][:2]
    saved = ExpertTrajectories.from_pretrained(held.save_pretrained(tmp_path / "saved"))
    assert (saved.num_experts, saved.num_epochs, saved.config) == (2, 2, held.config)
    # Only the experts that are asked for are trained for longer; the folder is what all of them have.
    assert ask(copy, 2, EPOCHS + 1).num_epochs == EPOCHS + 1
    everything = ExpertTrajectories.from_pretrained(copy)
    assert (everything.num_experts, everything.num_epochs) == (4, EPOCHS)
    assert expert_bytes(copy)["expert-00003.safetensors"] == before["expert-00003.safetensors"]


def test_a_view_of_more_than_there_is_is_refused(trained):
    for count, epochs, said in ((5, 2, "expected 1 to 4"), (0, 2, "expected 1 to 4"), (2, EPOCHS + 1, "hold 6 epochs")):
        with pytest.raises(ValueError, match=said):
            trained.limited(count, epochs)


def test_the_number_of_experts_at_once_is_recorded_and_does_not_make_other_experts(trained, copy, data, accelerator):
    assert trained.config["results"]["experts_at_once"] == [2, 2, 2, 2]
    again = config(experts_at_once="1", num_experts=5)
    more = train_experts(data[0], again, copy, epochs=EPOCHS, seed=0, accelerator=accelerator)
    assert more.config["results"]["experts_at_once"] == [2, 2, 2, 2, 1]


def test_a_second_job_waits_and_then_finds_the_experts(trained, data, accelerator, tmp_path, monkeypatch, caplog):
    folder, (begun, tell), (go, let) = tmp_path / "experts", os.pipe(), os.pipe()
    epoch, trained_here = ExpertTrainer.epoch, []

    def watched(self, experts, number, *state, **options):
        if os.getpid() != parent and not trained_here:
            os.write(tell, b"!")
            os.read(go, 1)
        trained_here.append(number)
        return epoch(self, experts, number, *state, **options)

    def look(seconds: float) -> None:
        os.write(let, b"!")
        os.waitpid(child, 0)

    def job() -> ExpertTrajectories:
        return train_experts(
            data[0], config(), folder, epochs=EPOCHS, seed=0, accelerator=accelerator, test=data[1], disable_tqdm=True
        )

    monkeypatch.setattr(ExpertTrainer, "epoch", watched)
    parent, child = os.getpid(), os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            job()
        finally:
            os._exit(0)
    assert os.read(begun, 1) == b"!"
    monkeypatch.setattr(claims.time, "sleep", look)
    with caplog.at_level("INFO"):
        assert job().config == trained.config
    assert f"is in use by process {child} on" in caplog.text
    assert not trained_here
    assert expert_bytes(folder) == expert_bytes(trained.folder)


@pytest.mark.parametrize("name", ["expert-00001-epoch-00002", "expert-00003", "run", "expert_config"])
def test_a_full_disk_is_said_with_the_file_and_what_to_do(data, accelerator, tmp_path, monkeypatch, name):
    replace = os.replace

    def full(source, target):
        if Path(target).stem == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        OSError, match=rf"{name}\.\w+ could not be written .*No space left.* start the same command"
    ) as error:
        train_experts(data[0], config(), tmp_path, epochs=3, seed=0, accelerator=accelerator)
    one_line(error)
    monkeypatch.setattr(os, "replace", replace)
    assert train_experts(data[0], config(), tmp_path, epochs=3, seed=0, accelerator=accelerator).num_epochs == 3


def test_the_fastest_number_of_experts_is_measured_until_it_gets_worse(data, accelerator, monkeypatch):
    trainer = ExpertTrainer(data[0], config().student_spec(data[0]), config(), 0, accelerator)
    asked = []

    def rates(answers):
        def rate(size):
            asked.append(size)
            if answers[size] is None:
                raise torch.OutOfMemoryError
            return answers[size]

        asked.clear()
        monkeypatch.setattr(trainer, "rate", rate)

    rates({1: 10.0, 2: 18.0, 4: 17.0})
    assert (trainer.fastest_group(20), asked) == (2, [1, 2, 4])
    rates({1: 10.0, 2: 18.0, 4: None})
    assert (trainer.fastest_group(20), asked) == (2, [1, 2, 4])
    rates({1: 10.0, 2: 18.0, 4: 30.0, 6: 40.0})
    assert (trainer.fastest_group(6), asked) == (6, [1, 2, 4, 6])
    rates({1: None})
    with pytest.raises(ValueError, match="--batch_train"):
        trainer.fastest_group(20)


def test_callbacks_see_each_epoch_and_each_expert(data, accelerator, tmp_path):
    train, test = data
    notes, settings = Notes(), config(num_experts=3, experts_at_once="2")
    options = {"seed": 0, "accelerator": accelerator, "disable_tqdm": True, "test": test}
    train_experts(train, settings, tmp_path, epochs=2, callbacks=[notes], **options)
    one = ["evaluate", "save"]
    assert [name for name, _ in notes.events] == ["begin", "step", "step", *one, *one, "step", "step", *one, "end"]
    assert [state.done for name, state in notes.events if name == "step"] == [2, 4, 5, 6]
    assert {state.total for _, state in notes.events} == {6}
    found = ExpertTrajectories.from_pretrained(tmp_path)
    files = [state.folder for name, state in notes.events if name == "save"]
    assert files == [tmp_path / f"expert-{expert:05d}.safetensors" for expert in range(3)]
    accuracies = [state.values["accuracy"] for name, state in notes.events if name == "evaluate"]
    assert accuracies == found.config["results"]["test_accuracy"]
    longer = Notes()
    train_experts(train, settings, tmp_path, epochs=3, callbacks=[longer], **options)
    assert [(name, state.done) for name, state in longer.events if name == "step"] == [("step", 6), ("step", 9)]
    none = Notes()
    train_experts(train, settings, tmp_path, epochs=3, callbacks=[none], **options)
    assert not none.events


def test_images_alone_give_experts_in_the_folder_of_their_settings_and_again_the_same(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {**FLAGS, "num_experts": 2, "expert_train_epochs": 2}
    monkeypatch.setattr(experts_module, "ExpertConfig", partial(ExpertConfig, **small))
    experts = train_experts(data[0])
    folder = experts_module.experts_folder(data[0], ExpertConfig(**small), 0)
    assert (experts.folder, experts.num_experts, experts.num_epochs) == (folder, 2, 2)
    before = expert_bytes(folder)
    assert train_experts(data[0]).folder == folder
    assert expert_bytes(folder) == before
    assert train_experts(data[0], seed=1).folder != folder


# --- reading ----------------------------------------------------------------------------------------------------------


def as_compact(params: torch.Tensor) -> dict[str, torch.Tensor]:
    """A trajectory as version 0.1 could store it: every tenth row, and float16 differences to the one before."""
    anchors = params[::10].clone()
    rows = [row for row in range(len(params)) if row % 10]
    deltas = torch.stack([params[row] - anchors[row // 10] for row in rows])
    scales = deltas.abs().amax(dim=1)
    return {
        "anchors": anchors,
        "deltas": (deltas / scales[:, None]).half(),
        "scales": scales,
        "last": params[-1].clone(),
    }


@pytest.fixture(scope="module")
def compact(trained, tmp_path_factory) -> Path:
    """The folder of the trained experts, the first of which is compact and goes on standing still, for 13 rows."""
    folder = without_sums(Path(shutil.copytree(trained.folder, tmp_path_factory.mktemp("compact") / "experts")))
    index = json.loads((folder / "expert_config.json").read_text())
    for expert in range(4):
        path = folder / f"expert-{expert:05d}.safetensors"
        params = torch.stack([trained.row(expert, epoch) for epoch in range(EPOCHS + 1)])
        params = torch.cat([params, params[-1] + torch.linspace(0.1, 0.6, 6)[:, None] * params[0]])
        header = trajectories.TensorFile(path).metadata
        header["training"]["expert_format"] = "compact"
        for name in ("loss", "accuracy"):
            header[name] += [0.5] * 6
        path.write_bytes(save(as_compact(params), {"hf_distill": json.dumps(header)}))
    (folder / "expert_config.json").write_text(json.dumps({**index, "num_epochs": EPOCHS + 6}))
    return folder


def test_compact_experts_of_version_0_1_are_read_off_by_a_rounding_to_float16(trained, compact):
    experts = ExpertTrajectories.from_pretrained(compact)
    for expert in range(2):
        for epoch in range(EPOCHS + 1):
            exact = trained.row(expert, epoch)
            rounding = (exact - trained.row(expert, 0)).abs().max() * 2**-12  # half of the last bit of float16
            assert (experts.row(expert, epoch) - exact).abs().max() <= 1.01 * rounding
    last = trained.row(1, EPOCHS)
    assert torch.equal(experts.row(1, 10), last + torch.linspace(0.1, 0.6, 6)[3] * trained.row(1, 0))


def test_compact_experts_are_not_trained_for_longer(compact, data, accelerator):
    before = expert_bytes(compact)
    with pytest.raises(ValueError, match="its expert_format is compact and here it is float32") as error:
        train_experts(data[0], config(), compact, epochs=20, seed=0, accelerator=accelerator)
    one_line(error)
    assert expert_bytes(compact) == before


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes in /proc")
@pytest.mark.parametrize("kind", ["float32", "compact"])
def test_a_segment_reads_two_rows_and_not_the_file(trained, compact, kind):
    experts = ExpertTrajectories.from_pretrained(compact if kind == "compact" else trained.folder)
    whole = [experts.row(0, epoch) for epoch in range(EPOCHS + 1)]

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    counting = bytes_read() - before
    before = bytes_read()
    start, target = experts.segment(0, 2, 3)
    read = bytes_read() - before - counting
    assert torch.equal(start, whole[2])
    assert torch.equal(target, whole[5])
    # A compact segment is one float32 row, two float16 rows and their two scales.
    assert read <= 2 * 4 * experts.num_params + 2 * 4 + 16


def test_rows_are_those_that_safetensors_reads(trained):
    from safetensors.torch import load_file

    for expert in range(trained.num_experts):
        params = load_file(trained.folder / f"expert-{expert:05d}.safetensors")["params"]
        assert torch.equal(params, torch.stack([trained.row(expert, epoch) for epoch in range(EPOCHS + 1)]))


def test_a_saved_copy_is_the_same_artifact(trained, data, tmp_path):
    saved = trained.save_pretrained(tmp_path / "saved")
    again = ExpertTrajectories.from_pretrained(saved)
    assert again.config == trained.config
    assert expert_bytes(saved) == expert_bytes(trained.folder)
    again.check_matches(data[0], config().student_spec(data[0]))
    card = (saved / "README.md").read_text(encoding="utf-8")
    test_accuracy = torch.tensor(trained.config["results"]["test_accuracy"], dtype=torch.float64) * 100
    assert f"| test | {test_accuracy.mean():.1f} ± {test_accuracy.std():.1f} | 4 |" in card


# --- bad input --------------------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("keep", [4, 60, 0.5])
def test_a_truncated_file_is_named(copy, data, accelerator, keep):
    path = copy / "expert-00002.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match=r"expert-00002\.safetensors is truncated") as error:
        ExpertTrajectories.from_pretrained(copy).row(2, 1)
    one_line(error)
    with pytest.raises(ValueError, match=r"expert-00002\.safetensors is truncated"):
        train_experts(data[0], config(), copy, epochs=EPOCHS, seed=0, accelerator=accelerator)


def test_a_flipped_bit_of_any_file_of_experts_is_refused_or_changes_nothing(trained, copy):
    def read(folder: Path) -> list[torch.Tensor]:
        experts = ExpertTrajectories.from_pretrained(folder)
        assert experts.preprocessing.zca is None
        rows = [experts.row(expert, epoch) for expert in range(experts.num_experts) for epoch in range(EPOCHS + 1)]
        assert experts.config == trained.config
        return rows + [experts._file(expert).read("velocity") for expert in range(experts.num_experts)]

    before, said = read(trained.folder), []
    for path in flips(copy, "[!RS]*", 80):
        try:
            after = read(copy)
        except ValueError as error:
            said.append(str(error))
        else:  # the key of a checksum, which then is none
            assert all(map(torch.equal, before, after)), path
    assert len(said) >= 78
    assert all(str(copy) in line and "\n" not in line for line in said)


def test_a_row_that_was_damaged_is_made_again(tmp_path, trained, data, accelerator, caplog):
    def stop(*args) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts_module, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            train_experts(data[0], config(), tmp_path, epochs=EPOCHS, seed=0, accelerator=accelerator, test=data[1])
    row = tmp_path / "unfinished" / "expert-00000-epoch-00001.safetensors"
    row.write_bytes(row.read_bytes()[:-1] + b"?")
    train_experts(data[0], config(), tmp_path, epochs=EPOCHS, seed=0, accelerator=accelerator, test=data[1])
    assert f"{row} is damaged: " in caplog.text
    assert expert_bytes(tmp_path) == expert_bytes(trained.folder)


@pytest.mark.parametrize(("number", "damaged"), [(1, False), (3, True), (6, False)])
def test_experts_that_a_cluster_ends_keep_their_next_step_and_go_on_to_the_same_bytes(
    tmp_path, trained, data, accelerator, caplog, number, damaged
):
    known, steps = ExpertTrainer._augmented_step, []

    def step(self, *args):
        steps.append(args)
        if len(steps) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return known(self, *args)

    def train() -> None:
        train_experts(data[0], config(), tmp_path, epochs=EPOCHS, seed=0, accelerator=accelerator, test=data[1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExpertTrainer, "_augmented_step", step)
        with pytest.raises(SystemExit, match="interrupted: go on"):
            run_recipe(train, "go on")
        stopped = len(steps)
        assert stopped == number
        parts = list((tmp_path / "unfinished").glob("experts-*"))
        in_epoch = number % math.ceil(len(data[0]) / config().batch_train)
        assert len(parts) == bool(in_epoch)
        if damaged and parts:
            parts[0].write_bytes(parts[0].read_bytes()[:-1] + b"?")
        train()
    assert expert_bytes(tmp_path) == expert_bytes(trained.folder)
    lost = in_epoch if damaged else 0
    assert len(steps) - stopped - lost == all_steps(data[0]) - number
    assert ("the epoch begins anew" in caplog.text) == bool(lost)
    assert not (tmp_path / "unfinished").exists()


def test_the_seconds_of_experts_are_those_of_all_sessions_and_of_every_epoch(data, accelerator, tmp_path, monkeypatch):
    now, known = [0.0], ExpertTrainer._augmented_step
    monkeypatch.setattr("hf_distill.runs.clock.monotonic", lambda: now[0])
    steps = []

    def step(self, *args):
        steps.append(args)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        now[0] += 1
        return known(self, *args)

    def train(epochs: int = 2) -> ExpertTrajectories:
        options = {"epochs": epochs, "seed": 0, "accelerator": accelerator}
        return train_experts(data[0], config(num_experts=3, experts_at_once="2"), tmp_path, **options)

    monkeypatch.setattr(ExpertTrainer, "_augmented_step", step)
    with pytest.raises(SystemExit, match="interrupted: go on"):
        run_recipe(train, "go on")
    now[0] += 500
    per_epoch = math.ceil(len(data[0]) / config().batch_train)
    flop = len(data[0]) * student_flop(config().student_spec(data[0]))
    for epochs in (2, 2, 3):  # gone on with, loaded, and trained for longer
        making = train(epochs).making
        each = [(work.steps, work.seconds, work.flop) for work in making.values()]
        steps_each, all_flop = epochs * per_epoch, epochs * flop
        # A step of a group takes a second, which its experts share.
        assert list(making) == ["expert 0", "expert 1", "expert 2"]
        assert each == [(steps_each, pytest.approx(share * steps_each), all_flop) for share in (0.5, 0.5, 1.0)]
        now[0] += 70
    names = [path.name for path in tmp_path.iterdir()]
    assert "making.json" in names
    assert "unfinished" not in names
    assert "making.json" not in (tmp_path / "SHA256SUMS").read_text()
    (tmp_path / "making.json").unlink()  # as version 0.1 left it
    assert [(work.steps, work.seconds) for work in train(4).making.values()] == [(4 * per_epoch, None)] * 3


def all_steps(train: RealImages) -> int:
    """Of all groups, through all epochs."""
    groups = math.ceil(config().num_experts / int(config().experts_at_once))
    return groups * EPOCHS * math.ceil(len(train) / config().batch_train)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": "convnet_d1"}, "its student.name is convnet_d2 and here it is convnet_d1"),
        ({"student_width": 8}, "its student.kwargs.width is 16 and here it is 8"),
        ({"lr_teacher": 0.03}, "its lr_teacher is 0.02 and here it is 0.03"),
        ({"dsa_strategy": "flip"}, "dsa_strategy"),
    ],
)
def test_experts_of_another_training_are_refused(trained, data, accelerator, changes, said):
    before = expert_bytes(trained.folder)
    with pytest.raises(ValueError, match=said) as error:
        train_experts(data[0], config(**changes), trained.folder, epochs=EPOCHS, seed=0, accelerator=accelerator)
    assert "another folder" in one_line(error)
    assert expert_bytes(trained.folder) == before


def test_experts_for_other_data_are_refused(trained, data, accelerator, tmp_path):
    three = RealImages.from_arguments(DataArguments(classes=["3", "1", "4"], max_train_samples=60))
    unscaled = RealImages.from_arguments(DataArguments(normalization="none", **DATA_FLAGS))
    for other, said, why in (
        (three, "classes 10, and this run has 3", r"its student\.num_classes is 10 and here it is 3"),
        (unscaled, "preprocessing", r"its preprocessing\."),
    ):
        with pytest.raises(ValueError, match=said) as error:
            trained.check_matches(other)
        one_line(error)
        with pytest.raises(ValueError, match=why) as error:
            train_experts(other, config(), trained.folder, epochs=EPOCHS, seed=0, accelerator=accelerator)
        one_line(error)
    with pytest.raises(ValueError, match="network"):
        trained.check_matches(data[0], config(student_width=8).student_spec(data[0]))
    given = config(experts=str(trained.folder), student_width=8)
    with pytest.raises(ValueError, match="network"):
        train_experts(data[0], given, tmp_path, epochs=2, seed=0, accelerator=accelerator)


def test_more_epochs_than_are_stored_are_refused(trained, data, accelerator, tmp_path):
    given = config(experts=str(trained.folder))
    with pytest.raises(ValueError, match="holds 6 epochs, and this run needs 7"):
        train_experts(data[0], given, tmp_path, epochs=7, seed=0, accelerator=accelerator)
    assert train_experts(data[0], given, tmp_path, epochs=6, seed=1, accelerator=accelerator).num_epochs == 6
    with pytest.raises(ValueError, match="epoch 7 of expert 0 is not stored; expected 0 to 6"):
        trained.row(0, 7)
    with pytest.raises(ValueError, match="epoch 7"):
        trained.segment(0, 5, 2)
    with pytest.raises(ValueError, match="expert 4"):
        trained.row(4, 0)
    with pytest.raises(ValueError, match="0 epochs"):
        trained.segment(0, 3, 0)


def test_a_folder_of_something_else_is_left_alone(data, accelerator, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        train_experts(data[0], config(), tmp_path, epochs=2, seed=0, accelerator=accelerator)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    with pytest.raises(ValueError, match="has no expert_config"):
        ExpertTrajectories.from_pretrained(tmp_path)


def test_a_newer_format_is_refused(copy):
    index = json.loads((copy / "expert_config.json").read_text())
    (copy / "expert_config.json").write_text(json.dumps({**index, "format_version": 2}))
    with pytest.raises(ValueError, match="upgrade hf_distill"):
        ExpertTrajectories.from_pretrained(copy)


def test_a_loss_that_is_not_finite_names_the_flag_to_change(data, accelerator, tmp_path):
    with pytest.raises(ValueError, match="lower --lr_teacher"):
        train_experts(data[0], config(lr_teacher=1e30), tmp_path, epochs=2, seed=0, accelerator=accelerator)


@pytest.mark.parametrize("changes", [{"experts_at_once": "0"}, {"experts_at_once": "all"}])
def test_a_wrong_flag_is_named(changes):
    with pytest.raises(ValueError, match=f"--{next(iter(changes))}"):
        config(**changes)
