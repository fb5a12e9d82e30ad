"""Folders that are also Hub repositories: saved whole, published as one version, loaded by one call.

The folder is the artifact; everything works on local folders, without a token or a network. This module imports no
torch.
"""

import logging
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub import CommitInfo

from .edits import with_edits
from .files import (
    STAGING,
    SUMS,
    check_sum,
    check_target,
    folder_aside,
    load_sums,
    matches,
    naming,
    save_sums,
    sha256_of_file,
    sweep,
    sync,
)
from .making import MAKING, Making, read_making, save_making
from .markdown import literal
from .repository import CARD, Repository

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Home:
    """The place where readers of an artifact find it.

    Attributes:
        name: A repository id, or the name of a folder.
        tag: The version in that repository that the artifact is.
        on_hub: Whether it is a repository.
    """

    name: str
    tag: str | None = None
    on_hub: bool = False

    def arguments(self, config: str | None = None) -> str:
        """The arguments of the call that loads it, or that one of its configs."""
        names = [self.name] if config is None else [self.name, config]
        return ", ".join([*map(literal, names), *([f"revision={literal(self.tag)}"] if self.tag else [])])

    def to_config(self) -> dict[str, Any]:
        """The entry about it in the JSON file of a published artifact."""
        return {"release": {"repo_id": self.name, "tag": self.tag}} if self.on_hub else {}


@contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    """A folder to write aside in, inside `directory` because only there a rename cannot cross file systems."""
    aside = Path(tempfile.mkdtemp(prefix=STAGING, dir=directory))
    try:
        staged = aside / (directory.resolve().name or "artifact")
        staged.mkdir()
        yield staged
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove `folder` and those that hold it, below `top`, as far as they are empty."""
    while folder != top and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _keep_edits(card: Path, there: Path) -> None:
    """Put what people wrote into the card `there`, where there is one, into that which is to replace it."""
    if card.exists() and there.exists():
        old = there.read_text(encoding="utf-8", errors="replace")
        card.write_text(with_edits(card.read_text(encoding="utf-8"), old, ours=True), encoding="utf-8")


def locate(
    repo_id_or_path: str | Path,
    repo_type: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path | Repository:
    """The folder of that name where there is one here, else the Hub repository; nobody is asked yet.

    Raises:
        ValueError: It is a file, or a folder, which has no revision.
    """
    name = str(repo_id_or_path)
    folder, is_folder = Path(name), os.path.isdir(name)  # which a name that no file can have is not, as "" is not
    if is_folder and revision is not None:
        raise ValueError(
            f"{folder} is a folder here, which has no revision {revision!r}; leave the revision out, or call from "
            "another place to get the repository of that name"
        )
    if is_folder:
        return folder
    if os.path.exists(name):
        raise ValueError(f"{folder} is a file; expected the folder that holds it, or a repository id")
    return Repository(name, repo_type, revision, token, local_files_only)


class HubFolder(ABC):
    """A folder on disk that is also a Hub repository.

    A subclass writes and reads its entries in `_write` and `_read`. Saving is safe against a kill at any moment when
    bulk files carry a new name whenever their content changes and the files that name them are replaced as a whole:
    new names are moved in first, then the replaced files, `config_name` last, and only then the stale ones go.
    Checksums are not there while names are replaced, and so never those of other files.

    Attributes:
        repo_type: "dataset" or "model".
        config_name: The JSON file by which a folder is known to hold this kind of artifact.
        owned: Glob patterns of all that the artifact consists of. A save or a push replaces it: a match that is not
            written again is removed. Everything else in the folder or repository stays, and is never pushed.
        fetched: Those of them that loading needs.
        unsummed: Those of them that have no checksum in SHA256SUMS: which people edit, or nothing reads.
        loader: The function that the card loads it with.
        config: What the JSON file says; "source" is the dataset that the artifact was made from.
        origin: The repository, at its commit, that this artifact was loaded from; None for a local folder.
        release: The repo_id and tag that it was published as, as its JSON file says; None where it never was.
        sums: The checksums of its files by their paths, where it was loaded; none from version 0.1.
        making: What it took to make it, as far as that was measured.
    """

    repo_type: ClassVar[str]
    config_name: ClassVar[str]
    owned: ClassVar[tuple[str, ...]]
    fetched: ClassVar[tuple[str, ...]]
    unsummed: ClassVar[tuple[str, ...]] = ("README.md", MAKING, "assets/*")
    loader: ClassVar[str]
    config: dict[str, Any]
    origin: Repository | None = None
    release: dict[str, Any] | None = None
    sums: Mapping[str, str] = MappingProxyType({})
    making: Making = MappingProxyType({})

    @classmethod
    def index(cls) -> str:
        """The file that a folder or repository of something else does not have."""
        return cls.config_name

    @abstractmethod
    def _write(self, folder: Path, home: Home) -> None:
        """Write every entry into `folder`, which is empty, for readers who find it at `home`."""

    @classmethod
    @abstractmethod
    def _read(cls, folder: Path) -> "Self":
        """The artifact in `folder`, which holds `config_name`; raises a one-line `ValueError` where it is damaged."""

    @classmethod
    def check_directory(cls, directory: Path) -> None:
        """Raise a `ValueError` where no such artifact can be saved into a folder: it is a file, or something else's."""
        check_target(directory, cls.owned, cls.index())

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write the artifact into `directory` and give its path; call it on one process only.

        Everything is written aside first. When the disk is full, or the process is killed, what was there stays whole.
        What people wrote into the card stays in it.

        Raises:
            ValueError: `directory` is a file, or holds a README.md or other files of something else.
            OSError: The files cannot be written.
        """
        directory = Path(directory)
        self.check_directory(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{directory} cannot be made ({error.strerror}); expected a folder to write to") from error
        for leftover in list(directory.glob(f"{STAGING}*")):
            shutil.rmtree(leftover)
        try:
            with naming(directory), _staging(directory) as staged:
                self._write(staged, Home(staged.name))
                save_making(staged / MAKING, self.making)
                _keep_edits(staged / CARD, directory / CARD)
                self._sum(staged)
                self._move(staged, directory)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"{directory} was not saved ({reason}); what it held before is whole") from error
        return directory

    def _sum(self, folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write SHA256SUMS into `folder`, which holds the artifact; checksums that are `known` are not computed."""
        owned = (path for pattern in self.owned for path in folder.glob(pattern))
        names = [name for path in owned if self._is_summed(name := path.relative_to(folder).as_posix())]
        save_sums(folder, {name: known.get(name) or sha256_of_file(folder / name) for name in names})

    def _is_summed(self, name: str) -> bool:
        return not matches(name, (*self.unsummed, SUMS))

    def _check(self, folder: Path) -> None:
        """Take the checksums in `folder`; raise a `ValueError` where a file that loading needs is not what they say."""
        self.sums = load_sums(folder)
        for name, expected in self.sums.items():
            if matches(name, self.fetched) and self._is_summed(name) and (folder / name).is_file():
                check_sum(folder / name, expected)

    @contextmanager
    def _rewritten(self, folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
        """Time to write files in place, without SHA256SUMS, which is of these behind it; `known` as in `_sum`."""
        (folder / SUMS).unlink(missing_ok=True)
        yield
        self._sum(folder, known)

    def _replaced(self) -> tuple[str, ...]:
        """The patterns of `owned` whose matches go where a save or a push does not write them anew."""
        return self.owned

    def _move(self, staged: Path, directory: Path) -> None:
        names = [path.relative_to(staged) for path in staged.rglob("*") if path.is_file()]
        for name in names:
            sync(staged / name)
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            sweep(directory / name)
        last = (Path(self.config_name), Path(SUMS))
        first = sorted(set(names) - set(last), key=lambda name: ((directory / name).exists(), name))
        (directory / SUMS).unlink(missing_ok=True)
        for name in (*first, *last):
            os.replace(staged / name, directory / name)
        for parent in {(directory / name).parent for name in names}:
            sync(parent)
        for pattern in self._replaced():
            for path in list(directory.glob(pattern)):
                if path.relative_to(directory) not in names:
                    path.unlink()
                    _remove_empty(path.parent, directory)

    @classmethod
    def is_at(
        cls, repo_id_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> bool:
        """True where a folder or Hub repository is to hold such an artifact, which may be damaged.

        Raises:
            ValueError, OSError: As `from_pretrained`, where there is neither.
        """
        if Path(repo_id_or_path).is_file():
            return False
        place = locate(repo_id_or_path, cls.repo_type, revision=revision, token=token)
        # The client warns of a call that fetches nothing, and a card is almost everywhere.
        folder = place.snapshot([cls.config_name, CARD]) if isinstance(place, Repository) else place
        return (folder / cls.config_name).is_file()

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> "Self":
        """The artifact in a local folder, which never touches the network, or in a Hub repository.

        Args:
            repo_id_or_path: A folder that exists, or `owner/name`.
            revision: Branch, tag or commit of the repository; the commit that it is now is kept in `origin`.
            token: Instead of that of the environment (`HF_TOKEN`) or of `hf auth login`; False for none.
            local_files_only: Use only what is in the cache.

        Raises:
            ValueError: There is no such folder or repository, or it does not hold a whole artifact of this kind.
            OSError: The Hub does not answer.
        """
        where = {"revision": revision, "token": token, "local_files_only": local_files_only}
        folder, origin = cls._find(repo_id_or_path, where)
        artifact = cls._read(folder)
        artifact._check(folder)
        artifact.making = read_making(folder / MAKING)
        artifact.origin = origin
        return artifact

    @classmethod
    def _find(cls, repo_id_or_path: str | Path, where: dict[str, Any]) -> tuple[Path, Repository | None]:
        """The folder that holds `config_name`, and the repository at its commit where it is the cached copy of one."""
        place = locate(repo_id_or_path, cls.repo_type, **where)
        folder, origin = cls._download(place) if isinstance(place, Repository) else (place, None)
        if not (folder / cls.config_name).is_file():
            raise ValueError(
                f"{repo_id_or_path} has no {cls.config_name}; expected a folder or repository that "
                f"{cls.__name__}.save_pretrained or push_to_hub wrote"
            )
        return folder, origin

    @classmethod
    def _download(cls, repository: Repository) -> tuple[Path, Repository]:
        """The cached folder of what loading needs, and the repository at the commit that it is of."""
        folder = repository.snapshot([cls.config_name])  # first: without it nothing else is of use
        origin = repository.pinned(folder)
        return origin.snapshot([*cls.fetched, SUMS, MAKING]) if (folder / cls.config_name).is_file() else folder, origin

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tag: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        overwrite_foreign: bool = False,
        create_pr: bool = False,
        parent: str | None = None,
        message: str | None = None,
    ) -> CommitInfo:
        """Publish the artifact as the newest version of a repository; call it on one process only.

        One commit replaces what the artifact owns there; everything else stays, and so does what people wrote into the
        card. What is interrupted is continued by the same call, and a version that is there already only gets its tag.

        Args:
            repo_id: `owner/name`; the repository is made if there is none.
            tag: A name for this version, such as "v1.0.0": it is never given to another one.
            private: For a repository that is made now.
            token: As in `from_pretrained`.
            overwrite_foreign: Also replace what somebody else, or an artifact of another kind, has there.
            create_pr: Offer the version as a pull request.
            parent: Publish only where this commit is still the newest.
            message: Of the commit.

        Returns:
            The commit; `oid` names it for good.

        Raises:
            PushConflict: The repository got another version meanwhile.
            ValueError: No right to write there, a tag that exists, a public repository that was to be private, or one
                that holds something else.
            OSError: The Hub does not answer, or failed. The repository is at its old version.
        """
        repository = Repository(repo_id, self.repo_type, token=token)
        if not create_pr:
            about: dict[str, Any] = {"tag": tag, "private": private, "overwrite_foreign": overwrite_foreign}
            repository.prepare(self.owned, self.index(), **about, again=True)  # before the work of writing
        if (self.config.get("source") or {}).get("gated"):
            logger.warning(
                "access to the source of this artifact is conditional, and the card says that the same conditions hold "
                "for %s; only its settings on the Hub can enforce them: make it gated there",
                repo_id,
            )
        message = message or f"Publish {tag or type(self).__name__} with hf_distill"
        with folder_aside("hf_distill-push-") as staged:
            with naming(staged):
                self._write(staged, Home(repo_id, tag, on_hub=True))
                save_making(staged / MAKING, self.making)
                self._sum(staged)
            files = {path.relative_to(staged).as_posix(): path for path in staged.rglob("*") if path.is_file()}
            return repository.publish(
                files,
                self._replaced(),
                self.index(),
                tag=tag,
                overwrite_foreign=overwrite_foreign,
                create_pr=create_pr,
                parent=parent,
                message=message,
            )
