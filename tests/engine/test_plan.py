"""What a plan says of memory, disk and work is what a run takes."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from torch.nn.attention import SDPBackend, sdpa_kernel

import hf_distill as hd
from hf_distill.data.outlines import outlines_of
from hf_distill.engine.plan import Machine, PlanArguments, print_plan
from hf_distill.methods import METHODS
from hf_distill.runs.rehearsal import Ledger

NEAR = 0.25
ROOMY = Machine("a device", 10**11, 10**11, 10**12, 1e12)
SETTINGS = {
    "student": "convnet_d2",
    "student_width": 16,
    "num_experts": 1,
    "experts_at_once": "1",
    "expert_train_epochs": 2,
    "teacher_epochs": 1,
    "batch_train": 64,
    "ipc": 4,
    "max_steps": 2,
    "save_steps": 1,
    "save_total_limit": 1,
    "select": "last",
    "syn_steps": 2,
    "expert_epochs": 1,
    "max_start_epoch": 1,
    "batch_real": 16,
    "real_views": 1,
    "augmentations": 2,
    "level_steps": 1,
    "micro_batch_size": 32,
    "num_candidates": 10,
    "num_crops": 4,
    "factor": 2,
    "jitter": 1,
    "num_students": 2,
    "student_epochs": 2,
    "refresh_every": 1,
    "stage_sizes": [32, 32],
    "prior_epochs": 1,
    "weak_teachers": 1,
    "projector_epochs": 1,
    "prompts": "simple",
    "lora_r": 2,
    "batch_projector": 64,
    "update_steps": 1,
    "dsa_strategy": "flip_crop",
    "validation_fraction": 0.0,
    "eval_seeds": 1,
    "eval_baselines": ["random"],
    "eval_full_data": False,
}


class Watch(hd.Callback):
    """Notes the peak of what is distilled, and of nothing that comes before."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.peak, self.flop, self.operations = ledger, 0, 0, 0

    def on_begin(self, state: hd.RunState) -> None:
        self.distils = state.name.startswith("distil")
        self.ledger.forget()
        self.before = self.ledger.flop, self.ledger.operations

    def on_step(self, state: hd.RunState) -> None:
        if self.distils:
            self.peak, self.flop = self.ledger.peak.total(), self.ledger.flop - self.before[0]
            self.operations = self.ledger.operations - self.before[1]

    on_save = on_step  # the tiles of a block come after its only step


@pytest.fixture(scope="module")
def photographs() -> hd.RealImages:
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(120)]
    columns = {"image": images, "label": [number % 3 for number in range(120)]}
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    return hd.RealImages.from_dataset(Dataset.from_dict(columns, features=features))


