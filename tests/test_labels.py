"""Label sources: what they say, what they cost, and that a teacher is the mean of its networks."""

import json

import pytest
import torch

from hf_distill.functional import FlatModel
from hf_distill.labels import HardLabels, StoredLabels, TeacherLabels
from hf_distill.models import StudentSpec

SPEC = StudentSpec("convnet_d2", 5, 1, (8, 8), {"width": 8})


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(11, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.arange(11)


def teacher(seeds: tuple[int, ...] = (1, 2, 3), **kwargs) -> TeacherLabels:
    model = FlatModel.from_spec(SPEC)
    return TeacherLabels(SPEC, torch.stack([model.init(seed) for seed in seeds]), **kwargs)


def test_hard_labels_are_the_classes_and_cost_nothing(images, rows):
    labels = torch.arange(11) % 5
    assert torch.equal(HardLabels()(images, labels, rows), labels)
    assert HardLabels().num_bytes == 0


def test_stored_labels_give_the_logits_of_the_rows_and_cost_two_bytes_each(images):
    logits = torch.randn(20, 5)
    source = StoredLabels(logits)
    rows = torch.tensor([3, 19, 3])
    found = source(images[:3], torch.zeros(3, dtype=torch.long), rows)
    assert torch.equal(found, logits.half().float()[rows])
    assert source.num_bytes == 20 * 5 * 2


def test_a_teacher_gives_the_mean_of_what_its_networks_give_one_by_one(images, rows):
    networks = [SPEC.build(seed).eval() for seed in (1, 2, 3)]
    with torch.no_grad():
        expected = sum(network(images).double() for network in networks) / 3
    torch.testing.assert_close(teacher()(images, rows, rows).double(), expected, rtol=1e-5, atol=1e-6)
    assert teacher().num_bytes == 3 * 4 * sum(p.numel() for p in networks[0].parameters())


def test_a_teacher_carries_no_gradient_and_says_the_same_twice(images, rows):
    source = teacher()
    found = source(images.requires_grad_(), rows, rows)
    assert not found.requires_grad
    assert torch.equal(found, source(images, rows, rows))


def test_a_teacher_says_the_same_in_chunks(images, rows):
    whole, parts = teacher()(images, rows, rows), teacher(chunk_size=3)(images, rows, rows)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_a_teacher_comes_back_from_its_config_and_tensors_bit_for_bit(images, rows):
    source = teacher()
    config = json.loads(json.dumps(source.to_config()))
    again = TeacherLabels.from_config(config, source.tensors())
    assert torch.equal(again(images, rows, rows), source(images, rows, rows))


def test_one_parameter_vector_is_a_teacher_of_one_network(images, rows):
    model = FlatModel.from_spec(SPEC)
    one, theta = TeacherLabels(SPEC, model.init(4)), model.init(4)
    torch.testing.assert_close(one(images, rows, rows), model(theta, images).detach())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StoredLabels(torch.zeros(4, dtype=torch.long)), "expected floating-point"),
        (lambda: TeacherLabels(SPEC, torch.zeros(0, 7)), "M at least 1"),
        (lambda: TeacherLabels(SPEC, torch.zeros(2, 7))(torch.zeros(1, 1, 8, 8), None, None), "vectors of 7 values"),
        (lambda: TeacherLabels.from_config(teacher().to_config(), {}), "comes with the tensors {}"),
    ],
)
def test_what_cannot_be_labels_is_refused_in_one_line(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
