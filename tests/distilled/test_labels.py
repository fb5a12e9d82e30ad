"""Label sources: what they say, what they cost, and that a teacher is the mean of its networks."""

import fnmatch
import json
import weakref

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_distill.augmentation.views import Views
from hf_distill.data.feed import Pool
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.distilled.epoch_labels import relabel
from hf_distill.distilled.labels import (
    HardLabels,
    MeanLabels,
    NetworkLabels,
    ProjectorLabels,
    StoredLabels,
    TeacherLabels,
)
from hf_distill.hub.repository import Repository
from hf_distill.networks.architectures import FlatModel, StudentSpec
from hf_distill.networks.priors import Prior
from hf_distill.networks.projector import LabelProjector, Lora
from hf_distill.networks.teachers import Teacher
from tests.helpers.clips import learn, save_clip

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


def test_a_teacher_gives_the_mean_of_what_its_networks_give_one_by_one(images, rows, device):
    networks = [SPEC.build(seed).eval() for seed in (1, 2, 3)]
    with torch.no_grad():
        expected = sum(network(images).double() for network in networks) / 3
    found = teacher().to(device)(images.to(device), rows.to(device), rows)
    rounding = {"rtol": 1e-5, "atol": 1e-6} if device.type == "cpu" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found.cpu().double(), expected, **rounding)
    assert teacher().num_bytes == 3 * 4 * sum(p.numel() for p in networks[0].parameters())


def test_a_teacher_carries_no_gradient_and_says_the_same_twice(images, rows):
    source = teacher()
    found = source(images.requires_grad_(), rows, rows)
    assert not found.requires_grad
    assert torch.equal(found, source(images, rows, rows))


def test_a_teacher_says_the_same_in_chunks(images, rows):
    whole, parts = teacher()(images, rows, rows), teacher(chunk_size=3)(images, rows, rows)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


class Alive(TorchDispatchMode):
    """The most bytes that tensors held at one time, but those that were there before, as a context."""

    def __init__(self, *before: torch.Tensor) -> None:
        super().__init__()
        self.before = {tensor.untyped_storage().data_ptr() for tensor in before}
        self.tensors: list[weakref.ref] = []
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.tensors = [known for known in self.tensors if known() is not None]
        self.tensors += [weakref.ref(leaf) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        storages = [known().untyped_storage() for known in self.tensors]
        held = {each.data_ptr(): each.nbytes() for each in storages if each.data_ptr() not in self.before}
        self.peak = max(self.peak, sum(held.values()))
        return result


@pytest.mark.parametrize("count", [1, 3])
def test_a_teacher_holds_the_labels_of_one_chunk_beside_its_answer(count, device):
    spec = StudentSpec("convnet_d1", 3000, 1, (4, 4), {"width": 2})
    source = TeacherLabels(spec, torch.zeros(count, spec.num_params(), device=device), chunk_size=2)
    images = torch.randn(60, 1, 4, 4).to(device)
    source(images[:2], None, None)  # builds the network
    with Alive(source.thetas, images) as alive:
        answer = source(images, None, None)
    assert answer.nbytes == 60 * 3000 * 4
    assert alive.peak < 1.3 * answer.nbytes


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


def test_a_network_labels_each_image_by_itself_with_its_running_statistics(images, rows, device):
    source, x = NetworkLabels(network()).to(device), images.to(device)
    found = source(x.requires_grad_(), rows.to(device), rows, epoch=3)
    assert not found.requires_grad
    one_by_one = torch.cat([network().logits(image[None]) for image in images])
    torch.testing.assert_close(found.cpu(), one_by_one.detach(), rtol=1e-4, atol=1e-5)
    parts = NetworkLabels(network(), chunk_size=3).to(device)(x, rows.to(device), rows)
    torch.testing.assert_close(parts, found, rtol=1e-4, atol=1e-5)
    for before, after in zip(network().model.buffers(), source.teacher.model.buffers(), strict=True):
        assert torch.equal(before, after.cpu())


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


# Projectors


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> Prior:
    return Prior.from_pretrained(save_clip("vit", tmp_path_factory.mktemp("prior")))


def projector(prior: Prior, size: float = 0.05, names: str = "abcde") -> LabelProjector:
    """A projector whose matrices hold values, larger or smaller ones."""
    seen = Preprocessing(1, (8, 8), (0.5,), (0.5,))
    return learn(LabelProjector(prior, list(names), seen, templates="simple", lora=Lora(r=2)), size)


def test_a_projector_labels_as_it_says_itself_and_has_its_matrices_folded_in(tmp_path, images, rows, device):
    folder = save_clip("vit", tmp_path)  # a prior of its own for each: they move
    plain = projector(Prior.from_pretrained(folder))
    source = ProjectorLabels(projector(Prior.from_pretrained(folder))).to(device)
    with torch.no_grad():
        wanted, zero = plain.logits(images), plain.zero_shot(images)
    assert (wanted - zero).abs().max() > 0.1
    x = images.to(device)
    found = source(x.requires_grad_(), rows.to(device), rows, epoch=3)
    assert not found.requires_grad
    assert found.dtype == torch.float32
    rounding = 1e-5 if device.type == "cpu" else 1e-4
    torch.testing.assert_close(found.cpu(), wanted, rtol=rounding, atol=rounding)
    weight = source.projector.model.base_model.model.classifier.base_layer.weight
    assert not torch.equal(weight.cpu(), plain.text_head)
    assert torch.equal(source(x, rows.to(device), rows), found)


def test_what_a_projector_says_of_an_image_depends_on_that_image_alone(prior, images, rows):
    source = ProjectorLabels(projector(prior))
    found = source(images, rows, rows)
    one_by_one = torch.cat([source(image[None], rows[:1], rows[:1]) for image in images])
    torch.testing.assert_close(found, one_by_one, rtol=1e-5, atol=1e-5)
    backwards = source(images.flip(0), rows, rows.flip(0), epoch=8).flip(0)
    torch.testing.assert_close(found, backwards, rtol=1e-5, atol=1e-5)
    parts = ProjectorLabels(projector(prior), chunk_size=3)(images, rows, rows)
    torch.testing.assert_close(parts, found, rtol=1e-5, atol=1e-5)


def test_a_projector_says_what_it_is_and_costs_its_matrices_alone(prior):
    made = projector(prior)
    source = ProjectorLabels(made)
    assert (source.kind, source.digest, source.shared, source.views) == ("projector", made.digest, False, None)
    tower = {name: p.numel() for name, p in made.model.named_parameters() if "lora_" in name}
    assert source.num_bytes == 2 * sum(tower.values())
    assert "local open_clip model" in source.name
    assert source.digest != ProjectorLabels(projector(prior, 0.1)).digest


def test_a_projector_comes_back_from_its_config_and_folder_of_what_loading_needs(tmp_path, prior, images, rows):
    source = ProjectorLabels(projector(prior))
    wanted = source(images, rows, rows)  # which merges: what is saved is the same
    source.save(tmp_path / "projector")
    names = {path.relative_to(tmp_path / "projector").as_posix() for path in (tmp_path / "projector").rglob("*.*")}
    assert names == {
        *("adapter_config.json", "adapter_model.safetensors", "projector_config.json", "text_head.safetensors"),
        *("base/open_clip_config.json", "base/open_clip_model.safetensors"),
    }
    assert all(any(fnmatch.fnmatch(name, pattern) for pattern in LabelProjector.fetched) for name in names)
    config = json.loads(json.dumps(source.to_config()))
    assert (config["kind"], config["shared"]) == ("projector", None)
    again = ProjectorLabels.from_config(config, tmp_path / "projector")
    assert torch.equal(again(images, rows, rows), wanted)
    assert again.to_config() == source.to_config()
    other = ProjectorLabels(projector(prior, 0.1)).to_config()
    with pytest.raises(
        ValueError, match=r"holds the weights .* use the weights that the labels were made with"
    ) as caught:
        ProjectorLabels.from_config(other, tmp_path / "projector")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="its projector is missing"):
        ProjectorLabels.from_config(config, tmp_path / "nowhere")