@contextmanager
def whole_attention() -> Iterator[None]:
    """Time without a kernel of one piece, in which nothing is counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def settings_for(method: type[hd.Method], **more: object) -> dict[str, object]:
    known = {field.name for kind in (method.config_class, *method.learns_from) for field in dataclasses.fields(kind)}
    return {name: value for name, value in SETTINGS.items() if name in known | {"validation_fraction"}} | more


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_run_takes_the_memory_the_work_and_the_disk_that_its_plan_foresees(
    method, photographs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    settings, folder = settings_for(method), tmp_path / "run"
    plan = method.plan(photographs, machine=ROOMY, **settings)
    stages = [each for each in plan.stages if each.name in ("distillation", "ranking")]
    with sdpa_kernel(SDPBackend.MATH), whole_attention(), Ledger("cpu") as ledger:
        watch = Watch(ledger)
        method.distill(photographs, output_dir=folder, callbacks=[watch], disable_tqdm=True, **settings)

    assert max(stage.peak for stage in stages) == pytest.approx(watch.peak, rel=NEAR)
    assert sum(stage.flop for stage in stages) == pytest.approx(watch.flop, rel=NEAR)
    # What a run does once beside its steps is much of one so short.
    assert sum(stage.operations for stage in stages) == pytest.approx(watch.operations, rel=2 * NEAR)
    # Of two checkpoints at the worst moment one is left; real images, features and networks lie elsewhere.
    foreseen = sum(size / (2 if "checkpoint" in name else 1) for name, size in plan.disk.items() if own(name))
    assert foreseen == pytest.approx(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), rel=NEAR)


def own(name: str) -> bool:
    return name.startswith(("checkpoints", "images in the making", "label projector", "the set"))


TINY = {"student": "convnet_d1", "student_width": 8, "eval_protocol": "quick", "eval_seeds": 1, "eval_full_data": False}


def test_a_plan_is_printed_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = PlanArguments(plan="text", plan_rate=1.0)
    print_plan(hd.DM, asked, hd.DataArguments(), hd.DMConfig(**TINY, max_steps=10))
    told = capsys.readouterr().out
    assert told.startswith(
        "DM: 10 images 1x8x8, 1 for each of 10 classes, out of 1,295 (142 more held out, 360 to test"
    )
    assert told.endswith("This fits.\n")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_one_line_after_the_report_and_what_would_take_less(capsys):
    asked = PlanArguments(plan="json", plan_memory="4MB", plan_rate=1.0)
    settings = hd.DMConfig(**TINY, ipc=50, batch_real=50, micro_batch_size=1024, max_steps=10)
    with pytest.raises(ValueError, match=r"^this will not fit: device memory: .* MB of 4\.0 MB$"):
        print_plan(hd.DM, asked, hd.DataArguments(), settings)
    told = json.loads(capsys.readouterr().out)
    assert told["misfits"]
    assert told["peak"] == max(stage["peak"] for stage in told["stages"])
    (less,) = [each for each in told["advice"] if "--micro_batch_size 256" in each]
    assert float(less.split(" takes ")[1].split(" MB")[0]) < told["stages"][0]["peak"] / 1e6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"plan": "xml"}, "--plan is 'xml'; expected one of text, json"),
        ({"plan_memory": "8GB"}, "--plan_memory is given without --plan"),
        ({"plan": "text", "plan_memory": "much"}, "--plan_memory is 'much'; expected a number of bytes"),
        ({"plan": "text", "plan_rate": 0.0}, "--plan_rate is 0.0; expected TFLOP/s above 0"),
    ],
)
def test_flags_of_a_plan_that_mean_nothing_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        PlanArguments(**flags)


def test_an_ipc_beyond_a_class_and_a_shard_without_a_teacher_are_refused_as_in_a_run(photographs):
    with pytest.raises(ValueError, match="--ipc is 50 and some classes lack training images"):
        hd.DM.plan(photographs, machine=ROOMY, ipc=50)
    with pytest.raises(ValueError, match="--shard 1/2 without --teachers"):
        hd.APM.plan(photographs, machine=ROOMY, ipc=4, batch_syn=6, shard="1/2", **TINY)


def test_the_published_setting_of_tesla_takes_what_its_page_says():
    """The arithmetic of docs/scale.md, of a step in place of ten."""
    settings = {"preset": "imagenet1k-64-ipc50", "syn_steps": 1, "label": "hard", "select": "last"}
    plan = hd.plan(hd.TESLA, machine=ROOMY, **settings)
    (stage,) = [each for each in plan.stages if each.name == "distillation"]
    assert stage.memory["images"] == pytest.approx(50_000 * 49_152, rel=1e-3)
    assert plan.downloads == {"ILSVRC/imagenet-1k": None}
    assert plan.disk["experts"] == 50 * 13 * 2_496_360 * 4
    assert plan.disk["real images, decoded once"] == 1_331_167 * 12_288


def test_more_classes_than_a_dataset_has_are_refused():
    data = hd.DataArguments(dataset_name="uoft-cs/cifar10", classes=[str(label) for label in range(12)])
    with pytest.raises(ValueError, match="--classes names 12 classes, and uoft-cs/cifar10 has 10"):
        outlines_of(data)
