"""Images and labels in the files of other programs: which tensor is which, in the layouts of `hf_distill.importing`."""

import logging
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import load_arrays, load_pt, numbers_in

logger = logging.getLogger(__name__)

LABELS = ("labels", "targets", "target", "label", "y")
OTHER = ("pixel_values", "class_names", "accs_all_exps")
STATISTICS = ("mean", "std", "zca_mean", "zca_values", "zca_vectors")
FILES = (".pt", ".pth", ".npy", ".npz")
NONE = "none"


def _load(path: Path) -> Any:
    return load_arrays(path) if path.suffix in (".npy", ".npz") else load_pt(path)


def _find_images(path: Path) -> Path:
    """The file of images in a folder of `.pt` files; an error that lists them unless one stands out."""
    files = [file for file in sorted(path.glob("*.pt")) if not file.stem.startswith(("labels", "lr"))]
    plain = [file for file in files if not file.stem.startswith("images_zca")]
    others = [file for file in plain if not file.stem.startswith("images")]
    expected = "images_best" if plain else "images_zca_best"
    chosen = [] if others else [file for file in files if file.stem == expected]
    chosen = chosen or plain or files
    if len(chosen) != 1:
        those = ", ".join(file.name for file in chosen) or "none"
        raise ValueError(f"{path} holds several .pt files of images, or none ({those}); name the one to import")
    return chosen[0]


@dataclass
class StoredImages:
    """The content of a `.pt` file and of the files beside it."""

    images: Any  # a tensor (N, C, H, W), or one for each class
    labels: Any  # a tensor or a list (N,) or (N, K)
    layout: str
    files: list[Path]
    space: str | None = None  # where the layout tells it
    soft_labels: Tensor | None = None  # (N, K) logits
    lr: Any = None
    class_names: list[str] | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    whitening: dict[str, Any] = field(default_factory=dict)


def _is_images(value: Any) -> bool:
    """True for a tensor of images, or a list with one for each class."""
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(isinstance(part, Tensor) and _is_images(part) for part in value)
    return isinstance(value, Tensor) and value.ndim == 4 and (value.is_floating_point() or value.dtype == torch.uint8)


def _shape(images: Any) -> tuple[int, ...]:
    """That of a tensor of images, or of those of all classes together."""
    if isinstance(images, (list, tuple)):
        return (sum(map(len, images)), *images[0].shape[1:])
    return tuple(images.shape)


