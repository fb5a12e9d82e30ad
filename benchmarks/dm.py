"""Memory and time of an iteration of DM against the images that are in memory at once, beside a plain loop.

    python benchmarks/dm.py --output dm.json                                         # CIFAR-10, ten images per class
    python benchmarks/dm.py --classes 100 --micro_batch_size 256 1024 4096 --device cuda                # CIFAR-100

Neither depends on the values of pixels and parameters, so random ones serve. An iteration draws a network, and real
images and an augmentation for each class, and gives the gradient of all images; the update is not in it. The loop does
the same as the paper has it: class by class, with one graph for all. In each repeat all take turns, and medians over
the repeats count. Memory as `unroll.py` has it.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from experts import random_images
from floor import Floor, Rates
from machine import describe, device_for
from torch import Tensor
from unroll import MIB, measure_memory, measure_time

import hf_distill as hd
from hf_distill.augmentation.dsa import DSA
from hf_distill.config import DataArguments, HfArg, check_at_least, check_choice, parse_args
from hf_distill.hub.files import save_json
from hf_distill.networks.architectures import before_logits
from hf_distill.rng import derive_seed, generator
from hf_distill.runs.processes import make_accelerator


@dataclass
class BenchmarkArguments:
    """What to measure."""

    micro_batch_size: list[int] = HfArg(default_factory=lambda: [256, 1024], help="Images in memory at once.")
    classes: int = HfArg(default=10, help="Classes.")
    ipc: int = HfArg(default=10, help="Images per class.")
    batch_real: int = HfArg(default=256, help="Real images of a class in an iteration, of as many that there are.")
    resolution: int = HfArg(default=32, help="Height and width in pixels.")
    student: str = HfArg(default="convnet_d3", help="Network that looks at the images.")
    width: int = HfArg(default=128, help="Channels of each convolution of a convnet.")
    device: str = HfArg(default="auto", help="cpu, cuda, or auto: cuda where there is one.")
    repeats: int = HfArg(default=3, help="Times that each is timed.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")

    def __post_init__(self) -> None:
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        for flag, value in vars(self).items():
            if isinstance(value, int):
                check_at_least(flag, value, 1)
        if not self.micro_batch_size or min(self.micro_batch_size) < 1:
            raise ValueError(f"--micro_batch_size is {self.micro_batch_size}; expected numbers from 1")


def begun(args: BenchmarkArguments, real: hd.RealImages, size: int) -> hd.DM:
    """The method, ready for a step."""
    config = hd.DMConfig(
        ipc=args.ipc,
        batch_real=args.batch_real,
        student=args.student,
        student_width=args.width,
        micro_batch_size=size,
        select="last",
        output_dir=tempfile.gettempdir(),  # where nothing is written
    )
    method = hd.DM(config, real, accelerator=make_accelerator())
    method.distilled = method.setup()
    method.distilled.pixel_values.grad = torch.zeros_like(method.distilled.pixel_values)
    return method


def plain(method: hd.DM) -> Tensor:
    """The loss of draw 0, with its gradient added, by a loop over classes that keeps one graph."""
    config, train, device = method.config, method.train, method.device
    network = method.student.build(derive_seed(config.seed, "network", 0)).to(device)
    loss = torch.zeros((), device=device)
    for label, images in enumerate(method.distilled.pixel_values.split(config.ipc)):
        rows = train.class_rows(label)
        rows = rows[torch.randperm(len(rows), generator=generator(config.seed, "real", 0, label))[: config.batch_real]]
        drawn = method.dsa.sample(1, generator(config.seed, "dsa", 0, label), train.shape[1:])
        with torch.no_grad():
            goal = before_logits(network, DSA.apply(method.real.images(rows), drawn.for_all(len(rows)))).mean(dim=0)
        found = before_logits(network, DSA.apply(images, drawn.for_all(config.ipc))).mean(dim=0)
        loss = loss + (goal - found).square().sum()
    loss.backward()
    return loss.detach()


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    device = device_for(args.device)
    about, rates = describe(args, device), Rates.measured(device)
    resolution = DataArguments(resolution=[args.resolution])
    real = random_images(resolution, args.classes * max(args.batch_real, args.ipc), args.classes)
    methods = {size: begun(args, real, size) for size in args.micro_batch_size}
    variants: dict[str, Callable[[], object]] = {str(size): partial(each.step, 0) for size, each in methods.items()}
    variants["plain"] = partial(plain, next(iter(methods.values())))
    floors = {name: Floor.of(work, rates) for name, work in variants.items()}  # after which all is warm
    memory = {name: measure_memory(work, device) for name, work in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(args.repeats):
        for name, work in variants.items():
            seconds[name].append(measure_time(work, device))
    rows = []
    for name, times in seconds.items():
        row = {"images_at_once": name, "seconds": statistics.median(times), "repeats": times}
        row |= {f"{key}_bytes": value for key, value in asdict(memory[name]).items() if value is not None}
        row |= {"ratio": statistics.median(a / b for a, b in zip(times, seconds["plain"], strict=True))}
        rows.append({**row, **floors[name].against(row["seconds"])})
        print(f"{name:>8} {memory[name].peak / MIB:9.1f} MiB {row['seconds']:8.3f} s  {row['ratio']:5.2f}x of plain")
    if args.output is not None:
        save_json(args.output, {**about, "rows": rows})


if __name__ == "__main__":
    main()
