"""What the launcher has compiled does what it does otherwise, in whole graphs, one for each shape."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import TorchDynamoPlugin
from torch import Tensor, nn
from torch._dynamo.utils import counters

from hf_distill.augmentation.views import Views
from hf_distill.config import DataArguments
from hf_distill.data.feed import Pool
from hf_distill.data.images import RealImages
from hf_distill.distilled.epoch_labels import relabel
from hf_distill.distilled.labels import HardLabels, MeanLabels, NetworkLabels, TeacherLabels, compiled_labels
from hf_distill.evaluation.crop_students import train_on_crops
from hf_distill.evaluation.protocols import CropProtocol, EvalProtocol
from hf_distill.evaluation.students import train_students
from hf_distill.methods import APM, RDED, APMConfig, RDEDConfig, SRe2L, SRe2LConfig
from hf_distill.methods.unroll import MatchingGradient, Student, StudentStep, adjoint_unroll
from hf_distill.networks.architectures import FlatModel, StudentSpec
from hf_distill.networks.compiling import compiled, compiled_derivatives, forward, in_precision, say_uncompiled
from hf_distill.networks.priors import Prior
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import generator
from hf_distill.training.experts import ExpertConfig, ExpertTrainer, train_experts
from hf_distill.training.projectors import ProjectorConfig, train_projector
from tests.helpers.clips import save_clip

SPEC = StudentSpec("convnet_d2", 10, 1, (8, 8), {"width": 6, "norm": "batch"})
PROTOCOL = CropProtocol("tiny", epochs=2, full_data_epochs=1, batch_size=8)


pytestmark = pytest.mark.usefixtures("one_thread")


def start(device: torch.device) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one, from its environment
    torch.compiler.reset()
    counters.clear()
    return Accelerator(cpu=device.type == "cpu")


@pytest.fixture
def plain(monkeypatch, device) -> Accelerator:
    monkeypatch.delenv("ACCELERATE_DYNAMO_BACKEND", raising=False)
    if device.type != "cpu":
        monkeypatch.delenv("ACCELERATE_USE_CPU")
    return start(device)


@pytest.fixture
def launched(device) -> Iterator[Callable[[], Accelerator]]:
    """To be called once what is not compiled is done: what `accelerate launch --dynamo_backend aot_eager` gives."""
    with pytest.MonkeyPatch.context() as patch:

        def launch() -> Accelerator:
            patch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
            if device.type != "cpu":
                patch.delenv("ACCELERATE_USE_CPU", raising=False)
            return start(device)

        yield launch
    start(torch.device("cpu"))


@pytest.fixture(scope="module")
def train() -> RealImages:
    return RealImages.from_arguments(DataArguments(max_train_samples=100))


def make_teacher(train: RealImages, seed: int = 0) -> Teacher:
    """A network that was never trained, with statistics of its own."""
    model, draw = SPEC.build(seed), generator(seed, "statistics")
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=draw))
            layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=draw))
    return Teacher(model, SPEC, train.class_names, train.preprocessing)


def graphs() -> int:
    """Compiled since `start`, none of them in parts."""
    assert not counters["graph_break"], counters["graph_break"]
    return counters["stats"]["unique_graphs"]


# Older ones break networks side by side, and labels of several, into parts; what comes out is the same.
WHOLE = torch.__version__ >= (2, 15)


class Watched(SRe2L):
    """Keeps the last iterates, which `finished` is given, before they become bytes."""

    def finished(self, x: Tensor) -> Tensor:
        self.iterates = [*getattr(self, "iterates", []), x.clone()]
        return super().finished(x)


@pytest.mark.slow
@pytest.mark.parametrize("priors", [{}, {"r_tv": 0.01, "r_l2": 0.02}], ids=["released", "with priors"])
def test_recovered_images_are_the_same_and_each_size_of_block_is_compiled_once(
    train, plain, launched, tmp_path, priors
):
    def run(accelerator: Accelerator, folder: str) -> list[Tensor]:
        flags = {"ipc": 2, "max_steps": 4, "batch_classes": 4, "jitter": 1, "disable_tqdm": True, "lr_img": 0.1}
        config = SRe2LConfig(output_dir=str(tmp_path / folder), eval_protocol="crops-quick", **flags, **priors)
        # Networks of one architecture share a graph.
        teachers = [make_teacher(train, 0), make_teacher(train, 1)]
        method = Watched(config, train, teachers=teachers, accelerator=accelerator)
        method.run()
        return method.iterates

    expected = run(plain, "plain")
    assert graphs() == 0
    found = run(launched(), "compiled")
    assert graphs() == 2  # blocks of four and of two
    assert [len(block) for block in found] == [4, 4, 2] * 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_gradients_of_images_are_the_same_in_double_precision(train, plain, launched, tmp_path):
    def gradient(accelerator: Accelerator) -> Tensor:
        config = SRe2LConfig(output_dir=str(tmp_path), eval_protocol="crops-quick", disable_tqdm=True)
        teacher = make_teacher(train)
        teacher.model.double()
        method = SRe2L(config, train, teachers=[teacher], accelerator=accelerator)
        x = torch.randn(5, 1, 8, 8, dtype=torch.float64, generator=generator(0, "x"))
        x = x.to(accelerator.device).requires_grad_()
        labels = torch.arange(5, device=accelerator.device)
        return torch.autograd.grad(method.losses(x, labels, 0)["loss"], x)[0]

    expected, found = gradient(plain), gradient(launched())
    assert graphs() == 1
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-9)


@pytest.mark.slow
def test_students_and_their_teacher_are_compiled_once_for_all_seeds(train, plain, launched, device):
    pool = Pool(train.uint8(torch.arange(20)), train.labels[:20], preprocessing=train.preprocessing, device=device)
    rows, x = torch.arange(20), pool.images(torch.arange(20))

    def logits(accelerator: Accelerator, seed: int, hard: bool) -> Tensor:
        targets = pool.labels if hard else NetworkLabels(make_teacher(train, 5)).to(device)
        protocol = replace(PROTOCOL, squared=True)
        return train_on_crops(pool, targets, rows, SPEC, protocol, 2, 0.003, seed, accelerator)(x).detach()

    cases = [(seed, hard) for hard in (True, False) for seed in (1, 2)]
    expected = [logits(plain, *case) for case in cases]
    assert graphs() == 0
    accelerator = launched()
    for case, wanted in zip(cases, expected, strict=True):
        torch.testing.assert_close(logits(accelerator, *case), wanted, atol=0.02, rtol=0)
    assert graphs() == 4  # batches of eight and of four, students and teacher


@pytest.mark.slow
def test_images_that_students_are_to_disagree_on_are_the_same_and_all_students_share_their_graphs(
    train, plain, launched, tmp_path
):
    def run(accelerator: Accelerator, folder: str) -> Tensor:
        flags = {
            "ipc": 2,
            "max_steps": 4,
            "refresh_every": 2,
            "segment_size": 16,
            "batch_net": 16,
            "disable_tqdm": True,
        }
        flags |= {"student_epochs": 2, "num_students": 2, "lr_img": 0.1, "eval_protocol": "apm-quick"}
        config = APMConfig(output_dir=str(tmp_path / folder), student_net="convnet_d1", **flags)
        method = APM(config, train, teachers=[make_teacher(train, 5)], accelerator=accelerator)
        return method.run().pixel_values.detach()

    expected = run(plain, "plain")
    assert graphs() == 0
    found = run(launched(), "compiled")
    # Sixteen images and the other four: the student learns from them, is asked about them, and so is its teacher, which
    # also labels them.
    assert graphs() == 8
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_stored_labels_are_the_same_but_not_gone_on_with(train, plain, launched, tmp_path, device):
    pool = Pool(train.uint8(torch.arange(20)), train.labels[:20], preprocessing=train.preprocessing, device=device)

    def stored(accelerator: Accelerator, folder: str):
        teacher = NetworkLabels(make_teacher(train)).to(device)
        return relabel(teacher, pool, PROTOCOL.views, 2, tmp_path / folder, accelerator=accelerator, disable_tqdm=True)

    first = stored(plain, "labels")
    rows = torch.arange(20)
    expected = [first(rows, rows, rows, epoch) for epoch in range(2)]
    second = stored(launched(), "labels")
    assert graphs() == 1
    assert second.config["id"] != first.config["id"]
    assert (first.config.get("compiled"), second.config["compiled"]) == (None, "aot_eager")
    for epoch, wanted in enumerate(expected):
        torch.testing.assert_close(second(rows, rows, rows, epoch), wanted, atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_a_projector_learns_the_same_in_one_graph_and_its_teachers_share_another(
    train, plain, launched, tmp_path, device
):
    prior = Prior.from_pretrained(save_clip("conv", tmp_path / "clip"))
    teachers = [make_teacher(train, seed) for seed in (0, 1)]
    config = ProjectorConfig(prompts="simple", lora_r=2, projector_epochs=2, batch_projector=25, weak_teachers=2)

    def learnt(accelerator: Accelerator, folder: str, **more):
        return train_projector(
            train, None, prior, teachers, Views(), config, tmp_path / folder, seed=0, accelerator=accelerator,
            disable_tqdm=True, **more,
        )  # fmt: skip

    expected = learnt(plain, "plain")
    assert graphs() == 0
    accelerator = launched()
    found = learnt(accelerator, "compiled")
    assert graphs() == 2
    assert found.results["epoch_loss"] == pytest.approx(expected.results["epoch_loss"], rel=1e-4)
    assert found.results["epoch_loss"][1] < found.results["epoch_loss"][0]
    x = train.images(torch.arange(20)).to(device)
    found, expected = found.to(device), expected.to(device)
    torch.testing.assert_close(found(x), expected(x), atol=0.01, rtol=0)
    assert not torch.allclose(found(x), found.zero_shot(x), atol=0.1)
    assert [learner.config["training"]["compiled"] for learner in (expected, found)] == [None, "aot_eager"]
    with pytest.raises(ValueError, match="compiled"):  # other last bits are not gone on with
        learnt(accelerator, "plain", resume_from_checkpoint="latest")


@pytest.mark.slow
def test_more_than_eight_shapes_are_all_compiled(launched, device):
    look = compiled(forward, launched())
    for width in range(1, 12):
        layer, x = nn.Linear(width, 2).to(device), torch.ones(3, width, device=device)
        torch.testing.assert_close(look(layer, x), layer(x))
    assert graphs() == 11


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "precision"), [("batch", "no"), ("instance", "bf16")])
def test_experts_take_the_same_steps_in_one_graph_alone_and_in_one_side_by_side(
    train, plain, launched, device, norm, precision
):
    config = ExpertConfig("convnet_d1", 6, norm, mom_teacher=0.9, l2_teacher=1e-3, batch_train=50)
    spec = config.student_spec(train)

    def trained(accelerator: Accelerator, experts: list[int], dtype: torch.dtype) -> Tensor:
        accelerator.state._mixed_precision = precision
        trainer = ExpertTrainer(train, spec, config, 3, accelerator, dtype)
        thetas = trainer.init(experts)
        velocities = torch.zeros_like(thetas)
        for epoch in (1, 2):
            trainer.epoch(experts, epoch, thetas, velocities)
        return thetas

    dtype = torch.float64 if precision == "no" else torch.float32
    groups = ([0], [0, 1], [1])
    expected = [trained(plain, group, dtype) for group in groups]
    assert graphs() == 0
    accelerator = launched()
    for group, wanted in zip(groups, expected, strict=True):
        torch.testing.assert_close(trained(accelerator, group, dtype), wanted, atol=1e-3, rtol=1e-9)
    assert graphs() == 2


def test_compiled_experts_are_not_gone_on_with_in_another_way(train, plain, launched, tmp_path):
    config = ExpertConfig("convnet_d1", 4, num_experts=1, experts_at_once="1")
    options = {"epochs": 1, "disable_tqdm": True}
    experts = train_experts(train, config, tmp_path, accelerator=plain, **options)
    assert "compiled" not in experts.config["training"]  # as it was before anything was compiled
    with pytest.raises(ValueError, match="compiled"):
        train_experts(train, config, tmp_path, accelerator=launched(), **options)


@pytest.mark.slow
def test_students_side_by_side_are_the_same_and_share_one_graph(train, plain, launched, device):
    protocol = EvalProtocol("tiny", epochs=3, full_data_epochs=1)
    rows = torch.arange(20).repeat(3, 1)

    def parameters(accelerator: Accelerator, first: int) -> list[Tensor]:
        images = train.images(torch.arange(20)).to(device)
        pool = Pool(images.double(), train.labels[:20], device=device)
        spec = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 6})
        seeds = list(range(first, first + 3))
        torch.set_default_dtype(torch.float64)
        try:
            models = train_students(pool, pool.labels, rows, spec, protocol, 3, [0.1] * 3, seeds, accelerator)
        finally:
            torch.set_default_dtype(torch.float32)
        return [parameter.detach() for model in models for parameter in model.parameters()]

    expected = [parameters(plain, first) for first in (0, 3)]
    assert graphs() == 0
    accelerator = launched()
    for first, wanted in zip((0, 3), expected, strict=True):
        torch.testing.assert_close(parameters(accelerator, first), wanted, atol=0, rtol=1e-9)
    assert not WHOLE or graphs() == 1


@pytest.mark.slow
def test_labels_of_several_networks_are_one_graph_whatever_kind_they_are(train, plain, launched, device):
    x = train.images(torch.arange(20)).to(device)
    rows, labels = torch.arange(20), train.labels[:20]
    flat = FlatModel.from_spec(SPEC)
    sources = [
        MeanLabels([NetworkLabels(make_teacher(train, seed)) for seed in (0, 1)]),
        TeacherLabels(SPEC, torch.stack([flat.init(seed) for seed in (0, 1)])),
    ]
    expected = [source(x, labels, rows) for source in sources]
    accelerator = launched()
    for count, (source, wanted) in enumerate(zip(sources, expected, strict=True), start=1):
        label = compiled_labels(source, accelerator, device)
        torch.testing.assert_close(label(x, labels, rows), wanted)
        assert not WHOLE or graphs() == count


@pytest.mark.parametrize("options", [{"backend": "cudagraphs"}, {"backend": "inductor", "mode": "reduce-overhead"}])
def test_answers_of_a_captured_graph_outlive_the_next_ones(monkeypatch, options):
    """A graph that is replayed puts its answers where the last ones are."""
    place = torch.empty(3)
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: (place.copy_(function(x)), [place]))
    launched = SimpleNamespace(state=SimpleNamespace(dynamo_plugin=TorchDynamoPlugin(**options)))
    double = compiled(lambda x: 2 * x, launched)
    one, other = double(torch.ones(3)), double(torch.zeros(3))
    assert [tensor.tolist() for tensor in (one[0], one[1][0])] == [[2.0] * 3] * 2
    assert other[0].tolist() == [0.0] * 3


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_not_compiled_is_said_in_one_line_where_it_was_asked_for(plain, launched, caplog, asked):
    accelerator = launched() if asked else plain
    say_uncompiled(accelerator, "an import")
    say_uncompiled(None, "an import")
    expected = ["--dynamo_backend aot_eager does not reach an import, which runs as it is written"]
    assert caplog.messages == (expected if asked else [])


def test_a_method_says_what_of_its_images_is_not_compiled(train, launched, tmp_path, caplog):
    config = RDEDConfig(output_dir=str(tmp_path), disable_tqdm=True, factor=1, num_crops=1, num_candidates=2)
    RDED(config, train, teachers=[make_teacher(train)], accelerator=launched()).run()
    assert [message for message in caplog.messages if "dynamo" in message] == [
        "--dynamo_backend aot_eager does not reach the scoring of crops, which runs as it is written"
    ]


def test_nothing_is_wrapped_unless_the_launcher_asks_and_only_networks_are(train, plain, launched, device):
    labels = NetworkLabels(make_teacher(train))
    for accelerator in (None, plain):
        assert compiled(len, accelerator) is len
        assert compiled_labels(labels, accelerator, device) is labels
    hard = HardLabels()
    accelerator = launched()
    assert compiled_labels(hard, accelerator, device) is hard
    assert compiled_labels(labels, accelerator, device) is not labels


# Precision


class Doubling(nn.Module):
    """Says in what type its product was."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[2.0]]))

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        self.kind = product.dtype
        return product