def _axes(value: Any) -> tuple[int, ...]:
    """The shape of a tensor, or of lists in one another by the first of each; () for anything else."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if not isinstance(value, (list, tuple)):
        return ()
    return (len(value), *(_axes(value[0]) if value else ()))


def _is_rows(value: Any, count: int) -> bool:
    """True for numbers or words that could be labels of `count` images, whichever axis these lie on."""
    axes = _axes(value)
    return len(axes) < 4 and count in axes and 0 not in axes


def _is_whole(value: Any) -> bool:
    """True for what is one part: all but dicts, and lists with something larger than rows of numbers in them."""
    if isinstance(value, (list, tuple)):
        rows = all(part.ndim < 2 if isinstance(part, Tensor) else _is_whole(part) for part in value)
        return rows or _is_images(value)
    return not isinstance(value, dict)


def _parts(content: Any, prefix: str = "") -> dict[str, Any]:
    """What dicts and lists in one another hold, by names such as `data.0`; lists of images or of numbers stay whole."""
    if _is_whole(content):
        return {} if content is None else {prefix.rstrip("."): content}
    inside = content.items() if isinstance(content, dict) else enumerate(content)
    return {name: part for key, value in inside for name, part in _parts(value, f"{prefix}{key}.").items()}


def _is_other(name: str, value: Any, sizes: tuple[int, ...]) -> bool:
    """True where name and shape say that something is neither images nor labels that could be meant.

    Args:
        name: Of the part.
        value: Its content.
        sizes: Of an image: (C, H, W), or (H, W, C).
    """
    words, numbers = name.split("."), math.prod(_axes(value))
    if any(word in OTHER for word in words):
        return True
    if words[-1] == "lr":
        return numbers == 1
    whole = math.prod(sizes)
    channels = {1, *sizes[:1], *(size for size in sizes[-1:] if size in (1, 3))}
    shapes = {whole} if words[-1].startswith("zca_") else channels
    return words[-1] in STATISTICS and numbers in ({whole**2} if words[-1] == "zca_vectors" else shapes)


def _asked_for(parts: dict[str, Any], key: str, flag: str, path: Path) -> str:
    if key not in parts:
        raise ValueError(f"{path} has no {key!r}, which {flag} names; it holds {', '.join(parts)[:200]}")
    return key


def _images_in(path: Path, parts: dict[str, Any], key: str | None) -> str:
    """The name of the images among `parts`."""
    if key is not None:
        value = parts[_asked_for(parts, key, "--images_key", path)]
        if not _is_images(value):
            what = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{key!r} in {path} is no images ({what}); expected (N, C, H, W), floats or uint8")
        return key
    names = [
        name
        for name, value in parts.items()
        if (_is_images(value) and name.split(".")[-1] not in STATISTICS)
        or (name.split(".")[-1] == "images" and isinstance(value, Tensor) and value.ndim)
    ]
    if "images" in names:  # as pixels, beside what was optimised
        names = [name for name in names if name != "pixel_values"]
    if not names:
        kind = f"keys {', '.join(parts)[:100]}" if parts else "nothing"
        raise ValueError(
            f"{path} holds {kind}; expected a tensor of images, [images, labels], {{'data': [[images, labels], ...]}} "
            "or {'images': ..., 'labels': ...}"
        )
    if len(names) > 1:
        raise ValueError(
            f"{path} holds {len(names)} tensors of images ({', '.join(names)[:150]}); name the one to import with "
            "--images_key"
        )
    return names[0]


def _labels_in(
    path: Path, parts: dict[str, Any], shape: tuple[int, ...], key: str | None, images: str | None
) -> str | None:
    """The name of the labels of images of `shape` among `parts`; those that only could be are asked about."""
    if key == NONE:
        return None
    if key is not None:
        return _asked_for(parts, key, "--labels_key", path)
    count, within = shape[0], "" if images is None else images.rpartition(".")[0]
    own = set() if images is None else {images, f"{within}.soft_labels" if within else "soft_labels"}
    names = [name for name, value in parts.items() if name not in own and not _is_other(name, value, shape[1:])]
    second = f"{images[:-1]}1" if images is not None and images.split(".")[-1] == "0" else None
    if second is not None and f"{images[:-1]}2" in parts:
        second = None  # no pair
    known = [name for name in names if name == second or name.split(".")[-1].lower() in LABELS]
    both = known + [name for name in names if name not in known and _is_rows(parts[name], count)]
    if len(both) > 1 or both != known:
        raise ValueError(
            f"{path} holds {' and '.join(both)[:150]} for {count} images, beside them: say which are the labels with "
            f"--labels_key {both[0]}, or --labels_key {NONE} where {'neither is' if len(both) > 1 else 'it is not'}"
        )
    return known[0] if known else None


def read_images(
    path: Path, labels: Path | None, experiment: int, images_key: str | None, labels_key: str | None
) -> StoredImages:
    """The images in `path` and their labels, which are in it, in `labels` or beside it; as `import_images` says.

    Raises:
        ValueError: A file cannot be read, holds neither, or more than one that could be meant.
    """
    if path.is_dir():
        path = _find_images(path)
    content = _load(path)
    inner = content["data"] if isinstance(content, dict) and isinstance(content.get("data"), (list, tuple)) else content
    own_key = labels_key if labels is None else NONE
    if isinstance(content, Tensor):
        read = _read_tensor(path, content, own_key)
    elif images_key is None and isinstance(inner, (list, tuple)) and len(inner) and all(map(_is_pair, inner)):
        read = _read_experiments(path, content, experiment, own_key)
    else:
        read = _read_parts(path, content, images_key, own_key)
    shape = _shape(read.images)
    if labels is not None:
        within = _parts(_load(labels))
        name = "" if list(within) == [""] else _labels_in(labels, within, shape, labels_key, None)
        if name is None:
            raise ValueError(f"{labels} holds {', '.join(within)[:100]}; name the labels in it with --labels_key")
        read.labels, read.soft_labels = within[name], None
        read.files = [*read.files[:1], labels]
    elif read.labels is None and read.soft_labels is None and labels_key is None:
        _ask_for_labels_beside(path, shape)
    if read.labels is not None:
        read.labels = _as_labels(read.labels, path)
    return read


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and _is_images(value[0]) and not _is_images(value)


def _as_labels(labels: Any, path: Path) -> Tensor:
    found = numbers_in(labels) if isinstance(labels, (list, tuple, Tensor)) else None
    if found is None:
        kind = f"{type(labels).__name__}{' of no numbers' if isinstance(labels, (list, tuple)) else ''}"
        raise ValueError(f"the labels of {path} are a {kind}; expected a tensor (N,) or (N, K)")
    return found if found.is_floating_point() else found.long()


def _read_tensor(path: Path, images: Tensor, labels_key: str | None) -> StoredImages:
    read = StoredImages(images, None, "tensor", [path])
    if labels_key not in (None, NONE):
        raise ValueError(
            f"{path} is a tensor, and --labels_key is {labels_key}; give the file of its labels as --labels"
        )
    if not path.stem.startswith("images"):
        return read
    step = path.stem.removeprefix("images").removeprefix("_zca")
    if path.stem.startswith("images_zca"):
        read.space = "pixels"
    for name in ("labels", "lr"):
        beside = path.with_name(f"{name}{step}.pt")
        if beside.is_file() and not (name == "labels" and labels_key == NONE):
            setattr(read, name, load_pt(beside))
            read.files.append(beside)
    return read


def _ask_for_labels_beside(path: Path, shape: tuple[int, ...]) -> None:
    """Raise a `ValueError` where a file beside images without labels could hold these."""
    most = max(path.stat().st_size, 2**16)  # labels are not larger than their images
    for file in sorted(path.parent.iterdir()):
        if file == path or file.suffix not in FILES or file.stem.startswith(("images", "lr")) or not file.is_file():
            continue
        named = re.search("label|target", file.stem, re.IGNORECASE) is not None
        if file.stat().st_size > most and not named:
            continue
        try:
            parts = _parts(_load(file))
        except ValueError:
            if named:
                raise
            continue  # another program's
        if any(map(_is_images, parts.values())):
            continue
        if any(_is_rows(part, shape[0]) and not _is_other(name, part, shape[1:]) for name, part in parts.items()):
            raise ValueError(
                f"{path} has no labels, and {file.name} beside it holds a row for each of {shape[0]} images: give "
                f"--labels {file}, or --labels_key {NONE} where these are no labels"
            )


def _read_experiments(path: Path, content: Any, experiment: int, labels_key: str | None) -> StoredImages:
    """One of the pairs in a list of such, which may be the `data` of a dict; what lies beside them could be labels."""
    data, parts, within = content, {}, ""
    if isinstance(content, dict):
        data, within = content["data"], "data."
        parts = _parts({name: value for name, value in content.items() if name != "data"})
    if not 0 <= experiment < len(data):
        raise ValueError(f"{path} holds {len(data)} experiments; --experiment is {experiment}, counted from 0")
    if len(data) > 1:
        logger.info("%s holds %d experiments: reading number %d", path, len(data), experiment)
    name = f"{within}{experiment}.0"
    images, labels = data[experiment]
    parts = {f"{within}{experiment}.1": labels, **parts}
    label = _labels_in(path, parts, _shape(images), labels_key, name)
    return StoredImages(
        images, None if label is None else parts[label], f"experiments, number {experiment} of {len(data)}", [path]
    )


def _read_parts(path: Path, content: Any, images_key: str | None, labels_key: str | None) -> StoredImages:
    parts = _parts(content)
    name = _images_in(path, parts, images_key)
    label = _labels_in(path, parts, _shape(parts[name]), labels_key, name)
    within = name.rpartition(".")[0]
    beside = {key: parts.get(f"{within}.{key}" if within else key) for key in ("lr", "soft_labels", "class_names")}
    read = StoredImages(parts[name], None if label is None else parts[label], "dict", [path], lr=beside["lr"])
    if isinstance(content, (list, tuple)) or name.split(".")[-1] == "0":
        read.layout = "pair"
    names, soft = beside["class_names"], beside["soft_labels"]
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"the class_names of {path} are no list of words")
    if soft is not None and not isinstance(soft, Tensor):
        raise ValueError(f"the soft_labels of {path} are a {type(soft).__name__}; expected a tensor (N, K)")
    read.class_names, read.soft_labels = names, soft
    statistics = parts.get("mean"), parts.get("std")
    if all(isinstance(value, Tensor) for value in statistics):
        read.mean, read.std = statistics
    if name == "images" and isinstance(parts.get("pixel_values"), Tensor) and read.mean is not None:
        # The pixels beside them are clamped, these are what was optimised.
        read.images, read.space, read.layout = parts["pixel_values"], "network", "export_pt"
        read.whitening = {name: value for name, value in parts.items() if name.startswith("zca_")}
    return read
