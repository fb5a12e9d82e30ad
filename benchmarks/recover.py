"""SRe2L's recover step, beside a plain float32 loop written from the paper: images x iterations per second, and memory.

    python benchmarks/recover.py --output recover.json                                        # 64x64, two CPU cores
    accelerate launch --mixed_precision bf16 benchmarks/recover.py --resolution 224 --batch 100 --steps 20 \\
        --output recover.json

Both sides take the same steps: a random box of the batch is resized, mirrored and rolled, the network's BatchNorm
inputs are compared with its running statistics, and Adam moves the images. The plain loop is what a script does that
follows the paper: a hook for each layer of a frozen network, autograd through the statistics, float32. Ours is
`hf_distill.methods.SRe2L` as its recipe runs it, in the precision of the launcher. The network is not trained and its
statistics are arbitrary, which changes no time. Each round takes both, the one first that was last before, and the
ratio is that of a round: so a slower minute of the machine touches both. The median over the rounds counts.

`--stage_sizes` measures FADRM too, from noise and with the same teacher, in these stages: its ratio is to SRe2L.

Beside that, on any device: the bytes that autograd holds for backward in one iteration, each storage once, without the
weights. They are what grows with the batch; those of FADRM are of its first stage.
"""

import math
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from floor import Floor, Rates
from machine import machine_name
from torch import Tensor, nn
from torchvision.transforms import RandomResizedCrop

from hf_distill.config import HfArg, check_at_least, parse_args
from hf_distill.data.images import RealImages
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.engine.blocks import Block
from hf_distill.hub.files import package_versions, save_json
from hf_distill.methods import FADRM, FADRMConfig, SRe2L, SRe2LConfig
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import generator
from hf_distill.runs.processes import make_accelerator

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class BenchmarkArguments:
    """What to measure."""

    network: str = HfArg(default="resnet18", help="timm name of the teacher; it needs BatchNorm.")
    resolution: int = HfArg(default=64, help="Side of the images in pixels.")
    batch: int = HfArg(default=16, help="Images of a block, each of a class of its own.")
    steps: int = HfArg(default=10, help="Iterations in a measurement.")
    stage_sizes: list[int] | None = HfArg(default=None, help="Stages of FADRM, to measure it too.")
    rounds: int = HfArg(default=3, help="Times that each side is measured.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")

    def __post_init__(self) -> None:
        for flag in ("resolution", "steps", "rounds"):
            check_at_least(flag, getattr(self, flag), 1)
        check_at_least("batch", self.batch, 2)


