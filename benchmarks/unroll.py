"""Memory and time of the unrolled gradient against the number of student steps: full unroll (MTT), exact sweep (TESLA),
the same with a gradient of learned labels (DATM), truncated.

    python benchmarks/unroll.py --output unroll.json                                    # CIFAR-10, one image per class
    python benchmarks/unroll.py --classes 100 --ipc 10 --device cuda                    # CIFAR-100
    python benchmarks/unroll.py --classes 1000 --ipc 50 --batch_syn 100 --resolution 64 --student convnet_d4

Neither depends on the values of pixels and parameters, so random ones serve. An iteration here is one matching gradient
over `syn_steps` augmented batches: no expert is read, and no pixel is updated. In each repeat the variants take turns,
so that a slower minute of the machine touches all of them; ratios are taken within a repeat, and their median counts.

Memory on a CPU is what autograd holds for backward at most (each storage once), and how far the resident set of the
process rose above where it was; on CUDA it is `torch.cuda.max_memory_allocated`. The T parameter vectors that the
sweep keeps (`states`) are no part of the graph.

    --how     what it is that is measured
    eager     PyTorch's GroupNorm, as it is written
    norm      the library's GroupNorm with a closed second derivative, as methods have it
    bf16      the same, forward passes in bf16
    compiled  the same in float32, the steps of a sweep compiled by Inductor
    captured  the same in float32, the steps of a sweep as CUDA graphs

Several take turns too. A full unroll has no steps to compile, and is left out of the last two. Before a time comes what
the operations take at least (`benchmarks/floor.py`), in the type of the forward passes.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from accelerate.utils import TorchDynamoPlugin
from floor import Floor, Rates
from machine import describe, device_for
from torch import Tensor

from hf_distill.augmentation.dsa import DSA
from hf_distill.config import HfArg, check_at_least, check_choice, parse_args
from hf_distill.engine.memory import SavedBytes
from hf_distill.hub.files import save_json
from hf_distill.methods.datm import logit_cross_entropy
from hf_distill.methods.unroll import MatchingGradient, Student, StudentStep, adjoint_unroll, full_unroll
from hf_distill.networks.architectures import CONVNETS, FlatModel, StudentSpec
from hf_distill.networks.compiling import compiled_derivatives, in_precision
from hf_distill.rng import generator

VARIANTS: dict[str, Callable[..., MatchingGradient]] = {
    "full unroll": full_unroll,
    "exact": partial(adjoint_unroll, curvature=1.0),
    "exact, labels": partial(adjoint_unroll, curvature=1.0, targets_gradient=True),
    "truncated": partial(adjoint_unroll, curvature=0.0),
}
HOW = ("eager", "norm", "bf16", "compiled", "captured")
BACKENDS = {"compiled": "inductor", "captured": "cudagraphs"}
MIB = 2**20


@dataclass
class BenchmarkArguments:
    """What to measure."""

    syn_steps: list[int] = HfArg(default_factory=lambda: [5, 10, 20, 40, 80], help="Steps of the student (T).")
    classes: int = HfArg(default=10, help="Classes.")
    ipc: int = HfArg(default=1, help="Images per class.")
    batch_syn: int | None = HfArg(default=None, help="Images per step of the student; all if not given.")
    micro_batch_size: int | None = HfArg(default=None, help="Images in memory at once inside a step of the sweep.")
    resolution: int = HfArg(default=32, help="Height and width in pixels.")
    channels: int = HfArg(default=3, help="Channels of the images.")
    student: str = HfArg(default="convnet_d3", help="A convnet or any timm name.")
    width: int = HfArg(default=128, help="Channels of each convolution of a convnet.")
    how: list[str] = HfArg(default_factory=lambda: ["norm"], help=f"What is measured: {', '.join(HOW)}.")
    full_unroll_steps: int | None = HfArg(default=None, help="Leave the full unroll out above so many steps.")
    device: str = HfArg(default="auto", help="cpu, cuda, or auto: cuda where there is one.")
    repeats: int = HfArg(default=5, help="Times that each variant is timed.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")

    def __post_init__(self) -> None:
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        for how in self.how:
            check_choice("how", how, HOW)
        for flag in ("classes", "ipc", "batch_syn", "micro_batch_size", "resolution", "channels", "width", "repeats"):
            check_at_least(flag, getattr(self, flag), 1)
        if not self.syn_steps or min(self.syn_steps) < 1:
            raise ValueError(f"--syn_steps is {self.syn_steps}; expected numbers from 1")


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of one iteration: `allocated` on CUDA; the graph and the rise of the resident set on a CPU."""

    graph: int | None = None
    resident: int | None = None
    allocated: int | None = None

    @property
    def peak(self) -> int:
        """What ratios are taken of."""
        return self.allocated if self.graph is None else self.graph


