"""Label sources: what they say, what they cost, and that a teacher is the mean of its networks."""

import json

import pytest
import torch

from hf_distill.functional import FlatModel
from hf_distill.labels import HardLabels, NetworkLabels, StoredLabels, TeacherLabels
from hf_distill.models import StudentSpec
from hf_distill.repository import Repository
from hf_distill.teachers import Teacher
from hf_distill.transforms import Preprocessing

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


def network(seed: int = 0) -> Teacher:
    """A network with running statistics that are not those of its start."""
    spec = StudentSpec("test_resnet", 5, 1, (8, 8))
    model, draw = spec.build(seed), torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=draw))
    return Teacher(model, spec, list("abcde"), Preprocessing(1, (8, 8), (0.5,), (0.5,)))


def test_a_network_labels_each_image_by_itself_with_its_running_statistics(images, rows):
    source = NetworkLabels(network())
    found = source(images.requires_grad_(), rows, rows, epoch=3)
    assert not found.requires_grad
    one_by_one = torch.cat([network().logits(image[None]) for image in images])
    torch.testing.assert_close(found, one_by_one.detach(), rtol=1e-4, atol=1e-5)
    parts = NetworkLabels(network(), chunk_size=3)(images, rows, rows)
    torch.testing.assert_close(parts, found, rtol=1e-4, atol=1e-5)
    for before, after in zip(network().model.buffers(), source.teacher.model.buffers(), strict=True):
        assert torch.equal(before, after)


def test_a_network_says_what_it_is_and_what_it_costs():
    source, state = NetworkLabels(network()), network().model.state_dict()
    assert source.num_bytes == sum(tensor.nbytes for tensor in state.values())
    assert (source.name, source.digest, source.shared, source.views) == (
        "test_resnet",
        network().digest,
        False,
        None,
    )
    assert source.digest != NetworkLabels(network(1)).digest
    assert source.kind == "teacher"


def test_a_network_comes_back_from_its_config_and_folder(tmp_path, images, rows):
    source = NetworkLabels(network())
    source.save(tmp_path / "teacher")
    assert sorted(path.name for path in (tmp_path / "teacher").rglob("*")) == [
        "config.json",
        "model.safetensors",
        "teacher_config.json",
    ]
    config = json.loads(json.dumps(source.to_config()))
    again = NetworkLabels.from_config(config, tmp_path / "teacher")
    assert torch.equal(again(images, rows, rows), source(images, rows, rows))
    with pytest.raises(ValueError, match="holds the weights"):
        NetworkLabels.from_config(NetworkLabels(network(1)).to_config(), tmp_path / "teacher")


def test_a_shared_network_is_its_repository_at_a_commit(tmp_path):
    teacher = network()
    teacher.origin = Repository("org/teacher", "model", "0123456789" * 4, token="hf_secret")
    config = NetworkLabels(teacher).to_config()
    assert config["shared"] == {"repo_id": "org/teacher", "revision": "0123456789" * 4}
    assert "secret" not in json.dumps(config)
    again = NetworkLabels.from_config(config, tmp_path / "nowhere")
    assert again.shared
    assert again.to_config() == config
    again.ask_with(False, True)
    with pytest.raises(ValueError, match=r"org/teacher.*is not in the local cache"):
        _ = again.teacher


def test_classes_and_preprocessing_of_a_network_are_checked_by_name(images):
    source = NetworkLabels(network())
    source.check_fits(list("abcde"), Preprocessing(1, (8, 8), (0.5,), (0.5,)))
    with pytest.raises(ValueError, match="the order alone differs"):
        source.check_fits(list("edcba"), Preprocessing(1, (8, 8), (0.5,), (0.5,)))
    with pytest.raises(ValueError, match="use the teacher's preprocessing"):
        source.check_fits(list("abcde"), Preprocessing(1, (8, 8), (0.4,), (0.5,)))


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
