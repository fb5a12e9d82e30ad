"""Where the targets of a student come from, and how many bytes they cost beside the images.

Labels are logits everywhere; the loss applies the softmax. A source is called with the images as they are trained on,
their classes and their row numbers in the set, and gives either classes or logits.
"""

import functools
import reprlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .checks import Rules, check_values, is_whole
from .functional import FlatModel
from .models import StudentSpec
from .views import Views


class LabelSource(ABC):
    """Targets for images.

    Attributes:
        kind: The name on cards and in reports.
        views: What the labels are of, where they were made for certain views of the images; None where they are of
            the images as they are given.
    """

    kind: ClassVar[str]
    views: Views | None = None

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes that must travel with the images so that anybody gets these targets."""

    @abstractmethod
    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """Targets of n images.

        Args:
            images: (n, C, H, W) float32, preprocessed.
            labels: (n,) classes.
            rows: (n,) positions of the images in their set.
            epoch: Of the views, for labels that are of views.

        Returns:
            Classes (n,) or logits (n, K), on the device of `images`.
        """


class HardLabels(LabelSource):
    """The classes themselves."""

    kind = "hard"

    @property
    def num_bytes(self) -> int:
        """Nothing: a class comes with every image."""
        return 0

    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """The classes (n,) as they are."""
        return labels.to(images.device)


class StoredLabels(LabelSource):
    """One vector of logits per image, made once and stored.

    Args:
        logits: (N, K), kept as float16.

    Raises:
        ValueError: `logits` is no matrix of floating-point numbers.
    """

    kind = "soft"

    def __init__(self, logits: Tensor) -> None:
        if logits.dim() != 2 or not logits.is_floating_point():
            raise ValueError(f"soft labels are {tuple(logits.shape)} {logits.dtype}; expected floating-point (N, K)")
        self.logits = logits.detach().to(torch.float16)

    @property
    def num_bytes(self) -> int:
        """Two bytes per logit."""
        return self.logits.numel() * 2

    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """The stored logits (n, K) of `rows`, float32."""
        return self.logits[rows.to(self.logits.device)].to(images.device, torch.float32)


class TeacherLabels(LabelSource):
    """The mean logits of one or more networks of one architecture, computed on the images at hand.

    The networks run without gradients and without dropout. Where they use BatchNorm it takes the statistics of the
    chunk it sees, since parameter vectors hold no running ones: such a teacher labels whole sets, not single images.

    Args:
        spec: The architecture.
        thetas: Parameters (M, P) float32, one row per network; one vector (P,) is one network.
        chunk_size: Images that go through a network at once.

    Raises:
        ValueError: `thetas` is empty or no matrix; at the first call: P is not that of the architecture.
    """

    kind = "teacher"

    def __init__(self, spec: StudentSpec, thetas: Tensor, *, chunk_size: int = 512) -> None:
        thetas = thetas.detach()
        if thetas.dim() == 1:
            thetas = thetas[None]
        if thetas.dim() != 2 or len(thetas) == 0:
            raise ValueError(f"a teacher's parameters are {tuple(thetas.shape)}; expected (M, P) with M at least 1")
        self.spec = spec
        self.thetas = thetas.to(torch.float32)
        self.chunk_size = chunk_size

    @functools.cached_property
    def model(self) -> FlatModel:
        """The architecture as a function of one row of `thetas`, built when it is first needed."""
        expected = self.spec.num_params()  # first, for a spec that was loaded can claim any size
        if expected != self.thetas.shape[1]:
            raise ValueError(
                f"the teacher's parameters are vectors of {self.thetas.shape[1]} values and {self.spec.name} has "
                f"{expected}; expected parameters of that architecture, classes, channels and image size"
            )
        return FlatModel.from_spec(self.spec)

    @property
    def num_bytes(self) -> int:
        """Four bytes per parameter of every network."""
        return self.thetas.numel() * 4

    def to(self, device: torch.device | str) -> "TeacherLabels":
        """The same teacher with its parameters on `device`, to spare the copy at every call."""
        return TeacherLabels(self.spec, self.thetas.to(device), chunk_size=self.chunk_size)

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """Logits (n, K) float32; a pure function of `images`."""
        model, thetas = self.model.to(images.device), self.thetas.to(images.device)
        chunks = [sum(model(theta, chunk) for theta in thetas) for chunk in images.split(self.chunk_size)]
        return torch.cat(chunks) / len(thetas)

    def tensors(self) -> dict[str, Tensor]:
        """What `from_config` needs beside the configuration: the parameters, on the CPU."""
        return {"thetas": self.thetas.cpu().contiguous()}

    def to_config(self) -> dict[str, Any]:
        """The architecture and the number of networks, as JSON types."""
        return {"kind": self.kind, "spec": self.spec.to_dict(), "num_networks": len(self.thetas)}

    @classmethod
    def from_config(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "TeacherLabels":
        """The teacher that `to_config` and `tensors` describe.

        Raises:
            ValueError: The two do not belong together.
        """
        rules: Rules = {
            "num_networks": ("a whole number from 1", is_whole),
            "spec": ("the description of a student", lambda value: isinstance(value, dict)),
        }
        check_values("a teacher", config, rules)
        thetas, count = tensors.get("thetas"), config["num_networks"]
        fits = thetas is not None and thetas.is_floating_point() and thetas.dim() == 2 and len(thetas) == count
        if thetas is None or not fits:
            found = {name: (*value.shape, value.dtype) for name, value in tensors.items()}
            raise ValueError(
                f"a teacher of {count} networks comes with the tensors {reprlib.repr(found)}; expected thetas, a "
                "matrix with a row for each"
            )
        if not thetas.isfinite().all():
            raise ValueError("a teacher has parameters that are not finite; train it again")
        return cls(StudentSpec.from_dict(config["spec"]), thetas)
