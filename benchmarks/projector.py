"""Training a label projector, eager and compiled; and its labels while students train, beside labels that are read.

    python benchmarks/projector.py --network resnet50_clip --resolution 64 --batch 16 --output projector.json      # CPU
    accelerate launch --mixed_precision bf16 --dynamo_backend inductor benchmarks/projector.py --batch 256 \\
        --images 5000 --student_batch 100 --peak_tflops 989 --output projector.json

"step" is what `train_projector` repeats: the teachers and the projector look at a batch of views, the gradient of
LoRA's matrices, AdamW. It is measured eagerly and, where the launcher asks for it, compiled, with the launcher's
precision. "views" makes such batches, which no step of this benchmark waits for.

"labels" trains a student under the protocol of HeLlO, for an epoch at a time, with labels of three sources: stored
ones, which are read; those of a teacher; and those of a projector, whose matrices are folded into the weights (as they
are when it labels) or not. Each round takes all variants in turn; the median over the rounds counts.

No network is trained, and their statistics are arbitrary, which changes no time. Held is what autograd keeps for the
backward pass of one step, each storage once, without the networks.
"""

import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import timm
import torch
from floor import Floor, Rates
from machine import machine_name
from recover import held_bytes, untrained
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hf_distill.config import HfArg, check_at_least, check_choice, parse_args
from hf_distill.data.feed import Pool
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.distilled.epoch_labels import relabel
from hf_distill.distilled.labels import LabelSource, NetworkLabels, ProjectorLabels
from hf_distill.evaluation.crop_students import train_on_crops
from hf_distill.evaluation.protocols import PROTOCOLS
from hf_distill.hub.files import package_versions, save_json
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.compiling import compiled
from hf_distill.networks.priors import CLIP_MEAN, CLIP_STD, Prior
from hf_distill.networks.projector import LabelProjector, Lora
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import generator
from hf_distill.runs.processes import make_accelerator
from hf_distill.training.projectors import ProjectorConfig, ProjectorStep

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class BenchmarkArguments:
    """What to measure."""

    network: str = HfArg(default="resnet50_clip", help="timm name of the image tower, one that LoRA's targets fit.")
    student: str = HfArg(default="resnet18", help="timm name of teachers and student.")
    resolution: int = HfArg(default=224, help="Side of the images in pixels.")
    classes: int = HfArg(default=1000, help="Classes.")
    lora_r: int = HfArg(default=8, help="Rank in the image tower.")
    lora_head_r: int = HfArg(default=128, help="Rank in the head.")
    weak_teachers: int = HfArg(default=9, help="Teachers that the projector imitates.")
    batch: int = HfArg(default=64, help="Images of a step.")
    steps: int = HfArg(default=5, help="Steps in a measurement.")
    images: int = HfArg(default=256, help="Images of the set that a student is trained on.")
    student_batch: int = HfArg(default=100, help="Images of a step of the student.")
    rounds: int = HfArg(default=3, help="Times that each variant is measured.")
    parts: list[str] = HfArg(default_factory=lambda: ["step", "labels"], help="What to measure: step, labels.")
    peak_tflops: float | None = HfArg(default=None, help="TFLOP/s that the device can do in this precision.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")

    def __post_init__(self) -> None:
        for part in self.parts:
            check_choice("parts", part, ("step", "labels"))
        for flag in ("resolution", "classes", "weak_teachers", "steps", "rounds"):
            check_at_least(flag, getattr(self, flag), 1)
        for flag in ("batch", "images", "student_batch"):
            check_at_least(flag, getattr(self, flag), 2)


