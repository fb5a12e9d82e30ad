"""Memory and time of an iteration of APM against the size of its segments, beside one of TESLA on the same device.

    python benchmarks/apm.py --output apm.json                            # ImageNet-1K at 64x64, 50 images per class
    python benchmarks/apm.py --mixed_precision bf16 --epochs 25 --repeats 5 --output apm.json     # on a GPU
    python benchmarks/apm.py --classes 10 --resolution 32 --ipc 1 --batch_syn 10 --batch_tesla 10 --student convnet_d3

Neither depends on the values of pixels and parameters, so random ones serve. An iteration of APM is

- "images": the gradient of a group of `batch_syn` images, segment by segment, and a step of SGD on them;
- every `refresh_every` iterations "targets", the teacher's logits of the group, and "student", the training on them for
  `student_epochs`. So many are long on a CPU: `epochs` are timed, and the rest is counted as alike.

Groups know nothing of each other, and only one is in memory. An iteration of TESLA is the exact gradient of `syn_steps`
steps with `batch_tesla` images each, the expert's labels of these images, and a step of SGD on these; all images of the
set stay in memory. Both work as the papers' settings for ImageNet-1K say. One method is in memory at a time;
APM's parts take turns in each of its repeats, and medians over the repeats count.

Memory on CUDA is `torch.cuda.max_memory_allocated`, with everything that is held. On a CPU it is what autograd holds
for backward at its peak (each storage once) and, as "resident", how far the process rose above where it was before.
"""

import gc
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from accelerate import Accelerator
from floor import Floor, Rates
from machine import describe, device_for
from torch import Tensor, nn
from unroll import measure_memory, measure_time

from hf_distill.augmentation.dsa import DEFAULT_STRATEGY, DSA
from hf_distill.config import HfArg, check_at_least, check_choice, parse_args
from hf_distill.engine.rows import RowSGD
from hf_distill.evaluation.protocols import EvalProtocol
from hf_distill.evaluation.students import train_along
from hf_distill.hub.files import save_json
from hf_distill.methods.apm import group_gradient
from hf_distill.methods.unroll import Student, StudentStep, adjoint_unroll
from hf_distill.networks.architectures import CONVNETS, FlatModel, StudentSpec, layout_for
from hf_distill.networks.compiling import in_precision
from hf_distill.rng import generator


@dataclass
class BenchmarkArguments:
    """What to measure."""

    segment_size: list[int] = HfArg(default_factory=lambda: [50, 100, 250, 500], help="Images looked at together.")
    classes: int = HfArg(default=1000, help="Classes.")
    ipc: int = HfArg(default=50, help="Images per class.")
    resolution: int = HfArg(default=64, help="Height and width in pixels.")
    channels: int = HfArg(default=3, help="Channels of the images.")
    student: str = HfArg(default="convnet_d4", help="A convnet; teacher and students alike.")
    width: int = HfArg(default=128, help="Channels of each of its convolutions.")
    batch_syn: int = HfArg(default=500, help="APM: images of a group.")
    num_students: int = HfArg(default=5, help="APM: K.")
    student_epochs: int = HfArg(default=250, help="APM: last epoch of a student, from 0.")
    refresh_every: int = HfArg(default=3, help="APM: iterations between the beginnings of two students.")
    batch_net: int = HfArg(default=256, help="APM: images per step of a student.")
    epochs: int = HfArg(default=1, help="APM: epochs of a student that are timed.")
    syn_steps: int = HfArg(default=10, help="TESLA: steps of the student (T).")
    batch_tesla: int = HfArg(default=100, help="TESLA: images of a step.")
    mixed_precision: str = HfArg(default="no", help="no, or bf16 for all forward passes.")
    device: str = HfArg(default="auto", help="cpu, cuda, or auto: cuda where there is one.")
    repeats: int = HfArg(default=1, help="Times that each is timed, after one for memory.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")

    def __post_init__(self) -> None:
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("mixed_precision", self.mixed_precision, ("no", "bf16"))
        check_choice("student", self.student, CONVNETS)
        for flag, value in vars(self).items():
            if isinstance(value, int):
                check_at_least(flag, value, 1)
        if not self.segment_size or min(self.segment_size) < 1:
            raise ValueError(f"--segment_size is {self.segment_size}; expected numbers from 1")
        images = self.classes * self.ipc
        if max(self.batch_syn, self.batch_tesla) > images:
            raise ValueError(f"--batch_syn and --batch_tesla take more than the {images:,} images that there are")


