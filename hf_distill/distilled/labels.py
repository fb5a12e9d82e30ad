"""The sources of what students learn: classes, stored labels, teachers, projectors; with the bytes that each costs.

Labels are logits everywhere; the loss applies the softmax. A source is called with the images as they are trained on,
their classes and their row numbers in the set, and gives either classes or logits.
"""

import copy
import fnmatch
import functools
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from ..augmentation.views import ViewSource
from ..config import check_at_least
from ..data.preprocessing import Preprocessing
from ..data.upload import upload
from ..hub.checks import Rules, check_values, is_commit_of_repository, is_hex, is_whole
from ..hub.files import load_json
from ..hub.repository import Repository
from ..networks.architectures import FlatModel, StudentSpec, sees_batches, sha256_of
from ..networks.compiling import compiled
from ..networks.projector import INDEX, LabelProjector
from ..networks.teachers import Teacher


class LabelSource(ABC):
    """Targets for images.

    Attributes:
        kind: The name on cards and in reports.
        views: What the labels are of, where they were made for certain views of the images; None where they are of
            the images as they are given.
    """

    kind: ClassVar[str]
    views: ViewSource | None = None

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes that must travel with the images so that anybody gets these targets."""

    def identity(self) -> dict[str, Any] | None:
        """All that decides the targets of given images, as JSON types; None where nothing tells."""
        return None

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


def _in_chunks(answer: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """Logits (n, K) float32 of images (n, C, H, W), `size` at a time; no more is held beside them than those of one."""
    if len(images) <= size:
        return answer(images).float()
    logits: Tensor | None = None
    for start in range(0, len(images), size):
        part = answer(images[start : start + size]).float()
        if logits is None:
            logits = part.new_empty(len(images), part.shape[1])
        logits[start : start + size] = part
    return logits


class HardLabels(LabelSource):
    """The classes themselves."""

    kind = "hard"

    @property
    def num_bytes(self) -> int:
        """Nothing: a class comes with every image."""
        return 0

    def identity(self) -> dict[str, Any]:
        """Classes decide nothing else."""
        return {"kind": self.kind}

    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """The classes (n,) as they are."""
        return upload(labels, images.device)


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

    def identity(self) -> dict[str, Any]:
        """The bytes of the logits."""
        return {"kind": self.kind, "sha256": sha256_of({"logits": self.logits})}

    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """The stored logits (n, K) of `rows`, float32."""
        return upload(self.logits[upload(rows, self.logits.device)], images.device).float()


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

    def identity(self) -> dict[str, Any]:
        """The networks, and how many images each sees at once."""
        return {**self.to_config(), "sha256": sha256_of({"thetas": self.thetas}), "chunk_size": self.chunk_size}

    def to(self, device: torch.device | str) -> "TeacherLabels":
        """The same teacher with its parameters on `device`, to spare the copy at every call."""
        return TeacherLabels(self.spec, self.thetas.to(device), chunk_size=self.chunk_size)

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """Logits (n, K) float32; a pure function of `images`."""
        model, thetas = self.model.to(images.device), self.thetas.to(images.device)

        def mean(chunk: Tensor) -> Tensor:
            return sum(model(theta, chunk).float() for theta in thetas) / len(thetas)

        return _in_chunks(mean, images, self.chunk_size)

    def ready(self, device: torch.device | str) -> None:
        """Do now what the first call on `device` would: build the network and move it and its parameters there."""
        self.model.to(device)
        self.thetas = self.thetas.to(device)

    def tensors(self) -> dict[str, Tensor]:
        """The parameters, on the CPU: `from_config` needs them beside the configuration."""
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
            shapes = {name: (*value.shape, value.dtype) for name, value in tensors.items()}
            raise ValueError(
                f"a teacher of {count} networks comes with the tensors {reprlib.repr(shapes)}; expected thetas, a "
                "matrix with a row for each"
            )
        if not thetas.isfinite().all():
            raise ValueError("a teacher has parameters that are not finite; train it again")
        return cls(StudentSpec.from_dict(config["spec"]), thetas)


def _is_home(value: Any) -> bool:
    return value is None or is_commit_of_repository(value)


NETWORK: Rules = {
    "network": ("the name of a network", lambda name: isinstance(name, str) and len(name) < 200),
    "num_bytes": ("a whole number from 1", is_whole),
    "sha256": ("64 hex digits", is_hex(64)),
    "shared": ("an object with repo_id, as owner/name, and revision, a commit; or null", _is_home),
}


@dataclass(frozen=True)
class TeacherReference:
    """The identity of a teacher or a projector, and the place of its files.

    Attributes:
        network: Its name: of a teacher the architecture.
        num_bytes: Of parameters and running statistics.
        sha256: Of the same.
        home: The repository that everybody has it from, at a commit; None where its files lie with what it labels.
    """

    network: str
    num_bytes: int
    sha256: str
    home: Repository | None

    @classmethod
    def of(cls, teacher: Teacher | LabelProjector) -> "TeacherReference":
        """The reference to a teacher, or a projector, that is at hand."""
        return cls(teacher.name, teacher.num_bytes, teacher._sha256, teacher.origin)

    def check(self, teacher: Teacher | LabelProjector, where: str | Path) -> None:
        """Raise a `ValueError` unless `teacher`, found at `where`, has these very weights."""
        if teacher._sha256 != self.sha256:
            raise ValueError(
                f"{where} holds the weights {teacher.digest} of {reprlib.repr(teacher.name)}, and the labels are "
                f"those of {self.sha256[:8]} of {reprlib.repr(self.network)}; use the weights that the labels were "
                "made with"
            )

    def to_config(self) -> dict[str, Any]:
        """The attributes as JSON types."""
        shared = None if self.home is None else {"repo_id": self.home.repo_id, "revision": self.home.revision}
        return {"network": self.network, "num_bytes": self.num_bytes, "sha256": self.sha256, "shared": shared}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "TeacherReference":
        """The reference that `to_config` described; a `ValueError` where it says nonsense."""
        check_values("a teacher", config, NETWORK)
        shared = config["shared"]
        home = None if shared is None else Repository(shared["repo_id"], Teacher.repo_type, shared["revision"])
        return cls(config["network"], config["num_bytes"], config["sha256"], home)


class NetworkLabels(LabelSource):
    """The logits of one network with running statistics, computed on the images at hand: any image, alone or not.

    A teacher that came from a repository is not stored with what it labels: its weights, named by their SHA-256, are
    fetched from there when they are first used.

    Args:
        teacher: The network with its classes and preprocessing, or where they are.
        chunk_size: Images that go through it at once.

    Attributes:
        reference: Which teacher it is. Its `num_bytes` are what a reader must fetch, unless it is there already.
    """

    kind = "teacher"

    def __init__(self, teacher: Teacher | TeacherReference, *, chunk_size: int = 512) -> None:
        self.chunk_size = chunk_size
        at_hand = not isinstance(teacher, TeacherReference)
        self._teacher = teacher if at_hand else None
        self.reference = TeacherReference.of(teacher) if at_hand else teacher
        self._device: torch.device | str | None = None
        self._expected: tuple[list[str], Preprocessing] | None = None
        self._folder: Path | None = None  # where it lies, if it is not read at once
        self._where: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The architecture."""
        return self.reference.network

    @property
    def digest(self) -> str:
        """8 hex digits that name the weights."""
        return self.reference.sha256[:8]

    @property
    def num_bytes(self) -> int:
        """Bytes of parameters and running statistics."""
        return self.reference.num_bytes

    def identity(self) -> dict[str, Any]:
        """The network, wherever it lies, and how many images it sees at once."""
        known = {"network": self.name, "sha256": self.reference.sha256}
        return {"kind": self.kind, **known, "chunk_size": self.chunk_size}

    @property
    def shared(self) -> bool:
        """True where the teacher is in a repository of its own, and not stored with each set that it labels."""
        return self.reference.home is not None

    @property
    def teacher(self) -> Teacher:
        """The network, fetched when it is first asked for.

        Raises:
            ValueError: The repository holds other weights than it did, or they do not fit what they label.
            OSError: The Hub does not answer.
        """
        if self._teacher is None:
            teacher = self._fetch()
            if self._expected is not None:
                _check_fits(teacher, *self._expected)
            self._teacher = teacher if self._device is None else teacher.to(self._device)
        return self._teacher

    def _fetch(self) -> Teacher:
        home = self.reference.home
        if home is None and self._folder is not None:
            teacher = self._load(self._folder, self._where)
            self.reference.check(teacher, self._folder)
            return teacher
        if home is None:
            raise ValueError(f"nothing says where the teacher {self.name} ({self.digest}) is; give the teacher itself")
        where = {"revision": home.revision, "token": home.token, "local_files_only": home.local_files_only}
        # Repositories of timm's own name no classes: whoever made the labels did.
        names = None if self._expected is None else self._expected[0]
        teacher = self._load(home.repo_id, where, names)
        self.reference.check(teacher, f"{home.repo_id} at {home.revision}")
        return teacher

    @classmethod
    def _load(cls, where: str | Path, options: dict[str, Any], class_names: list[str] | None = None) -> Teacher:
        return Teacher.from_pretrained(where, **options, class_names=class_names)

    def ask_with(self, token: str | bool | None, local_files_only: bool) -> None:
        """Fetch the teacher, where it is still to be fetched, with a token or from the cache alone."""
        self._where = {"token": token, "local_files_only": local_files_only}
        home = self.reference.home
        if home is not None:
            home = replace(home, token=token, local_files_only=local_files_only)
            self.reference = replace(self.reference, home=home)

    def check_fits(self, class_names: Sequence[str], preprocessing: Preprocessing) -> None:
        """Raise a `ValueError` unless the teacher's classes are `class_names`, in order, and its images go through the
        same preprocessing; for a teacher that is still to be fetched, then."""
        self._expected = (list(class_names), preprocessing)
        if self._teacher is not None:
            _check_fits(self._teacher, *self._expected)

    def to(self, device: torch.device | str) -> "NetworkLabels":
        """Move the teacher to `device`, now or when it is fetched."""
        self._device = device
        if self._teacher is not None:
            self._teacher.to(device)
        return self

    def ready(self, device: torch.device | str) -> None:
        """Do now what the first call would: fetch the network, move it to `device`, and fold it."""
        network = self.to(device).teacher
        if isinstance(network, Teacher):
            _ = network.folded

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """Logits (n, K) float32; a function of each image alone."""
        teacher = self.teacher
        if next(teacher.model.parameters()).device != images.device:
            self.to(images.device)
        return _in_chunks(teacher.logits, images, self.chunk_size)

    def to_config(self) -> dict[str, Any]:
        """The network, its SHA-256 and size, and the repository that it is shared from, as JSON types."""
        return {"kind": self.kind, **self.reference.to_config()}

    def save(self, folder: Path) -> None:
        """Write the teacher into a folder that does not exist, as its `save_pretrained` does, without its card."""
        self.teacher.save_pretrained(folder)
        for path in sorted(folder.rglob("*"), reverse=True):
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif not any(fnmatch.fnmatch(name, pattern) for pattern in self.teacher.fetched):
                path.unlink()

    @classmethod
    def from_config(cls, config: dict[str, Any], folder: Path) -> Self:
        """The labels that `to_config` describes: of the teacher in `folder`, unless it is shared.

        Raises:
            ValueError: `config` says nonsense, or `folder` does not hold that teacher.
        """
        reference = TeacherReference.from_config(config)
        if reference.home is not None:
            return cls(reference)
        if not folder.is_dir():
            raise ValueError(f"its {cls.kind} is missing: there is no {folder}")
        teacher = cls._load(folder, {})
        reference.check(teacher, folder)
        return cls(teacher)