def test_a_network_is_asked_in_the_launchers_precision_and_answers_in_single(launch):
    model, x = Doubling(), torch.ones(1, 1)
    for accelerator, kind in (
        (None, torch.float32),
        (launch("no"), torch.float32),
        (launch("bf16"), torch.bfloat16),
    ):
        answer = in_precision(forward, accelerator)(model, x)
        assert (answer.dtype, answer.item(), model.kind) == (torch.float32, 2, kind)
        assert not torch.is_autocast_enabled("cpu")
    assert in_precision(forward, None)(model.double(), x.double()).dtype == torch.float64
    assert in_precision(lambda x: x.long(), launch("bf16"))(x).dtype == torch.int64  # classes


@pytest.mark.parametrize("caller", [True, False], ids=["in the caller's autocast", "alone"])
def test_a_network_that_learns_is_asked_with_the_weights_that_it_has(launch, caller):
    model, x = Doubling(), torch.ones(1, 1)
    look = in_precision(forward, None if caller else launch("bf16"))
    with torch.autocast("cpu", torch.bfloat16, enabled=caller):
        assert look(model, x).item() == 2
        with torch.no_grad():
            model.weight.fill_(3)
        assert (look(model, x).item(), model.kind) == (3, torch.bfloat16)


def test_the_sweep_of_tesla_is_compiled_whole_once_for_each_shape(plain, launched):
    """Derivatives of derivatives; of the first step no Hessian is wanted, and the third batch is smaller."""
    random = generator(0, "sweep")
    model = FlatModel.from_spec(StudentSpec("convnet_d1", 3, 1, (8, 8), {"width": 4})).for_second_derivatives()
    start = model.init(0).double()
    target = start + 0.1 * torch.randn(start.shape, generator=random, dtype=torch.float64)
    pixels = torch.randn(5, 1, 8, 8, generator=random, dtype=torch.float64)
    targets = torch.randn(5, 3, generator=random, dtype=torch.float64).softmax(dim=1)
    rows = [torch.arange(5)[:count] for count in (3, 3, 2, 3)]

    def sweep(accelerator: Accelerator) -> MatchingGradient:
        student = Student(model, momentum=0.5, compiler=partial(compiled_derivatives, accelerator=accelerator))
        steps, lr = [StudentStep(some) for some in rows], torch.tensor(0.1, dtype=torch.float64)
        return adjoint_unroll(student, start, target, pixels, targets, steps, lr)

    expected = sweep(plain)
    assert graphs() == 0
    found = sweep(launched())
    assert graphs() == 5  # two shapes of a step ahead, the same of one back, and the first step back
    for name in ("loss", "pixels", "lr"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12)
