"""`Source`: one split of a dataset, found and checked, with every mistake told in one line.

Which column holds the images and which the labels, which classes there are and which rows belong to them, where the
data come from; then the pixels, out of the cache of `datasets` when they have been decoded before.
"""

import difflib
import hashlib
import json
import logging
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from datasets.builder import DatasetBuilder
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.table import ConcatenationTable, MemoryMappedTable
from huggingface_hub import HfApi, metadata_load

# The HTTP library that the Hub client uses has changed its name; its error is always found here.
from huggingface_hub.errors import HTTPError
from torch import Tensor

from ..config import DataArguments
from ..hub.files import is_full, locked, naming
from .digits import digits_folder
from .files import (
    IMAGES,
    PATTERN,
    beside_their_table,
    cache_folder,
    content_revision,
    files_in,
    lists_of_images,
    regrouped,
    unread,
)
from .kept import Encoded, named, refusal, sound_rows
from .pixels import NAMED, STREAMED, BadImages, Levels, NoImages, Pixels, Sums, Target, decode_stream, rows_in_chunk

__all__ = ["Source", "check_head", "folder_revision", "one_process_at_a_time", "split_names"]

logger = logging.getLogger(__name__)

NOT_TOLD = ("dataset_name", "dataset_streaming", "num_proc")

HEAD = 100  # rows of a stream that are looked at before it is read

DOWNLOADED = re.compile(r"hf://datasets/([^@]+)@([^/]+)/(.*)")  # repository, commit and path

LABEL_NAMES = ("label", "labels", "class", "class_id", "cls", "target")
MOST_CLASSES = 10  # of a column that nothing calls a label, or a fifth of the rows


