"""Real images of three classes from tensors in hand, and networks for them."""

import pyarrow as pa
import torch

from hf_distill.data.images import RealImages
from hf_distill.data.pixels import Pixels
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.engine.blocks import BlockDistiller
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.teachers import Teacher

NAMES = ["cat", "dog", "owl"]


def real(images: torch.Tensor, labels: list[int], preprocessing: Preprocessing | None = None) -> RealImages:
    channels, *size = images.shape[1:]
    column = pa.chunked_array([pa.array([image.numpy().tobytes() for image in images], pa.binary())])
    known = preprocessing or Preprocessing(channels, tuple(size), (0.4,) * channels, (0.3,) * channels)
    pixels = Pixels(column, tuple(images.shape[1:]), False)
    provenance = {"name": "org/pets", "config": None, "split": "train", "revision": "0" * 40}
    return RealImages(pixels, torch.arange(len(images)), torch.tensor(labels), NAMES, known, provenance)


def random_teacher(train: RealImages, names: list[str] = NAMES) -> Teacher:
    channels, height, width = train.shape
    kwargs = {"width": 8, "norm": "batch"}
    spec = StudentSpec("convnet_d1", len(names), channels, (height, width), kwargs)
    return Teacher(spec.build(0), spec, names, train.preprocessing)


def made(method: BlockDistiller, label: int) -> torch.Tensor:
    block = next(block for block in method.blocks() if label in block.labels)
    return method.make(block, lambda *_: None)[block.labels == label]
