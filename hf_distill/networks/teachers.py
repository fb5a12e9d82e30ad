"""`Teacher`: a trained timm network with its running statistics, its classes by name, and what its images go through.

A folder or repository of it is timm's own (`config.json`, `model.safetensors`), so timm alone loads the network;
`teacher_config.json` beside them says the rest. Repositories that timm or somebody else wrote are read as well, and the
image classifiers of transformers.
"""

import copy
import logging
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn
from typing_extensions import Self

from ..data.images import Outline, RealImages
from ..data.pixels import Frame
from ..data.preprocessing import Preprocessing
from ..hub.cards import on_hub, render_card, source_context
from ..hub.checks import (
    OBJECT,
    OBJECT_OR_NULL,
    Rules,
    are_names,
    check_values,
    class_difference,
    is_hex,
    is_share,
    is_whole,
)
from ..hub.files import SUMS, atomic_write, check_format_version, load_json, package_versions, save_json
from ..hub.folder import Home, HubFolder, locate
from ..hub.making import MAKING
from ..hub.repository import Repository
from .architectures import FlatModel, StudentSpec, before_logits, layout_for, sha256_of, timm_with_ours
from .class_names import Classes, imagenet_names, read_class_names
from .folding import folded, versions
from .frames import check_frame, frame_in_timm, frame_to_timm, is_frame
from .network_folder import (
    EVAL_RESULTS,
    RULES,
    ZCA_FILE,
    card_metadata,
    known_accuracies,
    read_preprocessing,
    write_whitening,
)
from .timm_files import PROCESSOR, TIMM_CONFIG, WEIGHTS, is_transformers, load_weights, read_timm
from .trajectories import ExpertTrajectories

logger = logging.getLogger(__name__)

INDEX = "teacher_config.json"
FORMAT_VERSION = 1
# Of the description that timm gives a network, what stays true of other weights.
KEPT = ("fixed_input_size", "first_conv", "classifier")


def _is_part(value: Any) -> bool:
    known = value if isinstance(value, dict) else {}
    return value is None or (is_whole(known.get("num_classes")) and is_hex(8)(known.get("digest")))


_ACCURACY = ("a number in [0, 1], or null", lambda value: value is None or is_share(value))
ABOUT: Rules = {
    **RULES,
    "student": OBJECT,
    "results.train_accuracy": _ACCURACY,
    "results.test_accuracy": _ACCURACY,
    "sha256": ("64 hex digits", is_hex(64)),
    "weights": OBJECT_OR_NULL,
    "test_frame": ("null, or an object of a side and an interpolation", is_frame),
    "narrowed": ("an object with num_classes and digest, or null", _is_part),
}


