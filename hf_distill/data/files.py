"""The files of a local dataset: which there are, what is in them, and which of them `load_dataset` reads.

What a dataset is, is its content: a copy elsewhere is the same. Hashing takes its time, so the hash of each file is
kept in the cache of `datasets`, by path, size and time of change.
"""

import atexit
import functools
import hashlib
import io
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path, PurePath

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.data_files import SPLIT_KEYWORDS, DataFilesList
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..hub.files import atomic_write, folder_aside, locked, sha256_of_file

__all__ = [
    "IMAGES",
    "PATTERN",
    "beside_their_table",
    "content_revision",
    "files_in",
    "lists_of_images",
    "regrouped",
    "unread",
]

logger = logging.getLogger(__name__)

SETTLED = 2.0  # seconds, after which whatever is written has another time of change, on any disk
PATTERN = "*?["  # what makes a pattern of a path, for `datasets`
IMAGES = frozenset(ImageFolder.EXTENSIONS)
LISTS = frozenset({".csv", ".tsv", ".jsonl"})
TABLES = LISTS | {".parquet", ".arrow", ".tar", ".zip"}
SPLIT_WORDS = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
NAMED = 5  # folders in a message


def files_in(folder: Path) -> list[str]:
    """The files of a folder that are not hidden, relative to it with `/`, sorted; links to folders are followed."""
    found, real = [], {}
    for place, below, names in os.walk(folder, followlinks=True):
        real[place] = os.path.realpath(place)
        above = [real[str(parent)] for parent in Path(place).parents if str(parent) in real]
        below[:] = [] if real[place] in above else [name for name in below if not _hidden(name)]
        inside = PurePath(place).relative_to(folder)
        paths = ((inside / name).as_posix() for name in names if not name.startswith("."))
        found += [path for path in paths if os.path.isfile(folder / path)]
    return sorted(found)


def _hidden(folder: str) -> bool:
    return folder.startswith((".", "__"))


# What is in them


