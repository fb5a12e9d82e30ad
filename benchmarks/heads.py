"""Memory and time of an iteration of LGM and CLP-DD, beside LGM with a graph through the gradient of the head.

    python benchmarks/heads.py --output heads.json                       # EfficientNet-Lite0 at 64 pixels, ten images
    python benchmarks/heads.py --backbone vit_base_patch16_224 --resolution 224 --classes 1000 --augmentations 3 \\
        --device cuda --precision bf16

Neither depends on the values of pixels and parameters, so random ones serve. An iteration here is the gradient of the
images: no pyramid, no update. What is beside the library's LGM is what it replaces, with nothing made slower:

    double        the head's gradient by autograd, with `create_graph`, and real features that are kept
    double, real  the same, and the real images of the step go through the backbone (without a graph), as they are drawn
                  anew in each step

In each repeat all take turns; ratios are taken within a repeat, and their median counts. Memory as `unroll.py` has it.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F
from machine import describe, device_for
from torch import Tensor
from unroll import MIB, measure_memory, measure_time

import hf_distill as hd
from hf_distill.augmentation.noisy_crops import NoisyCrops
from hf_distill.config import HfArg, check_at_least, check_choice, parse_args
from hf_distill.hub.files import save_json
from hf_distill.methods.lgm import HEAD_STD, Look, gradient_distance, image_gradient, one_hot, ridge_loss
from hf_distill.networks.architectures import StudentSpec
from hf_distill.rng import generator


@dataclass
class BenchmarkArguments:
    """What to measure."""

    backbone: str = HfArg(default="tf_efficientnet_lite0", help="A timm name.")
    resolution: int = HfArg(default=64, help="Height and width of what it sees, in pixels.")
    side: int = HfArg(default=64, help="Height and width of the synthetic images.")
    classes: int = HfArg(default=10, help="Classes.")
    ipc: int = HfArg(default=1, help="Images per class.")
    augmentations: int = HfArg(default=10, help="Copies of each image in a step of LGM; CLP-DD has one.")
    batch_real: int = HfArg(default=1024, help="Real features in a step of CLP-DD.")
    micro_batch_size: int = HfArg(default=32, help="Images in memory at once, where LGM looks at them in parts.")
    precision: str = HfArg(default="no", help="no or bf16, of the backbone.")
    device: str = HfArg(default="auto", help="cpu, cuda, or auto: cuda where there is one.")
    repeats: int = HfArg(default=5, help="Times that each is timed.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")

    def __post_init__(self) -> None:
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("precision", self.precision, ("no", "bf16"))
        for flag in ("resolution", "side", "classes", "ipc", "augmentations", "batch_real", "repeats"):
            check_at_least(flag, getattr(self, flag), 1)


def twice(look: Look, images: Tensor, copies: int, labels: Tensor, weight: Tensor, real: Callable[[], tuple]) -> Tensor:
    """The gradient of the images (N, C, H, W) by a graph through the gradient of the head.

    Args:
        labels: (copies · N,) classes.
        weight: W (K, D).
        real: Features (m, D) of real images and their classes (m,).
    """
    leaf, head = images.detach().requires_grad_(), weight.clone().requires_grad_()
    bias = torch.zeros(len(weight), device=images.device, requires_grad=True)

    def of_head(z: Tensor, y: Tensor, graph: bool) -> Tensor:
        parts = torch.autograd.grad(F.cross_entropy(F.linear(z, head, bias), y), (head, bias), create_graph=graph)
        return torch.cat([part.flatten() for part in parts])

    goal = of_head(*real(), False)
    z = look(leaf.repeat(copies, 1, 1, 1), torch.arange(len(labels), device=images.device))
    (gradient,) = torch.autograd.grad(1 - F.cosine_similarity(goal, of_head(z, labels, True), dim=0), leaf)
    return gradient


def work(args: BenchmarkArguments, device: torch.device) -> dict[str, Callable[[], object]]:
    """An iteration of each variant."""
    size = (args.resolution, args.resolution)
    spec = StudentSpec(args.backbone, 1000, 3, size)
    names, preprocessing = [str(label) for label in range(1000)], hd.Preprocessing(3, size, (0.5,) * 3, (0.25,) * 3)
    backbone = hd.Backbone.from_teacher(hd.Teacher(spec.build(0), spec, names, preprocessing)).to(device)
    random, crops = generator(0, "benchmark"), NoisyCrops(0)
    count, copies = args.classes * args.ipc, args.augmentations
    images = torch.rand(count, 3, args.side, args.side, generator=random).to(device)
    pictures = (255 * torch.rand(count * copies, 3, args.side, args.side, generator=random)).byte().to(device)
    kept = torch.randn(args.batch_real, backbone.width, generator=random).to(device)
    classes = torch.randint(args.classes, (args.batch_real,), generator=random).to(device)
    labels = torch.arange(args.classes, device=device).repeat_interleave(args.ipc)
    weight = (HEAD_STD * torch.randn(args.classes, backbone.width, generator=random)).to(device)
    shown = count * copies  # of the real images in a step of LGM too
    several = kept[torch.arange(shown, device=device) % len(kept)]
    of_several, all_labels = classes[torch.arange(shown, device=device) % len(kept)], labels.repeat(copies)

    def look(some: Tensor, numbers: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            return backbone.features(crops(some, (0,), numbers, size)).float()

    def real() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return look(pictures, torch.arange(shown, device=device)), of_several

    targets = {"y": one_hot(of_several, args.classes), "targets": one_hot(all_labels, args.classes)}
    distance = partial(gradient_distance, weight=weight, z=several, **targets)
    classed = {"y": one_hot(classes, args.classes), "targets": one_hot(labels, args.classes)}
    ridge = partial(ridge_loss, z=kept, **classed, ridge=1.0, temperature=0.07)
    return {
        "LGM": lambda: image_gradient(look, images, copies, shown, distance),
        "LGM, in parts": lambda: image_gradient(look, images, copies, args.micro_batch_size, distance),
        "CLP-DD": lambda: image_gradient(look, images, 1, shown, ridge),
        "double": lambda: twice(look, images, copies, all_labels, weight, lambda: (several, of_several)),
        "double, real": lambda: twice(look, images, copies, all_labels, weight, real),
    }


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    device = device_for(args.device)
    about, variants = describe(args, device), work(args, device)
    print(f"{args.backbone}, {about['device']}, {about['threads']} threads\n")
    for iteration in variants.values():
        iteration()  # what is made once is there
    memory = {name: measure_memory(iteration, device) for name, iteration in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for repeat in range(args.repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            seconds[name].append(measure_time(variants[name], device))
    rows = []
    for name in names:
        pairs = zip(seconds[name], seconds["LGM"], strict=True)
        row = {"variant": name, "seconds": statistics.median(seconds[name]), "repeats": seconds[name]}
        row |= {f"{key}_bytes": value for key, value in asdict(memory[name]).items() if value is not None}
        row["time_ratio"] = statistics.median(own / other for own, other in pairs)
        row["memory_ratio"] = memory[name].peak / memory["LGM"].peak
        rows.append(row)
        print(
            f"{name:14} {memory[name].peak / MIB:9.1f} MiB {row['seconds']:8.3f} s  memory {row['memory_ratio']:5.2f}x "
            f" time {row['time_ratio']:5.2f}x"
        )
    if args.output is not None:
        save_json(args.output, {**about, "rows": rows})


if __name__ == "__main__":
    main()
