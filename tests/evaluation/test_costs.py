"""What rows cost: counted by hand, and beside a count of the steps that students really make."""

import hashlib
import json
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hf_distill.augmentation.views import Views
from hf_distill.config import DataArguments
from hf_distill.data.feed import Pool
from hf_distill.data.images import RealImages
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.labels import MeanLabels, NetworkLabels, StoredLabels, TeacherLabels
from hf_distill.evaluation import crop_students, students
from hf_distill.evaluation.costs import Costs, source_flop, student_flop
from hf_distill.evaluation.evaluate import evaluate
from hf_distill.evaluation.protocols import Budget, CropProtocol, EvalProtocol, TrainingProtocol
from hf_distill.evaluation.steps import Epoch
from hf_distill.evaluation.student_results import StudentResults
from hf_distill.evaluation.students import train_students
from hf_distill.evaluation.trainer import Case, Trainer
from hf_distill.hub.cards import human_flop
from hf_distill.hub.making import Work
from hf_distill.hub.results import EvalReport, EvalRow, RowCost
from hf_distill.networks.architectures import FlatModel, StudentSpec
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import generator
from tests.faults.kills import TIMES, contents

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 8})
NORMALISED = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 8, "norm": "batch"})
PREPROCESSING = Preprocessing(1, (8, 8), (0.5,), (0.5,))
WHOLE = EvalProtocol("whole", epochs=3, full_data_epochs=1, batch_size=8)
VIEWS = CropProtocol(
    "views", epochs=3, full_data_epochs=1, batch_size=8, lrs=(0.01,), warmup_epochs=1, batchnorm_updates=2
)
CPU = torch.device("cpu")


def pool_of(count: int) -> Pool:
    draw = generator(0, "images")
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=draw)
    return Pool(images, torch.arange(count) % 10, preprocessing=PREPROCESSING)


class Counted(TeacherLabels):
    """A teacher that counts the images that it labels."""

    seen = 0

    def __call__(self, images, labels, rows, epoch=None):
        self.seen += len(images)
        return super().__call__(images, labels, rows, epoch)


def teacher() -> Counted:
    return Counted(PLAIN, FlatModel.from_spec(PLAIN).init(5))


def case_of(count: int, spec: StudentSpec, protocol: TrainingProtocol, targets=None, labels: str = "soft") -> Case:
    pool, rows = pool_of(count), torch.arange(count)
    if targets is None:
        targets, labels = pool.labels, "hard"
    return Case("distilled", labels, spec, pool, targets, rows[None], rows, (0.01,), protocol.epochs, protocol)