class Benchmark:
    """Random networks and images in the shapes that the arguments ask for."""

    def __init__(self, args: BenchmarkArguments, device: torch.device) -> None:
        self.args, self.device = args, device
        size = (args.resolution, args.resolution)
        self.spec = StudentSpec(args.student, args.classes, args.channels, size, {"width": args.width})
        self.shape = (args.channels, *size)
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=device.type == "cpu")
        self.training = EvalProtocol(
            "apm-student",
            epochs=args.student_epochs + 1,
            full_data_epochs=1,
            batch_size=args.batch_net,
            dsa_strategy=DEFAULT_STRATEGY,
            reset_momentum=False,
            loss="l1",
        )

    def random(self, *shape: int, name: str) -> Tensor:
        return torch.randn(shape, generator=generator(0, name)).to(self.device)

    def network(self, seed: int) -> Callable[[Tensor], Tensor]:
        model = self.spec.build(seed).eval().requires_grad_(False)
        layout = layout_for(model, self.device)
        look = in_precision(model.to(self.device, memory_format=layout), self.accelerator)
        return lambda images: look(images.contiguous(memory_format=layout))

    def apm(self) -> dict[str, Callable[[], object]]:
        """The parts of an iteration: the images with each segment size, and what a new student takes."""
        args = self.args
        teacher, *students = (self.network(seed) for seed in range(args.num_students + 1))
        x = self.random(args.batch_syn, *self.shape, name="images")
        velocity = torch.zeros_like(x)
        labels = torch.arange(args.batch_syn, device=self.device) % args.classes

        def images(size: int) -> None:
            gradient, *_ = group_gradient(teacher, students, x, labels, 0.1, segment_size=size)
            velocity.mul_(0.5).add_(gradient)
            x.sub_(velocity, alpha=1e-3)

        @torch.no_grad()
        def targets() -> Tensor:
            return torch.cat([teacher(part) for part in x.split(min(args.segment_size))])

        wanted = targets()

        def student() -> list[nn.Module]:
            kept = list(range(max(0, args.epochs - args.num_students) + 1, args.epochs + 1))
            options = {"lr": 0.01, "seed": 0, "accelerator": self.accelerator}
            return list(train_along(x, wanted, self.spec, self.training, kept, **options))

        parts: dict[str, Callable[[], object]] = {
            f"images, {size}": partial(images, size) for size in args.segment_size
        }
        return {**parts, "targets": targets, "student": student}

    def tesla(self) -> Callable[[], object]:
        """A whole iteration, but for reading an expert."""
        args = self.args
        model = FlatModel.from_spec(self.spec).for_second_derivatives().to(self.device)
        logits = in_precision(model, self.accelerator)
        count, dsa = args.classes * args.ipc, DSA()
        pixels = nn.Parameter(torch.zeros(count, *self.shape, device=self.device).uniform_(-1, 1))
        optimizer = RowSGD(pixels, lr=1e-3, momentum=0.5)
        start = model.init(0).to(self.device)
        target = start + 0.01 * self.random(len(start), name="target")
        lr = torch.tensor(0.01, device=self.device)

        def iteration() -> None:
            random = generator(0, "schedule")
            order = torch.cat([torch.randperm(count, generator=random) for _ in range(self.rounds(count))])
            blocks = order[: args.syn_steps * args.batch_tesla].split(args.batch_tesla)
            rows, where = torch.cat(blocks).unique(return_inverse=True)
            steps = [
                StudentStep(places.to(self.device), dsa.sample(len(places), random, self.shape[1:]).to(self.device))
                for places in where.split(args.batch_tesla)
            ]
            optimizer.begin(rows)
            own = pixels.detach()[rows.to(self.device)]
            with torch.no_grad():
                parts = own.split(args.batch_tesla)
                labels = torch.cat([logits(target, part) for part in parts]).softmax(dim=1)
            found = adjoint_unroll(Student(logits), start, target, own, labels, steps, lr)
            optimizer.add(rows, found.pixels)
            optimizer.step()

        return iteration

    def rounds(self, count: int) -> int:
        """Passes over all images that the steps of an iteration of TESLA take images of."""
        return math.ceil(self.args.syn_steps * self.args.batch_tesla / count)