class ProjectorLabels(NetworkLabels):
    """The logits of a label projector, computed on the images at hand: any image, alone or not.

    It is kept and found like a teacher: in its repository, or else with what it labels. Once it labels, its LoRA
    matrices are folded into the weights, which is faster.

    Args:
        projector: The projector, or where it is.
        chunk_size: Images that go through it at once.
    """

    kind = "projector"

    def __init__(self, projector: LabelProjector | TeacherReference, *, chunk_size: int = 512) -> None:
        super().__init__(projector, chunk_size=chunk_size)

    @classmethod
    def from_config(cls, config: dict[str, Any], folder: Path) -> Self:
        """As `NetworkLabels.from_config`; a projector whose CLIP model is on the Hub is read when it is first used."""
        reference = TeacherReference.from_config(config)
        if reference.home is None and (folder / INDEX).is_file():
            base = load_json(folder / INDEX).get("base")
            if isinstance(base, dict) and not base.get("local"):
                labels = cls(reference)
                labels._folder = folder
                return labels
        return super().from_config(config, folder)

    @property
    def projector(self) -> LabelProjector:
        """The projector, fetched when it is first asked for; raises as `NetworkLabels.teacher`."""
        return self.teacher

    @classmethod
    def _load(cls, where: str | Path, options: dict[str, Any], class_names: list[str] | None = None) -> LabelProjector:
        return LabelProjector.from_pretrained(where, **options)

    def ready(self, device: torch.device | str) -> None:
        """As `NetworkLabels.ready`, and fold the matrices in."""
        super().ready(device)
        self.projector.merge()

    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """Logits (n, K) float32; a function of each image alone."""
        self.projector.merge()
        return super().__call__(images, labels, rows, epoch)