@dataclass
class Source:
    """One split, opened but not decoded (streamed: decoded already), and the rows of it that are wanted.

    Attributes:
        name: What messages and cards call the dataset.
        rows: (N,) int64, the rows of `data` that have a wanted class, ascending.
        labels: (N,) int64, their classes.
        provenance: name, config, split, revision, license, gated, homepage, num_images; num_corrupt of those that were
            left out.
        streamed: `data` holds pixels already.
    """

    args: DataArguments
    name: str
    split: str
    data: Dataset
    image_column: str
    target: Target
    rows: Tensor
    labels: Tensor
    class_names: list[str]
    provenance: dict[str, Any]
    streamed: bool

    @property
    def where(self) -> str:
        """The split and the dataset, for messages."""
        return _where(self.split, self.name)

    @classmethod
    def open(
        cls,
        args: DataArguments,
        split: str,
        target: Target,
        class_names: list[str] | None = None,
        revision: str | None = None,
        called: Callable[[list[str]], list[str]] | None = None,
    ) -> "Source":
        """Find the split, its columns and its classes.

        Args:
            args: What to read.
            split: Which split.
            target: What images are to become.
            class_names: Classes that are already numbered: labels are mapped to them by name.
            revision: What `folder_revision` says of a local folder, where it was asked already.
            called: Gives for the classes that have images here the names that `class_names` have for them.

        Raises:
            ValueError: One line on what is wrong, what was expected and what to do.
        """
        # Reading needs no lock, and a long list of files must not make processes wait in a row.
        revision = revision or folder_revision(args)
        with one_process_at_a_time(args):
            name, data = _name(args), _open_split(args, split, tell=split == args.dataset_train_split)
            provenance = _provenance(args, split, data, revision)
            return cls._of(args, name, split, data, provenance, target, class_names, called)

    @classmethod
    def in_hand(
        cls, args: DataArguments, data: Dataset, split: str, target: Target, class_names: list[str] | None = None
    ) -> "Source":
        """The same for a dataset that is loaded already, or was never saved; of `args` only what to make of it counts.

        Its provenance names the repository and commit that it was downloaded from; without one, the revision is None.

        Raises:
            ValueError: As `open`.
        """
        repository, commit = _downloaded_from(data)
        named = replace(args, dataset_name=repository or data.info.dataset_name or "dataset", dataset_revision=commit)
        if not len(data):
            raise ValueError(_empty(_where(split, str(named.dataset_name))))
        provenance = _provenance(named, split, data, None) if repository else _told(named, split, data)
        if commit is None:
            provenance["revision"] = None  # it is not what the repository holds
        return cls._of(named, str(named.dataset_name), split, data, provenance, target, class_names)

    @classmethod
    def _of(
        cls,
        args: DataArguments,
        name: str,
        split: str,
        data: Dataset | IterableDataset,
        provenance: dict[str, Any],
        target: Target,
        class_names: list[str] | None,
        called: Callable[[list[str]], list[str]] | None = None,
    ) -> "Source":
        """Find columns and classes of a split."""
        features = data.features
        image_column, label_column = _columns(args, features, name)
        label_feature = features[label_column]
        data = data.select_columns([image_column, label_column])
        if not isinstance(features[image_column], datasets.Image):
            data = data.cast_column(image_column, datasets.Image())
        streamed = isinstance(data, IterableDataset)
        if streamed:
            data = _stream(args, split, target, provenance, (image_column, label_column), label_feature)
        where = _where(split, name)
        column = data.select_columns(["label" if streamed else label_column]).with_format("arrow")[:].column(0)
        numbers = data.with_format("numpy")["row"][:] if streamed else None
        codes, names = _codes(column, label_feature, where, check_none=args.classes is None, rows=numbers)
        if called is not None:
            used = np.unique(codes).tolist()
            known = dict(zip(used, called([names[code] for code in used]), strict=True))
            names = [known.get(code, name) for code, name in enumerate(names)]
        guess = label_column if _is_guess(args, label_feature, label_column) else None
        if guess is not None and class_names is None:
            _check_guess(column, guess, where)
        rows, labels, class_names = _order_classes(codes, names, args.classes, class_names, where, guess)
        provenance = {**provenance, "num_images": len(data)}
        parts = (rows, labels, class_names, provenance, streamed)
        return cls(args, name, split, data, image_column, target, *parts)

    def decode(self, chosen: Tensor, *, on_demand: bool = False) -> tuple[Pixels, Tensor, Encoded | None, Tensor]:
        """The pixels of `rows[chosen]`, decoded now or found in the cache, and where in them each of these is.

        With `on_demand` they are decoded whenever they are asked for, but those of a stream, or of more than 8 bits.

        With them what they were decoded from, in the same order (None of a stream, which is read once), and `chosen`
        without the images that `--skip_corrupt` leaves out, whose number the provenance takes down.

        Raises:
            ValueError: An image cannot be used; it is named by row and split.
        """
        encoded = None if self.streamed else self._encoded(chosen)
        if encoded is not None and on_demand and not encoded.deep():
            return encoded.on_demand(self.target), torch.arange(len(chosen)), encoded, chosen
        if encoded is not None:
            pixels, sound = encoded.framed(self.target)
            positions = sound
        else:
            table, rows = self.data.data, self.rows[chosen]
            found = Levels.among(table), Sums(self.data)
            pixels = Pixels(table.column("pixels"), self.shape(chosen), self.target.resize, *found)
            chosen_rows = pa.array(rows.numpy())
            about = pa.table({name: table[name].take(chosen_rows) for name in ("problem", "hint", "row")})
            split_rows = torch.tensor(about["row"].to_pylist())
            sound = sound_rows(about, split_rows, self.where, skip=self.args.skip_corrupt)
            positions = rows[sound]
        if len(sound) < len(chosen):
            self.provenance["num_corrupt"] = len(chosen) - len(sound)
        return pixels, positions, encoded, chosen[sound]

    def shape(self, chosen: Tensor) -> tuple[int, int, int]:
        """(C, H, W) of the pixels of `rows[chosen]`, by the headers of up to 1,000 of these images.

        Raises:
            ValueError: One of these is of a size that cannot be used.
        """
        if not self.streamed:
            return self._encoded(chosen).plan(self.target).shape
        first = self.data.with_format(None)[0]
        height, width = first["height"], first["width"]
        return len(first["pixels"]) // (height * width), height, width

    def _encoded(self, chosen: Tensor) -> Encoded:
        rows, images = self.rows[chosen], self.data.select_columns([self.image_column])
        if len(rows) < len(images):
            images = images.select(rows.numpy())
        lock = partial(one_process_at_a_time, self.args)
        how = (lock, self.args.num_proc, self.args.skip_corrupt)
        return Encoded(images.with_format("arrow"), rows, self.where, self.split, *how)


@contextmanager
def one_process_at_a_time(args: DataArguments) -> Iterator[Path]:
    """The folder of the cache, under a lock: of processes that start together one works, the others find what it left.

    Not a barrier: that would end the job when decoding takes longer than its timeout, and hang when one process fails.
    """
    what = json.dumps([args.dataset_name, args.dataset_config, args.dataset_revision])
    folder = cache_folder()
    with locked(folder / f"hf_distill-{hashlib.sha256(what.encode()).hexdigest()[:16]}.lock"):
        yield folder


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(given, list(known), n=3, cutoff=0.5)
    return f" (nearest: {', '.join(map(repr, nearest))})" if nearest else ""


