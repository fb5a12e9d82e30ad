"""What learns, labels or measures, on a device that computes nothing and refuses what accelerators refuse."""

from dataclasses import replace

import pytest
import torch

import hf_distill as hd
from hf_distill.augmentation.dsa import DEFAULT_STRATEGY, DSA
from hf_distill.augmentation.sampling import collected
from hf_distill.data.feed import Pool
from hf_distill.data.preprocessing import Preprocessing, fit_zca
from hf_distill.data.upload import upload
from hf_distill.distilled.epoch_labels import Codec, relabel
from hf_distill.distilled.labels import BatchLabels, NetworkLabels, TeacherLabels
from hf_distill.distilled.targets import targets_of
from hf_distill.evaluation.accuracy import accuracy
from hf_distill.evaluation.protocols import PROTOCOLS, EvalProtocol
from hf_distill.evaluation.students import train_students
from hf_distill.hub.results import SETS
from hf_distill.methods import METHODS
from hf_distill.methods.batchnorm import input_statistics
from hf_distill.networks.architectures import FlatModel, StudentSpec
from hf_distill.networks.norms import with_closed_norms
from hf_distill.networks.probes import ProbeSpec
from hf_distill.rng import generator
from tests.helpers.fake_cuda import fake_cuda
from tests.helpers.iterations import NET, PATH, SETTINGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]


def test_the_device_refuses_two_devices_and_rows_from_the_host():
    with fake_cuda() as device:
        x, rows = torch.ones(3, 2, device="cuda"), torch.tensor([0, 1])
        assert x[upload(rows, "cuda")].device.type == "cuda"
        assert (x.sum().item(), x.cpu().tolist()) == (1.0, [[1.0, 1.0]] * 3)
        assert device.operations > 0
        for refused in (
            lambda: x + torch.ones(3, 2),
            lambda: torch.cat([x, torch.ones(3, 2)]),
            lambda: x.index_select(0, rows),
            lambda: x[rows],
            lambda: x.index_put_((rows,), x[0]),
            lambda: torch.nn.functional.cross_entropy(x, torch.tensor([0, 1, 0])),
        ):
            with pytest.raises(RuntimeError):
                refused()


@pytest.fixture(scope="module")
def data() -> tuple[hd.RealImages, hd.RealImages]:
    options = hd.DataArguments(max_train_samples=30, max_test_samples=20, classes=["3", "7"])
    return hd.RealImages.train_and_test(options)


@pytest.fixture(scope="module")
def experts(data, tmp_path_factory) -> str:
    """Real ones: those of the device would stand still, for all that it says of them is 1."""
    folder, (train, _) = tmp_path_factory.mktemp("experts") / "experts", data[0].split(0.1, seed=0)
    config = hd.ExpertConfig(student="convnet_d1", student_width=4, num_experts=1, experts_at_once="1")
    hd.train_experts(train, config, folder, epochs=1, disable_tqdm=True)
    return str(folder)


