"""Operations and bytes of one step of each method, counted on a CPU: what an accelerator has to start and to move.

    OMP_NUM_THREADS=1 python benchmarks/kernels.py --output kernels.json      # CIFAR-10, one image per class
    python benchmarks/kernels.py --batch 100 --no-compiler                    # ten images per class

An operation is one that PyTorch dispatches and that is no view: at least one kernel (some, such as the gradients of a
convolution, are more). Its bytes are those of the tensors that go in and come out; "passes" are these in units of the
first block's activations. "reads" are values that the host waits for. A step is what one more step adds to a run; its
batch is not augmented. Rows of unrolled students are there with PyTorch's GroupNorm and with the closed form of
`hf_distill.networks.norms`.

"compiled" is the backward step as Inductor schedules it for a CPU, and a schedule for an accelerator may be another:
kernels after fusion, and the bytes that these read and write. Nothing is generated or run for it.

"time" is a ratio of seconds of this processor, closed form to PyTorch's, with two steps of a student: one after the
other in each repeat, the first one that was last before; the median counts.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from floor import Count, count
from machine import describe
from recover import MEAN, STD, NoImages, untrained
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hf_distill.config import HfArg, check_at_least, check_choice, parse_args
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.engine.blocks import Block
from hf_distill.hub.files import save_json
from hf_distill.methods import SRe2L, SRe2LConfig
from hf_distill.methods.apm import group_gradient
from hf_distill.methods.unroll import MatchingGradient, Student, StudentStep, adjoint_unroll, full_unroll
from hf_distill.networks.architectures import CONVNETS, FlatModel, StudentSpec
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import generator


@dataclass
class BenchmarkArguments:
    """What to count."""

    student: str = HfArg(default="convnet_d3", help="A convnet.")
    width: int = HfArg(default=128, help="Channels of each of its convolutions.")
    classes: int = HfArg(default=10, help="Classes.")
    resolution: int = HfArg(default=32, help="Height and width in pixels.")
    batch: int = HfArg(default=10, help="Images of a step.")
    num_students: int = HfArg(default=5, help="APM: K.")
    teacher: str = HfArg(default="resnet18", help="timm name of the network that recover looks at; it needs BatchNorm.")
    compiler: bool = HfArg(default=True, help="Ask Inductor for its schedule of the backward step.")
    repeats: int = HfArg(default=9, help="Times that each unroll is timed; 0 leaves that out.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")

    def __post_init__(self) -> None:
        check_choice("student", self.student, CONVNETS)
        for flag in ("width", "classes", "resolution", "batch", "num_students"):
            check_at_least(flag, getattr(self, flag), 1)
        check_at_least("repeats", self.repeats, 0)


class Problem:
    """Random images, classes and parameters; neither counts nor bytes depend on values."""

    def __init__(self, args: BenchmarkArguments) -> None:
        self.args, random = args, generator(0, "benchmark")
        size = (args.resolution, args.resolution)
        self.spec = StudentSpec(args.student, args.classes, 3, size, {"width": args.width})
        self.models = {
            "torch": FlatModel.from_spec(self.spec),
            "closed": FlatModel.from_spec(self.spec).for_second_derivatives(),
        }
        self.start = self.models["torch"].init(0)
        self.target = self.start + 0.01 * torch.randn(self.start.shape, generator=random)
        self.pixels = torch.randn(args.batch, 3, *size, generator=random)
        self.targets = torch.randn(args.batch, args.classes, generator=random).softmax(dim=1)

    def unrolled(self, unroll: Callable[..., MatchingGradient], norm: str, steps: int) -> MatchingGradient:
        schedule = [StudentStep(torch.arange(self.args.batch))] * steps
        inputs = (self.start, self.target, self.pixels, self.targets, schedule, torch.tensor(0.01))
        return unroll(Student(self.models[norm]), *inputs)

    def backward(self, norm: str, device: str) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
        """A step of TESLA's sweep, and what it takes: the gradient, and its product with r for images and θ."""
        model = FlatModel(self.models[norm].module).to(device)

        def step(theta: Tensor, images: Tensor, targets: Tensor, r: Tensor) -> tuple[Tensor, ...]:
            theta, images = theta.detach().requires_grad_(), images.detach().requires_grad_()
            loss = F.cross_entropy(model(theta, images), targets)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            return gradient.detach(), *torch.autograd.grad(gradient, (images, theta), r)

        return step, [tensor.to(device) for tensor in (self.start, self.pixels, self.targets, self.target)]

    def apm(self) -> object:
        """The gradient of a group's images, and the step of SGD on them."""
        networks = [self.spec.build(seed).eval().requires_grad_(False) for seed in range(self.args.num_students + 1)]
        x = self.pixels.clone().requires_grad_()
        optimizer = torch.optim.SGD([x], lr=1.0, momentum=0.5)
        labels = torch.arange(self.args.batch) % self.args.classes

        def iteration() -> None:
            x.grad, *_ = group_gradient(networks[0], networks[1:], x.detach(), labels, 0.1)
            optimizer.step()

        iteration()  # the first one makes the momentum
        return count(iteration)

    def recover(self) -> Count:
        """One more iteration of SRe2L on a block."""
        args, names = self.args, [str(number) for number in range(max(self.args.batch, self.args.classes))]
        size = (args.resolution, args.resolution)
        preprocessing = Preprocessing(3, size, MEAN, STD)
        spec = StudentSpec(args.teacher, len(names), 3, size)
        teachers = [Teacher(untrained(spec), spec, names, preprocessing)]
        config = SRe2LConfig(jitter=min(32, args.resolution - 1), output_dir=".", logging_steps=10**9)
        sre2l = SRe2L(config, NoImages(names, preprocessing), teachers=teachers, accelerator=Accelerator(cpu=True))
        block = Block(0, torch.arange(args.batch), torch.arange(args.batch))

        def run(steps: int) -> Count:
            config.max_steps = steps
            return count(lambda: sre2l.make(block, lambda iteration, values: None))

        return run(3) - run(2)