class Teacher(HubFolder):
    """A network that teaches: frozen, in evaluation mode, with the running statistics of its training.

        teacher = Teacher.from_pretrained("outputs/teacher")
        teacher.check_classes(real.class_names)
        logits = teacher.logits(real.images(rows))

    Example:
        >>> from hf_distill.data.preprocessing import Preprocessing
        >>> spec = hd.StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": "batch"})
        >>> teacher = hd.Teacher(spec.build(0), spec, train.class_names, train.preprocessing)
        >>> teacher.logits(train.images([0, 1])).shape
        torch.Size([2, 10])

    Args:
        model: A timm network; it is frozen.
        spec: What builds it again.
        class_names: Names of the logits, in order; None where they are still unknown.
        preprocessing: What its images go through.
        config: What `teacher_config.json` says beside these.

    Attributes:
        config: source, training, results, versions, device; weights, where they come from a plain repository; and
            narrowed, where it is a part of a teacher of more classes: of how many, which of its logits, and its digest.

    Raises:
        ValueError: Classes, channels or image size do not fit the network.
    """

    repo_type = "model"
    config_name = TIMM_CONFIG
    owned = ("README.md", SUMS, MAKING, TIMM_CONFIG, WEIGHTS, INDEX, ZCA_FILE, EVAL_RESULTS)
    fetched = (TIMM_CONFIG, WEIGHTS, INDEX, ZCA_FILE, PROCESSOR)
    loader = "Teacher.from_pretrained"
    _foreign = False  # of a repository that this library did not write

    def __init__(
        self,
        model: nn.Module,
        spec: StudentSpec,
        class_names: Sequence[str] | None,
        preprocessing: Preprocessing,
        config: dict[str, Any] | None = None,
    ) -> None:
        names = list(class_names or [])
        if class_names is not None and not (are_names(names) and len(names) == spec.num_classes):
            raise ValueError(
                f"{len(names)} class names {reprlib.repr(names)} for a network with {spec.num_classes} logits; "
                "expected one for each, all different"
            )
        images = (preprocessing.channels, *preprocessing.image_size)
        if images != (spec.in_chans, *spec.img_size):
            raise ValueError(
                f"preprocessing for images of (channels, height, width) {images} and a network for "
                f"{(spec.in_chans, *spec.img_size)}; expected the same"
            )
        self.model = model.eval().requires_grad_(False)
        self._folded: tuple[tuple[Any, ...], nn.Module] | None = None
        self.spec, self.class_names, self.preprocessing = spec, names, preprocessing
        self.config = {"source": {}, "results": {}, "versions": package_versions(), **(config or {})}

    # What it does

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, K) of preprocessed `images` (N, C, H, W), in whatever autocast the caller is in; differentiable
        with respect to the images."""
        return self.folded(images)

    @property
    def folded(self) -> nn.Module:
        """The network as it answers: `model` to rounding, with BatchNorm in the convolutions before it. What is
        stored, published and digested is `model`, and so is what has statistics."""
        if torch.compiler.is_compiling() and self._folded is not None:
            return self._folded[1]
        now = versions(self.model)
        if self._folded is None or self._folded[0] != now:
            self._folded = now, folded(self.model, (self.spec.in_chans, *self.spec.img_size))
        return self._folded[1]

    def features(self, images: Tensor) -> Tensor:
        """What the network has of preprocessed `images` (N, C, H, W) before its logits, (N, D)."""
        return before_logits(self.model, images)

    def to(self, device: torch.device | str) -> Self:
        """Move the network to `device`; on CUDA its weights get the layout that it is fastest in."""
        device = torch.device(device)
        self.model.to(device, memory_format=layout_for(self.model, device))
        return self

    @property
    def name(self) -> str:
        """The architecture."""
        return self.spec.name

    @property
    def test_frame(self) -> Frame:
        """How its test images were framed; the usual way where nothing tells."""
        return Frame(**(self.config.get("test_frame") or {}))

    @property
    def results(self) -> dict[str, Any]:
        """Accuracies in [0, 1] and the curves of training, as far as they are known."""
        return self.config["results"]

    @property
    def num_bytes(self) -> int:
        """Bytes of parameters and running statistics."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())

    @property
    def held_bytes(self) -> int:
        """Bytes of the same in memory once it answers, with those of `folded`."""
        networks = (self.model, self.folded)
        tensors = {id(each): each for network in networks for each in (*network.parameters(), *network.buffers())}
        return sum(tensor.nbytes for tensor in tensors.values())

    @cached_property
    def _sha256(self) -> str:
        return sha256_of(self._tensors())

    @property
    def digest(self) -> str:
        """8 hex digits that name the weights: parameters and running statistics."""
        return self._sha256[:8]

    def summary(self) -> str:
        """One line: the network, its classes, and its accuracies where they are known."""
        size = "x".join(map(str, self.spec.img_size))
        what = f"{self.spec.name} for {self.spec.num_classes:,} classes of {size} images"
        accuracies = [
            f"{split} accuracy {100 * accuracy:.1f} %" for split, accuracy in known_accuracies(self.results).items()
        ]
        return f"{what}: {', '.join(accuracies)}" if accuracies else what

    # Classes

    def check_classes(self, names: Sequence[str]) -> None:
        """Raise a `ValueError` that shows the first difference unless the teacher's classes are `names`, in order."""
        names = list(names)
        if names == self.class_names:
            return
        difference = class_difference(self.class_names, names)
        if sorted(names) == sorted(self.class_names):
            cure = "the order alone differs: use teacher.narrowed(names)"
        else:
            cure = "use a teacher of these classes, or one that has others too through teacher.narrowed(names)"
        raise ValueError(f"the teacher {self.spec.name} ({self.digest}) {difference}; {cure}")

    def check_input(self, real: Outline | RealImages) -> None:
        """Raise a `ValueError` unless the network takes images of the size and channels of `real`."""
        own_shape = (self.preprocessing.channels, *self.preprocessing.image_size)
        if own_shape != tuple(real.shape):
            raise ValueError(
                f"the teacher {self.spec.name} takes images {own_shape} (channels, height, width) and the data are "
                f"{tuple(real.shape)}; give --resolution {own_shape[1]} {own_shape[2]}, or another teacher"
            )

    def check_matches(self, real: RealImages) -> None:
        """Raise one `ValueError` that says what differs, unless the classes and the size are those of `real`."""
        self.check_classes(real.class_names)
        self.check_input(real)

    def rows_of(self, names: Sequence[str]) -> list[int]:
        """The logits that are those of the classes `names`, in their order.

        Names need not be written alike: see `class_names.Classes`. Where there are as many as logits, and all but a few
        stand in their order, the few take the places that are left.

        Raises:
            ValueError: A class is absent, or may be several; the message says which, and what is near.
        """
        names, classes = list(names), Classes(self.class_names)
        try:
            rows = classes.find(names)
        except ValueError as error:
            raise ValueError(f"the teacher {self.spec.name} ({self.digest}) {error}") from error
        if names != self.class_names and (otherwise := classes.called_otherwise(names)):
            _say_called_otherwise(f"{self.spec.name} ({self.digest})", otherwise, bool(classes.strangers(names)))
        return rows

    def narrowed(self, names: Sequence[str]) -> "Teacher":
        """The same teacher for the classes `names` alone: a copy whose classifier has their rows, in their order.

        It is a network of its own, which any loader of teachers reads, and its softmax is over these classes. Where
        `names` are all its classes in order, it is this very network, by these names.

        Args:
            names: Of classes it knows, as `rows_of` finds them.

        Raises:
            ValueError: As `rows_of`; or its last layer is neither linear nor a convolution.
        """
        names, count = list(names), self.spec.num_classes
        if not names:
            raise ValueError(f"no classes to narrow the teacher {self.spec.name} to; expected one at least")
        if names == self.class_names:
            return self
        rows = self.rows_of(names)
        if rows == list(range(count)):
            renamed = Teacher(self.model, self.spec, names, self.preprocessing, self.config)
            renamed.origin, renamed.release, renamed.making = self.origin, self.release, self.making
            return renamed
        model = copy.deepcopy(self.model)
        layers = [model.get_submodule(name) for name in classifiers(model)]
        if not layers or not all(
            isinstance(layer, nn.Linear | nn.Conv2d) and len(layer.weight) == count for layer in layers
        ):
            raise ValueError(
                f"the logits of {self.spec.name} do not come from a linear layer or convolution that it names, so "
                f"{len(names)} of its {count:,} classes can neither be taken out of it nor reordered; use a teacher of "
                "these classes in this order"
            )
        for layer in layers:
            for name, parameter in list(layer.named_parameters(recurse=False)):  # a row for each class
                part = parameter.detach()[torch.tensor(rows, device=parameter.device)].clone()
                setattr(layer, name, nn.Parameter(part, requires_grad=False))
            setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(rows))
        model.num_classes = len(rows)
        config = copy.deepcopy(self.config)
        if len(rows) < count:  # they are of another task
            config["results"] = {}
        known = self.origin and {"repo_id": self.origin.repo_id, "revision": self.origin.revision}
        config["narrowed"] = {"num_classes": count, "rows": rows, "digest": self.digest, **(known or {})}
        narrowed = Teacher(model, replace(self.spec, num_classes=len(rows)), names, self.preprocessing, config)
        narrowed.making = self.making
        return narrowed

    # From elsewhere, and to there

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        class_names: Sequence[str] | str | Path | None = None,
    ) -> Self:
        """The teacher in a local folder or a Hub repository, in the format of this library, timm or transformers.

        Networks that timm has of ImageNet-1K, 12K and 21K name no classes, and get WordNet's numbers (`n01440764`).

        Args:
            repo_id_or_path: A folder that exists, or `owner/name`.
            revision, token, local_files_only: As `HubFolder.from_pretrained`.
            class_names: Names of the logits, in order, or the path of a file that has them (`read_class_names`), where
                the repository has none. Where it has some they may be other names for the same classes, but not the
                same names in another order.

        Raises:
            ValueError, OSError: As `HubFolder.from_pretrained`; or nobody names the classes.
        """
        teacher = cls._open(repo_id_or_path, revision=revision, token=token, local_files_only=local_files_only)
        return teacher.called(class_names, str(repo_id_or_path))

    def called(self, class_names: Sequence[str] | str | Path | None, where: str) -> Self:
        """The same teacher with names for its logits, as `from_pretrained` takes them.

        Args:
            class_names: In order, or a file of them; None keeps its own.
            where: It comes from, for messages.

        Raises:
            ValueError: They are of another number, contradict its own, or nobody names the classes.
        """
        teacher, count = self, self.spec.num_classes
        if isinstance(class_names, str | Path):
            given, class_names = class_names, read_class_names(class_names)
            if len(class_names) != count:
                raise ValueError(
                    f"{given} names {len(class_names):,} classes, and {where} has {count:,}; expected a name for each "
                    "of its logits, in their order"
                )
        if class_names is not None:
            teacher = type(self)(self.model, self.spec, class_names, self.preprocessing, self.config)
            teacher.origin, teacher.making = self.origin, self.making
            self._check_renaming(teacher.class_names, where)
        if not teacher.class_names:
            raise ValueError(
                f"{where} does not name its {count} classes, and their order must be known; give the names of its "
                "logits in order: a file with --teacher_class_names, or class_names"
            )
        return teacher

    def _check_renaming(self, names: Sequence[str], where: str) -> None:
        """Raise where a name is already that of another logit, and warn where names replace others."""
        places = {name: row for row, name in enumerate(self.class_names)}
        changed = [row for row, name in enumerate(names) if places and places.get(name) != row]
        moved = next((row for row in changed if names[row] in places), None)
        if moved is not None:
            raise ValueError(
                f"class {moved} is called {names[moved]!r} here, and {where} calls class {moved} "
                f"{self.class_names[moved]!r} and class {places[names[moved]]} {names[moved]!r}; leave the names out, "
                "or give them in its order"
            )
        if changed:
            logger.warning(
                "%d of the %d classes of %s are called otherwise here, such as %r for %r",
                *(len(changed), len(names), where, names[changed[0]], self.class_names[changed[0]]),
            )

    @classmethod
    def _open(cls, repo_id_or_path: str | Path, **where: Any) -> Self:
        """As `from_pretrained`, and nobody need name the classes."""
        teacher = super().from_pretrained(repo_id_or_path, **where)
        if teacher._foreign and teacher.origin is not None:
            teacher.config["weights"] |= {"repo_id": teacher.origin.repo_id, "revision": teacher.origin.revision}
        return teacher

    @classmethod
    def start(
        cls,
        name: str,
        commit: str | None = None,
        *,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """The network that a training starts from, whose classes nobody need name.

        Args:
            name: A folder, a repository, or `timm:<name>` for pretrained weights that timm knows.
            commit: The version of a repository, in place of what the name says.
            token, local_files_only: As `from_pretrained`.

        Raises:
            ValueError, OSError: As `from_pretrained` and `from_timm`.
        """
        revision = None
        if name.startswith("timm:"):
            name, revision = _timm_repository(name.removeprefix("timm:"))
        return cls._open(name, revision=commit or revision, token=token, local_files_only=local_files_only)

    @classmethod
    def frame_of(cls, name: str) -> Frame:
        """How the test images of the teacher of that name were framed, without its weights.

        Args:
            name: As for `start`.

        Raises:
            ValueError, OSError: As `from_pretrained` and `from_timm`.
        """
        revision = None
        if name.startswith("timm:"):
            name, revision = _timm_repository(name.removeprefix("timm:"))
        place = locate(name, cls.repo_type, revision=revision)
        folder = place.snapshot([TIMM_CONFIG, INDEX, PROCESSOR]) if isinstance(place, Repository) else place
        if (folder / INDEX).is_file():
            about = load_json(folder / INDEX)
            check_values(folder / INDEX, about, {"test_frame": ABOUT["test_frame"]})
            student = about.get("student")
            check_frame(folder / INDEX, about, student.get("img_size") if isinstance(student, dict) else None)
            return Frame(**(about.get("test_frame") or {}))
        if not (folder / TIMM_CONFIG).is_file():
            return Frame()  # whoever loads it says what is wrong
        if is_transformers(folder):
            from .transformers_files import read_processor  # as in `_read_plain`

            preprocessing, test_images = read_processor(folder)
            return frame_in_timm(test_images, preprocessing.image_size)
        config = load_json(folder / TIMM_CONFIG)
        known = config.get("pretrained_cfg")
        description = {**known, **config} if isinstance(known, dict) else config
        size = description.get("input_size")
        sides = size[1:] if isinstance(size, list) and len(size) == 3 and all(map(is_whole, size)) else [1, 1]
        return frame_in_timm(description, (sides[0], sides[1]))

    @classmethod
    def from_timm(
        cls,
        name: str,
        class_names: Sequence[str] | str | Path | None = None,
        *,
        pretrained: bool = True,
        preprocessing: Preprocessing | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> Self:
        """A network by its timm name.

        Args:
            name: `resnet18.tv_in1k`, whose weights are on the Hub, or `hf-hub:owner/name@revision`.
            class_names: Names of the logits, in order, or a file of them, as `from_pretrained` takes them.
            pretrained: Load the weights, from safetensors alone; else the network is initialised by `seed`.
            preprocessing: What the images go through, for a network without weights.
            seed: For a network without weights.
            kwargs: What else such an architecture takes.

        Raises:
            ValueError, OSError: As `from_pretrained`; or timm knows no weights by that name.
        """
        if not pretrained:
            if class_names is None or preprocessing is None:
                raise ValueError(f"{name} without weights needs class_names and preprocessing; give both")
            if isinstance(class_names, str | Path):
                class_names = read_class_names(class_names)
            size = preprocessing.image_size
            spec = StudentSpec(name, len(class_names), preprocessing.channels, size, kwargs)
            return cls(spec.build(seed), spec, class_names, preprocessing)
        if kwargs or preprocessing is not None:
            raise ValueError(f"{name} with weights takes no preprocessing or options; its repository says what it is")
        repo_id, revision = _timm_repository(name)
        return cls.from_pretrained(repo_id, revision=revision, class_names=class_names)

    @classmethod
    def from_expert(cls, experts: ExpertTrajectories, number: int) -> Self:
        """The network that an expert is after its last epoch.

        Raises:
            ValueError: There is no such expert, or its network has running statistics, which trajectories do not hold.
        """
        model = FlatModel.from_spec(experts.spec)
        if model.sees_batches:
            raise ValueError(
                f"the experts in {experts.folder} have BatchNorm, whose running statistics are not stored; expected "
                "experts with --student_norm instance or none, or a teacher that recipes/teacher.py trained"
            )
        network = experts.spec.build(0)
        network.load_state_dict(model.unflatten(experts.row(number, experts.num_epochs)), strict=False)
        config = {"source": experts.config["source"], "device": experts.config.get("device")}
        accuracies = {
            name: experts.config["results"][name][number]
            for name in ("train_accuracy", "test_accuracy")
            if experts.config["results"].get(name)
        }
        config["results"] = accuracies
        teacher = cls(network, experts.spec, experts.class_names, experts.preprocessing, config)
        teacher.making = experts.making
        return teacher

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}

    def _timm_config(self) -> dict[str, Any]:
        """The file that timm reads: the architecture, its options, its classes, and what its images are."""
        spec, known = self.spec, self.model.pretrained_cfg
        # What timm says of its own weights is not of these: images here are cut to the shape, and nothing more.
        return {
            "architecture": spec.name,
            "num_classes": spec.num_classes,
            "num_features": self.model.num_features,
            "label_names": self.class_names,
            "model_args": {**spec.kwargs, "in_chans": spec.in_chans},
            "pretrained_cfg": {
                **{key: known[key] for key in KEPT if key in known},
                **frame_to_timm(self.test_frame, spec.img_size),
                "input_size": [spec.in_chans, *spec.img_size],
                "mean": list(self.preprocessing.mean),
                "std": list(self.preprocessing.std),
                "num_classes": spec.num_classes,
                "pool_size": None,
            },
        }

    def _write(self, folder: Path, home: Home) -> None:
        atomic_write(folder / WEIGHTS, save(self._tensors(), {"format": "pt"}))
        write_whitening(folder, self.preprocessing)
        atomic_write(folder / "README.md", self._card(home))
        save_json(folder / TIMM_CONFIG, self._timm_config())
        about = {
            "format_version": FORMAT_VERSION,
            "student": self.spec.to_dict(),
            "class_names": self.class_names,
            "preprocessing": self.preprocessing.to_config(),
            "sha256": self._sha256,
            **self.config,
        }
        save_json(folder / INDEX, {**about, **home.to_config()})

    def _card(self, home: Home) -> str:
        scores = known_accuracies(self.results)
        metadata = card_metadata(
            self.config["source"],
            scores,
            home,
            library="timm",
            tags=("image-classification", "teacher", "timm"),
            pipeline_tag="image-classification",
            **self._base_model(),
        )
        at = f"@{home.tag}" if home.tag else ""
        build = timm_with_ours().model_entrypoint(self.spec.name)
        return render_card(
            "teacher.md",
            metadata=metadata,
            call=home.arguments(),
            timm_name=f"hf-hub:{home.name}{at}" if home.on_hub else f"local-dir:{home.name}",
            needs_import=not build.__module__.startswith("timm."),
            config={"device": None, "weights": None, "training": None, "narrowed": None, **self.config},
            spec=self.spec,
            class_names=self.class_names,
            preprocessing=self.preprocessing,
            digest=self.digest,
            bytes=self.num_bytes,
            scores=scores,
            **source_context(self.config["source"]),
        )

    def _base_model(self) -> dict[str, str]:
        """The repository whose weights these were or are, for the metadata of a card; nothing where there is none."""
        training, weights = self.config.get("training") or {}, self.config.get("weights") or {}
        name, relation = weights.get("repo_id"), {}
        if is_hex(40)(training.get("pretrained_revision")):  # a commit: of what came from a folder it is a digest
            name, relation = str(training.get("pretrained_weights")), {"base_model_relation": "finetune"}
            if name.startswith("timm:"):
                try:
                    name, _ = _timm_repository(name.removeprefix("timm:"))
                except ValueError:  # a name of another version of timm
                    return {}
        return {"base_model": name, **relation} if on_hub({"name": name}) else {}

    @classmethod
    def index(cls) -> str:
        """The file that timm's own folders and repositories do not have."""
        return INDEX

    @classmethod
    def _read(cls, folder: Path) -> Self:
        if not (folder / WEIGHTS).is_file():
            raise ValueError(
                f"{folder} has no {WEIGHTS}, and weights in other formats (pickles) are never read; convert them"
            )
        if not (folder / INDEX).is_file():
            return cls._read_plain(folder)
        path = folder / INDEX
        about = load_json(path)
        check_format_version(path, about, FORMAT_VERSION)
        check_values(path, about, ABOUT)
        check_frame(path, about, about["student"].get("img_size"))
        release = about.pop("release", None)
        own = {
            name: about.pop(name) for name in ("format_version", "student", "class_names", "preprocessing", "sha256")
        }
        try:
            spec = StudentSpec.from_dict(own["student"])
            preprocessing = read_preprocessing(own["preprocessing"], folder / ZCA_FILE)
        except (OSError, SafetensorError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} or a file it names is damaged ({reason}); fetch or train it again") from error
        teacher = cls(load_weights(folder / WEIGHTS, spec), spec, own["class_names"], preprocessing, about)
        if teacher._sha256 != own["sha256"]:
            raise ValueError(
                f"{folder / WEIGHTS} does not hold the weights that {INDEX} speaks of; fetch or save the teacher again"
            )
        teacher.release = release
        return teacher

    @classmethod
    def _read_plain(cls, folder: Path) -> Self:
        """The network of a folder that timm's own functions, transformers', or somebody else's wrote."""
        if is_transformers(folder):
            from .transformers_files import read_transformers  # here, for it takes seconds to import

            model, spec, preprocessing, names, description = read_transformers(folder)
            weights: dict[str, Any] = {}
        else:
            model, spec, preprocessing, description = read_timm(folder)
            names = description.get("label_names", description.get("labels"))
            if isinstance(names, dict):
                names = [names.get(str(index)) for index in range(spec.num_classes)]
            if not are_names(names) or len(names) != spec.num_classes:
                names = imagenet_names(description)
            texts = {name: description.get(name) for name in ("tag", "license", "origin_url")}
            weights = {name: text for name, text in texts.items() if isinstance(text, str)}
        about = {"weights": weights, "test_frame": asdict(frame_in_timm(description, spec.img_size))}
        teacher = cls(model, spec, names, preprocessing, about)
        teacher._foreign = True
        return teacher


def check_alike(teachers: Sequence[Teacher]) -> None:
    """Raise a `ValueError` unless all of the teachers see images through the same preprocessing."""
    for teacher in teachers[1:]:
        if teacher.preprocessing.fingerprint() != teachers[0].preprocessing.fingerprint():
            one, other = ((each.name, each.digest, each.preprocessing.to_config()) for each in (teachers[0], teacher))
            raise ValueError(
                f"the teacher {other[0]} ({other[1]}) sees images through {other[2]} and {one[0]} ({one[1]}) through "
                f"{one[2]}; expected teachers that see the same images"
            )


@cache
def _say_called_otherwise(teacher: str, pairs: str, unknown: bool) -> None:
    """Log once which classes of data a teacher knows by other names, or by their place alone."""
    if unknown:
        logger.warning(
            "the teacher %s does not know these names, and all others are in its order: %s; where that is wrong, name "
            "its logits with --teacher_class_names",
            teacher,
            pairs,
        )
    else:
        logger.info("classes of the data by their names in the teacher %s: %s", teacher, pairs)


def expert_teachers(name: str) -> list[Teacher]:
    """The networks that the experts in a folder or repository are after their last epoch.

    Raises:
        ValueError, OSError: As `ExpertTrajectories.from_pretrained` and `Teacher.from_expert`.
    """
    experts = ExpertTrajectories.from_pretrained(name)
    return [Teacher.from_expert(experts, number) for number in range(experts.num_experts)]


def _timm_repository(name: str) -> tuple[str, str | None]:
    """The repository and revision of the weights that timm calls `name`."""
    repo_id, _, revision = name.removeprefix("hf-hub:").partition("@")
    if not name.startswith("hf-hub:"):
        timm = timm_with_ours()
        known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        if known is None or not known.hf_hub_id:
            raise ValueError(f"timm knows no weights of {name!r} on the Hub; see timm.list_models(pretrained=True)")
        repo_id = known.hf_hub_id
    return repo_id, revision or None


def classifiers(model: nn.Module) -> list[str]:
    """Names of the layers that give a timm network's logits, as far as it says."""
    names = model.pretrained_cfg.get("classifier") or []
    return [names] if isinstance(names, str) else list(names)
