"""Many experts at once against one after another: experts x epochs per second, side by side in one run.

    python benchmarks/experts.py --output experts.json                                  # digits, 8x8
    python benchmarks/experts.py --resolution 32 --color rgb --sizes 1 2 4 8 16 32      # CIFAR-sized
    python benchmarks/experts.py --random_images 2000 --random_classes 1000 --resolution 64 --student convnet_d4

Each round times every group size in turn, so that a slower minute of the machine touches all of them; the median over
the rounds counts. A step is what training does: gather, augment, forward, backward, update.
"""

import json
import math
import shlex
import statistics
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features, Image
from floor import Floor, Rates
from machine import machine_name

from hf_distill.config import DataArguments, HfArg, check_at_least, parse_args
from hf_distill.data.images import RealImages
from hf_distill.hub.files import package_versions, save_json
from hf_distill.training.experts import ExpertConfig, ExpertTrainer


@dataclass
class BenchmarkArguments:
    """What to measure."""

    sizes: list[int] = HfArg(default_factory=lambda: [1, 2, 4, 8], help="Experts at once; 1 is one after another.")
    rounds: int = HfArg(default=3, help="Times that each size is measured.")
    steps: int | None = HfArg(default=None, help="Steps in a measurement. Without it: about half a second of them.")
    random_images: int | None = HfArg(default=None, help="Train on so many random images of --resolution instead.")
    random_classes: int = HfArg(default=10, help="Classes of the random images.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")

    def __post_init__(self) -> None:
        check_at_least("random_images", self.random_images, 1)
        check_at_least("random_classes", self.random_classes, 2)


def random_images(data_args: DataArguments, count: int, classes: int) -> RealImages:
    """Images of noise, read as those of any dataset are.

    Raises:
        ValueError: No resolution says how large they are.
    """
    if data_args.resolution is None:
        raise ValueError("--random_images needs a size; give --resolution")
    size = (data_args.resolution[0], data_args.resolution[-1])
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(num_classes=classes)})
    columns = {"image": list(pixels), "label": [row % classes for row in range(count)]}
    return RealImages.from_dataset(Dataset.from_dict(columns, features=features))


def main() -> None:
    data_args, config, args = parse_args(DataArguments, ExpertConfig, BenchmarkArguments)
    accelerator = Accelerator()
    if args.random_images is None:
        real = RealImages.from_arguments(data_args)
    else:
        real = random_images(data_args, args.random_images, args.random_classes)
    spec = config.student_spec(real)
    trainer = ExpertTrainer(real, spec, config, 0, accelerator)
    steps_per_epoch = math.ceil(len(real) / config.batch_train)
    rates: dict[int, list[float]] = {size: [] for size in sorted({1, *args.sizes})}
    device_rates = Rates.measured(accelerator.device, accelerator.mixed_precision)
    floors: dict[int, Floor] = {}
    for size in rates:
        try:
            floors[size] = Floor.of(partial(trainer.rate, size, 1), device_rates)  # a step to warm up, and one
            print(f"two steps of {size}: {floors[size]}", flush=True)
        except torch.OutOfMemoryError:
            print(f"{size} at once do not fit into memory", flush=True)
    for _ in range(args.rounds):
        for size, measured in rates.items():
            try:
                measured.append(trainer.rate(size, args.steps) / steps_per_epoch)
            except torch.OutOfMemoryError:
                measured.append(0.0)
    device = machine_name(accelerator.device)
    base = statistics.median(rates[1])
    rows = [
        {"experts_at_once": size, "experts_epochs_per_s": statistics.median(each), "rounds": each,
         "ratio": statistics.median(each) / base,
         **(floors[size].against(2 * size / (statistics.median(each) * steps_per_epoch)) if size in floors else {})}
        for size, each in rates.items()
    ]  # fmt: skip
    print(f"{spec}\n{len(real)} images, batch {config.batch_train}, {device}, {torch.get_num_threads()} threads\n")
    print("experts at once   experts x epochs / s   against one after another   against the floor")
    for row in rows:
        line = f"{row['experts_at_once']:15d}   {row['experts_epochs_per_s']:20.3f}   {row['ratio']:24.2f}x"
        print(f"{line}   {row['gap']:16.1f}x" if "gap" in row else line)
    if args.output is not None:
        about = {"command": shlex.join(sys.argv), "device": device, "threads": torch.get_num_threads()}
        about |= {"versions": package_versions(), "student": spec.to_dict(), "images": len(real)}
        save_json(args.output, {**about, "batch_train": config.batch_train, "rows": json.loads(json.dumps(rows))})


if __name__ == "__main__":
    main()