def content_revision(folder: Path) -> str:
    """A hash of the names and contents of the files in a folder, wherever it lies."""
    files = files_in(folder)
    digest = hashlib.sha256()
    for path, sha in zip(files, _hashes(folder, files), strict=True):
        digest.update(f"{sha} {path}\n".encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def cache_folder() -> Path:
    """The cache of `datasets`, which is made; where nobody can write to it, a folder of links to what it holds.

    For `datasets` takes locks beside what it reads. What is lacking there is made in that folder, which goes with this
    process.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK) else _links(folder.resolve())


@functools.cache
def _links(folder: Path) -> Path:
    held = ExitStack()
    atexit.register(held.close)
    links = held.enter_context(folder_aside("hf_distill-cache-"))
    for where, _, names in os.walk(folder):
        there = links / Path(where).relative_to(folder)
        there.mkdir(exist_ok=True)
        for name in names:
            if not name.endswith(".lock"):
                (there / name).symlink_to(Path(where, name))
    return links


def _hashes(folder: Path, files: Sequence[str]) -> list[str]:
    """The SHA-256 of each file, by the cache where it has not changed since it was hashed."""
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    table = cache_folder() / f"hf_distill-hashes-{place}.bin"
    status = [os.stat(folder / path) for path in files]
    keys = [(path, each.st_size, each.st_mtime_ns) for path, each in zip(files, status, strict=True)]
    known = _known(table)
    if all(key in known for key in keys):
        return [known[key] for key in keys]
    with locked(table.with_suffix(".lock")):  # of processes that start together one hashes
        known = _known(table)
        missing = [key for key in keys if key not in known]
        now = time.time_ns()
        with ThreadPoolExecutor() as threads:
            progress = datasets.utils.tqdm(missing, desc="Hashing files", delay=2)
            hashed = dict(zip(missing, threads.map(lambda key: sha256_of_file(folder / key[0]), progress), strict=True))
        known |= hashed
        # One that was written just now may be written again, and its time be the same.
        settled = {key: known[key] for key in keys if now - key[2] > SETTLED * 1e9}
        columns = [*zip(*settled, strict=True)] if settled else [(), (), ()]
        names = ("path", "size", "changed", "sha256")
        buffer = io.BytesIO()
        pq.write_table(pa.table(dict(zip(names, map(list, (*columns, settled.values())), strict=True))), buffer)
        atomic_write(table, buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    return [known[key] for key in keys]


def _known(table: Path) -> dict[tuple[str, int, int], str]:
    """SHA-256 by path, size and time of change; none where the table is absent or damaged."""
    content = table.read_bytes() if table.is_file() else b""
    data, digest = content[:-32], content[-32:]
    if hashlib.sha256(data).digest() != digest:
        return {}
    columns = pq.read_table(io.BytesIO(data)).to_pydict()
    keys = zip(columns["path"], columns["size"], columns["changed"], strict=True)
    return dict(zip(keys, columns["sha256"], strict=True))


# Which of them are read


def regrouped(
    folder: Path, files: Sequence[str], guessed: Mapping[str, Iterable[str]]
) -> dict[str, DataFilesList] | None:
    """All images of folders of classes, by split, where the loader would read others than these; else None.

    It guesses splits by words in names, such as that of a class `train-steam`, and follows no links to folders.

    Args:
        folder: Of the dataset.
        files: As `files_in` gives them.
        guessed: Relative paths of the files that it reads, by split.
    """
    images = [path for path in files if PurePath(path).suffix.lower() in IMAGES]
    if any(PurePath(path).name in ImageFolder.METADATA_FILENAMES for path in files):
        return None
    parts = [PurePath(path).parts for path in images]
    while parts and len(parts[0]) > 2 and len({part[0] for part in parts}) == 1 and not _word(parts[0][0]):
        parts = [part[1:] for part in parts]
    if len({len(part) for part in parts}) != 1:
        return None
    tops = {part[0] for part in parts}
    words = {top: _word(top) for top in tops if _word(top)}
    if len(parts[0]) == 2 and len(words) < 2:
        split_of = dict.fromkeys(tops, "train")  # a folder for each class, one of which may be called like a split
    elif len(parts[0]) > 2 and words:
        split_of = {top: word for top, word in words.items() if word}
    else:
        return None
    whole: dict[str, list[str]] = {}
    for path, part in zip(images, parts, strict=True):
        if part[0] in split_of:
            whole.setdefault(split_of[part[0]], []).append(path)
    read = {
        split: sorted(path for path in paths if PurePath(path).suffix.lower() in IMAGES)
        for split, paths in guessed.items()
    }
    if whole == read:
        return None
    return {split: _data_files(folder, paths) for split, paths in whole.items()}


def lists_of_images(folder: Path, files: Sequence[str]) -> dict[str, DataFilesList] | None:
    """The tables in a folder by split, which is that of their name or else train; None if there is none."""
    splits: dict[str, list[str]] = {}
    for path in files:
        if PurePath(path).suffix.lower() in LISTS:
            splits.setdefault(_word(PurePath(path).stem) or "train", []).append(path)
    return {split: _data_files(folder, paths) for split, paths in splits.items()} or None


def beside_their_table(
    paths: list[str | None], column: str, folders: list[str], root: str, content: str
) -> dict[str, list[dict[str, str | None] | None]]:
    """A batch for `Dataset.map`: paths as images, those that are relative to a folder of tables made absolute.

    Args:
        paths: Of images.
        column: Which holds them.
        folders: Where the tables lie.
        root: The folder that such paths may not lead out of.
        content: Names what is in the files, for the cache.
    """
    images = [{"path": _beside(path, folders, root), "bytes": None} if path else None for path in paths]
    return {column: images}


def _beside(path: str, folders: list[str], root: str) -> str:
    for folder in folders:
        found = os.path.normpath(os.path.join(folder, path))
        if found.startswith(os.path.join(root, "")) and os.path.isfile(found):
            return found
    return path


def _word(name: str) -> str | None:
    """The split that a folder of this name holds, if it is called like one."""
    return SPLIT_WORDS.get(name.lower())


def _data_files(folder: Path, paths: list[str]) -> DataFilesList:
    changed = [(str(status.st_mtime_ns), str(status.st_size)) for status in (os.stat(folder / path) for path in paths)]
    return DataFilesList([(folder / path).as_posix() for path in paths], changed)


def unread(files: Sequence[str], read: Mapping[str, Iterable[str]]) -> str | None:
    """What is to be said of data files that no split has, in words; None where all are read.

    Args:
        files: As `files_in` gives them.
        read: Relative paths of the files of each split.

    Raises:
        ValueError: A file is in two splits.
    """
    splits = Counter(path for paths in read.values() for path in set(paths))
    twice = [path for path, count in splits.items() if count > 1]
    how = "name the files of each split under `configs:` in its README.md, or put them in folders called train and test"
    if twice:
        raise ValueError(
            f"{len(twice):,} files are in two of the splits {', '.join(read)} by name, such as {min(twice)}; {how}"
        )
    kinds = IMAGES | TABLES | {PurePath(path).suffix.lower() for path in splits}
    left = [path for path in files if path not in splits and PurePath(path).suffix.lower() in kinds]
    if not left:
        return None
    places = Counter(PurePath(path).parent.as_posix() for path in left)
    told = ", ".join(f"{place} ({count:,})" for place, count in places.most_common(NAMED))
    more = f" and {len(places) - NAMED:,} other folders" if len(places) > NAMED else ""
    if any(PurePath(path).suffix.lower() in LISTS for path in left):
        how += "; a table of images is read if --image_column_name is its column of paths"
    return f"{len(left):,} data files are in no split ({', '.join(read)}) and are not read, in {told}{more}; {how}"