def measure(args: BenchmarkArguments, benchmark: Benchmark) -> tuple[dict[str, dict], dict[str, int]]:
    """Bytes and seconds of each part; and what is held between its runs. One method is in memory at a time."""
    device, rates = benchmark.device, Rates.measured(benchmark.device, args.mixed_precision)
    floors: dict[str, Floor] = {}
    found: dict[str, dict] = {}
    held: dict[str, int] = {}
    for name in ("APM", "TESLA"):
        parts = benchmark.apm() if name == "APM" else {"TESLA": benchmark.tesla()}
        images = args.batch_syn if name == "APM" else args.classes * args.ipc
        # Pixels and momentum, and the gradient of a group, or of the images that an iteration takes. A teacher, K
        # students and one in training with its momentum and gradient; or T states, θ_0, θ*, λ, r, velocity, g and H·r.
        networks = args.num_students + 4 if name == "APM" else args.syn_steps + 7
        rows = 2 * images + (images if name == "APM" else min(images, args.syn_steps * args.batch_tesla))
        held[name] = 4 * (rows * math.prod(benchmark.shape) + networks * benchmark.spec.num_params())
        for part, work in parts.items():
            floors[part] = Floor.of(work, rates)  # and libraries take memory and time of their own at a first call
            print(f"{part}: {floors[part]}", flush=True)
            memory = measure_memory(work, device)
            found[part] = {f"{key}_bytes": value for key, value in asdict(memory).items() if value is not None}
            found[part]["repeats"] = []
        for repeat in range(args.repeats):
            order = list(parts)
            for part in order[repeat % len(order) :] + order[: repeat % len(order)]:
                found[part]["repeats"].append(measure_time(parts[part], device))
                print(f"{part}: {found[part]['repeats'][-1]:.2f} s", flush=True)
        del parts, work
        gc.collect()
    for part, about in found.items():
        about["seconds"] = statistics.median(about["repeats"])
        about |= floors[part].against(about["seconds"])
    return found, held


def summary(args: BenchmarkArguments, found: dict[str, dict], held: dict[str, int]) -> list[dict]:
    """An iteration of each kind: its seconds, and its peak with what is held."""
    on_cuda = "allocated_bytes" in found["TESLA"]

    def peak(part: str, name: str) -> int:
        return found[part]["allocated_bytes"] if on_cuda else held[name] + found[part]["graph_bytes"]

    training = found["student"]["seconds"] * (args.student_epochs + 1) / args.epochs
    student = (found["targets"]["seconds"] + training) / args.refresh_every
    tesla = {"method": "TESLA", "peak_bytes": peak("TESLA", "TESLA"), "seconds": found["TESLA"]["seconds"]}
    rows = [tesla]
    for size in args.segment_size:
        images, images_bytes = found[f"images, {size}"]["seconds"], peak(f"images, {size}", "APM")
        row = {"method": "APM", "segment_size": size, "peak_bytes": max(images_bytes, peak("student", "APM"))}
        row |= {"images_bytes": images_bytes}
        row |= {"seconds": images + student, "images_seconds": images, "student_seconds": student}
        row |= {
            "memory_ratio": tesla["peak_bytes"] / row["peak_bytes"],
            "time_ratio": tesla["seconds"] / row["seconds"],
        }
        rows.append(row)
    return rows


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    device = device_for(args.device)
    benchmark = Benchmark(args, device)
    about = describe(args, device)
    print(f"{benchmark.spec}, {about['device']}, {about['threads']} threads, mixed precision {args.mixed_precision}\n")
    found, held = measure(args, benchmark)
    rows = summary(args, found, held)
    print()
    for part, about in found.items():
        print(f"{part}: {about['seconds']:.3f} s, {about['gap']:.1f} x its floor")
    print(f"\n{'':22}{'peak GB':>9}{'s/iteration':>13}{'of it images':>14}{'TESLA beside it: memory':>25}{'time':>8}")
    for row in rows:
        head = f"{row['method']} {'' if row['method'] == 'TESLA' else row['segment_size']}"
        line = f"{head:22}{row['peak_bytes'] / 1e9:9.2f}{row['seconds']:13.2f}"
        if "time_ratio" in row:
            line += f"{row['images_seconds']:14.2f}{row['memory_ratio']:24.2f}x{row['time_ratio']:7.2f}x"
        print(line)
    if args.output is not None:
        save_json(args.output, {**about, "held_bytes": held, "parts": found, "rows": rows})


if __name__ == "__main__":
    main()