def made(case: Case, monkeypatch) -> tuple[int, int]:
    """The steps that one student really makes, and the images that it sees in them."""
    steps, seen = [], []

    class Recorded(torch.optim.SGD):
        def step(self, closure=None):
            steps.append(1)
            return super().step(closure)

    class RecordedAdamW(torch.optim.AdamW):
        def step(self, closure=None):
            steps.append(1)
            return super().step(closure)

    look = students.forward

    def forward(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return look(model, images)

    monkeypatch.setattr(torch.optim, "SGD", Recorded)
    monkeypatch.setattr(torch.optim, "AdamW", RecordedAdamW)
    monkeypatch.setattr(students, "forward", forward)
    monkeypatch.setattr(crop_students, "forward", forward)
    train_students(case.pool, case.targets, case.rows, case.spec, case.protocol, case.epochs, [0.01], [0])
    return len(steps), sum(seen)


# Steps and images

COUNTS = (1, 2, 7, 8, 9, 16, 17, 20)


@pytest.mark.parametrize("spec", [PLAIN, NORMALISED], ids=["plain", "batch norm"])
@pytest.mark.parametrize("protocol", [WHOLE, VIEWS], ids=["whole", "views"])
def test_the_steps_and_images_of_a_row_are_those_that_its_students_make(spec, protocol, monkeypatch):
    for count in COUNTS:
        case = case_of(count, spec, protocol)
        cost = Costs(CPU).of(case)
        assert (cost.steps, cost.images_seen) == made(case, monkeypatch), count
        assert (cost.teacher_images, cost.teacher_flop, cost.regime) == (0, 0, "hard")


@pytest.mark.parametrize("protocol", [WHOLE, VIEWS], ids=["whole", "views"])
def test_a_budget_ends_a_training_after_its_very_steps(protocol, monkeypatch):
    for count, steps in ((20, 1), (20, 3), (20, 7), (17, 1), (17, 2), (17, 5), (4, 3)):
        epoch = Epoch.of(count, NORMALISED, protocol)
        ended = replace(protocol, budget=Budget("budget", steps))
        case = replace(case_of(count, NORMALISED, ended), epochs=epoch.epochs_in(steps))
        cost = Costs(CPU).of(case)
        assert (cost.steps, cost.images_seen) == made(case, monkeypatch)
        assert cost.steps == steps, count


@pytest.mark.parametrize(
    ("count", "steps", "epochs", "idle"), [(20, 9, 3, True), (20, 8, 3, False), (20, 6, 2, False), (72, 9, 1, False)]
)
def test_a_budget_that_changes_nothing_is_no_other_training(count, steps, epochs, idle, tmp_path):
    trainer = Trainer(Accelerator(cpu=True), 0, pool_of(5), None, True, StudentResults(tmp_path, Accelerator(cpu=True)))
    case = replace(case_of(count, PLAIN, WHOLE), epochs=epochs)
    trainer.measure([case])
    trainer.measure([replace(case, protocol=replace(WHOLE, budget=Budget("budget", steps)))])
    assert len(list((tmp_path / "students").iterdir())) == (1 if idle else 2)


def test_students_side_by_side_end_with_their_budget(monkeypatch):
    batches = []
    side_by_side = students._side_by_side
    monkeypatch.setattr(students, "_side_by_side", lambda *args: batches.append(1) or side_by_side(*args))
    case = case_of(20, PLAIN, replace(WHOLE, budget=Budget("budget", 4)))
    train_students(case.pool, case.targets, case.rows.expand(2, -1), PLAIN, case.protocol, 2, [0.01] * 2, [0, 1])
    assert len(batches) == 4


def schedule_of(count: int, steps: int | None, epochs: int = 10) -> list[tuple[float, bool]]:
    """Factors and resets of the steps of a student of `count` images in batches of 8, of `epochs` or so many steps."""
    protocol = replace(WHOLE, epochs=10, budget=None if steps is None else Budget("budget", steps))
    pool = pool_of(count)
    batches = students._steps(pool, pool.labels, torch.arange(count)[None], PLAIN, protocol, epochs, [0])
    return [(factor, reset) for factor, reset, _, _ in batches][:steps]


def test_rates_drop_and_momentum_is_emptied_at_the_share_of_a_budget_that_they_have_of_the_epochs():
    alone = [(1.0, False)] * 18 + [(0.1, True)] + [(0.1, False)] * 11  # epochs 0 to 5, and 6 to 9, of three batches
    assert schedule_of(20, None) == schedule_of(20, 30) == schedule_of(100, 30, epochs=3) == schedule_of(8, 30, 30)
    assert schedule_of(20, 30) == alone
    assert schedule_of(100, 5, epochs=1) == [(1.0, False)] * 3 + [(0.1, True), (0.1, False)]  # epochs 0, 2, 4, 6, 8
    assert schedule_of(100, 3, epochs=1) == [(1.0, False)] * 2 + [(0.1, True)]  # epochs 0, 3, 6
    assert schedule_of(100, 2, epochs=1) == [(1.0, False)] * 2


def rates_of(count: int, protocol: TrainingProtocol, epochs: int, monkeypatch) -> list[float]:
    """The learning rates of the steps that one student makes."""
    rates = []
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):
        step = optimizer.step

        def recorded(self, closure=None, step=step):
            rates.append(self.param_groups[0]["lr"])
            return step(self, closure)

        monkeypatch.setattr(optimizer, "step", recorded)
    pool = pool_of(count)
    train_students(pool, pool.labels, torch.arange(count)[None], NORMALISED, protocol, epochs, [1.0], [0])
    monkeypatch.undo()
    return rates


@pytest.mark.parametrize("protocol", [WHOLE, replace(VIEWS, warmup_epochs=5)], ids=["whole", "views"])
def test_real_images_have_the_rates_of_the_set_step_by_step(protocol, monkeypatch):
    protocol = replace(protocol, epochs=10)
    ended = replace(protocol, budget=Budget("budget", 30))
    own = rates_of(20, protocol, 10, monkeypatch)
    assert len(own) == 30
    assert own == rates_of(20, ended, 10, monkeypatch) == rates_of(65, ended, 4, monkeypatch)  # 65: one is left over
    if protocol.per_view:
        assert own[:15:3] == pytest.approx([0.01, 0.208, 0.406, 0.604, 0.802])
        assert own[15] == 1.0
        assert own[29] == pytest.approx((1 + math.cos(math.pi * 4 / 5)) / 2)