def _where(split: str, name: str) -> str:
    return f"split {split!r} of {name}"


def _name(args: DataArguments) -> str:
    """The name of the dataset in messages and on cards: of a folder its last part, since paths are private."""
    if args.dataset_name is None:
        return "digits"
    folder = Path(args.dataset_name).expanduser()
    return folder.resolve().name if folder.is_dir() else args.dataset_name


def split_names(args: DataArguments) -> list[str]:
    """The splits of the dataset."""
    with one_process_at_a_time(args):
        return list(_load(args)[0])


def _open_split(args: DataArguments, split: str, *, tell: bool = False) -> Dataset | IterableDataset:
    """One split; a `ValueError` of one line where there is none of this name, or nothing in it."""
    splits, read = _load(args, tell=tell)
    if split not in splits:
        raise ValueError(
            f"split {split!r} is not in {_name(args)}, which has {', '.join(splits)}{_did_you_mean(split, splits)}; "
            "choose with --dataset_train_split and --dataset_test_split"
        )
    if splits[split] == 0:
        raise ValueError(_empty(_where(split, _name(args))))
    return read(split)


def _with_features(stream: IterableDataset) -> IterableDataset:
    """A stream that knows its columns, by its first rows where nothing else tells, as of a table of texts."""
    return stream if stream.features else stream._resolve_features()


def check_head(args: DataArguments, split: str) -> None:
    """Raise what the columns and the first labels of a streamed split tell, before an image is decoded.

    Raises:
        ValueError: As `Source.open`.
    """
    data, name = _open_split(args, split), _name(args)
    features = data.features
    _, column = _columns(args, features, name)
    try:
        labels = [example[column] for example in data.select_columns([column]).take(HEAD)]
    except KeyError as error:
        raise ValueError(_unlabelled(_where(split, name))) from error
    if not labels:
        raise ValueError(_empty(_where(split, name)))
    feature = features[column]
    stored = Value("int64") if isinstance(feature, ClassLabel) else feature
    values = pa.chunked_array([pa.array(labels, stored.pa_type)])
    if _is_guess(args, feature, column) and split == args.dataset_train_split:
        _check_guess(values, column, _where(split, name), whole=len(labels) < HEAD)
    _codes(values, feature, _where(split, name), check_none=args.classes is None)