def test_classes_and_preprocessing_of_a_projector_are_checked_by_name(prior):
    source, seen = ProjectorLabels(projector(prior)), Preprocessing(1, (8, 8), (0.5,), (0.5,))
    source.check_fits(list("abcde"), seen)
    with pytest.raises(ValueError, match="calls class 0 'a', and here it is 'e'"):
        source.check_fits(list("edcba"), seen)
    with pytest.raises(ValueError, match="use the projector's preprocessing"):
        source.check_fits(list("abcde"), Preprocessing(1, (8, 8), (0.4,), (0.5,)))


# Several networks


def test_the_mean_of_several_networks_is_that_of_their_logits_and_costs_them_all(images, rows):
    teachers = [network(seed) for seed in (0, 1, 2)]
    mean = MeanLabels([NetworkLabels(teacher, chunk_size=4) for teacher in teachers])
    found = mean(images.requires_grad_(), rows, rows, epoch=1)
    assert not found.requires_grad
    with torch.no_grad():
        wanted = torch.stack([teacher.model(images).double() for teacher in teachers]).mean(0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    assert mean.num_bytes == sum(NetworkLabels(teacher).num_bytes for teacher in teachers)
    assert mean.kind == "teacher"
    with pytest.raises(ValueError, match="the mean of no teachers"):
        MeanLabels([])


def test_labels_that_the_mean_of_networks_stores_are_its_own_and_known_by_all_of_them(tmp_path):
    pixels = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pool = Pool(pixels, torch.arange(6) % 5, preprocessing=Preprocessing(1, (8, 8), (0.5,), (0.5,)), device="cpu")
    views, rows = Views(seed=3, scale=(0.5, 1.0), flip=0.0), torch.arange(6)

    def stored(name: str, *seeds: int):
        mean = MeanLabels([NetworkLabels(network(seed)) for seed in seeds])
        return mean, relabel(mean, pool, views, 2, tmp_path / name, accelerator=Accelerator(), disable_tqdm=True)

    mean, labels = stored("a", 0, 1)
    for epoch in range(3):  # the third is the first again
        x = labels.views(pool.images, rows, epoch, len(pool), pool.black)
        wanted = mean(x, pool.labels, rows).half().float()
        torch.testing.assert_close(labels(x, pool.labels, rows, epoch), wanted, rtol=2e-3, atol=1e-3)
    about = labels.config["teacher"]
    assert [source["sha256"] for source in about["sources"]] == [network(seed)._sha256 for seed in (0, 1)]
    ids = [labels.config["id"], *(stored(str(n), *seeds)[1].config["id"] for n, seeds in enumerate([(0, 1), (0, 2)]))]
    assert ids[0] == ids[1] != ids[2]
    with pytest.raises(ValueError, match="'hard' cannot label views; expected a teacher"):
        relabel(HardLabels(), pool, views, 2, tmp_path / "hard", accelerator=Accelerator(), disable_tqdm=True)


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