class MeanLabels(LabelSource):
    """The mean logits of several networks with running statistics, each asked as `NetworkLabels` asks one.

    Args:
        sources: The networks, for the same classes.

    Raises:
        ValueError: There are none.
    """

    kind = "teacher"

    def __init__(self, sources: Sequence[NetworkLabels]) -> None:
        if not sources:
            raise ValueError("the mean of no teachers; expected one or more")
        self.sources = list(sources)

    @property
    def num_bytes(self) -> int:
        """Those of all networks."""
        return sum(source.num_bytes for source in self.sources)

    def identity(self) -> dict[str, Any]:
        """Those of all networks."""
        return {"kind": self.kind, "of": [source.identity() for source in self.sources]}

    def ready(self, device: torch.device | str) -> None:
        """As `NetworkLabels.ready`, for each."""
        for source in self.sources:
            source.ready(device)

    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """Logits (n, K) float32; a function of each image alone."""
        total = self.sources[0](images, labels, rows, epoch)
        for source in self.sources[1:]:
            total = total + source(images, labels, rows, epoch)
        return total / len(self.sources)


class BatchLabels(LabelSource):
    """The mean logits of networks whose BatchNorm has the statistics of the views at hand, and not the running ones.

    So FADRM (arXiv:2506.24125) labels. A label depends on the views that go through the networks with it: nobody can
    ask for it again view by view, and `relabel` makes such labels once, for students to read.

    Args:
        sources: The networks, for the same classes. One without BatchNorm answers as it always does.
        together: Views that go through the networks at once, and are each other's statistics.

    Raises:
        ValueError: No network has BatchNorm, one has no running statistics to leave aside, or `together` is below 2.
    """

    kind = "teacher"

    def __init__(self, sources: Sequence[LabelSource], together: int) -> None:
        check_at_least("batch_statistics", together, 2)
        self.sources: list[NetworkLabels] = []
        for source in sources:
            if type(source) is not NetworkLabels:
                raise ValueError(
                    f"--batch_statistics is {together} and the labels are those of a {type(source).__name__}; expected "
                    "networks with BatchNorm: leave it out, or give some with --teachers"
                )
            self.sources.append(source)
        self.together, models = together, [source.teacher.model for source in self.sources]
        if not any(map(sees_batches, models)):
            names = ", ".join(source.name for source in self.sources)
            raise ValueError(
                f"--batch_statistics is {together} and {names} has no BatchNorm, whose statistics it means; leave it "
                "out, or give other --teachers"
            )
        self._models: list[nn.Module] = []
        self._device: torch.device | None = None

    @property
    def num_bytes(self) -> int:
        """Those of all networks."""
        return sum(source.num_bytes for source in self.sources)

    def identity(self) -> dict[str, Any]:
        """Those of all networks, and how many views go through them at once."""
        return {"kind": self.kind, "of": [source.identity() for source in self.sources], "together": self.together}

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """Logits (n, K) float32 of whole groups of `together` images; raises a `ValueError` for others."""
        if len(images) % self.together:
            raise ValueError(f"{len(images)} views do not divide into groups of {self.together}; give whole groups")
        if self._device != images.device:
            teachers = [source.to(images.device).teacher for source in self.sources]
            self._models, self._device = [_without_running(teacher.model) for teacher in teachers], images.device
        groups = images.split(self.together)
        return torch.cat([sum(model(x).float() for model in self._models) / len(self._models) for x in groups])


