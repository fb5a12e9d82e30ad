"""`Repository`: what is done over the network. Files of one commit come down; whole versions go up, one commit each.

On the way down the client resolves a branch or a tag to a commit, and names the cached folder by it; all that follows
is read from that commit (`Repository.pinned`).

A version is published in three steps. Large files are uploaded a bounded number of bytes at a time, which no reader
sees and which need not be uploaded again after an interruption. One commit, on the version that was looked at,
replaces all that the artifact owns. A tag names that commit and is never moved. So a reader finds the old version or
the new one.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from json import JSONDecodeError
from pathlib import Path
from typing import NoReturn, TypeVar

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import is_package_available

from .edits import with_edits
from .files import is_full, matches, room

__all__ = ["PushConflict", "Repository"]

logger = logging.getLogger(__name__)

BATCH_BYTES = 2_000_000_000  # uploaded before the next files are looked at: what an interruption costs at most
BATCH_FILES = 100
WAITS = (1.0, 2.0, 4.0)  # seconds between attempts, unless the Hub says how long
LONGEST_WAIT = 300.0  # seconds that the Hub may ask for
PASSING = (408, 429, 500, 502, 503, 504)
CARD = "README.md"
LONGEST_NAME = 200  # characters that a message shows of what no repository can be called
# What a repository has that somebody has only just made, on the Hub's own page or with git.
EMPTY = {CARD, ".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt"}
# What git takes for a name, and nobody for a commit or a branch.
TAG = re.compile(r"(?!HEAD$|[0-9a-f]{40}$|.*\.\.|.*\.lock$)[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?")

Result = TypeVar("Result")


class PushConflict(ValueError):
    """Somebody else published to the repository while this version was on its way; theirs is whole."""


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub, at a revision.

    Attributes:
        repo_id: `owner/name`.
        repo_type: "dataset" or "model".
        revision: Branch, tag or commit; None for the newest version.
        token: Instead of the token of the environment or the one stored by `hf auth login`; False for none.
        local_files_only: Use only what is in the cache.
    """

    repo_id: str
    repo_type: str
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    local_files_only: bool = False

    # Down

    def snapshot(self, patterns: Sequence[str]) -> Path:
        """The cached folder, named by its commit, that holds the files that match `patterns`.

        Raises:
            ValueError: There is no such repository or revision, or no right to read it.
            OSError: The Hub does not answer.
        """

        def download() -> str:
            try:
                return snapshot_download(
                    self.repo_id,
                    repo_type=self.repo_type,
                    revision=self.revision,
                    token=self.token,
                    local_files_only=self.local_files_only,
                    allow_patterns=list(patterns),
                )
            except LocalEntryNotFoundError as error:
                if isinstance(error.__cause__, HfHubHTTPError):  # the client looks into the cache and asks only once
                    raise error.__cause__ from None
                raise

        return self._downloaded(download)

    def fetch(self, name: str) -> Path:
        """The cached copy of the file `name`, in a folder named by its commit.

        Raises:
            ValueError: As `snapshot`, or the repository has no such file.
            OSError: As `snapshot`.
        """

        def download() -> str:
            return hf_hub_download(
                self.repo_id,
                name,
                repo_type=self.repo_type,
                revision=self.revision,
                token=self.token,
                local_files_only=self.local_files_only,
            )

        return self._downloaded(download, name)

    def pinned(self, folder: Path) -> "Repository":
        """The same repository at the commit that its revision, a branch or a tag, was resolved to by a download.

        Args:
            folder: As `snapshot` gave it, or that of a file of `fetch`: the client names it by the commit.
        """
        return replace(self, revision=folder.name)

    def sizes(self) -> dict[str, int]:
        """The bytes of each file at this revision."""
        with self._explained():
            entries = _patiently(lambda: list(self._tree(self.revision)))
        return {entry.path: entry.size for entry in entries}

    # Up

    def prepare(
        self,
        owned: Sequence[str],
        index: str,
        *,
        tag: str | None = None,
        private: bool | None = None,
        again: bool = False,
        overwrite_foreign: bool = False,
    ) -> None:
        """Make sure that a version can be published here, and make the repository where there is none.

        Args:
            owned: As in `publish`.
            index: As in `publish`.
            tag: Of the version.
            private: For a repository that is made now; True is an error where there is a public one.
            again: The tag may be there already: publishing finds out whether it is that of the same version.
            overwrite_foreign: As in `publish`.

        Raises:
            ValueError: No right to write, a tag that exists, a public repository that was to be private, or one that
                holds something else.
            OSError: The Hub does not answer.
        """
        _check_name(tag)
        if self.repo_id.count("/") != 1:  # the client would make one of the user's own, and not find it again
            raise ValueError(f"{self.repo_id!r} cannot be a repository id; expected owner/name")
        with self._explained():
            _patiently(
                lambda: self._api.create_repo(self.repo_id, repo_type=self.repo_type, private=private, exist_ok=True)
            )
            # For a repository that exists the client does not mind a token that may not write; asking how a file would
            # be uploaded tells.
            self._upload([CommitOperationAdd(CARD, b"\n")], create_pr=False)
            self._check_private(private)
            if not again:
                self._check_tag(tag)
            if not overwrite_foreign:
                self._check_own(owned, index, self._head())

    def publish(
        self,
        files: Mapping[str, Path],
        owned: Sequence[str],
        index: str,
        *,
        tag: str | None = None,
        overwrite_foreign: bool = False,
        create_pr: bool = False,
        parent: str | None = None,
        message: str = "Publish with hf_distill",
    ) -> CommitInfo:
        """Put `files` into the repository as one commit, in place of all it holds that matches `owned`.

        What people wrote into the card that is there is kept in the new one. `prepare` comes first, but for a pull
        request. Started again after an interruption, it goes on with the files that are not there yet; a version that
        is there already only gets its tag.

        Args:
            files: Local path of each path in the repository.
            owned: Glob patterns; `*` does not cross a folder.
            index: The file by which a repository is known to hold a version of the same kind.
            tag: Names the commit, once and for all.
            overwrite_foreign: Also where files are there and `index` is not: what somebody else, or an artifact of
                another kind, has there. Those that match `owned` go.
            create_pr: Offer the version as a pull request: for repositories of others.
            parent: The commit that the version is made for; that of now if not given.
            message: Of the commit.

        Raises:
            PushConflict: The repository has got another version meanwhile.
            ValueError: As `prepare`.
            OSError: The Hub does not answer, or failed; the repository is at its old version, or lacks only the tag.
        """
        if create_pr and tag is not None:
            raise ValueError(
                f"a pull request has no commit to tag yet; leave the tag {tag!r} out, and tag after merging"
            )
        _check_name(tag)
        with self._explained():
            parent = parent or self._head()
            if not overwrite_foreign:
                self._check_own(owned, index, parent)
            bulk = [CommitOperationAdd(name, str(path)) for name, path in sorted(files.items()) if name != CARD]

            def version(commit: str) -> list[CommitOperationAdd]:
                return [*bulk, *self._card(files, owned, index, commit)]

            # Again, as `prepare` may be hours ago: from here on another version is a conflict.
            tagged = _patiently(self._tags).get(tag) if tag is not None else None
            if tagged is not None and self._compare(version(tagged), owned, tagged)[0]:
                return self._info(tagged, message)  # by an earlier run of the same command
            self._check_tag(tag)
            additions = version(parent)
            for batch in _batches(additions):
                self._upload(batch, create_pr)

            def commit() -> CommitInfo:
                return self._commit(additions, owned, parent, create_pr, message)

            # A pull request once: where only the answer was lost, another attempt would open a second one.
            published = commit() if create_pr else _patiently(commit)
            if tag is not None:
                self._tag(tag, published.oid)
        return published

    @property
    def _api(self) -> HfApi:
        return HfApi(token=self.token)

    def _downloaded(self, download: Callable[[], str], name: str | None = None) -> Path:
        with self._explained(name):
            try:
                return Path(_patiently(download))
            except (HTTPError, EntryNotFoundError, OfflineModeIsEnabled):
                raise
            except (OSError, RuntimeError) as error:  # other bytes than the Hub had announced, or no room for them
                full, folder = isinstance(error, OSError) and is_full(error), constants.HF_HUB_CACHE
                cache = f"; the cache is {folder}, where {room(folder, None)}" if full else ""
                raise OSError(
                    f"{f'{name} of ' if name else ''}{self} was not downloaded ({_reason(error)}{cache}); nothing of "
                    f"it is used: try again{_or_without_xet()}"
                ) from error

    def _newest(self) -> str:
        return str(self._api.repo_info(self.repo_id, repo_type=self.repo_type, revision="main").sha)

    def _head(self) -> str:
        return _patiently(self._newest)

    def _tags(self) -> dict[str, str]:
        refs = self._api.list_repo_refs(self.repo_id, repo_type=self.repo_type)
        return {tag.name: tag.target_commit for tag in refs.tags}

    def _check_private(self, private: bool | None) -> None:
        if private:
            info = _patiently(lambda: self._api.repo_info(self.repo_id, repo_type=self.repo_type))
            if not info.private:
                raise ValueError(
                    f"{self} exists and is public, and a private one was asked for; give another name, or make it "
                    "private in its settings first"
                )

    def _check_tag(self, tag: str | None, besides: str = "") -> None:
        if tag is None:
            return
        refs = _patiently(lambda: self._api.list_repo_refs(self.repo_id, repo_type=self.repo_type))
        taken = {ref.name for ref in (*refs.tags, *refs.branches)}
        if tag in taken:
            raise ValueError(
                f"{self} has {tag} already, and a published version never changes; {_free(tag, taken)} is free{besides}"
            )

    def _check_own(self, owned: Sequence[str], index: str, commit: str) -> None:
        """Raise a `ValueError` where a commit holds something, and no version of this kind."""
        foreign = _patiently(lambda: self._foreign(owned, index, commit))
        if foreign is not None:
            raise ValueError(
                f"{self} has a {foreign} and no {index}, so it holds something else, of which this would replace what "
                "has its names; give another name, or --hub_overwrite_foreign (in Python overwrite_foreign=True) if "
                "that is meant"
            )

    def _foreign(self, owned: Sequence[str], index: str, commit: str) -> str | None:
        """A file of something else, one that a version would replace if there is any; none where a repository was only
        just made."""
        if self._paths([index], commit):
            return None
        names = {entry.path for entry in self._tree(commit)}
        if names <= EMPTY:
            return None
        # The card last: every repository has one, and it says the least.
        return min(names, key=lambda name: (name in EMPTY, not matches(name, owned), name))

    def _card(
        self, files: Mapping[str, Path], owned: Sequence[str], index: str, commit: str
    ) -> list[CommitOperationAdd]:
        """The card among `files`, with what people wrote into that of a commit, unless that is of something else."""
        if CARD not in files:
            return []
        card = files[CARD].read_text(encoding="utf-8")
        names = _patiently(lambda: {entry.path for entry in self._paths([CARD, index], commit)})
        if CARD in names and _patiently(lambda: self._foreign(owned, index, commit)) is None:
            there = replace(self, revision=commit).fetch(CARD).read_text(encoding="utf-8", errors="replace")
            card = with_edits(card, there, ours=index in names)
        return [CommitOperationAdd(CARD, card.encode())]

    def _upload(self, batch: list[CommitOperationAdd], create_pr: bool) -> None:
        def upload() -> None:
            self._api.preupload_lfs_files(
                self.repo_id, batch, repo_type=self.repo_type, create_pr=create_pr, free_memory=False
            )

        try:
            try:
                _patiently(upload)
            except OSError as error:
                if not _is_without_xet(error):
                    raise
                with _no_xet():
                    _patiently(upload)
        except HTTPError:
            raise
        except (RuntimeError, OSError) as error:  # what the client makes of an upload that failed for good
            raise OSError(
                f"uploading to {self} failed ({_reason(error.__cause__ or error)}); nothing was published. The files "
                f"that are there need not be uploaded again: run the same command again{_or_without_xet()}"
            ) from error

    def _commit(
        self, additions: list[CommitOperationAdd], owned: Sequence[str], parent: str, create_pr: bool, message: str
    ) -> CommitInfo:
        # Looked at anew in each attempt: a commit whose answer was lost, or is late, is there already.
        head = parent if create_pr else self._newest()
        there, stale = self._compare(additions, owned, head)
        if not there and head == parent:
            try:
                return self._api.create_commit(
                    self.repo_id,
                    [*additions, *(CommitOperationDelete(name) for name in stale)],
                    commit_message=message,
                    repo_type=self.repo_type,
                    parent_commit=parent,
                    create_pr=create_pr,
                )
            except HfHubHTTPError as error:
                if error.response.status_code != 412:
                    raise
                head = self._newest()
                there, _ = self._compare(additions, owned, head)
            except JSONDecodeError:
                raise
            except ValueError as error:  # what the client makes of metadata that the Hub does not take
                raise ValueError(f"{self} does not take this version: {_reason(error)}") from error
        if not there:
            raise PushConflict(
                f"{self} got another version while this one was on its way; that one is whole. Run the same command "
                "again to publish on top of it"
            )
        return self._info(self._first(additions, owned, head), message)

    def _first(self, additions: list[CommitOperationAdd], owned: Sequence[str], head: str) -> str:
        """The commit that made `head` this version: what others did to their own files since is not of it."""
        published = head
        for commit in self._api.list_repo_commits(self.repo_id, repo_type=self.repo_type, revision=head):
            if not self._compare(additions, owned, commit.commit_id)[0]:
                break
            published = commit.commit_id
        return published

    def _info(self, oid: str, message: str) -> CommitInfo:
        where = f"{'datasets/' if self.repo_type == 'dataset' else ''}{self.repo_id}"
        url = f"{self._api.endpoint}/{where}/commit/{oid}"
        return CommitInfo(commit_url=url, commit_message=message, commit_description="", oid=oid)

    def _paths(self, names: list[str], commit: str) -> list[RepoFile | RepoFolder]:
        """Those of some files that a commit has."""
        return self._api.get_paths_info(self.repo_id, names, repo_type=self.repo_type, revision=commit)

    def _tree(self, revision: str | None) -> Iterator[RepoFile]:
        entries = self._api.list_repo_tree(self.repo_id, repo_type=self.repo_type, revision=revision, recursive=True)
        return (entry for entry in entries if isinstance(entry, RepoFile))

    def _compare(
        self, additions: list[CommitOperationAdd], owned: Sequence[str], commit: str
    ) -> tuple[bool, list[str]]:
        """True where a commit is the version that `additions` make; and the files that it holds of another one."""
        stored = {entry.path: entry for entry in self._tree(commit)}
        kept = {addition.path_in_repo for addition in additions}
        stale = [name for name in stored if name not in kept and matches(name, owned)]
        same = all(_holds(stored.get(addition.path_in_repo), addition) for addition in additions)
        return same and not stale, stale

    def _tag(self, tag: str, oid: str) -> None:
        def create() -> None:
            try:
                self._api.create_tag(self.repo_id, tag=tag, revision=oid, repo_type=self.repo_type)
            except HTTPError:
                # It may be there for all that: its answer can be lost.
                if self._tags().get(tag) != oid:
                    raise

        try:
            _patiently(create)
        except HTTPError as error:
            self._check_tag(tag, f". This version was published as commit {oid} without a tag")
            kind = OSError if _passing(error) else ValueError
            raise kind(
                f"{self} has this version, published as commit {oid}, and lacks its tag {tag!r} ({_reason(error)}); "
                "run the same command again"
            ) from error

    # Mistakes

    def __str__(self) -> str:
        return f"{self.repo_type} repository {self.repo_id!r}"

    @contextmanager
    def _explained(self, name: str | None = None) -> Iterator[None]:
        """Say in one line what the client's errors mean, and what to do.

        Args:
            name: The one file that is asked for.
        """
        try:
            yield
        except (
            HFValidationError,
            HTTPError,
            LocalEntryNotFoundError,
            EntryNotFoundError,
            OfflineModeIsEnabled,
            JSONDecodeError,
        ) as error:
            self._explain(error, name)

    def _explain(self, error: Exception, name: str | None) -> NoReturn:
        if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
            error = error.__cause__
        # What is asked of a repository is often meant as a folder, so each message says that there is none.
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        at = f" at revision {self.revision!r}" if self.revision else ""
        what = f"{name} of {self}{at}" if name else f"{self}{at}"
        if isinstance(error, HFValidationError):
            raise ValueError(
                f"{self.repo_id[:LONGEST_NAME]!r} is no folder here and cannot be a repository id; expected a path "
                "that exists, or owner/name"
            ) from error
        if isinstance(error, OfflineModeIsEnabled):
            raise ValueError(f"{what} needs the Hub, and HF_HUB_OFFLINE is set; unset it") from error
        if isinstance(error, LocalEntryNotFoundError):
            raise ValueError(
                f"{what} is no folder here, is not in the local cache, and the Hub was not reached "
                f"({_reason(error.__cause__ or error)}); check the name and the connection, or unset HF_HUB_OFFLINE"
            ) from error
        if isinstance(error, GatedRepoError):
            raise ValueError(
                f"access to {self} is conditional: accept its terms on its page, then log in (hf auth login) or set "
                "HF_TOKEN"
            ) from error
        if isinstance(error, RevisionNotFoundError):
            raise ValueError(f"{self} has no revision {self.revision!r}; {self._said_tags()}") from error
        if isinstance(error, RepositoryNotFoundError):
            raise ValueError(
                f"{self.repo_id!r} is no folder here and no {self.repo_type} repository on the Hub that this token "
                "may see; check the spelling, or log in (hf auth login) if it is private"
            ) from error
        if isinstance(error, EntryNotFoundError):
            raise ValueError(f"{self}{at} has no {name}; expected an artifact that hf_distill published") from error
        if status == 401:
            raise ValueError(
                f"the Hub accepts no token, or not this one, for {self}; log in (hf auth login) or set HF_TOKEN"
            ) from error
        if status == 403:
            raise ValueError(
                f"this token has no right to do that with {self} ({_reason(error)}); use one that has it"
            ) from error
        if status is not None and status not in PASSING:
            raise ValueError(f"the Hub refused what was asked of {what}: {_reason(error)}") from error
        raise OSError(
            f"the Hub did not answer for {what} ({_reason(error)}); nothing is half done: run the same command again "
            "later"
        ) from error

    def _said_tags(self) -> str:
        try:
            tags = [tag.name for tag in self._api.list_repo_refs(self.repo_id, repo_type=self.repo_type).tags]
        except HTTPError:
            return "see its tags on the Hub"
        return (
            f"expected one of its tags ({', '.join(sorted(tags))}), a branch or a commit" if tags else "it has no tags"
        )


