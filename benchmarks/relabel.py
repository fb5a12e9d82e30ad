"""Relabelling and training on views from the device, beside a DataLoader that does the same from JPEG files.

    python benchmarks/relabel.py --output relabel.json                                        # 64x64, two CPU cores
    accelerate launch --mixed_precision bf16 benchmarks/relabel.py --resolution 224 --images 10000 --network resnet18 \\
        --batch_size 128 --num_workers 16 --output relabel.json

Both sides crop, mirror, normalise, mix with CutMix, and run the same network. The loader opens each file with PIL, its
workers crop it with torchvision, and its batch is mixed as in the authors' scripts; it saves a file of logits for each
batch, and trains with these. Ours reads no file in the loops, and its time holds the writing and reading of labels.
"images" is what comes before the network, without one: what a network that takes no time would wait for. Each round
takes both in turn; the median over the rounds counts.
"""

import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from floor import Floor, Rates
from machine import machine_name
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from hf_distill.config import HfArg, parse_args
from hf_distill.data.feed import Pool
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.distilled.epoch_labels import relabel
from hf_distill.distilled.labels import NetworkLabels
from hf_distill.evaluation.crop_students import distillation_loss, parameter_groups, train_on_crops
from hf_distill.evaluation.protocols import CropProtocol
from hf_distill.hub.files import package_versions, save_json
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.compiling import in_precision
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import generator

CROPS = CropProtocol("cda", epochs=300, full_data_epochs=100, weight_decay=0.01, lrs=(0.001,))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class BenchmarkArguments:
    """What to measure."""

    images: int = HfArg(default=512, help="Images in the set.")
    resolution: int = HfArg(default=64, help="Their side in pixels.")
    classes: int = HfArg(default=10, help="Classes.")
    network: str = HfArg(default="convnet_d3", help="timm name of teacher and student.")
    width: int = HfArg(default=16, help="Of a convnet; a narrow one lets the images count.")
    batch_size: int = HfArg(default=64, help="Images per step; the teacher of the loader sees as many.")
    epochs: int = HfArg(default=2, help="Epochs in a measurement.")
    num_workers: int = HfArg(default=2, help="Processes of the loader; they start anew in every epoch.")
    rounds: int = HfArg(default=3, help="Times that each side is measured.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")