LESS = {"RDED": {"num_crops": 1}, "HeLlO": {"num_crops": 1, "factor": 1, "update_steps": 1}}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_method_runs_with_all_that_it_learns_from(method, data, experts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where networks stay that no other test should find
    monkeypatch.setattr(hd.DistilledSet, "save_pretrained", lambda distilled, folder: None)
    settings = {**SETTINGS[method.__name__], **LESS.get(method.__name__, {})}
    if method.learns_experts:
        settings = {**NET, **PATH, "experts": experts}
    with fake_cuda() as device:
        distilled = method.distill(data[0], ipc=1, output_dir=str(tmp_path / "run"), **settings)
    assert device.operations > 100
    assert len(distilled) == 2


@pytest.mark.parametrize("at_once", ["1", "2"])
def test_experts_are_trained(at_once, data, tmp_path):
    config = hd.ExpertConfig(student="convnet_d1", student_width=4, num_experts=2, batch_train=40)
    with fake_cuda():
        made = hd.train_experts(
            data[0], replace(config, experts_at_once=at_once), tmp_path / "e", epochs=1, test=data[1], disable_tqdm=True
        )
    assert made.num_experts == 2


@pytest.mark.parametrize("augment", ["rrc", "cutout_randaugment"])
def test_teachers_are_trained(augment, data, tmp_path):
    config = hd.TeacherConfig(student="convnet_d1", student_width=4, teacher_epochs=1, batch_train=20)
    config = replace(config, teacher_augment=augment)
    with fake_cuda():
        hd.train_teacher(data[0], data[1], config, tmp_path / "teacher", disable_tqdm=True)


@pytest.fixture(scope="module")
def spec() -> StudentSpec:
    return StudentSpec("convnet_d1", 2, 1, (8, 8), {"width": 4, "norm": "batch"})


def pool_of(data, **options) -> Pool:
    return Pool(data[0], data[0].labels, preprocessing=data[0].preprocessing, device="cuda", **options)


@pytest.mark.parametrize(
    ("protocol", "norm"),
    [("mtt", "instance"), ("apm", "batch"), ("rded", "batch")],
)
def test_students_are_trained_and_tested(protocol, norm, data, spec):
    known, network = replace(PROTOCOLS[protocol], batch_size=10), replace(spec, kwargs={"width": 4, "norm": norm})
    with fake_cuda():
        pool, rows = pool_of(data), torch.arange(10).expand(2, -1)
        label = NetworkLabels(hd.Teacher(spec.build(0), spec, data[0].class_names, data[0].preprocessing)).to("cuda")
        targets = pool.labels if isinstance(known, EvalProtocol) else label
        for student in train_students(pool, targets, rows, network, known, 1, [0.1] * 2, [0, 1]):
            accuracy(student, pool)
            accuracy(student, pool, k=5)


@pytest.mark.parametrize("once", [False, True])
def test_heads_of_backbones_are_trained_and_tested(once, data, spec):
    known = replace(PROTOCOLS["probe"], batch_size=10, seen_once=once)
    backbone = hd.Backbone.from_teacher(hd.Teacher(spec.build(0), spec, data[0].class_names, data[0].preprocessing))
    probe = ProbeSpec.of(backbone, 2, data[0].preprocessing, (8, 8))
    with fake_cuda():
        pool, rows = pool_of(data), torch.arange(10).expand(2, -1)
        for student in train_students(pool, pool.labels, rows, probe, known, 1, [0.1] * 2, [0, 1]):
            accuracy(student, pool)


@pytest.mark.parametrize("keep", ["floats", "nothing"])
def test_images_are_fed_and_labelled(keep, data, spec):
    instance = replace(spec, kwargs={"width": 4, "norm": "instance"})
    thetas = torch.stack([FlatModel.from_spec(instance).init(seed) for seed in (0, 1)])
    teacher = hd.Teacher(spec.build(0), spec, data[0].class_names, data[0].preprocessing)
    with fake_cuda():
        pool = pool_of(data, keep=keep)
        for source in (NetworkLabels(teacher).to("cuda"), TeacherLabels(instance, thetas).to("cuda")):
            assert targets_of(pool, source).shape == (30, 2)


@pytest.mark.parametrize("together", [None, 7])
def test_views_are_labelled_stored_and_read(together, data, spec, tmp_path):
    teacher = hd.Teacher(spec.build(0), spec, data[0].class_names, data[0].preprocessing)
    with fake_cuda():
        pool = pool_of(data)
        options = {"codec": Codec(kept=1), "disable_tqdm": True}
        views = PROTOCOLS["cda-cifar"].views
        source = NetworkLabels(teacher).to("cuda")
        source = source if together is None else BatchLabels([source], together)
        labels = relabel(source, pool, views, 2, tmp_path / "labels", **options)
        rows = torch.arange(5)
        assert labels(pool.images(rows), pool.labels[upload(rows, "cuda")], rows, 1).shape == (5, 2)


def test_sets_are_evaluated_beside_real_images(data):
    rows = torch.cat([data[0].class_rows(label)[:2] for label in (0, 1)])
    distilled = hd.DistilledSet(data[0].uint8(rows), data[0].labels[rows], data[0].class_names, data[0].preprocessing)
    short = EvalProtocol("short", epochs=1, full_data_epochs=1)
    options = {"protocol": short, "students": ["convnet_d1"], "num_seeds": 1, "disable_tqdm": True}
    with fake_cuda():
        report = hd.evaluate(distilled, *data, baselines=["all"], **options)
    assert {row.set for row in report.rows} == {*SETS} - {"forgetting"}


@pytest.mark.parametrize("operation", DEFAULT_STRATEGY.split("_"))
def test_augmentations_are_applied(operation):
    drawn = [DSA(operation).sample(2, generator(seed), (8, 8)) for seed in (0, 1)]
    with fake_cuda():
        x = torch.ones(4, 3, 8, 8, device="cuda")
        assert DSA.apply_each(x, drawn, [2, 2]).shape == x.shape
        assert collected(x, torch.eye(2, device="cuda").expand(4, 2, 2)).shape == x.shape


@pytest.mark.parametrize("whitened", [False, True])
def test_images_are_preprocessed_and_made_pictures_again(whitened, data):
    zca = fit_zca([data[0].uint8(range(20))], 0.1) if whitened else None
    with fake_cuda():
        known = Preprocessing(1, (8, 8), (0.5,), (0.25,), zca).to("cuda")
        pixels = upload(data[0].uint8([0, 1]), "cuda")
        assert known.inverse(known(pixels)).shape == pixels.shape
        known.to_uint8(known(pixels))


def test_statistics_and_norms_that_are_written_by_hand_are_taken():
    with fake_cuda():
        x = torch.ones(3, 4, 5, 5, device="cuda")
        assert with_closed_norms(torch.nn.Sequential(torch.nn.GroupNorm(2, 4))).to("cuda")(x).shape == x.shape
        assert {values.device.type for values in input_statistics(x)} == {"cuda"}
