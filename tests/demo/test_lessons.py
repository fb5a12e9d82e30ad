"""A student of a demo: the one that its seed gives, whoever else trains meanwhile, by labels that are at hand."""

from dataclasses import replace

import pytest
import torch

from hf_distill.demo.lessons import Lesson, guesses
from hf_distill.distilled.labels import HardLabels, NetworkLabels, StoredLabels, TeacherReference
from hf_distill.evaluation.students import train_student
from hf_distill.hub.repository import Repository
from hf_distill.hub.results import EvalReport, EvalRow
from hf_distill.networks.architectures import StudentSpec
from tests.helpers.sets import NAMES, make, network, pictures

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = StudentSpec("convnet_d1", 4, 1, (8, 8), {"width": 4, "norm": "instance"})
CONFIG = {"student": SPEC.to_dict(), "hyperparameters": {"eval_protocol": "quick"}, "dsa_strategy": "crop_cutout"}


def lesson(config=CONFIG, **kwargs) -> Lesson:
    return Lesson.of(make(channels=1, size=(8, 8), soft=False, config=config, **kwargs))


def values(model) -> torch.Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_the_last_student_of_a_lesson_is_the_one_that_is_trained_at_once():
    taught = lesson()
    *before, last = taught.train(90, seed=5)
    whole = train_student(
        taught.pool.images(torch.arange(12)),
        taught.pool.labels,
        SPEC,
        replace(taught.protocol, epochs=90),
        lr=taught.lr,
        seed=5,
    )
    assert torch.equal(values(last.student), values(whole))
    assert [seen.epoch for seen in (before[0], last)] == [4, 90]
    assert len(before) == 24
    assert last.accuracy > before[0].accuracy  # on twelve images of noise, which it learns by heart


def test_visitors_who_train_at_once_get_the_students_that_each_alone_would():
    taught = lesson()
    first, second = taught.train(6, 1), taught.train(6, 2)
    together = [[values(seen.student) for seen in pair] for pair in zip(first, second, strict=True)]
    alone = [[values(seen.student) for seen in taught.train(6, seed)] for seed in (1, 2)]
    assert all(torch.equal(*pair) for pair in zip([one for one, _ in together], alone[0], strict=True))
    assert all(torch.equal(*pair) for pair in zip([two for _, two in together], alone[1], strict=True))


def test_a_training_that_is_stopped_leaves_the_random_stream_of_others_as_it_was():
    before = torch.random.get_rng_state()
    training = lesson().train(30, seed=0)
    assert next(training).epoch == 1
    training.close()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_students_learn_the_labels_that_are_at_hand_and_the_page_says_which_are_not():
    stored = make(channels=1, size=(8, 8), soft=True, config=CONFIG)
    assert isinstance(Lesson.of(stored).labels, StoredLabels)
    assert Lesson.of(stored).targets.dtype == torch.float16
    teacher = network(channels=1, size=(8, 8))
    labelled = pictures(channels=1, size=(8, 8), teacher=NetworkLabels(teacher), config=CONFIG)
    taught = Lesson.of(labelled)
    torch.testing.assert_close(taught.targets.float(), teacher.logits(labelled.floats()), rtol=1e-3, atol=1e-3)
    assert "gives whole images, once" in taught.notes[0]
    gone = TeacherReference("resnet18", 1, "0" * 64, Repository("someone/gone", "model", "1" * 40))
    lacking = Lesson.of(pictures(channels=1, size=(8, 8), teacher=NetworkLabels(gone), config=CONFIG))
    assert isinstance(lacking.labels, HardLabels)
    assert "a teacher, resnet18, which is not at hand: students learn the classes" in lacking.notes[0]


def test_the_learning_rate_is_that_of_the_report_for_such_students_else_the_learned_one_else_the_protocols():
    assert lesson().lr == 0.03
    assert lesson(lr=0.25).lr == 0.25
    row = EvalRow("distilled", "hard", "convnet_d1 norm=instance width=4", "quick", 12, [0.5], "cpu")
    about = {"learning_rates": {"distilled, hard labels": 0.1, "random, hard labels": 0.01}}
    report = EvalReport([row], meta={"quick, convnet_d1 norm=instance width=4": about})
    assert lesson(report=report, lr=0.25).lr == 0.1
    damaged = EvalReport([row], meta={"quick, convnet_d1 norm=instance width=4": {"learning_rates": "fast"}})
    assert lesson(report=damaged).lr == 0.03


def test_sets_for_other_networks_and_protocols_are_learned_by_a_convnet_from_whole_images_and_that_is_said():
    config = {"student": {"name": "resnet18"}, "hyperparameters": {"eval_protocol": "crops-quick"}}
    taught = lesson(config)
    assert (taught.spec.name, taught.protocol.name) == ("convnet_d2", "quick")
    assert "flip" not in taught.protocol.dsa_strategy.split("_")
    assert len(taught.notes) == 2
    assert "The set was made for resnet18" in taught.notes[0]
    assert "Its own protocol is crops-quick" in taught.notes[1]
    sizes = {8: 2, 28: 3, 32: 3, 64: 4, 128: 5, 224: 6}
    for size, depth in sizes.items():
        assert Lesson.of(make(1, 3, (size, size), soft=False)).spec.name == f"convnet_d{depth}"


def test_a_long_training_is_known_before_it_begins_and_shortened():
    taught = lesson({})
    assert taught.seconds_per_epoch > 0
    assert taught.epochs_within(1e-9) == 1
    assert taught.epochs_within(1e9) == taught.protocol.epochs


def test_guesses_are_the_probabilities_of_all_classes_by_name():
    images = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    student = SPEC.build(0).eval()
    found = guesses(student, images, NAMES)
    expected = torch.exp(student(images)[0]) / torch.exp(student(images)[0]).sum()
    assert list(found) == NAMES
    assert list(found.values()) == pytest.approx(expected.tolist(), rel=1e-5)