class FeatureLoss:
    """The distance of one BatchNorm layer's input from what the layer remembers."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        self.value: Tensor
        layer.register_forward_hook(self.hook)

    def hook(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        variance = x.transpose(0, 1).flatten(1).var(1, unbiased=False)
        self.value = torch.norm(layer.running_var - variance, 2) + torch.norm(layer.running_mean - mean, 2)


Drawn = tuple[tuple[int, int, int, int], bool, tuple[int, int]]  # top, left, height, width; mirrored; down, right


class PlainLoop:
    """Iterations on one batch, as the paper says and as simply as it can be written.

    Args:
        model: The teacher, frozen.
        config: Rates and weights.
        device: Where it is.
        draw: The box, mirror and roll of an iteration; drawn by torchvision and Python if not given.
    """

    def __init__(
        self,
        model: nn.Module,
        config: SRe2LConfig,
        device: torch.device,
        draw: Callable[[int], Drawn] | None = None,
    ) -> None:
        self.model, self.config, self.device, self.draw = model, config, device, draw
        self.losses = [FeatureLoss(layer) for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]

    def loss(self, view: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(self.model(view), labels)
        weights = [self.config.first_bn_multiplier, *[1.0] * (len(self.losses) - 1)]
        parts = [weight * part.value for weight, part in zip(weights, self.losses, strict=True)]
        return loss + self.config.r_bn * sum(parts)

    def drawn(self, x: Tensor) -> Drawn:
        box = RandomResizedCrop.get_params(x, (0.08, 1.0), (3 / 4, 4 / 3))
        jitter = self.config.jitter
        return box, random.random() < 0.5, (random.randint(0, jitter), random.randint(0, jitter))

    def __call__(self, start: Tensor, steps: int) -> Tensor:
        """Images (B, C, H, W) after `steps` iterations from `start`."""
        x, size, config = start.clone().requires_grad_(), start.shape[2:], self.config
        labels = torch.arange(len(x), device=self.device)
        optimizer = torch.optim.Adam([x], lr=config.lr_img, betas=(0.5, 0.9))
        for t in range(steps):
            optimizer.param_groups[0]["lr"] = config.lr_img * (1 + math.cos(math.pi * t / steps)) / 2
            (top, left, height, width), flip, rolls = self.drawn(x) if self.draw is None else self.draw(t)
            view = x[:, :, top : top + height, left : left + width]
            view = F.interpolate(view, size, mode="bilinear", align_corners=False)
            if flip:
                view = view.flip(3)
            view = torch.roll(view, rolls, (2, 3))
            loss = self.loss(view, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
                x.data[:, channel] = x.data[:, channel].clamp(-mean / std, (1 - mean) / std)
        return x.detach().cpu()


class NoImages(RealImages):
    """Classes and a size, which is all that noise needs."""

    def __init__(self, names: list[str], preprocessing: Preprocessing) -> None:
        self.class_names, self.preprocessing = names, preprocessing
        self.labels = torch.arange(len(names))

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, *self.preprocessing.image_size)


def untrained(spec: StudentSpec) -> nn.Module:
    """The network in evaluation mode, with statistics that are not those of a fresh one."""
    model, draw = spec.build(0), generator(0, "statistics")
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(0.1 * torch.randn(layer.num_features, generator=draw))
            layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=draw))
    return model.eval()


def measure(run: Callable[[int], None], steps: int, device: torch.device) -> tuple[float, int | None]:
    """Seconds for `steps` iterations, and the most bytes that were allocated on an accelerator."""
    run(1)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    run(steps)
    if device.type != "cuda":
        return time.perf_counter() - start, None
    torch.cuda.synchronize(device)
    return time.perf_counter() - start, torch.cuda.max_memory_allocated(device)


def held_bytes(forward: Callable[[], Tensor], network: nn.Module) -> int:
    """What autograd keeps for the backward pass of `forward`, beside the tensors of the network."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    held = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    del loss
    return held


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    accelerator: Accelerator = make_accelerator()
    device = accelerator.device
    names = [str(number) for number in range(max(args.batch, 10))]
    size = (args.resolution, args.resolution)
    spec = StudentSpec(args.network, len(names), 3, size)
    preprocessing = Preprocessing(3, size, MEAN, STD)
    # Nothing is written: a block is all that is made.
    config = SRe2LConfig(jitter=min(32, args.resolution - 1), output_dir=".", logging_steps=10**9)
    teacher = Teacher(untrained(spec), spec, names, preprocessing)
    data, made = NoImages(names, preprocessing), {"teachers": [teacher], "accelerator": accelerator}
    sre2l = SRe2L(config, data, **made)
    block = Block(0, torch.arange(args.batch), torch.arange(args.batch))
    model = untrained(spec).requires_grad_(False)  # as our teacher is: only the images get a gradient

    def ours(steps: int) -> None:
        config.max_steps = steps
        sre2l.make(block, lambda iteration, values: None)

    loop = PlainLoop(model, config, device)

    def plain(steps: int) -> None:
        loop(torch.randn(args.batch, 3, *size, device=device), steps)

    sides = {"plain": (plain, model), "hf_distill": (ours, teacher.model)}
    if args.stage_sizes is not None:
        several = {"stage_sizes": args.stage_sizes, "init": "noise", "jitter": config.jitter}
        fadrm = FADRM(FADRMConfig(**several, output_dir=".", logging_steps=10**9), data, **made)

        def in_stages(steps: int) -> None:
            fadrm.config.max_steps = steps
            fadrm.make(block, lambda iteration, values: None)

        sides["fadrm"] = (in_stages, teacher.model)
    floor = Floor.of(lambda: ours(args.steps), Rates.measured(device, accelerator.mixed_precision))
    print(f"{args.steps} iterations: {floor}", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, int | None] = {}
    for number in range(args.rounds):
        for name, (run, network) in list(sides.items())[:: 1 if number % 2 == 0 else -1]:
            for _, other in sides.values():  # the network of the other side is not to count as memory of this one
                other.to(device if other is network else "cpu")
            torch.backends.cudnn.deterministic = name != "plain"  # as the recipes do
            taken, peaks[name] = measure(run, args.steps, device)
            seconds[name].append(taken)
    x = sre2l.initial(block).requires_grad_()
    labels = block.labels.to(device)
    losses: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: loop.loss(x, labels),
        "hf_distill": lambda: sre2l.losses(x, labels, 0)["loss"],
    }
    if args.stage_sizes is not None:
        smaller = fadrm.initial(block).requires_grad_()
        losses["fadrm"] = lambda: fadrm.losses(smaller, labels, 0)["loss"]
    held = {}
    for name, (_, network) in sides.items():
        held[name] = held_bytes(losses[name], network.to(device))
    done = args.batch * args.steps
    rates = {name: done / statistics.median(taken) for name, taken in seconds.items()}

    def faster(one: str, other: str) -> float:
        return statistics.median(there / here for here, there in zip(seconds[one], seconds[other], strict=True))

    ratio, staged = faster("hf_distill", "plain"), faster("fadrm", "hf_distill") if "fadrm" in sides else None

    machine = machine_name(device)
    precision = accelerator.mixed_precision
    print(f"{args.network}, {args.batch} images of {args.resolution}x{args.resolution}, {machine}, {precision}\n")
    print("              images x iterations / s   peak memory   held for backward")
    for name, rate in rates.items():
        peak = peaks[name]
        memory = "-" if peak is None else f"{peak / 2**30:.2f} GiB"
        print(f"{name:12s}  {rate:23.1f}   {memory:>11s}   {held[name] / 2**30:13.3f} GiB")
    against = floor.against(statistics.median(seconds["hf_distill"]))
    print(f"\nratio: {ratio:.2f}; hf_distill takes {against['gap']:.1f} x its floor")
    if staged is not None:
        print(f"FADRM's iterations to SRe2L's: {staged:.2f}")
    if args.output is not None:
        save_json(
            args.output,
            {
                "command": shlex.join(sys.argv),
                "device": machine,
                "threads": torch.get_num_threads(),
                "mixed_precision": precision,
                "versions": package_versions(),
                "network": args.network,
                "resolution": args.resolution,
                "batch": args.batch,
                "steps": args.steps,
                "images_iterations_per_s": rates,
                "ratio": ratio,
                **({} if staged is None else {"stage_sizes": args.stage_sizes, "ratio_fadrm_to_sre2l": staged}),
                **against,
                "seconds": seconds,
                "peak_bytes": peaks,
                "held_bytes": held,
            },
        )


if __name__ == "__main__":
    main()