class Files(Dataset):
    """JPEG files, cropped, mirrored and normalised one by one."""

    def __init__(self, paths: list[Path], side: int) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(side, scale=(0.08, 1)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        with Image.open(self.paths[row]) as image:
            return self.transform(image.convert("RGB"))


def cutmix(x: Tensor) -> Tensor:
    """One box and one permutation for a batch."""
    side, share = x.shape[2], 1 - torch.rand(()).item()
    half = int(side * share**0.5) // 2
    centre = torch.randint(side, (2,)).tolist()
    inside = (..., *(slice(max(place - half, 0), min(place + half, side)) for place in centre))
    x[inside] = x[torch.randperm(len(x), device=x.device)][inside]
    return x


def write_images(folder: Path, args: BenchmarkArguments) -> list[Path]:
    """Smooth random pictures, which cost a decoder about what photographs do."""
    paths = []
    for row in range(args.images):
        coarse = torch.rand(1, 3, 12, 12, generator=generator(0, "image", row))
        image = F.interpolate(coarse, (args.resolution,) * 2, mode="bicubic").clamp(0, 1)[0]
        paths.append(folder / f"{row:06d}.jpg")
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(paths[-1])
    return paths


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    accelerator = Accelerator()
    device = accelerator.device
    on_cuda = device.type == "cuda"
    layout = torch.channels_last if on_cuda else torch.contiguous_format
    size = (args.resolution, args.resolution)
    options = {"width": args.width} if args.network.startswith("convnet") else {}
    spec = StudentSpec(args.network, args.classes, 3, size, options)
    preprocessing = Preprocessing(3, size, MEAN, STD)
    names = [str(number) for number in range(args.classes)]
    teacher = NetworkLabels(Teacher(spec.build(0), spec, names, preprocessing)).to(device)
    protocol = replace(CROPS, batch_size=args.batch_size)
    lr, rows, classes = protocol.lrs[0], torch.arange(args.images), torch.arange(args.images) % args.classes

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = write_images(folder, args)
        loader = DataLoader(
            Files(paths, args.resolution),
            args.batch_size,
            shuffle=True,
            num_workers=args.num_workers,
            pin_memory=on_cuda,
        )
        pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])
        pool = Pool(pixels, classes, preprocessing=preprocessing, device=device)

        def batches() -> Iterator[Tensor]:
            return (cutmix(x.to(device, non_blocking=True).contiguous(memory_format=layout)) for x in loader)

        answer = in_precision(teacher.teacher.model, accelerator)

        @torch.no_grad()
        def label_files(name: str) -> None:
            for epoch in range(args.epochs):
                (folder / name / str(epoch)).mkdir(parents=True)
                for number, x in enumerate(batches()):
                    torch.save(answer(x).half().cpu(), folder / name / str(epoch) / f"{number}.pt")

        def train_files(name: str) -> None:
            model = spec.build(0).to(device, memory_format=layout).train()
            optimizer = torch.optim.AdamW(parameter_groups(model, protocol.weight_decay), lr=lr, foreach=True)
            for epoch in range(args.epochs):
                for number, x in enumerate(batches()):
                    wanted = torch.load(folder / name / str(epoch) / f"{number}.pt", weights_only=True).to(device)
                    loss = distillation_loss(model(x), wanted, protocol.temperature)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

        def label_views(name: str) -> None:
            relabel(teacher, pool, protocol.views, args.epochs, folder / name, accelerator=accelerator,
                    disable_tqdm=True)  # fmt: skip

        def train_views(name: str) -> None:
            source = type(labels).from_pretrained(folder / name)
            train_on_crops(pool, source, rows, spec, protocol, args.epochs, lr, 0)

        @torch.no_grad()
        def see_files(name: str) -> None:
            for _ in range(args.epochs):
                for x in batches():
                    x.sum()

        @torch.no_grad()
        def see_views(name: str) -> None:
            for epoch in range(args.epochs):
                for places in torch.randperm(args.images).split(args.batch_size):
                    protocol.views(pool.images, places, epoch, args.images, pool.black).sum()

        def rate(work: Callable[[str], None], name: str) -> float:
            if on_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            work(name)
            if on_cuda:
                torch.cuda.synchronize()
            return args.images * args.epochs / (time.perf_counter() - start)

        labels = relabel(teacher, pool, protocol.views, 1, folder / "warm", accelerator=accelerator, disable_tqdm=True)
        train_on_crops(pool, labels, rows, spec, protocol, 1, lr, 0)
        device_rates, floors = Rates.measured(device, accelerator.mixed_precision), {}
        for what, of_views in {"images": see_views, "relabel": label_views, "train": train_views}.items():
            floors[what] = Floor.of(partial(of_views, "views-floor"), device_rates)
            print(f"{what}, {args.epochs} epochs: {floors[what]}", flush=True)
        rates: dict[str, dict[str, list[float]]] = {"images": {}, "relabel": {}, "train": {}}
        for number in range(args.rounds):
            for what, side, work in (
                ("images", "views", see_views),
                ("images", "loader", see_files),
                ("relabel", "views", label_views),
                ("relabel", "loader", label_files),
                ("train", "views", train_views),
                ("train", "loader", train_files),
            ):
                rates[what].setdefault(side, []).append(rate(work, f"{side}-{number}"))

    name = machine_name(device)
    result = []
    print(f"{spec}\n{args.images} images, batch {args.batch_size}, {name}, {torch.get_num_threads()} threads\n")
    print("          views, images/s   loader, images/s   ratio   views against the floor")
    for what, sides in rates.items():
        ours, theirs = (statistics.median(sides[side]) for side in ("views", "loader"))
        against = floors[what].against(args.images * args.epochs / ours)
        print(f"{what:8s}  {ours:15.0f}   {theirs:16.0f}   {ours / theirs:4.1f}x   {against['gap']:22.1f}x")
        result.append({"what": what, "images_per_s": {"views": ours, "loader": theirs}, "rounds": sides,
                       "ratio": ours / theirs, **against})  # fmt: skip
    if args.output is not None:
        about = {"command": shlex.join(sys.argv), "device": name, "threads": torch.get_num_threads()}
        about |= {"mixed_precision": str(accelerator.mixed_precision), "versions": package_versions()}
        save_json(args.output, {**about, "student": spec.to_dict(), "arguments": vars(args), "rows": result})


if __name__ == "__main__":
    main()