@pytest.mark.parametrize("count", [2, 8, 17, 20])
def test_the_steps_whose_images_are_nearest_are_found(count):
    epoch = Epoch.of(count, NORMALISED, WHOLE)
    by_steps = {steps: epoch.images_in(steps) for steps in range(1, 60)}
    for images in range(1, 100):
        found = epoch.steps_for(images)
        assert abs(by_steps[found] - images) == min(abs(seen - images) for seen in by_steps.values())


@pytest.mark.parametrize(("protocol", "labelled"), [(WHOLE, 20), (VIEWS, 60)], ids=["whole", "views"])
def test_the_images_that_a_teacher_labels_are_counted(protocol, labelled):
    source = teacher()
    case = case_of(20, NORMALISED, protocol, source)
    cost = Costs(CPU).of(case)
    source.seen = 0  # of which some were those that FLOP were counted with
    train_students(case.pool, source, case.rows, case.spec, protocol, case.epochs, [0.01], [0])
    assert cost.teacher_images == source.seen == labelled
    assert cost.regime == ("online" if protocol.per_view else "stored")
    assert cost.label_bytes == (source.num_bytes if protocol.per_view else 20 * 10 * 2)


def test_stored_labels_ask_nobody():
    cost = Costs(CPU).of(case_of(20, PLAIN, WHOLE, StoredLabels(torch.zeros(20, 10))))
    assert (cost.regime, cost.teacher_images, cost.teacher_flop, cost.label_bytes) == ("stored", 0, 0, 400)
    assert (cost.image_bytes, Costs(CPU).of(case_of(20, PLAIN, WHOLE), 4).image_bytes) == (20 * 64, 20 * 64 * 4)


# FLOP


def by_hand(width: int, classes: int = 10, side: int = 8) -> tuple[int, int]:
    """FLOP of convnet_d1 for an image: forward, and with the gradients of weights and of what has weights below it."""
    convolution = 2 * width * 1 * 3 * 3 * side * side
    linear = 2 * width * (side // 2) ** 2 * classes
    forward = convolution + linear
    return forward, forward + convolution + 2 * linear


def test_flop_are_those_of_a_formula():
    forward, both = by_hand(8)
    assert student_flop(PLAIN) == student_flop(NORMALISED) == both
    assert source_flop(teacher(), PLAIN, CPU) == forward
    two = TeacherLabels(PLAIN, torch.stack([FlatModel.from_spec(PLAIN).init(seed) for seed in (0, 1)]))
    assert source_flop(two, PLAIN, CPU) == 2 * forward
    names = [str(label) for label in range(10)]
    network = NetworkLabels(Teacher(NORMALISED.build(0), NORMALISED, names, PREPROCESSING))
    assert source_flop(MeanLabels([network] * 3), PLAIN, CPU) == 3 * forward
    cost = Costs(CPU).of(case_of(20, PLAIN, VIEWS, network))
    assert (cost.student_flop, cost.teacher_flop) == (60 * both, 60 * forward)


def test_convolutions_in_groups_are_counted_group_by_group(monkeypatch):
    depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)  # of an input without a gradient
    strided = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=False)
    network = nn.Sequential(depthwise, strided, nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False))
    monkeypatch.setattr(StudentSpec, "build", lambda self, seed: network)
    forward = [2 * 64 * 6 * 9, 2 * 16 * 8 * 3 * 9, 2 * 64 * 4 * 8]  # the last has one weight for each place and channel
    assert student_flop(StudentSpec("grouped", 4, 6, (8, 8))) == 2 * forward[0] + 3 * forward[1] + 3 * forward[2]


def test_attention_is_counted_as_products_of_matrices():
    spec = StudentSpec("test_vit", 10, 1, (16, 16))
    vit = spec.build(0)
    width, tokens = vit.embed_dim, vit.patch_embed.num_patches + 1
    hidden, pixels = vit.blocks[0].mlp.fc1.out_features, vit.patch_embed.patch_size[0] ** 2
    block = 2 * tokens * width * (4 * width + 2 * hidden) + 4 * tokens**2 * width
    forward = 2 * (tokens - 1) * pixels * width + len(vit.blocks) * block + 2 * width * 10
    names = [str(label) for label in range(10)]
    preprocessing = Preprocessing(1, (16, 16), (0.5,), (0.5,))
    assert source_flop(NetworkLabels(Teacher(vit, spec, names, preprocessing)), spec, CPU) == forward


def test_counting_leaves_random_streams_and_switches_as_they_were():
    torch.manual_seed(3)
    expected, torch_state = torch.rand(3), torch.backends.mha.get_fastpath_enabled()
    torch.manual_seed(3)
    student_flop(StudentSpec("test_resnet", 10, 1, (8, 8), {"drop_rate": 0.3}))
    assert torch.equal(torch.rand(3), expected)
    assert torch.backends.mha.get_fastpath_enabled() == torch_state


