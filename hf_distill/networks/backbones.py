"""`Backbone`: a frozen image network without its head, whose features a linear head learns from.

It comes from a folder or a repository, and its files tell what it is:

    files                                           features
    teacher_config.json, a `Teacher`                before its logits
    a CLIP model, as `Prior` reads it               the image tower's embeddings, not normalised
    config.json of timm                             before its logits, or all it gives where it has none
    config.json of transformers, a classifier       before its logits
    config.json of transformers, another network    what it pools, or its first token

That library's own classes are built, and no file of code is read, as for teachers and priors. Nor is a pickle, but for
a CLIP whose weights are a pytorch_model.bin alone: plain tensors are read of it, and whatever else it holds is refused.
"""

import copy
import reprlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..data.preprocessing import Preprocessing
from ..hub.files import load_json
from ..hub.folder import locate
from ..hub.repository import Repository
from .architectures import before_logits, layout_for, sha256_of
from .folding import folded
from .priors import OPEN_CLIP_CONFIG, Prior
from .teachers import INDEX, Teacher
from .timm_files import PROCESSOR, TIMM_CONFIG, WEIGHTS, is_transformers, read_timm

__all__ = ["Backbone"]


class _Features(nn.Module):
    """What a timm network has before its logits, as a network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return before_logits(self.model, x)


class Backbone:
    """A frozen image network: pixels in, features out.

        backbone = Backbone.from_pretrained("facebook/dinov2-base")
        features = backbone.features(images)  # (n, 768)

    Example:
        >>> spec = hd.StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": "batch"})
        >>> backbone = hd.Backbone.from_teacher(hd.Teacher(spec.build(0), spec, train.class_names, train.preprocessing))
        >>> backbone.features(train.uint8(train.class_rows(0)[:2]) / 255).shape, backbone.width
        (torch.Size([2, 64]), 64)

    Args:
        name: What a user calls it.
        library: That built it.
        network: Normalised images (n, C, H, W) to features (n, D); it is frozen.
        images: What its images go through.
        revision: The commit, where it came from a repository.
        sha256: Of the tensors that it was made of; those of `network` by default.

    Attributes:
        sha256, digest: 64 and 8 hex digits that name its tensors.
        width: D, the number of features.
        channels: Of its images, 1 or 3.
        size: Height and width of its images.
        mean, std: Their normalisation, of pixels in [0, 1].

    Raises:
        ValueError: Its images are whitened, or it gives no features.
    """

    def __init__(
        self,
        name: str,
        library: str,
        network: nn.Module,
        images: Preprocessing,
        *,
        revision: str | None = None,
        sha256: str | None = None,
    ) -> None:
        if images.zca is not None:
            raise ValueError(
                f"{name} sees whitened images, and a backbone is given pixels; expected a network without --zca"
            )
        self.name, self.library, self.revision = name, library, revision
        self.channels, self.size = images.channels, images.image_size
        self.mean, self.std = images.mean, images.std
        network.eval().requires_grad_(False)
        self.sha256 = sha256 or sha256_of(network.state_dict())
        self.digest = self.sha256[:8]
        self._images = images
        self._network = folded(network, (self.channels, *self.size))
        self.width = self._count()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """The backbone in a local folder, which never touches the network, or in a Hub repository.

        Args:
            name: A folder that exists, or `owner/name`.
            revision: Branch, tag or commit of the repository; the commit that it is now is kept.
            token: Instead of that of the environment (`HF_TOKEN`) or of `hf auth login`; False for none.
            local_files_only: Use only what is in the cache.

        Raises:
            ValueError: There is no such folder or repository, or it holds no network that has features of images, or a
                damaged one.
            OSError: The Hub does not answer.
        """
        where: dict[str, Any] = {"revision": revision, "token": token, "local_files_only": local_files_only}
        place, origin = locate(name, "model", **where), None
        if isinstance(place, Repository):
            folder = place.snapshot([TIMM_CONFIG, INDEX, OPEN_CLIP_CONFIG, PROCESSOR])
            origin = place.pinned(folder)
            where["revision"] = origin.revision
        else:
            folder = place
        commit = origin and origin.revision
        plain = (folder / TIMM_CONFIG).is_file() and not (folder / INDEX).is_file()
        config = load_json(folder / TIMM_CONFIG) if plain else {}
        if (folder / OPEN_CLIP_CONFIG).is_file() or config.get("model_type") == "clip":
            library = "open_clip" if _own_open_clip(folder / OPEN_CLIP_CONFIG) else None
            prior = Prior.from_pretrained(name, library=library, **where)
            images = Preprocessing(3, prior.image_size, tuple(prior.mean), tuple(prior.std))
            return cls(str(name), prior.library, prior.visual, images, revision=commit)
        if not (folder / TIMM_CONFIG).is_file():
            raise ValueError(
                f"{name} has no {TIMM_CONFIG}; expected an image network of timm, transformers or open_clip, or a "
                "teacher"
            )
        others = plain and is_transformers(folder) and not _is_classifier(config)
        headless = plain and not is_transformers(folder) and config.get("num_classes") == 0
        if headless or others:
            if origin is not None:
                origin.snapshot([TIMM_CONFIG, WEIGHTS, PROCESSOR])
            if not (folder / WEIGHTS).is_file():
                raise ValueError(f"{name} has no {WEIGHTS}, and weights in other formats (pickles) are never read")
            if headless:
                model, _, images, _ = read_timm(folder, headless=True)
                return cls(
                    str(name), "timm", _Features(model), images, revision=commit, sha256=sha256_of(model.state_dict())
                )
            from .transformers_files import read_features  # here, for it takes seconds to import

            network, images = read_features(folder)
            return cls(str(name), "transformers", network, images, revision=commit)
        teacher = Teacher.start(str(name), where.pop("revision"), **where)
        return cls.from_teacher(teacher, str(name))

    @classmethod
    def from_teacher(cls, teacher: Teacher, name: str | None = None) -> Self:
        """The network of a teacher up to its logits; the teacher stays as it is.

        Args:
            teacher: Whose features before its logits are meant.
            name: What a user calls it; by default its repository, or its architecture.

        Raises:
            ValueError: Its images are whitened, or it gives no features.
        """
        origin, model = teacher.origin, copy.deepcopy(teacher.model)
        name = name or (origin.repo_id if origin else teacher.name)
        commit = origin.revision if origin else None
        sha256 = sha256_of(model.state_dict())
        return cls(name, "hf_distill", _Features(model), teacher.preprocessing, revision=commit, sha256=sha256)

    def to(self, device: torch.device | str) -> Self:
        """Move the network to `device`; on CUDA its weights get the layout that it is fastest in."""
        device = torch.device(device)
        self._network.to(device, memory_format=layout_for(self._network, device))
        return self

    def features(self, images: Tensor) -> Tensor:
        """Features (n, D) of `images` (n, C, h, w) in [0, 1], in whatever autocast the caller is in; differentiable
        with respect to the images.

        Args:
            images: Of its size; gray ones, of one channel, are taken as RGB where it sees three.

        Raises:
            ValueError: They are of another size, or have channels that it does not see.
        """
        shape = tuple(images.shape[1:])
        if images.ndim != 4 or shape[1:] != self.size or shape[0] not in (1, self.channels):
            raise ValueError(
                f"{self.name} takes images (channels, height, width) {(self.channels, *self.size)}, and was given "
                f"{shape}; resize them"
            )
        return self._network(self._images(images.expand(-1, self.channels, -1, -1)))

    @torch.no_grad()
    def _count(self) -> int:
        """D, of an image."""
        try:
            where = next((parameter.device for parameter in self._network.parameters()), None)
            shape = tuple(self.features(torch.zeros(1, self.channels, *self.size, device=where)).shape)
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
            reason = reprlib.repr(" ".join(str(error).split()))
            raise ValueError(
                f"{self.name} gives no features of images of {self.size[0]}x{self.size[1]} pixels ({reason}); expected "
                "an image network"
            ) from error
        if len(shape) != 2:
            raise ValueError(f"{self.name} gives features {shape} of an image; expected (1, D)")
        return shape[1]

    def about(self) -> dict[str, Any]:
        """What tells which one it is, in JSON types."""
        return {
            "name": self.name,
            "revision": self.revision,
            "digest": self.digest,
            "library": self.library,
            "width": self.width,
            "size": list(self.size),
        }


def _own_open_clip(path: Path) -> bool:
    """True where a description of a model of open_clip is there, with an image tower of open_clip's own."""
    config = load_json(path).get("model_cfg") if path.is_file() else None
    vision = config.get("vision_cfg") if isinstance(config, dict) else None
    return isinstance(vision, dict) and not vision.get("timm_model_name")


def _is_classifier(config: dict[str, Any]) -> bool:
    """True where transformers' configuration is that of a network with logits."""
    names = config.get("architectures")
    return isinstance(names, list) and any(str(name).endswith("ForImageClassification") for name in names)
