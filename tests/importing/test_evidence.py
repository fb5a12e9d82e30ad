"""Labels show whether their order is right: exactly among all permutations, and at the rates that are stated."""

import itertools

import pytest
import torch

from hf_distill.importing.evidence import LabelEvidence, standing


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def judge(
    draw: torch.Generator,
    *,
    classes: int = 10,
    ipc: int = 3,
    epochs: int = 3,
    own: float = 2.0,
    noise: float = 2.0,
    dealt: range = range(0),
    renamed: bool = False,
) -> str | int:
    """What is said of simulated labels, epoch by epoch; those of the epochs in `dealt` are dealt at random."""
    truth = torch.arange(classes).repeat_interleave(ipc)
    images, names = torch.arange(len(truth)), torch.randperm(classes, generator=draw)
    evidence = LabelEvidence(truth, classes)
    for epoch in range(epochs):
        logits = noise * torch.randn(len(truth), classes, generator=draw)
        logits[images, truth] += own
        if epoch in dealt:
            logits = logits[torch.randperm(len(truth), generator=draw)]
        evidence.add(logits[:, names] if renamed else logits, images)
        turned = evidence.turned()
        if evidence.refuted() is not None or turned is not None:
            return "refused" if turned is None else turned
    return "certain" if evidence.certain else "doubtful"


@pytest.mark.parametrize("own", [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 3]])
def test_chance_and_deviations_are_those_of_all_permutations(own):
    scores, own = torch.rand(6, 4, dtype=torch.float64, generator=drawn()), torch.tensor(own)
    every = torch.stack([scores[range(6), own[list(order)]].mean() for order in itertools.permutations(range(6))])
    claims = torch.rand(6, dtype=torch.float64, generator=drawn(1))
    now = standing(scores, own, claims)
    assert now.chance == pytest.approx(every.mean().item(), abs=1e-12)
    assert now.z == pytest.approx(((every[0] - every.mean()) / every.std(unbiased=False)).item(), abs=1e-9)
    expected = ((claims.mean() - every.mean()) / every.std(unbiased=False)).item()
    assert now.claim == pytest.approx(expected, abs=1e-9)


def test_labels_that_say_nothing_are_no_evidence():
    for count in (1, 6):
        evidence = LabelEvidence(torch.arange(count) % 3, 3)
        evidence.add(torch.zeros(count, 3), torch.arange(count))
        assert (evidence.all.z, evidence.certain, evidence.refuted(), evidence.turned()) == (0, False, None, None)


@pytest.mark.parametrize("count", [6, 20])
def test_no_labels_are_no_evidence(count):
    evidence = LabelEvidence(torch.arange(count) % 10, 10)
    assert (evidence.all.z, evidence.certain, evidence.refuted(), evidence.turned()) == (0, False, None, None)


def test_weak_labels_of_thirty_images_are_believed_in_the_right_order_and_refused_in_a_wrong_one():
    draw = drawn()
    assert [judge(draw) for _ in range(40)] == ["certain"] * 40
    wrong = [judge(draw, dealt=range(3)) for _ in range(40)]
    assert "certain" not in wrong
    assert wrong.count("doubtful") <= 4


def test_labels_that_know_little_are_proof_by_their_number():
    weak = {"own": 0.5, "noise": 1.0}  # 20 % of the maxima are right
    draw = drawn()
    few = [judge(draw, epochs=1, **weak) for _ in range(12)]
    assert few.count("doubtful") >= 6
    assert [judge(draw, epochs=20, ipc=10, **weak) for _ in range(2)] == ["certain"] * 2


def test_a_handful_of_images_is_no_proof_of_anything():
    draw = drawn()
    sharp = {"classes": 3, "ipc": 2, "own": 6.0, "noise": 1.0}
    assert {judge(draw, **sharp) for _ in range(20)} == {"doubtful"}
    assert "certain" not in {judge(draw, dealt=range(3), **sharp) for _ in range(20)}


def test_classes_in_another_order_are_not_believed_for_the_many_images_of_those_that_stay():
    draw = drawn()
    said = [judge(draw, classes=12, ipc=20, own=5.0, noise=1.0, epochs=2, renamed=True) for _ in range(40)]
    assert "certain" not in said


@pytest.mark.parametrize(("classes", "ipc"), [(10, 10), (6, 25)])
def test_the_epoch_is_named_from_which_on_the_order_is_another(classes, ipc):
    sharp = {"classes": classes, "ipc": ipc, "own": 3.0, "noise": 1.0, "epochs": 5}
    draw = drawn()
    for first in (1, 3):
        assert {judge(draw, dealt=range(first, 5), **sharp) for _ in range(5)} == {first}
    assert judge(draw, dealt=range(2, 3), **sharp) == 2
    assert {judge(draw, **sharp) for _ in range(5)} == {"certain"}


def test_labels_of_mixed_views_speak_of_the_larger_image():
    truth = torch.arange(10).repeat_interleave(3)
    larger = torch.randperm(30, generator=drawn())
    logits = 4 * torch.nn.functional.one_hot(truth[larger], 10) + torch.randn(30, 10, generator=drawn(1))
    right, wrong = LabelEvidence(truth, 10), LabelEvidence(truth, 10)
    right.add(logits, larger)
    wrong.add(logits, torch.arange(30))
    assert right.certain
    assert not wrong.certain