def test_flop_are_shown_in_powers_of_a_thousand():
    assert [human_flop(count) for count in (0, 999, 1234, 999_600, 5 * 10**14, 3 * 10**19)] == [
        "0 FLOP",
        "999 FLOP",
        "1.23 kFLOP",
        "1 MFLOP",
        "500 TFLOP",
        "30 EFLOP",
    ]


# Reports


@pytest.fixture(scope="module")
def data() -> tuple[RealImages, RealImages]:
    return RealImages.train_and_test(DataArguments(max_train_samples=100, max_test_samples=20))


def evaluated(data, protocol: TrainingProtocol, **options):
    train, test = data
    rows = torch.cat([train.class_rows(label)[:2] for label in range(10)])
    labels, source = train.labels[rows], teacher()
    images = train.images(rows)
    distilled = DistilledSet(
        images,
        labels,
        train.class_names,
        train.preprocessing,
        teacher=TeacherLabels(PLAIN, source.thetas),
        soft_labels=None if protocol.per_view else source(images, labels, rows),
        config={"student": NORMALISED.to_dict()},
    )
    options = {"num_seeds": 1, "disable_tqdm": True, "accelerator": Accelerator(cpu=True), **options}
    return evaluate(distilled, train, test, held_out=train.subset([]), protocol=protocol, **options)


TINY = {
    "whole": replace(WHOLE, lrs=(0.1,)),
    "views": replace(VIEWS, views=Views(mix="none"), warmup_epochs=0),
}


@pytest.mark.parametrize("name", TINY)
def test_all_rows_make_the_steps_of_the_set_with_its_own_labels(data, name, tmp_path):
    options = {"baselines": ["random"], "output_dir": tmp_path}
    plain = evaluated(data, TINY[name], **options)
    equal = evaluated(data, TINY[name], budget="steps", **options)
    steps = {(row.set, row.labels): row.cost.steps for row in plain.rows}
    assert steps["distilled", "soft"] == steps["random", "hard"] == 9  # three epochs of 8, 8 and 4 of 20 images
    assert steps["full data", "hard"] == 13  # one epoch of 100
    assert {row.cost.steps for row in equal.rows} == {9}
    assert {row.protocol for row in equal.rows} == {f"{name}, budget of 9 steps"}
    assert len(plain.merge(equal).rows) == len(plain.rows) + len(equal.rows)
    own = [row.accuracies for report in (plain, equal) for row in report.rows if row.set == "distilled"]
    assert own[:2] == own[2:]  # whose length is the same
    kept = sorted(path.name for path in (tmp_path / "students").iterdir())
    assert evaluated(data, TINY[name], budget="steps", baselines=["random"]).rows == equal.rows  # trained, not found
    longer = [row for row in plain.rows if row.cost.steps != 9]  # the others are trained as without a budget
    assert {row.set for row in longer} == {"full data"}
    assert len(kept) == len(plain.rows) + len(longer)
    assert evaluated(data, TINY[name], budget="steps", **options).rows == equal.rows
    assert sorted(path.name for path in (tmp_path / "students").iterdir()) == kept


def test_all_rows_have_the_flop_of_the_set_with_its_own_labels_to_half_a_step(data):
    report = evaluated(data, TINY["views"], baselines=["random"], budget="flops")
    reference = next(row.cost for row in report.rows if (row.set, row.labels) == ("distilled", "soft"))
    forward, both = by_hand(8)
    assert reference.flop == 60 * (forward + both)
    assert {row.protocol for row in report.rows} == {f"views, budget of {human_flop(reference.flop)}"}
    for row in report.rows:
        each = both + (forward if row.labels == "soft" else 0)
        assert row.cost.flop - reference.flop == row.cost.over_budget
        assert abs(row.cost.over_budget) <= 4 * each
    hard = [row.cost.steps for row in report.rows if row.labels == "hard"]
    assert min(hard) > reference.steps  # there is no teacher to pay


def test_a_wrong_budget_is_one_clear_line(data):
    with pytest.raises(ValueError, match=r"budget.*'hours'.*steps"):
        evaluated(data, TINY["whole"], budget="hours", baselines=[], full_data=False)


# Tables


def row(labels: str, cost: RowCost | None = None, **changes) -> EvalRow:
    known = {"set": "distilled", "student": "s", "protocol": "p", "images": 10, "accuracies": [0.5], "device": "cpu"}
    return EvalRow(**{**known, "labels": labels, "cost": cost, **changes})


COST = RowCost("online", 3, 60, 60, 10**9, 2 * 10**9, 640, 8000)