def resident(field: str) -> int | None:
    """Bytes of this process as Linux has them: VmRSS now, VmHWM at most since `forget_peak`; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def forget_peak() -> bool:
    """Give freed memory back, and let VmHWM start again from what is resident now; whether the system allows it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what the last iteration left behind would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except (OSError, AttributeError):
        return False
    return True


def measure_memory(iteration: Callable[[], MatchingGradient], device: torch.device) -> Memory:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        iteration()
        torch.cuda.synchronize(device)
        return Memory(allocated=torch.cuda.max_memory_allocated(device))
    known = forget_peak()
    before = resident("VmRSS")
    with SavedBytes() as saved:
        iteration()
    rise = resident("VmHWM") - before if known and before is not None else None
    return Memory(graph=saved.peak, resident=rise)


def measure_time(iteration: Callable[[], MatchingGradient], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    iteration()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The student's, for classes (B,), and for logits (B, K) that are learned."""
    of_targets = logit_cross_entropy if targets.is_floating_point() else F.cross_entropy
    return of_targets(logits, targets)


def student_for(how: str, spec: StudentSpec, args: BenchmarkArguments, device: torch.device) -> Student:
    """The student as `--how` says."""
    model = FlatModel.from_spec(spec).to(device)
    model = model if how == "eager" else model.for_second_derivatives()
    look = in_precision(model, None)  # in the autocast that it is called in

    def half(theta: Tensor, images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return look(theta, images)

    compiler = None
    if how in BACKENDS:
        launched = SimpleNamespace(state=SimpleNamespace(dynamo_plugin=TorchDynamoPlugin(backend=BACKENDS[how])))
        compiler = partial(compiled_derivatives, accelerator=launched)
    return Student(half if how == "bf16" else model, loss, micro_batch_size=args.micro_batch_size, compiler=compiler)


def problem(args: BenchmarkArguments, spec: StudentSpec, count: int, device: torch.device) -> tuple:
    """Arguments of the unrolls, but for the student: random parameters, and images and classes for the rows in use."""
    random = generator(0, "benchmark")
    images, size = args.classes * args.ipc, (args.resolution, args.resolution)
    batch = min(args.batch_syn or images, images)
    blocks: list[Tensor] = []
    while lacking := count - len(blocks):
        blocks += torch.randperm(images, generator=random)[: lacking * batch].split(batch)
    used, where = torch.cat(blocks).unique(return_inverse=True)
    dsa = DSA()
    steps = [
        StudentStep(rows.to(device), dsa.sample(len(rows), random, size).to(device))
        for rows in where.split([len(block) for block in blocks])
    ]
    start = FlatModel.from_spec(spec).init(0)
    target = start + 0.01 * torch.randn(len(start), generator=random)
    pixels = torch.randn(len(used), args.channels, *size, generator=random)
    labels = torch.randint(args.classes, (len(used),), generator=random)
    tensors = (tensor.to(device) for tensor in (start, target, pixels, labels))
    return *tensors, steps, torch.tensor(0.01, device=device)


def measure(
    args: BenchmarkArguments,
    spec: StudentSpec,
    students: dict[str, Student],
    rates: dict[str, Rates],
    count: int,
    device: torch.device,
) -> list[dict]:
    """One row per variant and student for `count` steps; what does not fit into the device's memory has no numbers."""
    inputs = problem(args, spec, count, device)
    of_logits = (*inputs[:3], F.one_hot(inputs[3], args.classes).float(), *inputs[4:])
    work: dict[tuple[str, str], Callable[[], MatchingGradient]] = {}
    memory: dict[tuple[str, str], Memory] = {}
    floors: dict[tuple[str, str], Floor] = {}
    failures: dict[tuple[str, str], str] = {}
    for how, student in students.items():
        for name, unroll in VARIANTS.items():
            too_long = args.full_unroll_steps is not None and count > args.full_unroll_steps
            if unroll is full_unroll and (too_long or how in BACKENDS):
                continue
            case = (how, name)
            given = of_logits if name == "exact, labels" else inputs
            work[case] = partial(unroll, student, *given)
            try:
                floors[case] = Floor.of(partial(unroll, replace(student, compiler=None), *given), rates[how])
                print(f"T = {count}, {name}, {how}: {floors[case]}", flush=True)
                if how in BACKENDS:
                    work[case]()  # which compiles
                memory[case] = measure_memory(work[case], device)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
            except RuntimeError as error:  # the others are still to be measured
                failures[case] = str(error)
                print(f"T = {count}, {name}, {how} fails: {error}", flush=True)
    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in memory}
    for repeat in range(args.repeats):
        cases = list(memory)
        for case in cases[repeat % len(cases) :] + cases[: repeat % len(cases)]:
            seconds[case].append(measure_time(work[case], device))
    rows = []
    for case in work:
        how, name = case
        row: dict = {"syn_steps": count, "variant": name, "how": how, "state_bytes": 4 * count * spec.num_params()}
        if case in failures:
            row["failure"] = failures[case]
        beside = (how, "truncated")
        if case in memory and beside in memory:
            pairs = zip(seconds[case], seconds[beside], strict=True)
            row |= {f"{key}_bytes": value for key, value in asdict(memory[case]).items() if value is not None}
            row |= {"seconds": statistics.median(seconds[case]), "repeats": seconds[case]}
            row |= {"time_ratio": statistics.median(own / other for own, other in pairs)}
            row |= {"memory_ratio": memory[case].peak / memory[beside].peak}
            row |= floors[case].against(row["seconds"])
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """One line per row; the ratios are to the truncated sweep with as many steps, measured in the same way."""
    heads = f"{'T':>4} {'variant':13} {'how':9} {'peak MiB':>10} {'states MiB':>10} {'s':>9} {'gap':>7}"
    lines = [f"{heads} {'memory':>8} {'time':>8}"]
    for row in rows:
        head = f"{row['syn_steps']:4d} {row['variant']:13} {row['how']:9}"
        if "seconds" not in row:
            lines.append(f"{head} {'-':>10}")
            continue
        peak = row.get("allocated_bytes", row.get("graph_bytes")) / MIB
        states = row["state_bytes"] / MIB if row["variant"] != "full unroll" else 0.0
        ratios = f"{row['gap']:6.1f}x {row['memory_ratio']:7.2f}x {row['time_ratio']:7.2f}x"
        lines.append(f"{head} {peak:10.1f} {states:10.1f} {row['seconds']:9.3f} {ratios}")
    return "\n".join(lines)


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    device = device_for(args.device)
    if "captured" in args.how and device.type == "cpu":
        raise ValueError("--how captured is of CUDA graphs, and the device is a CPU; leave it out")
    kwargs = {"width": args.width} if args.student in CONVNETS else {}
    spec = StudentSpec(args.student, args.classes, args.channels, (args.resolution, args.resolution), kwargs)
    about = describe(args, device) | {"student": spec.to_dict(), "parameters": spec.num_params()}
    print(f"{spec}\n{spec.num_params():,} parameters, {about['device']}, {about['threads']} threads\n")
    students = {how: student_for(how, spec, args, device) for how in args.how}
    precisions = {how: "bf16" if how == "bf16" else "no" for how in args.how}
    measured = {precision: Rates.measured(device, precision) for precision in set(precisions.values())}
    rates, rows = {how: measured[precision] for how, precision in precisions.items()}, []
    for count in args.syn_steps:
        rows += measure(args, spec, students, rates, count, device)
        if args.output is not None:
            save_json(args.output, {**about, "rows": rows})
    print(f"\n{table(rows)}")
    if any("failure" in row for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