def _without_running(network: nn.Module) -> nn.Module:
    """A network with the parameters of `network` whose BatchNorm has the statistics of its batch, in any mode."""
    copied = copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
    for layer in copied.modules():
        if isinstance(layer, _BatchNorm):
            layer.running_mean = layer.running_var = None
    return copied


def _check_fits(teacher: Teacher | LabelProjector, class_names: Sequence[str], preprocessing: Preprocessing) -> None:
    teacher.check_classes(class_names)
    if teacher.preprocessing.fingerprint() != preprocessing.fingerprint():
        what = "projector" if isinstance(teacher, LabelProjector) else "teacher"
        raise ValueError(
            f"the {what} {teacher.name} ({teacher.digest}) sees images through "
            f"{reprlib.repr(teacher.preprocessing.to_config())}, and the set is for "
            f"{reprlib.repr(preprocessing.to_config())}; use the {what}'s preprocessing"
        )


def compiled_labels(source: LabelSource, accelerator: Accelerator | None, device: torch.device) -> LabelSource:
    """`source`, through `compiled` where networks make the labels of images on `device`."""
    label = compiled(source, accelerator)
    if label is source or not isinstance(source, NetworkLabels | MeanLabels | TeacherLabels):
        return source
    source.ready(device)  # now, for neither fetching nor moving can be compiled
    return label