def scheduled(step: Callable[..., Any], inputs: list[Tensor]) -> tuple[int, int]:
    """Kernels that Inductor makes of `step`, those of libraries among them, and the bytes that they read and write."""
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    found: list[tuple[int, int]] = []

    class Enough(Exception):
        pass

    def schedule(module: torch.fx.GraphModule, inputs: list[Tensor], **_: Any) -> None:
        graph = GraphLowering(module)
        with V.set_graph_handler(graph), V.set_debug_handler(DebugContext()):
            graph.run(*inputs)
            graph._update_scheduler()
            sizes = [node.get_read_write_buffers_sizes() for node in graph.scheduler.nodes]
        found.append((sum(size > 0 for size in sizes), sum(sizes)))
        raise Enough

    traced = make_fx(step, tracing_mode="fake")(*inputs)
    with suppress(Enough):
        compile_fx(traced, inputs, inner_compile=schedule)
    return found[0]


def rows_of(problem: Problem) -> list[dict[str, Any]]:
    """A row per method and normalisation."""
    args = problem.args
    unit = args.batch * args.width * args.resolution**2 * 4
    rows: list[dict[str, Any]] = []

    def add(method: str, norm: str | None, found: Count) -> dict[str, Any]:
        row = {"method": method, "norm": norm, "operations": found.operations, "bytes": found.bytes}
        rows.append({**row, "passes": found.bytes / unit, "reads": found.reads})
        return rows[-1]

    for norm in problem.models:
        step, inputs = problem.backward(norm, "meta")
        row = add("TESLA, backward step", norm, count(lambda step=step, inputs=inputs: step(*inputs)))
        if args.compiler:
            kernels, size = scheduled(*problem.backward(norm, "cpu"))
            row |= {"compiled_kernels": kernels, "compiled_bytes": size, "compiled_passes": size / unit}
    for method, unroll in {"TESLA, step": adjoint_unroll, "MTT, step": full_unroll}.items():
        for norm in problem.models:
            two, three = (count(lambda: problem.unrolled(unroll, norm, steps)) for steps in (2, 3))  # noqa: B023
            add(method, norm, three - two)
    add("APM, iteration without its student", None, problem.apm())
    add(f"recover, iteration with {args.teacher}", None, problem.recover())
    return rows


def times_of(problem: Problem) -> dict[str, Any]:
    """Seconds of the processor for two steps, by unroll and normalisation, and the ratio within each repeat."""
    times: dict[str, Any] = {}
    for name, unroll in {"TESLA": adjoint_unroll, "MTT": full_unroll}.items():
        seconds: dict[str, list[float]] = {norm: [] for norm in problem.models}
        for repeat in range(-1, problem.args.repeats):  # the first one is not counted
            for norm in list(seconds)[:: 1 if repeat % 2 else -1]:
                begin = time.process_time()
                problem.unrolled(unroll, norm, 2)
                if repeat >= 0:
                    seconds[norm].append(time.process_time() - begin)
        ratios = [one / other for one, other in zip(seconds["closed"], seconds["torch"], strict=True)]
        times[name] = {"ratio": statistics.median(ratios), "seconds": seconds}
    return times


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    problem = Problem(args)
    rows = rows_of(problem)
    about = {**describe(args, torch.device("cpu")), "student": problem.spec.to_dict(), "rows": rows}
    print(f"{problem.spec}, batches of {args.batch}\n")
    print(f"{'':36}{'norm':8}{'operations':>11}{'MB':>9}{'passes':>8}{'reads':>7}   compiled: kernels, passes")
    for row in rows:
        line = f"{row['method']:36}{row['norm'] or '-':8}{row['operations']:11}{row['bytes'] / 1e6:9.1f}"
        line += f"{row['passes']:8.1f}{row['reads']:7}"
        if "compiled_kernels" in row:
            line += f"{row['compiled_kernels']:20}{row['compiled_passes']:8.1f}"
        print(line)
    if args.repeats:
        about["times"] = times_of(problem)
        for name, found in about["times"].items():
            print(f"{name}: closed form takes {found['ratio']:.3f} of the time with PyTorch's")
    if args.output is not None:
        save_json(args.output, about)


if __name__ == "__main__":
    main()