class Benchmark:
    """The networks, the images and the clock.

    Args:
        args: What to measure.
    """

    def __init__(self, args: BenchmarkArguments) -> None:
        self.args, self.accelerator = args, make_accelerator()
        self.device, size = self.accelerator.device, (args.resolution, args.resolution)
        self.preprocessing, self.names = Preprocessing(3, size, MEAN, STD), [str(n) for n in range(args.classes)]
        self.spec = StudentSpec(args.student, args.classes, 3, size)
        tower = awake(timm.create_model(args.network, img_size=size[0]))
        images = Preprocessing(3, size, CLIP_MEAN, CLIP_STD)
        self.prior = Prior("timm", tower, tower.num_classes, images, Path())
        pixels = torch.randint(256, (args.images, 3, *size), dtype=torch.uint8, generator=generator(0, "images"))
        classes = torch.arange(args.images) % args.classes
        self.pool = Pool(pixels, classes, preprocessing=self.preprocessing, device=self.device)
        self.rates = Rates.measured(self.device, self.accelerator.mixed_precision)
        self.is_compiled = compiled(awake, self.accelerator) is not awake
        # PyTorch's own switch: what was compiled is run as it was written.
        self.modes = {"eager": eager, **({"compiled": nullcontext} if self.is_compiled else {})}

    def projector(self) -> LabelProjector:
        """An untrained one; its second factors are not zero, so that every product counts."""
        head = F.normalize(torch.randn(self.args.classes, self.prior.dim, generator=generator(0, "head")), dim=1)
        lora = Lora(r=self.args.lora_r, alpha=2 * self.args.lora_r, head_r=self.args.lora_head_r)
        projector = LabelProjector(
            self.prior, self.names, self.preprocessing, lora=lora, text_head=head, logit_scale=100.0
        )
        for number, matrix in enumerate(projector.parameters_to_train()):
            draw = generator(0, "matrix", number)
            matrix.requires_grad_(False).copy_(1e-3 * torch.randn(matrix.shape, generator=draw))
        return projector.to(self.device)

    def teacher(self) -> Teacher:
        """An untrained one."""
        return Teacher(untrained(self.spec), self.spec, self.names, self.preprocessing).to(self.device)

    def views(self, rows: Tensor) -> Tensor:
        """Views as the projector is trained on, laid out for the device."""
        x = PROTOCOLS["hello"].views(self.pool.images, rows, 0, len(self.pool), self.pool.black)
        return x.contiguous(memory_format=torch.channels_last) if self.device.type == "cuda" else x

    def seconds(self, work: Callable[[], object]) -> tuple[float, int | None]:
        """Seconds that `work` takes, and the most bytes that were allocated meanwhile on an accelerator."""
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        work()
        if on_cuda:
            torch.cuda.synchronize(self.device)
        taken = time.perf_counter() - start
        return taken, torch.cuda.max_memory_allocated(self.device) if on_cuda else None

    def step(self) -> dict:
        """Images per second of a step of training, its memory and its arithmetic."""
        args = self.args
        config = ProjectorConfig(lora_r=args.lora_r, lora_head_r=args.lora_head_r, weak_teachers=args.weak_teachers)
        projector, teachers = self.projector().train(), [self.teacher() for _ in range(args.weak_teachers)]
        step = ProjectorStep(projector, config, self.accelerator)
        rows = torch.arange(args.batch) % args.images
        x, labels = self.views(rows), (rows % args.classes).to(self.device)
        classes = (labels, labels.flip(0), torch.full((args.batch,), 0.5, device=self.device))

        def run() -> None:
            for _ in range(args.steps):
                step(x, teachers, classes, 1e-3, args.batch)

        def see() -> None:
            for _ in range(args.steps):
                self.views(rows)

        found: dict = {name: {"rounds": []} for name in self.modes}
        seen = []
        with eager(), FlopCounterMode(display=False) as counter:
            step(x, teachers, classes, 1e-3, args.batch)
        flops = {"step": counter.get_total_flops() / args.batch}
        for what, asked in (("projector", [projector]), ("teachers", [teacher.model for teacher in teachers])):
            with eager(), torch.no_grad(), FlopCounterMode(display=False) as counter:
                for model in asked:
                    model(x)
            flops[what] = counter.get_total_flops() / args.batch
        with eager():
            floor = Floor.of(run, self.rates)
        print(f"{args.steps} steps: {floor}", flush=True)
        networks = nn.ModuleList([projector, *(teacher.model for teacher in teachers)])
        for name, mode in self.modes.items():
            with mode():
                run()  # compiles, where it does, and makes the optimizer's state
                found[name]["held_bytes"] = held_bytes(lambda: step.losses(x, teachers, classes)[0].sum(), networks)
        for _ in range(args.rounds):
            for name, mode in self.modes.items():
                with mode():
                    taken, found[name]["peak_bytes"] = self.seconds(run)
                found[name]["rounds"].append(args.batch * args.steps / taken)
            seen.append(args.batch * args.steps / self.seconds(see)[0])
        for about in found.values():
            about["images_per_s"] = statistics.median(about["rounds"])
            about["held_bytes_per_image"] = about["held_bytes"] / args.batch
            about["tflops"] = about["images_per_s"] * flops["step"] / 1e12
            about |= floor.against(args.batch * args.steps / about["images_per_s"])
            if args.peak_tflops is not None:
                about["share_of_peak"] = about["tflops"] / args.peak_tflops
        ratio = found["compiled"]["images_per_s"] / found["eager"]["images_per_s"] if self.is_compiled else None
        views = {"images_per_s": statistics.median(seen), "rounds": seen}
        return {"lora_params": projector.num_params, "flops_per_image": flops, **found, "ratio": ratio, "views": views}

    def labels(self) -> dict:
        """Images per second of a student with labels of each source."""
        args, rows = self.args, torch.arange(self.args.images)
        protocol = replace(PROTOCOLS["hello"], batch_size=args.student_batch)
        teacher = NetworkLabels(self.teacher())
        with tempfile.TemporaryDirectory() as folder:
            stored = relabel(
                teacher, self.pool, protocol.views, 2, Path(folder, "labels"), accelerator=self.accelerator,
                disable_tqdm=True,
            )  # fmt: skip
            sources: dict[str, LabelSource] = {
                "stored": stored,
                "projector": ProjectorLabels(self.projector()),
                "projector, not merged": NetworkLabels(self.projector()),
                "teacher": teacher,
            }

            def train(source: LabelSource) -> None:
                train_on_crops(self.pool, source, rows, self.spec, protocol, 1, protocol.lrs[0], 0, self.accelerator)

            found: dict = {name: {"rounds": []} for name in sources}
            floors = {}
            for name, source in sources.items():
                floors[name] = Floor.of(partial(train, source), self.rates)
                print(f"an epoch with labels of {name}: {floors[name]}", flush=True)
            for _ in range(args.rounds):
                for name, source in sources.items():
                    found[name]["rounds"].append(args.images / self.seconds(lambda source=source: train(source))[0])
        for about in found.values():
            about["images_per_s"] = statistics.median(about["rounds"])
        for name, about in found.items():
            about |= floors[name].against(args.images / about["images_per_s"])
            about["ratio"] = about["images_per_s"] / found["stored"]["images_per_s"]
        return found


