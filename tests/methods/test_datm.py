"""DATM: which epochs it starts from, how labels begin and are learned, and what an iteration above the limit leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from hf_distill import DistillationDiverged
from hf_distill.augmentation.dsa import DSA
from hf_distill.config import DataArguments, HubArguments, find_preset, parse_args
from hf_distill.data.images import RealImages
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.methods import DATM, MTT, TESLA, DATMConfig, MTTConfig, TESLAConfig
from hf_distill.methods.datm import logit_cross_entropy, mean_where_right, window_end
from hf_distill.methods.unroll import Student, StudentStep, adjoint_unroll
from hf_distill.networks.architectures import FlatModel, StudentSpec
from hf_distill.networks.trajectories import ExpertTrajectories
from hf_distill.rng import generator
from hf_distill.training.experts import ExpertConfig, train_experts

pytestmark = pytest.mark.usefixtures("one_thread")

FLAGS: dict[str, Any] = {
    "ipc": 2,
    "syn_steps": 3,
    "expert_epochs": 2,
    "max_start_epoch": 3,
    "batch_syn": 8,  # of twenty: in each iteration some images are in no step
    "lr_init": 0.1,
    "lr_img": 1.0,
    "lr_lr": 1e-4,
    "max_steps": 3,
    "select": "last",
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def train() -> RealImages:
    return RealImages.train_and_test(DataArguments(max_train_samples=100, max_test_samples=20))[0]


@pytest.fixture(scope="module")
def experts(train, tmp_path_factory) -> ExpertTrajectories:
    config = ExpertConfig(
        student="convnet_d1",
        student_width=8,
        num_experts=3,
        lr_teacher=0.1,
        batch_train=20,
        experts_at_once="3",
        dsa_strategy="color_crop_cutout_scale_rotate",
    )
    folder = tmp_path_factory.mktemp("experts") / "experts"
    return train_experts(train, config, folder, epochs=8, seed=0, accelerator=Accelerator(cpu=True), disable_tqdm=True)


def datm(train, experts, folder: Path, **flags: Any) -> DATM:
    return DATM(DATMConfig(**{**FLAGS, "output_dir": str(folder), **flags}), train, experts=experts)


# Start epochs


@pytest.mark.parametrize(
    ("step", "end"),
    # From 10 to 20 over 1,000 iterations: one more in every hundred.
    [(0, 10), (99, 10), (100, 11), (199, 11), (550, 15), (999, 19), (1000, 20), (1001, 20), (9999, 20)],
)
def test_the_window_grows_as_worked_by_hand(step, end):
    assert window_end(step, 10, 20, 1000) == end


def test_start_epochs_come_from_the_window_of_their_iteration_and_fill_it(train, experts, tmp_path):
    flags = {"min_start_epoch": 1, "first_max_start_epoch": 2, "max_start_epoch": 5, "growing_steps": 90}
    method = datm(train, experts, tmp_path, gradient_accumulation_steps=2, **flags)
    starts = [method.segment(draw)[1] for draw in range(800)]  # two draws an iteration
    for first, last, expected in ((0, 60, {1}), (60, 120, {1, 2}), (120, 180, {1, 2, 3}), (180, 800, {1, 2, 3, 4})):
        assert set(starts[first:last]) == expected
    whole = datm(train, experts, tmp_path, min_start_epoch=2, max_start_epoch=4)
    assert {whole.segment(draw)[1] for draw in range(50)} == {2, 3}


# Labels


def test_the_gradient_of_the_logits_is_that_of_the_whole_unroll_and_of_central_differences():
    spec, random = StudentSpec("convnet_d1", 3, 1, (8, 8), {"width": 4}), generator(0)
    model = FlatModel.from_spec(spec).for_second_derivatives()
    start = model.init(1).double()
    target = start + 0.1 * torch.randn(model.num_params, generator=random, dtype=torch.float64)
    pixels = torch.randn(6, 1, 8, 8, generator=random, dtype=torch.float64)
    logits = torch.randn(6, 3, generator=random, dtype=torch.float64)
    dsa, lr = DSA("color_flip"), torch.tensor(0.5, dtype=torch.float64)
    steps = [
        StudentStep(torch.randint(6, (4,), generator=random), dsa.sample(4, random, (8, 8)))  # images come back
        for _ in range(5)
    ]

    def loss_of(logits: Tensor) -> Tensor:
        theta = start.clone().requires_grad_()
        for step in steps:
            seen = model(theta, DSA.apply(pixels[step.rows], step.augment))
            loss = -(logits[step.rows].softmax(1) * seen.log_softmax(1)).sum(1).mean()
            theta = theta - lr * torch.autograd.grad(loss, theta, create_graph=True)[0]
        return (theta - target).square().sum() / (start - target).square().sum()

    student = Student(model, logit_cross_entropy)
    found = adjoint_unroll(student, start, target, pixels, logits, steps, lr, targets_gradient=True).targets
    learned = logits.clone().requires_grad_()
    (truth,) = torch.autograd.grad(loss_of(learned), learned)
    assert ((found - truth).norm() / truth.norm()).item() < 1e-10
    way = torch.randn(6, 3, generator=random, dtype=torch.float64)
    difference = (loss_of(logits + 1e-4 * way) - loss_of(logits - 1e-4 * way)) / 2e-4
    assert (found * way).sum().item() == pytest.approx(difference.item(), rel=1e-5)


def test_labels_start_from_the_mean_of_those_that_are_right_worked_by_hand():
    answers = [
        torch.tensor([[3.0, 1.0], [5.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[1.0, 0.5], [2.0, 4.0], [0.0, 3.0]]),
        torch.tensor([[0.0, 9.0], [0.0, 8.0], [1.0, 2.0]]),
    ]
    logits, right = mean_where_right(iter(answers), torch.tensor([0, 1, 0]))
    # The first two know image 0, the last two image 1, and none image 2, which gets the mean of all.
    assert right.tolist() == [2, 2, 0]
    torch.testing.assert_close(logits, torch.tensor([[2.0, 0.75], [1.0, 6.0], [1 / 3, 2.0]]))


def test_images_start_from_some_that_the_first_expert_knows_with_the_logits_of_those_that_know_them(
    train, experts, tmp_path
):
    method = datm(train, experts, tmp_path)
    distilled = method.setup()
    pixels, labels = distilled.pixel_values.detach(), distilled.labels
    model = experts.flat_model()
    answers = torch.stack([model(experts.row(i, 8), pixels) for i in range(3)])  # (3, 20, 10)
    knows = answers.argmax(2) == labels
    assert knows[0].all()
    assert not knows.all()
    for n in range(20):
        mean = answers[knows[:, n], n].mean(0)
        torch.testing.assert_close(distilled.soft_labels[n], mean, rtol=1e-4, atol=1e-4)
    assert distilled.teacher is None
    assert distilled.soft_labels.dtype == torch.float32


def test_learned_labels_are_parameters_that_move_are_stored_and_load_as_soft_labels(train, experts, tmp_path):
    method = datm(train, experts, tmp_path / "run", mom_y=0, lr_y=10, save_steps=1)
    start = method.setup().soft_labels.detach().clone()
    distilled = method.run()
    assert "soft_labels" in dict(distilled.named_parameters())
    moved = (distilled.soft_labels - start).norm(dim=1)
    assert (moved > 0).all()  # in three iterations of three steps each image was in one
    kept = load_file(tmp_path / "run" / "checkpoint-3" / "state.safetensors")["set.soft_labels"]
    assert torch.equal(kept, distilled.soft_labels)
    assert kept.dtype == torch.float32
    again = DistilledSet.from_pretrained(distilled.save_pretrained(tmp_path / "set"))
    assert torch.equal(again.soft_labels, distilled.soft_labels.half())
    assert again.reloaded(tmp_path / "set").label_source.kind == "soft"
    assert distilled._is(again)
    assert again.stored_labels.num_bytes == distilled.stored_labels.num_bytes == 20 * 10 * 2
    distilled.export_pt(tmp_path / "set.pt")
    assert torch.equal(torch.load(tmp_path / "set.pt", weights_only=True)["soft_labels"], again.soft_labels)
    assert torch.equal(distilled.select(1).soft_labels, again.soft_labels[::2])


def test_a_step_of_the_labels_is_that_of_sgd_and_the_images_are_shown_with_those_that_are_now(train, experts, tmp_path):
    method = datm(train, experts, tmp_path, batch_syn=None, lr_y=3, mom_y=0.5, max_steps=2)
    labels = method.setup().soft_labels.detach().clone()
    taken: list[Tensor] = []
    add = method.add
    method.add = lambda rows, gradients: (taken.append(gradients.targets.clone()), add(rows, gradients))
    found = method.run().soft_labels
    velocity = torch.zeros_like(labels)
    for gradient in taken:
        velocity = 0.5 * velocity + gradient
        labels = labels - 3 * velocity
    torch.testing.assert_close(found.detach(), labels)
    seen = []
    looking = datm(train, experts, tmp_path, max_steps=3, lr_y=3)
    looking.callbacks.on_step = lambda state: seen.append(state.look().soft_labels.detach().clone())
    torch.testing.assert_close(looking.run().soft_labels.detach(), seen[-1])


def test_labels_that_a_file_cannot_hold_end_the_run(train, experts, tmp_path):
    method = datm(train, experts, tmp_path, max_steps=9, lr_y=1e-30)
    setup = method.setup

    def larger() -> DistilledSet:
        distilled = setup()
        distilled.soft_labels.data[3, 4] = -60001
        return distilled

    method.setup = larger
    with pytest.raises(DistillationDiverged, match=r"a logit of the labels is 6e\+04, and a file .* --lr_y 1e-30"):
        method.run()


# With everything new switched off


@pytest.mark.parametrize("init", ["real", "noise"])
def test_with_hard_labels_and_a_fixed_window_it_is_tesla_bit_for_bit_and_mtt_to_rounding(
    init, train, experts, tmp_path
):
    flags = {**FLAGS, "init": init, "mom_img": 0.5}
    (hard, exact), full = (
        (
            kind(config(**flags, label="hard", output_dir=str(tmp_path / kind.__name__)), train, experts=experts).run()
            for kind, config in ((DATM, DATMConfig), (TESLA, TESLAConfig))
        ),
        MTT(MTTConfig(**flags, output_dir=str(tmp_path / "mtt")), train, experts=experts).run(),
    )
    assert hard.soft_labels is None
    assert torch.equal(hard.pixel_values, exact.pixel_values)
    assert torch.equal(hard.lr, exact.lr)
    torch.testing.assert_close(hard.pixel_values, full.pixel_values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hard.lr, full.lr, rtol=1e-4, atol=1e-6)


# The limit of the loss


@pytest.mark.parametrize("batch", [None, 8])
def test_an_iteration_above_the_limit_changes_nothing(batch, train, experts, tmp_path):
    def state(method: DATM) -> dict[str, Tensor]:
        tensors = {name: value.detach().clone() for name, value in method.current().named_parameters()}
        for i, optimizer in enumerate(method.optimizers):
            for values in optimizer.state.values():
                known = {key: value for key, value in values.items() if isinstance(value, Tensor)}
                tensors |= {f"{i}.{key}": value.clone() for key, value in known.items()} if batch is None else {}
        return tensors

    states: list[dict[str, Tensor]] = []
    method = datm(train, experts, tmp_path, batch_syn=batch, max_steps=4, max_loss=100.0)
    method.callbacks.on_step = lambda _: states.append(state(method))
    declines, asked = method.declines, []

    def third_is_above(values: dict[str, float]) -> bool:
        asked.append(values["loss"])
        return declines({**values, "loss": 101.0 if len(asked) == 3 else values["loss"]})

    method.declines = third_is_above
    method.run()
    before, after, later = states[1:]
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
        assert name.endswith(("behind", "rates")) or not torch.equal(later[name], value), name


def test_the_mean_loss_of_an_iteration_decides_and_what_is_no_number_is_objected_to(train, experts, tmp_path, caplog):
    method = datm(train, experts, tmp_path, gradient_accumulation_steps=2, max_loss=1.0, max_steps=1, batch_syn=None)
    for losses, changes in (((0.4, 1.5), True), ((0.6, 1.5), False)):
        given = iter(losses)
        step = DATM.step
        method.step = lambda draw: {**step(method, draw), "loss": torch.tensor(next(given))}  # noqa: B023
        start = method.setup().pixel_values.detach().clone()
        assert torch.equal(method.run().pixel_values, start) is not changes
    assert not method.declines({"loss": float("nan")})
    assert not method.declines({"loss": float("inf")})
    assert not method.declines({"loss": 1.0})
    for _ in range(20):
        assert method.declines({"loss": 1.01})
    assert "above --max_loss (1) for 20 steps, and nothing is learned" in caplog.text
    assert not datm(train, experts, tmp_path).declines({"loss": 1e9})


# Bad input


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            {"label": "hard", "lr_y": 2},
            r"--lr_y is 2 and --label is hard, which learns no labels; leave it out \(--lr_y none where a",
        ),
        ({"label": "expert"}, "--label is 'expert'; expected one of learned, hard"),
        ({"lr_y": -1}, "--lr_y is -1; expected at least 0"),
        ({"mom_y": 1.5}, "--mom_y is 1.5; expected a number from 0 to 1"),
        ({"init": "noise"}, "--init is noise, and learned labels start from what experts say of real images; give"),
        ({"max_loss": 0}, "--max_loss is 0; expected a number above 0, such as 1"),
        ({"max_loss": float("nan")}, "--max_loss is nan; expected a number above 0"),
        ({"min_start_epoch": -1}, "--min_start_epoch is -1; expected at least 0"),
        ({"min_start_epoch": 20}, "--min_start_epoch is 20 and --max_start_epoch 20, so no epoch is left"),
        ({"growing_steps": 10}, "--growing_steps is 10 and nothing grows; give --first_max_start_epoch"),
        (
            {"first_max_start_epoch": 5},
            r"--first_max_start_epoch is 5 and nothing says when it is --max_start_epoch \(20",
        ),
        (
            {"first_max_start_epoch": 21, "growing_steps": 9},
            r"is 21; expected above --min_start_epoch \(0\), and at most",
        ),
        (
            {"first_max_start_epoch": 5, "growing_steps": 9, "min_start_epoch": 5},
            r"--first_max_start_epoch is 5; expected above --min_start_epoch \(5\)",
        ),
        ({"first_max_start_epoch": 5, "growing_steps": 0}, "--growing_steps is 0; expected at least 1"),
        ({"curvature": -1}, "--curvature is -1; expected 0"),
    ],
)
def test_a_wrong_hyper_parameter_is_named(flags, says):
    with pytest.raises(ValueError, match=says) as raised:
        DATMConfig(**flags)
    assert "\n" not in str(raised.value)


def test_a_preset_with_hard_labels_needs_one_more_word():
    preset = str(find_preset("cifar10-ipc10", "datm"))
    classes = (DataArguments, ExpertConfig, DATMConfig, HubArguments)
    words = ["--config", preset, "--label", "hard", "--lr_y", "none", "--batch_syn=none"]
    *_, config, _ = parse_args(*classes, args=words)
    assert (config.label, config.lr_y, config.batch_syn) == ("hard", None, None)


def test_experts_with_too_few_epochs_for_the_whole_window_are_refused(train, experts, tmp_path):
    with pytest.raises(ValueError, match=r"hold 8 epochs and --max_start_epoch 8 with --expert_epochs 2 reads 9"):
        datm(train, experts, tmp_path, max_start_epoch=8, first_max_start_epoch=2, growing_steps=1000)


def test_images_that_no_expert_knows_are_counted_in_the_log(train, experts, tmp_path, caplog):
    method = datm(train, experts, tmp_path)
    distilled = method.setup()
    distilled.labels.copy_((distilled.labels + 5) % 10)
    logits = method.initial_labels(distilled)
    assert "no expert classifies 20 of the 20 images right" in caplog.text
    model = experts.flat_model()
    everybody = torch.stack([model(experts.row(i, 8), distilled.pixel_values.detach()) for i in range(3)])
    torch.testing.assert_close(logits, everybody.mean(0), rtol=1e-4, atol=1e-4)


def test_a_run_that_learns_labels_does_not_go_on_from_one_that_does_not(train, experts, tmp_path):
    datm(train, experts, tmp_path / "hard", label="hard", max_steps=1).run()
    resumed = datm(train, experts, tmp_path / "hard", resume_from_checkpoint="latest")
    with pytest.raises(
        ValueError, match=r"nothing for soft_labels .* expected a checkpoint of a run that learns labels"
    ):
        resumed.run()


def test_the_loss_of_logits_is_the_cross_entropy_with_their_softmax():
    logits, targets = torch.randn(5, 3, generator=generator(1)), torch.randn(5, 3, generator=generator(2))
    by_hand = [-(t.softmax(0) @ (x.softmax(0)).log()) for x, t in zip(logits, targets, strict=True)]
    torch.testing.assert_close(logit_cross_entropy(logits, targets), torch.stack(by_hand).mean())
    assert not torch.allclose(logit_cross_entropy(logits, targets), F.cross_entropy(logits, targets))