def _load(
    args: DataArguments, *, tell: bool = False
) -> tuple[dict[str, int | None], Callable[[str], Dataset | IterableDataset]]:
    """The splits with their number of rows where it is known, and what reads one of them.

    With `tell` it warns of local files and images that are in none.

    Raises:
        ValueError: There is no such dataset, it needs a configuration, or it cannot be read or reached.
    """
    name = str(digits_folder()) if args.dataset_name is None else args.dataset_name
    folder = Path(name).expanduser()
    if folder.is_dir():
        name = str(folder.resolve())
    elif folder.exists():
        raise ValueError(f"--dataset_name {name} is a file; expected a dataset folder or the name of a Hub dataset")
    elif name.startswith((".", "~", "/")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name):
        beside = [str(entry) for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ValueError(
            f"--dataset_name {name}: there is no such folder{_did_you_mean(str(folder), beside)}; "
            "expected a folder that `load_dataset` reads, or the name of a Hub dataset"
        )
    if folder.is_dir() and any(character in name for character in PATTERN):
        raise ValueError(
            f"--dataset_name {name}: `load_dataset` takes {PATTERN} in a path for a pattern and finds nothing there; "
            "rename the folder, or give a link to it"
        )
    try:
        # Not `load_dataset`, which refuses all splits when one is empty.
        where = {"revision": args.dataset_revision, "cache_dir": str(_cache_for(folder))}
        builder = datasets.load_dataset_builder(name, args.dataset_config, **where)
        if folder.is_dir():
            builder, left = _reading_all(builder, Path(name), args.image_column_name, tell=tell)
            if left is not None and tell:
                logger.warning("%s: %s", folder.name, left)
        elif tell:
            _say_unread(name, builder)
        found = partial(_with_found_images, args, builder)
        if args.dataset_streaming:
            if tell:
                _say_rows_uncounted(builder)
            streams = builder.as_streaming_dataset()
            return dict.fromkeys(streams), lambda split: found(_with_features(streams[split]))
        builder.download_and_prepare()
        if tell:
            _say_rows_left_out(builder)
        splits = {split: info.num_examples for split, info in builder.info.splits.items()}
        return splits, lambda split: found(builder.as_dataset(split))
    except DatasetNotFoundError as error:
        raise ValueError(
            f"--dataset_name {name}: no such folder here, and no such dataset that this account can read on the Hub; "
            f"check the name, or log in with `hf auth login` ({_one_line(error)})"
        ) from error
    except (ConnectionError, HTTPError) as error:
        raise ValueError(
            f"--dataset_name {name}: there is no such folder here, and the Hub cannot be reached; connect, unset "
            f"HF_HUB_OFFLINE, or give a local folder ({_one_line(error)})"
        ) from error
    except (DatasetsError, OSError, ValueError, LookupError, RuntimeError, pa.ArrowException) as error:  # of odd files
        inner = error.__cause__ or error
        if isinstance(inner, OSError) and is_full(inner):
            with naming(cache_folder()):
                raise inner from error
        cause = f": {_one_line(error.__cause__)}" if error.__cause__ is not None else ""
        raise ValueError(
            f"--dataset_name {name} cannot be loaded; fix it, or choose with --dataset_config and --dataset_revision "
            f"({_one_line(error)}{cause})"
        ) from error


def _says_its_files(folder: Path) -> bool:
    """True where the card in a folder says which files are read."""
    return bool(_card(folder).get("configs"))


def _card(folder: Path) -> dict[str, Any]:
    """The metadata of the card in a folder, empty where there is none; a `ValueError` for what is no YAML."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        return metadata_load(path) or {}
    except yaml.YAMLError as error:
        raise ValueError(
            f"the metadata on top of {path} are no YAML ({_one_line(error)}); mend or remove them"
        ) from error


def _cache_for(folder: Path) -> Path:
    """The cache; one of its own for what is in files that a card names, which `datasets` would know by their names."""
    if not (folder.is_dir() and _says_its_files(folder)):
        return cache_folder()
    return cache_folder() / f"hf_distill-{content_revision(folder).replace(':', '-')}"


def _reading_all(
    builder: DatasetBuilder, folder: Path, image_column: str | None, *, tell: bool
) -> tuple[DatasetBuilder, str | None]:
    """What reads all images of a local dataset, where the loader would take class folders for splits, or the tables
    whose `image_column` names them; and in words what it leaves out. With `tell` it warns of classes in several places.

    Raises:
        ValueError: A file is in two splits.
    """
    if builder.config.data_files is None or _says_its_files(folder):
        return builder, None  # what its author wrote
    files, read = files_in(folder), _relative(builder, folder)
    by_table = image_column not in (None, "image")
    whole = None
    if isinstance(builder, ImageFolder):
        whole = lists_of_images(folder, files) if by_table else regrouped(folder, files, read)
    if whole is not None:
        builder = datasets.load_dataset_builder(str(folder), data_files=whole, cache_dir=str(cache_folder()))
        read = _relative(builder, folder)
    if isinstance(builder, ImageFolder) and tell:
        _say_merged(read)
    if by_table and not isinstance(builder, ImageFolder):
        files = [path for path in files if Path(path).suffix.lower() not in IMAGES]  # the tables say which are read
    return builder, unread(files, read)


def _with_found_images(
    args: DataArguments, builder: DatasetBuilder, data: Dataset | IterableDataset
) -> Dataset | IterableDataset:
    """The same with images in place of the paths that the user calls images, relative to the table they stand in."""
    column, root = args.image_column_name, _folder(args).resolve()
    if column is None or not root.is_dir():
        return data
    features = data.features
    feature = features.get(column)
    if not (isinstance(feature, Value) and feature.dtype in ("string", "large_string")):
        return data
    tables = {str(Path(path).parent) for paths in builder.config.data_files.values() for path in paths}
    how = {"column": column, "folders": sorted(tables), "root": str(root), "content": content_revision(root)}
    features = Features({**features, column: datasets.Image()})
    return data.map(beside_their_table, batched=True, input_columns=[column], fn_kwargs=how, features=features)


def _say_merged(read: dict[str, list[str]]) -> None:
    """Warn where folders of one name in several places become one class, as the loader has it."""
    if any(Path(path).name in ImageFolder.METADATA_FILENAMES for paths in read.values() for path in paths):
        return
    for split, paths in read.items():
        places: dict[str, list[str]] = {}
        for parent in sorted({Path(path).parent for path in paths if Path(path).suffix.lower() in IMAGES}):
            places.setdefault(parent.name, []).append(parent.as_posix())
        several = [f"{name!r} of {_some(those)}" for name, those in places.items() if len(those) > 1]
        if several:
            logger.warning(
                "split %r: a class is called by the innermost folder, so one is made of several: %s",
                split,
                "; ".join(several[:NAMED]) + ("; ..." if len(several) > NAMED else ""),
            )


def _say_unread(name: str, builder: DatasetBuilder) -> None:
    """Warn of data files of a Hub dataset that are in no split, unless its author says which files are.

    Raises:
        ValueError: A file is in two splits.
    """
    found = {
        str(split): [match for match in map(DOWNLOADED.match, paths) if match]
        for split, paths in (builder.config.data_files or {}).items()
    }
    commits = {match[2] for matches in found.values() for match in matches}
    if len(commits) != 1:
        return
    try:
        info = HfApi().dataset_info(name, revision=commits.pop())
    except (OSError, HTTPError):  # which the provenance says
        return
    files = [file.rfilename for file in info.siblings or []]
    told = unread(files, {split: [match[3] for match in matches] for split, matches in found.items()})
    if told is not None and not (info.card_data or {}).get("configs"):
        logger.warning("%s: %s", name, told)


def _say_rows_uncounted(builder: DatasetBuilder) -> None:
    """Warn where a `metadata` file of a stream may leave images out, which nobody has counted."""
    names = {Path(path).name for paths in (builder.config.data_files or {}).values() for path in paths}
    if isinstance(builder, ImageFolder) and names & set(ImageFolder.METADATA_FILENAMES):
        logger.warning("image files that a metadata file does not name are left out, and a stream does not count them")


def _say_rows_left_out(builder: DatasetBuilder) -> None:
    """Warn of image files that no row of a `metadata` file beside them names."""
    if not isinstance(builder, ImageFolder):
        return
    for split, info in builder.info.splits.items():
        paths = [Path(path) for path in builder.config.data_files[split]]
        images = sum(path.suffix.lower() in IMAGES for path in paths)
        if info.num_examples < images and not any(path.suffix == ".zip" for path in paths):
            logger.warning(
                "split %r has %s rows and %s image files; those that its metadata file does not name are left out",
                *(str(split), f"{info.num_examples:,}", f"{images:,}"),
            )


def _relative(builder: DatasetBuilder, folder: Path) -> dict[str, list[str]]:
    """The files of each split, relative to the folder."""
    splits = builder.config.data_files.items()
    return {str(split): [Path(path).relative_to(folder).as_posix() for path in paths] for split, paths in splits}


def _stream(
    args: DataArguments,
    split: str,
    target: Target,
    provenance: dict[str, Any],
    columns: tuple[str, str],
    label: Any,
) -> Dataset:
    """The whole split in one pass, as the columns of `decode_stream` on disk; cached by what was asked.

    With `--classes` the images of other classes are neither decoded nor kept.
    """
    source = DataArguments(
        dataset_name=args.dataset_name,
        dataset_config=args.dataset_config,
        dataset_revision=args.dataset_revision,
        dataset_streaming=True,
        image_column_name=args.image_column_name,
    )
    # All of this is the key of the cache, and the revision stands for the data.
    kwargs = {
        "source": source,
        "revision": provenance["revision"],
        "split": split,
        "columns": columns,
        "classes": None if args.classes is None else tuple(args.classes),
        "target": target,
    }
    stored = Value("int64") if isinstance(label, ClassLabel) else label
    features = {"label": stored, **STREAMED}
    at_once = 1000 if target.size is None else rows_in_chunk((3, *target.size))
    try:
        return Dataset.from_generator(
            _stream_rows,
            features=Features(features),
            cache_dir=str(cache_folder()),
            gen_kwargs=kwargs,
            writer_batch_size=at_once,
        )
    except DatasetsError as error:
        if isinstance(error.__cause__, BadImages):
            raise ValueError(refusal(error.__cause__.problems, _where(split, _name(args)))) from error
        if isinstance(error.__cause__, NoImages):
            where = _where(split, _name(args))
            raise ValueError(_empty(where) if args.classes is None else _none_of(args.classes, where)) from error
        if isinstance(error.__cause__, KeyError):
            raise ValueError(_unlabelled(_where(split, _name(args)))) from error
        cause = error.__cause__ or error
        raise ValueError(f"{_where(split, _name(args))} cannot be streamed: {_one_line(cause)}") from error


def _stream_rows(
    source: DataArguments,
    revision: str | None,
    split: str,
    columns: tuple[str, str],
    classes: tuple[str, ...] | None,
    target: Target,
) -> Iterator[dict[str, Any]]:
    """The rows that `_stream` keeps, one by one; `revision` only names the cache."""
    data = _load(source)[1](split)
    features = data.features
    image_column, label_column = columns
    feature, label_feature = features[image_column], features[label_column]
    # Without `decode` a cast comes after the decoding of what is read over the network.
    encoded = data.decode(False).select_columns(list(columns)).cast_column(image_column, datasets.Image(decode=False))

    def chosen() -> Iterator[tuple[int, Any, dict[str, Any] | None]]:
        for row, example in enumerate(encoded):
            label = example[label_column]
            if classes is not None:
                coded = isinstance(label_feature, ClassLabel)
                unknown = label is None or (coded and not 0 <= label < label_feature.num_classes)
                # What is no label is kept to be refused with the others.
                if not unknown and str(label_feature.names[label] if coded else label) not in classes:
                    continue
            yield row, label, example[image_column]

    yield from decode_stream(chosen(), feature if isinstance(feature, datasets.Image) else datasets.Image(), target)


def _columns(args: DataArguments, features: Features, name: str) -> tuple[str, str]:
    """The columns of the images and of the labels; a `ValueError` says what is wrong with either."""
    problems, image = [], ""
    try:
        image = _image_column(args, features, name)
    except ValueError as error:
        problems.append(str(error))
    try:
        label = _label_column(args, features, name, image)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return image, label


def _image_column(args: DataArguments, features: Features, name: str) -> str:
    """The column that `--image_column_name` names, or the one that holds images."""
    images = [column for column, feature in features.items() if _holds_images(feature)]
    given = args.image_column_name
    if given is not None:
        _check_column(given, features, name, "image", images)
        feature = features[given]
        castable = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary", "string", "large_string")
        if not (_holds_images(feature) or castable):
            raise ValueError(
                f"--image_column_name {given}: that column of {name} holds {feature}; expected images{_such_as(images)}"
            )
        return given
    return _the_one(images, features, name, "image")


def _holds_images(feature: Any) -> bool:
    """Images, or what they look like in a parquet file that was written without `datasets`."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _label_column(args: DataArguments, features: Features, name: str, image_column: str) -> str:
    """The column that `--label_column_name` names; or the one ClassLabel; or the one of integers, strings or bools."""
    plain = [column for column, feature in features.items() if column != image_column and _holds_labels(feature)]
    labels = [column for column in plain if not column.startswith("__")]  # not the keys and addresses of WebDataset
    labels = [column for column in labels if isinstance(features[column], ClassLabel)] or labels
    given = args.label_column_name
    if given is not None:
        _check_column(given, features, name, "label", labels)
        if given not in plain:
            raise ValueError(
                f"--label_column_name {given}: that column of {name} holds {features[given]}; expected one ClassLabel, "
                f"integer, string or bool per image{_such_as(plain)}"
            )
        return given
    if len(labels) > 1 and not isinstance(features[labels[0]], ClassLabel):
        # Beside ids and file names, a column that is called label is the label.
        labels = [column for column in labels if column.lower() in LABEL_NAMES] or labels
    return _the_one(labels, features, name, "label")


def _is_guess(args: DataArguments, feature: Any, column: str) -> bool:
    """True where neither the user, nor the column's type or name says that it is the label."""
    said = args.label_column_name is not None or args.classes is not None or column.lower() in LABEL_NAMES
    return not (said or isinstance(feature, ClassLabel))


def _check_guess(column: pa.ChunkedArray, label_column: str, where: str, *, whole: bool = True) -> None:
    """Raise a `ValueError` that asks for the label where a column looks like ids or sentences: not few values, each
    several times.

    Args:
        column: Its values; of a stream that is not read yet (not `whole`), the first.
    """
    counts = sorted(pc.value_counts(column).field("counts").to_pylist())
    few = len(counts) <= max(MOST_CLASSES, len(column) // 5) and counts[0] > 1
    if few or (not whole and counts[-1] > 1) or len(column) < 2:
        return
    raise ValueError(
        f"{where} has one column that could be the label, {label_column!r}, and it looks like none: {len(counts):,} "
        f"values in {len(column):,} rows, {counts.count(1):,} of them once, such as {reprlib.repr(column[0].as_py())}; "
        f"say which is the label with --label_column_name (--label_column_name {label_column} if it is this one)"
    )


def _holds_labels(feature: Any) -> bool:
    if isinstance(feature, ClassLabel):
        return True
    return isinstance(feature, Value) and (
        feature.dtype.startswith(("int", "uint")) or feature.dtype in ("bool", "string", "large_string")
    )


def _such_as(columns: list[str]) -> str:
    return f", such as {', '.join(columns)}" if columns else ""


def _check_column(given: str, features: Features, name: str, kind: str, candidates: list[str]) -> None:
    if given not in features:
        raise ValueError(
            f"--{kind}_column_name {given}: {name} has no such column{_did_you_mean(given, features)}; expected "
            f"one of {', '.join(candidates or features)}"
        )


def _the_one(candidates: list[str], features: Features, name: str, kind: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    columns = f"{len(candidates)} columns that could be the {kind}: {', '.join(candidates)}"
    if not candidates:
        columns = f"no {kind} column among {', '.join(features)}"
    raise ValueError(f"{name} has {columns}; expected one: choose it with --{kind}_column_name")


def _codes(
    column: pa.ChunkedArray, feature: Any, where: str, *, check_none: bool, rows: np.ndarray | None = None
) -> tuple[np.ndarray, list[str]]:
    """(N,) codes, and the class name of each code: a ClassLabel's own, else the sorted values as strings.

    Raises:
        ValueError: Some have no label, or one that cannot be; it names up to ten, by `rows` (the places, if not given).
    """
    wrong = column.is_null().to_numpy()
    if isinstance(feature, ClassLabel):
        codes, values, names = column.fill_null(-1).to_numpy().astype(np.int64), None, list(feature.names)
        wrong = wrong | (codes < 0) | (codes >= len(names))
        expected = f"0 to {len(names) - 1}: leave such rows out, or choose a split that has labels with "
        expected += "--dataset_train_split and --dataset_test_split"
    else:
        encoded = column.combine_chunks().dictionary_encode()
        codes, values = encoded.indices.fill_null(-1).to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
        # -1 and blanks say "no label" more often than they name a class; who means a class by them can say so.
        none = [check_none and (not value.strip() if isinstance(value, str) else value < 0) for value in values]
        wrong = wrong | np.array([*none, False])[codes]
        order = sorted(range(len(values)), key=values.__getitem__)
        names, rank = [str(values[place]) for place in order], np.empty(len(values) + 1, np.int64)
        rank[order] = np.arange(len(values))
        expected = "0 or more" if pa.types.is_integer(column.type) else "a text"
        expected += ": leave such rows out, choose another split, or name the classes with --classes"
    bad = np.flatnonzero(wrong)
    if len(bad):
        labels = [column[place].as_py() for place in bad.tolist()]
        told = ["no label" if label is None else f"label {label!r}" for label in labels]
        numbers = (bad if rows is None else rows[bad]).tolist()
        raise ValueError(f"{named(list(zip(numbers, told, strict=True)), where)}; expected {expected}")
    return (codes if values is None else rank[codes]), names


def _empty(where: str) -> str:
    return f"{where} is empty; expected images: choose another split, or fill it"


def _unlabelled(where: str) -> str:
    return f"{where} has images without a label, such as those of a folder that is no class; put them in class folders"


def _none_of(classes: Sequence[str], where: str) -> str:
    return f"{where} has no image of the classes {_some(classes)}; choose another split or other classes"


def _order_classes(
    codes: np.ndarray,
    names: list[str],
    classes: list[str] | None,
    numbered: list[str] | None,
    where: str,
    guess: str | None,
) -> tuple[Tensor, Tensor, list[str]]:
    """Rows to keep, their labels, and the class names: the `numbered`, else `classes` in their order, else all.

    `guess` is the column that was taken for the label, if nothing but its values say so.
    """
    if numbered is not None:
        order = numbered
    else:
        order = names if classes is None else classes
        known = set(names)
        unknown = [name for name in order if name not in known]
        if unknown:
            raise ValueError(
                f"--classes {_some(unknown)}: {where} has no such class{_did_you_mean(unknown[0], names)}; "
                f"expected some of its {len(names)} classes {_some(names)}"
            )
        if len(set(order)) < len(order):
            raise ValueError(f"--classes {' '.join(order)}: a class is named twice; expected each once")
    place = {name: label for label, name in enumerate(order)}
    labels = np.array([place.get(name, -1) for name in names])[codes]
    strange = np.flatnonzero(labels < 0)
    if numbered is not None and classes is None and len(strange):
        told = [(row, f"class {names[codes[row]]!r}") for row in strange.tolist()]
        told[0] = (told[0][0], f"{told[0][1]}, which train lacks{_did_you_mean(names[codes[told[0][0]]], order)}")
        hint = "" if guess is None else f", or say which column is the label with --label_column_name, if not {guess!r}"
        raise ValueError(
            f"{named(told, where)}; expected the classes of train {_some(order)}: name these with --classes to leave "
            f"the others out{hint}"
        )
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        raise ValueError(_none_of(order, where))
    if len(order) < 2:
        raise ValueError(f"{where} has the one class {order[0]!r}; expected at least two classes to tell apart")
    empty: Sequence[int] | np.ndarray = np.setdiff1d(np.arange(len(order)), labels) if numbered is None else []
    if len(empty):
        those = _some([order[label] for label in empty])
        raise ValueError(
            f"{len(empty)} of {len(order)} classes have no images in {where}: {those}; "
            "expected at least one each: add images, or name the classes to keep with --classes"
        )
    if numbered is None:
        _say_alike(order, where)
    return torch.from_numpy(rows), torch.from_numpy(labels[rows]), list(order)


def _say_alike(names: Sequence[str], where: str) -> None:
    """Warn of classes that may be one: their names differ in nothing but spaces and capitals."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(name.split()).casefold(), []).append(name)
    several = [" and ".join(map(repr, those)) for those in alike.values() if len(those) > 1]
    if several:
        told = "; ".join([*several[:NAMED], *(["..."] if len(several) > NAMED else [])])
        logger.warning(
            "%s: classes differ in spaces and capitals alone: %s; make one of those that are meant as one", where, told
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _downloaded_from(data: Dataset | IterableDataset) -> tuple[str | None, str | None]:
    """The repository that `datasets` read a split from, if it was one, and the commit, if nothing was changed since."""
    # Files are downloaded as hf://datasets/<name>@<commit>/<path>, so the cache knows its commit without a network.
    for url in data.info.download_checksums or {}:
        match = DOWNLOADED.match(url)
        if match:
            return match[1], match[2]
    if not isinstance(data, Dataset):
        return None, None
    # What `load_dataset` read lies in <owner>___<name>/<config>/<version>/<commit>/, and so does what became of it.
    files = [Path(file["filename"]) for file in data.cache_files]
    matches = [re.search(r"/([^/]+)___([^/]+)/[^/]+/[^/]+/([0-9a-f]{40})/[^/]+$", file.as_posix()) for file in files]
    places = {match.groups() for match in matches if match is not None}
    if len(places) != 1 or None in matches:
        return None, None
    ((owner, name, commit),) = places
    whole = (data.info.splits or {}).get(str(data.split))
    blocks = (
        [part for row in data.data.blocks for part in row] if isinstance(data.data, ConcatenationTable) else [data.data]
    )
    mapped = all(isinstance(block, MemoryMappedTable) for block in blocks)  # what was added lies in memory
    changed = whole is None or whole.num_examples != len(data) or any(f.name.startswith("cache-") for f in files)
    changed = changed or not mapped or sum(map(_holds_images, data.features.values())) != 1
    return f"{owner}/{name}", None if changed else commit


def _told(args: DataArguments, split: str, data: Dataset | IterableDataset) -> dict[str, Any]:
    """The provenance, as far as the dataset itself tells it."""
    return {
        "name": _name(args),
        "config": args.dataset_config,
        "split": split,
        "revision": None,
        "license": data.info.license or None,
        "gated": False,
        "homepage": data.info.homepage or None,
        # How to read the same images again. No path: that is of this machine, and `name` says what it can.
        "arguments": {key: value for key, value in asdict(args).items() if key not in NOT_TOLD},
    }


def _provenance(
    args: DataArguments, split: str, data: Dataset | IterableDataset, revision: str | None
) -> dict[str, Any]:
    """The provenance of the images, for cards and caches; `revision` is that of a folder."""
    provenance = _told(args, split, data)
    folder = _folder(args)
    if folder.is_dir():
        provenance["revision"] = revision
        card = _card(folder)
        provenance.update({key: card[key] for key in ("license", "homepage") if card.get(key)})
        return provenance
    provenance["homepage"] = provenance["homepage"] or f"https://huggingface.co/datasets/{args.dataset_name}"
    _, commit = _downloaded_from(data)
    try:
        info = HfApi().dataset_info(args.dataset_name or "", revision=commit or args.dataset_revision)
    except (OSError, HTTPError) as error:
        logger.warning("the licence and gating of %s are unknown: %s", args.dataset_name, _one_line(error))
        provenance["revision"] = commit
        return provenance
    provenance.update(revision=commit or info.sha, gated=info.gated or False)
    card = info.card_data or {}
    if card.get("license"):
        provenance["license"] = card.get("license")
    return provenance


def _folder(args: DataArguments) -> Path:
    return digits_folder() if args.dataset_name is None else Path(args.dataset_name).expanduser()


def folder_revision(args: DataArguments) -> str | None:
    """A hash of what is in the files of a local dataset, the same for a copy elsewhere; None for a Hub dataset."""
    folder = _folder(args)
    return content_revision(folder) if folder.is_dir() else None
