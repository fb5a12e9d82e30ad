"""What the making of a set took: measured, summed over sessions, and apart from what has the same bytes each time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import hf_distill as hd
from hf_distill.evaluation.protocols import PROTOCOLS, EvalProtocol
from hf_distill.hub.making import MAKING, Work, add_up, making_table, read_making, save_making
from tests.faults.kills import contents
from tests.helpers.events import Ticks

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

SHORT = EvalProtocol("short", epochs=2, full_data_epochs=1, lrs=(0.1,))
LOOP = {
    "student": "convnet_d1",
    "student_width": 4,
    "num_experts": 1,
    "experts_at_once": 1,
    "expert_train_epochs": 2,
    "batch_train": 50,
    "syn_steps": 2,
    "expert_epochs": 1,
    "max_start_epoch": 1,
    "max_steps": 5,
    "save_steps": 2,
    "select": "last",
    "lr_img": 1,
    "eval_protocol": "short",
    "disable_tqdm": True,
}
BLOCKS = {
    "student": "convnet_d1",
    "student_width": 4,
    "student_norm": "batch",
    "batch_train": 50,
    "teacher_epochs": 2,
    "max_steps": 3,
    "logging_steps": 1,
    "jitter": 1,
    "batch_classes": 4,
    "eval_protocol": "crops-quick",
    "disable_tqdm": True,
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PROTOCOLS, "short", SHORT)


@pytest.fixture(scope="module")
def data() -> tuple[hd.RealImages, hd.RealImages]:
    return hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=100, max_test_samples=20))


class Ends(Ticks):
    """Such a clock, and a run that is killed behind a step."""

    def __init__(self, monkeypatch, step: int) -> None:
        super().__init__(monkeypatch)
        self.step = step

    def on_step(self, state: hd.RunState) -> None:
        super().on_step(state)
        if state.name.startswith("distil") and state.done == self.step:
            raise RuntimeError("killed")


def test_a_loop_that_was_killed_says_the_seconds_of_the_steps_it_consists_of(data, monkeypatch):
    whole = hd.TESLA.distill(data[0], ipc=1, output_dir="whole", callbacks=[Ticks(monkeypatch)], **LOOP)
    assert whole.making["distillation"] == Work(5, 5.0, "cpu")
    assert whole.making["experts"].steps == 2 * 2  # epochs of 90 images, those that are not held out
    with pytest.raises(RuntimeError, match="killed"):
        hd.TESLA.distill(data[0], ipc=1, output_dir="ended", callbacks=[Ends(monkeypatch, 3)], **LOOP)
    clock = Ticks(monkeypatch)
    clock.now += 500
    options = {"output_dir": "ended", "resume_from_checkpoint": "latest", **LOOP}
    ended = hd.TESLA.distill(data[0], ipc=1, callbacks=[clock], **options)
    assert (
        ended.making["distillation"] == whole.making["distillation"]
    )  # the third step was made twice, and is there once
    # A run that has nothing to do leaves what is there.
    before = {path.name: path.read_bytes() for path in Path("ended").iterdir() if path.is_file()}
    again = hd.TESLA.distill(data[0], ipc=1, callbacks=[clock], **options)
    assert again.making == ended.making
    assert before == {path.name: path.read_bytes() for path in Path("ended").iterdir() if path.is_file()}
    # Two runs of one seed take other times, and leave the same bytes beside those.
    assert hd.DistilledSet.from_pretrained("ended").making == ended.making
    slow = Ticks(monkeypatch)
    monkeypatch.setattr("hf_distill.runs.clock.monotonic", lambda: 10 * slow.now)
    hd.TESLA.distill(data[0], ipc=1, output_dir="slow/ended", callbacks=[slow], **LOOP)
    names = [name for name, digest in contents(Path("slow/ended")).items() if contents(Path("ended"))[name] != digest]
    assert names == []
    assert read_making(Path("slow/ended", MAKING))["distillation"].seconds == 50
    assert MAKING not in Path("ended/SHA256SUMS").read_text()


def test_blocks_of_a_killed_run_say_what_each_took_and_the_teacher_what_its_training_took(data, monkeypatch):
    whole = hd.SRe2L.distill(data[0], ipc=1, output_dir="whole", callbacks=[Ticks(monkeypatch)], **BLOCKS)
    assert whole.making["distillation"] == Work(9, 9.0, "cpu")  # three blocks of three iterations
    assert list(whole.making) == ["distillation", "teacher"]
    assert (whole.making["teacher"].steps, whole.making["teacher"].device) == (2, "cpu")
    with pytest.raises(RuntimeError, match="killed"):
        hd.SRe2L.distill(data[0], ipc=1, output_dir="ended", callbacks=[Ends(monkeypatch, 5)], **BLOCKS)
    options = {"output_dir": "ended", "resume_from_checkpoint": "latest", **BLOCKS}
    ended = hd.SRe2L.distill(data[0], ipc=1, callbacks=[Ticks(monkeypatch)], **options)
    assert ended.making == whole.making
    for path in Path("ended/blocks").glob("making-*"):
        path.unlink()  # as version 0.1 left them
    old = hd.SRe2L.distill(data[0], ipc=1, callbacks=[Ticks(monkeypatch)], **options)
    assert old.making["distillation"] == Work(9, None, "cpu")
    assert "not measured" in making_table(old.making)
    copied = replace(old.making["distillation"], seconds=1.5)
    assert add_up([copied, copied]) == Work(18, 3.0, "cpu")
    assert add_up([copied, old.making["distillation"]]).seconds is None
    assert add_up([copied, None]) is None


def test_what_says_nothing_was_not_measured_and_what_is_damaged_is_one_clear_line(tmp_path):
    path = tmp_path / MAKING
    assert (read_making(path), making_table({})) == ({}, "What the making of the set took was not measured.")
    making = {"distillation": Work(5, 7200.0, "cpu", 3 * 10**12), "teacher": None}
    save_making(path, making)
    assert read_making(path) == making
    table = making_table(making)
    assert all(words in table for words in ("2.0 h", "3 TFLOP", "not measured"))
    content = json.loads(path.read_text())
    for change in ({"seconds": -1}, {"steps": 1.5}, {"device": None}, {"more": 1}):
        parts = {"distillation": {**content["parts"]["distillation"], **change}}
        save = {"parts": parts, "sha256": content["sha256"]}
        path.write_text(json.dumps(save))
        with pytest.raises(ValueError, match=r"making.json is damaged \(.*delete it"):
            read_making(path)
