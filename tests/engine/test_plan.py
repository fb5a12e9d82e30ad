"""What a plan says of memory, disk and work is what a run takes."""

import dataclasses
import json
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features, Image
from torch.nn.attention import SDPBackend, sdpa_kernel

import hf_distill as hd
from hf_distill.data.outlines import outlines_of
from hf_distill.engine.plan import Machine, Plan, PlanArguments, print_plan, rate_of
from hf_distill.evaluation.protocols import PROTOCOLS
from hf_distill.hub.repository import Repository
from hf_distill.methods import METHODS
from hf_distill.networks.architectures import StudentSpec
from hf_distill.runs.rehearsal import Elsewhere, Ledger, Stage

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
    "compare_labels": ["pruned"],
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


class Counted(hd.Callback):
    """Notes the FLOP before a set is distilled: those of the experts."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.before = ledger, 0

    def on_begin(self, state: hd.RunState) -> None:
        if state.name.startswith("distil"):
            self.before = self.ledger.flop


def test_experts_selection_and_the_final_table_take_the_work_that_a_plan_foresees(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PROTOCOLS, "quick", replace(PROTOCOLS["quick"], epochs=2, full_data_epochs=1))
    learning = {"student": "convnet_d1", "student_width": 8, "num_experts": 2, "ipc": 5, "validation_fraction": 0.2}
    asked = {"eval_protocol": "quick", "eval_full_data": True}
    settings = settings_for(hd.MTT, **learning, **asked, select="best", eval_steps=1, eval_nets=1)
    plan = hd.MTT.plan(photographs, machine=ROOMY, **settings)
    planned = {stage.name: stage.flop for stage in plan.stages}
    with Ledger("cpu") as ledger:
        counted = Counted(ledger)
        distilled = hd.MTT.distill(photographs, callbacks=[counted], disable_tqdm=True, **settings)
        made = ledger.flop
        hd.evaluate(distilled, photographs, photographs.subset(range(6)), num_seeds=1, disable_tqdm=True)

    assert planned["experts"] == pytest.approx(counted.before, rel=NEAR)
    assert planned["distillation"] + planned["selection"] == pytest.approx(made - counted.before, rel=NEAR)
    assert planned["evaluation"] == pytest.approx(ledger.flop - made, rel=NEAR)


def test_segments_for_a_budget_of_memory_are_planned_as_a_run_chooses_them(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measure, chosen = hd.APM.fitting_segment, []

    def noting(self: hd.APM, budget: int) -> int:
        chosen.append(measure(self, budget))
        return chosen[-1]

    monkeypatch.setattr(hd.APM, "fitting_segment", noting)
    settings = settings_for(hd.APM, batch_net=8, ipc=30, batch_syn=90, memory_budget="5MB") | TINY
    hd.APM.plan(photographs, machine=ROOMY, **settings)
    hd.APM.distill(photographs, disable_tqdm=True, **settings)
    planned, found = chosen
    assert 1 < planned < 90
    assert planned == found
    with pytest.raises(ValueError, match=r"^--memory_budget 1MB is too little"):
        hd.APM.plan(photographs, machine=ROOMY, **settings | {"memory_budget": "1MB"})


def test_processes_share_what_has_as_many_parts_and_compute_a_batch_each(photographs):
    def at_once(method: type[hd.Method]) -> dict[str, float]:
        """How many processes compute at the same time in each stage, of eight."""
        eight = Elsewhere(Accelerator(), processes=8)
        small = settings_for(method, student="convnet_d1", student_width=8)
        plan = method.plan(photographs, machine=ROOMY, accelerator=eight, **small)
        return {stage.name: stage.flop / (plan.seconds(stage) * ROOMY.rate) for stage in plan.stages}

    lgm, sre2l = at_once(hd.LGM), at_once(hd.SRe2L)
    assert (lgm["features"], lgm["distillation"]) == pytest.approx((1, 8))
    assert (sre2l["teacher"], sre2l["distillation"]) == pytest.approx((8, 4))  # of four blocks


def test_each_process_needs_memory_of_the_host_and_what_is_fetched_lies_on_the_disk(photographs):
    shared = Machine("CPUs", None, 24 * 10**9, 10**11, 1e12)
    stage = Stage("distillation", {"images": 10 * 10**9}, 1.0, 1.0)
    plan = Plan("a run", [stage], {}, {}, {}, shared)
    assert plan.misfits == []
    assert replace(plan, processes=4).misfits == ["memory: 40.0 GB of 24.0 GB"]

    far = replace(hd.Outlines.of(photographs, 0.0), here=False, download=10**12)
    (missing,) = hd.DM.plan(far, machine=shared, **settings_for(hd.DM)).misfits
    assert missing.startswith("disk: 1.0 TB of 100.0 GB")


def test_a_rate_is_measured_in_the_precision_of_the_launcher():
    entered = []

    @contextmanager
    def autocast() -> Iterator[None]:
        entered.append("bf16")
        with torch.autocast("cpu", torch.bfloat16):
            yield

    launched = SimpleNamespace(device=torch.device("cpu"), mixed_precision="bf16", autocast=autocast)
    *_, words = rate_of(StudentSpec("convnet_d1", 3, 1, (4, 4), {"width": 2}), launched)
    assert entered
    assert words.endswith("in bf16")


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("recipe", "flags", "told"),
    [
        ("relabel", ["--teachers", f"{ROOT}/tests/artifacts-0.1/teacher"], "stored labels"),
        ("evaluate", ["--budget", "steps", "--compare_labels", "hard", "own"], "label comparison"),
        ("evaluate", ["--labels", f"{ROOT}/tests/artifacts-0.1/epoch-labels"], "4 students of the final table"),
        ("evaluate", ["--unaugmented"], "6 students of the final table"),
    ],
)
def test_the_plan_of_a_recipe_that_publishes_makes_no_repository(recipe, flags, told, tmp_path, monkeypatch, capsys):
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a repository is prepared")

    monkeypatch.setattr(Repository, "prepare", refuse)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    where = [
        "--distilled_dataset",
        f"{ROOT}/tests/artifacts-0.1/set-pictures",
        "--push_to_hub",
        "--hub_model_id",
        "a/b",
    ]
    few = ["--num_seeds", "1", "--baselines", "random"] if recipe == "evaluate" else []
    monkeypatch.setattr(sys, "argv", [recipe, *where, *few, *flags, "--plan", "--plan_rate", "1"])
    runpy.run_path(f"{ROOT}/recipes/{recipe}.py", run_name="__main__")
    assert told in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]