def test_rows_are_sorted_into_three_regimes_those_of_version_0_1_too():
    assert [row("hard").regime, row("soft", COST).regime, row("hard", replace(COST, regime="hard")).regime] == [
        "hard",
        "online",
        "hard",
    ]
    assert row("soft", protocol="rded, stored labels (1.0 MB)").regime == "stored"
    assert row("soft", protocol="rded, label projector 01234567 (1.0 MB)").regime == "online"
    assert row("soft").regime is None
    report = EvalReport([row("soft")], {"p, s": {"views": {}}})
    assert report.regime_of(report.rows[0]) == "online"
    assert EvalReport([row("soft")]).regime_of(row("soft")) == "stored"


def test_a_table_of_one_regime_of_soft_labels_is_as_before_and_one_of_two_keeps_them_apart():
    one = EvalReport([row("hard"), row("soft", COST)])
    assert one.table().splitlines()[0].split("   ")[-2:] == ["method's labels", "hard labels"]
    stored = row("soft", replace(COST, regime="stored"), set="random")
    header = EvalReport([*one.rows, stored]).table().splitlines()[0]
    assert [header.index(title) for title in ("labels asked online", "stored labels", "hard labels")] == sorted(
        header.index(title) for title in ("labels asked online", "stored labels", "hard labels")
    )


def test_the_table_of_costs_goes_from_hard_labels_to_those_asked_online():
    stored = row("soft", replace(COST, regime="stored", teacher_images=0, teacher_flop=0), set="random")
    report = EvalReport(
        [row("soft", COST), stored, row("hard"), row("hard", replace(COST, regime="hard"), set="random")]
    )
    lines = report.costs_table().splitlines()
    shown = [[cell for cell in line.split("   ") if cell.strip()] for line in lines[2:6]]
    assert [[cell.strip() for cell in cells[:2]] for cells in shown] == [
        ["hard labels", "random"],
        ["hard labels", "distilled"],
        ["stored labels", "random"],
        ["labels asked online", "distilled"],
    ]
    assert "not measured" in lines[3]
    assert [cell.strip() for cell in shown[3][2:]] == [
        "50.0 (1)",
        "3",
        "60",
        "60",
        "1 GFLOP",
        "2 GFLOP",
        "640 B",
        "8.0 kB",
    ]
    over = EvalReport([row("soft", replace(COST, over_budget=3 * 10**7))])
    assert "+1 %" in over.costs_table()
    assert "beyond the budget" in over.costs_markdown()
    assert EvalReport([row("hard")]).costs_markdown() == ""


def test_costs_are_read_as_they_were_written_and_nonsense_is_one_clear_line():
    report = EvalReport([row("soft", COST), row("hard")])
    content = json.loads(json.dumps(report.to_json()))
    assert EvalReport.from_json(content) == report
    assert "cost" not in content["rows"][1]
    for name, value in (
        ("steps", -1),
        ("regime", "free"),
        ("images_seen", 1.5),
        ("over_budget", "much"),
        ("over_budget", COST.flop),
        ("label_bytes", 10**400),
        ("more", 1),
    ):
        broken = {**content["rows"][0], "cost": {**content["rows"][0]["cost"], name: value}}
        with pytest.raises(ValueError, match=name):
            EvalReport.from_json({"rows": [broken]})
    with pytest.raises(ValueError, match="not the results"):
        EvalReport.from_json({"rows": [{**content["rows"][0], "cost": 5}]})


def test_the_card_says_what_rows_and_the_making_cost(tmp_path, data):
    distilled = DistilledSet(
        torch.zeros(10, 1, 8, 8), torch.arange(10), data[0].class_names, data[0].preprocessing, config={}
    )
    assert "What it costs" not in (distilled.save_pretrained(tmp_path / "old") / "README.md").read_text()
    distilled.report = EvalReport([row("soft", COST)])
    card = (distilled.save_pretrained(tmp_path / "costs") / "README.md").read_text()
    assert "## What it costs\n\n| regime |" in card
    assert "### The making\n\nWhat the making of the set took was not measured.\n" in card
    distilled.making = {"distillation": Work(300, 90.0, "cpu"), "teacher": None}
    card = (distilled.save_pretrained(tmp_path / "made") / "README.md").read_text()
    assert "| distillation | 300 | 1.5 min | not counted | cpu |\n| teacher |  | not measured |  |  |" in card
    assert DistilledSet.from_pretrained(tmp_path / "made").making == distilled.making
    assert contents(tmp_path / "made") == {
        **contents(tmp_path / "costs"),
        "README.md": hashlib.sha256(TIMES.sub(b"", card.encode())).hexdigest(),
    }