def eager() -> AbstractContextManager:
    """What is compiled elsewhere is run as it is written."""
    return torch.compiler.set_stance("force_eager")


def awake(tower: nn.Module) -> nn.Module:
    """The tower with weights in every BatchNorm: those that close a block start at zero, and LoRA before them idle."""
    draw = generator(0, "weights")
    with torch.no_grad():
        for layer in tower.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.copy_(0.5 + 0.5 * torch.rand(layer.num_features, generator=draw))
    return tower


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    benchmark = Benchmark(args)
    accelerator, device = benchmark.accelerator, benchmark.device
    found = {part: getattr(benchmark, part)() for part in args.parts}
    name = machine_name(device)
    backend = accelerator.state.dynamo_plugin.backend.value.lower()
    print(
        f"{args.network} and {args.weak_teachers} {args.student} at {args.resolution}x{args.resolution}, "
        f"{args.classes} classes, {name}, {torch.get_num_threads()} threads, {accelerator.mixed_precision}, {backend}\n"
    )
    if "step" in found:
        step = found["step"]
        print(f"a step of {args.batch} images   images/s   peak memory   held per image   TFLOP/s")
        for mode in benchmark.modes:
            about = step[mode]
            peak = "-" if about["peak_bytes"] is None else f"{about['peak_bytes'] / 2**30:.2f} GiB"
            held = f"{about['held_bytes_per_image'] / 1e6:.2f} MB"
            share = f" ({100 * about['share_of_peak']:.0f} % of the peak)" if "share_of_peak" in about else ""
            rate = about["images_per_s"]
            line = f"{mode:22s}   {rate:8.1f}   {peak:>11s}   {held:>14s}   {about['tflops']:7.3f}{share}"
            print(f"{line}, {about['gap']:.1f} x its floor")
        print(f"{'views alone':22s}   {step['views']['images_per_s']:8.1f}")
        print(f"GFLOP per image: {', '.join(f'{k} {v / 1e9:.3g}' for k, v in step['flops_per_image'].items())}")
        print(f"ratio: {step['ratio']:.2f}\n" if step["ratio"] else "")
    if "labels" in found:
        print("student with labels of    images/s   beside stored")
        for source, about in found["labels"].items():
            line = f"{source:22s}   {about['images_per_s']:9.1f}   {about['ratio']:12.2f}x"
            print(f"{line}   {about['gap']:6.1f} x its floor")
    if args.output is not None:
        about = {"command": shlex.join(sys.argv), "device": name, "threads": torch.get_num_threads()}
        about |= {"mixed_precision": str(accelerator.mixed_precision), "dynamo_backend": backend}
        save_json(args.output, {**about, "versions": package_versions(), "arguments": vars(args), **found})


if __name__ == "__main__":
    main()