def _check_name(tag: str | None) -> None:
    if tag is not None and not TAG.fullmatch(tag):
        raise ValueError(f"the tag {tag!r} cannot name a version; expected letters, digits and . _ -, such as v1.0.0")


def _batches(additions: list[CommitOperationAdd]) -> Iterator[list[CommitOperationAdd]]:
    batch: list[CommitOperationAdd] = []
    size = 0
    for addition in additions:
        if batch and (len(batch) == BATCH_FILES or size + addition.upload_info.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(addition)
        size += addition.upload_info.size
    if batch:
        yield batch


def _free(tag: str, taken: set[str]) -> str:
    """The first name after `tag` that is not taken: its last number counted up, or one appended."""
    numbered = re.fullmatch(r"(.*?)(\d+)", tag)
    stem, digits = numbered.groups() if numbered else (f"{tag}-", "0")
    number = int(digits) + 1
    while f"{stem}{number:0{len(digits)}d}" in taken:
        number += 1
    return f"{stem}{number:0{len(digits)}d}"


def _holds(entry: RepoFile | None, addition: CommitOperationAdd) -> bool:
    """True where a file in a repository has the bytes that `addition` would give it."""
    if entry is None or entry.size != addition.upload_info.size:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        return entry.blob_id == hashlib.sha1(b"blob %d\0" % entry.size + file.read()).hexdigest()


def _is_without_xet(error: OSError) -> bool:
    """True where an upload failed because the server gives no tokens for Xet: it is a Hub that only knows LFS.

    The client does not ask which of them a server speaks, and takes Xet.
    """
    return re.search(r"\b(404|405|501)\b.*/xet-write-token/", str(error)) is not None


def _or_without_xet() -> str:
    """The end of a message about a transfer that failed and may have been one by Xet."""
    by_xet = is_package_available("hf_xet") and not constants.HF_HUB_DISABLE_XET
    return ", or with HF_HUB_DISABLE_XET=1 where the storage that Xet names is out of reach" if by_xet else ""


@contextmanager
def _no_xet() -> Iterator[None]:
    """Let the client upload by LFS, as with HF_HUB_DISABLE_XET=1."""
    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _passing(error: Exception) -> bool:
    """True where the same request may succeed in a moment."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in PASSING


def _patiently(ask: Callable[[], Result]) -> Result:
    """The answer, asked for again where the Hub is busy or the connection breaks.

    The client itself repeats most requests of uploads and downloads, and not what is asked before and after them.
    """
    for wait in WAITS:
        try:
            return ask()
        except (HTTPError, JSONDecodeError) as error:
            if not _passing(error):
                raise
            seconds = min(_asked_for(error) or wait, LONGEST_WAIT)
            logger.warning("the Hub: %s; asking again in %.0f s", _reason(error), seconds)
        time.sleep(seconds)
    return ask()


def _asked_for(error: Exception) -> float | None:
    """The seconds in Retry-After, where the Hub says them."""
    seconds = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(seconds) if re.fullmatch(r"\d+(\.\d+)?", seconds) else None


def _reason(error: BaseException) -> str:
    """An error in one line of bounded length: what the Hub says of it, where it says something."""
    reason = str(error)
    if isinstance(error, HfHubHTTPError):
        reason = f"{error.response.status_code}: {error.server_message or error.response.reason_phrase}"
    elif isinstance(error, JSONDecodeError):
        reason = f"an answer that is no JSON: {error.doc[:100]!r}"
    reason = " ".join(reason.split()) or type(error).__name__
    return reason if len(reason) <= 200 else reason[:199] + "…"
