"""`Repository`: what is done over the network. Files of one commit come down; whole versions go up, one commit each.

A version is published in three steps. Large files are uploaded a bounded number of bytes at a time, which no reader
sees and which need not be uploaded again after an interruption. One commit, on the version that was looked at,
replaces all that the artifact owns. A tag names that commit and is never moved. So a reader finds the old version or
the new one.
"""

import fnmatch
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn, TypeVar

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
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

__all__ = ["PushConflict", "Repository"]

logger = logging.getLogger(__name__)

BATCH_BYTES = 2_000_000_000  # uploaded before the next files are looked at: what an interruption costs at most
BATCH_FILES = 100
WAITS = (1.0, 2.0, 4.0)  # seconds between attempts, unless the Hub says how long
LONGEST_WAIT = 300.0  # seconds that the Hub may ask for
PASSING = (408, 429, 500, 502, 503, 504)
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

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
        with self._explained():
            folder = snapshot_download(
                self.repo_id,
                repo_type=self.repo_type,
                revision=self.revision,
                token=self.token,
                local_files_only=self.local_files_only,
                allow_patterns=list(patterns),
            )
        return Path(folder)

    def fetch(self, name: str) -> Path:
        """The cached copy of the file `name`, in a folder named by its commit.

        Raises:
            ValueError: As `snapshot`, or the repository has no such file.
            OSError: As `snapshot`.
        """
        with self._explained(name):
            path = hf_hub_download(
                self.repo_id,
                name,
                repo_type=self.repo_type,
                revision=self.revision,
                token=self.token,
                local_files_only=self.local_files_only,
            )
        return Path(path)

    def at(self, revision: str | None) -> "Repository":
        """The same repository at another revision."""
        return replace(self, revision=revision)

    def tags(self) -> dict[str, str]:
        """The commit of each tag."""
        with self._explained():
            refs = _patiently(lambda: self._api.list_repo_refs(self.repo_id, repo_type=self.repo_type))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def head(self) -> str:
        """The newest commit of the main branch."""
        with self._explained():
            return self._head()

    # Up

    def prepare(self, *, tag: str | None = None, private: bool | None = None) -> None:
        """Make sure that a version can be published here, and make the repository where there is none.

        Raises:
            ValueError: No right to write, a tag that exists, or a public repository that was to be private.
            OSError: The Hub does not answer.
        """
        if tag is not None and not TAG.fullmatch(tag):
            raise ValueError(
                f"the tag {tag!r} cannot name a version; expected letters, digits and . _ -, such as v1.0.0"
            )
        with self._explained():
            _patiently(
                lambda: self._api.create_repo(self.repo_id, repo_type=self.repo_type, private=private, exist_ok=True)
            )
            self._check_private(private)
            self._check_tag(tag)

    def publish(
        self,
        files: Mapping[str, Path],
        owned: Sequence[str],
        *,
        tag: str | None = None,
        create_pr: bool = False,
        parent: str | None = None,
        message: str = "Publish with hf_distill",
    ) -> CommitInfo:
        """Put `files` into the repository as one commit, in place of all it holds that matches `owned`.

        `prepare` comes first, but for a pull request. Started again after an interruption, it goes on with the files
        that are not there yet; a version that is there already only gets its tag.

        Args:
            files: Local path of each path in the repository.
            owned: Glob patterns; `*` does not cross a folder.
            tag: Names the commit, once and for all.
            create_pr: Offer the version as a pull request: for repositories of others.
            parent: The commit that the version is made for; that of now if not given.
            message: Of the commit.

        Raises:
            PushConflict: The repository has got another version meanwhile.
            ValueError: As `prepare`.
            OSError: The Hub does not answer, or failed; the repository is at its old version.
        """
        if create_pr and tag is not None:
            raise ValueError(
                f"a pull request has no commit to tag yet; leave the tag {tag!r} out, and tag after merging"
            )
        with self._explained():
            parent = parent or self._head()
            additions = [CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())]
            for batch in _batches(additions):
                self._upload(batch, create_pr)
            if create_pr:  # once: where only the answer was lost, another attempt would open a second one
                commit = self._commit(additions, owned, parent, create_pr, message)
            else:
                commit = _patiently(lambda: self._commit(additions, owned, parent, create_pr, message))
            if tag is not None:
                self._tag(tag, commit.oid)
        return commit

    @property
    def _api(self) -> HfApi:
        return HfApi(token=self.token)

    def _head(self) -> str:
        info = _patiently(lambda: self._api.repo_info(self.repo_id, repo_type=self.repo_type, revision="main"))
        return str(info.sha)

    def _check_private(self, private: bool | None) -> None:
        if private:
            info = _patiently(lambda: self._api.repo_info(self.repo_id, repo_type=self.repo_type))
            if not info.private:
                raise ValueError(
                    f"{self} exists and is public, and a private one was asked for; give another name, or make it "
                    "private in its settings first"
                )

    def _check_tag(self, tag: str | None) -> None:
        if tag is None:
            return
        refs = _patiently(lambda: self._api.list_repo_refs(self.repo_id, repo_type=self.repo_type))
        taken = {ref.name for ref in (*refs.tags, *refs.branches)}
        if tag in taken:
            raise ValueError(
                f"{self} has {tag} already, and a published version never changes; {_free(tag, taken)} is free"
            )

    def _upload(self, batch: list[CommitOperationAdd], create_pr: bool) -> None:
        def upload() -> None:
            self._api.preupload_lfs_files(
                self.repo_id, batch, repo_type=self.repo_type, create_pr=create_pr, free_memory=False
            )

        try:
            _patiently(upload)
        except (RuntimeError, ConnectionError) as error:  # what the client makes of an upload that failed for good
            raise OSError(
                f"uploading to {self} failed ({_reason(error.__cause__ or error)}); nothing was published. The files "
                "that are there need not be uploaded again: run the same command again"
            ) from error

    def _commit(
        self, additions: list[CommitOperationAdd], owned: Sequence[str], parent: str, create_pr: bool, message: str
    ) -> CommitInfo:
        # Asked anew in each attempt: a commit whose answer was lost has nothing left to add or delete.
        held = self._api.list_repo_files(self.repo_id, repo_type=self.repo_type)
        kept = {addition.path_in_repo for addition in additions}
        stale = [name for name in held if name not in kept and any(_matches(name, pattern) for pattern in owned)]
        return self._api.create_commit(
            self.repo_id,
            [*additions, *(CommitOperationDelete(name) for name in stale)],
            commit_message=message,
            repo_type=self.repo_type,
            parent_commit=parent,
            create_pr=create_pr,
        )

    def _tag(self, tag: str, oid: str) -> None:
        try:
            self._api.create_tag(self.repo_id, tag=tag, revision=oid, repo_type=self.repo_type)
        except HTTPError as error:
            # It may be there for all that: its answer can be lost, or somebody else can have taken the name.
            tags = self.tags()
            if tag not in tags and _passing(error):
                _patiently(lambda: self._api.create_tag(self.repo_id, tag=tag, revision=oid, repo_type=self.repo_type))
            elif tags.get(tag) != oid:
                self._check_tag(tag)
                raise

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
        ) as error:
            self._explain(error, name)

    def _explain(self, error: Exception, name: str | None) -> NoReturn:
        # What is asked of a repository is often meant as a folder, so each message says that there is none.
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        at = f" at revision {self.revision!r}" if self.revision else ""
        what = f"{name} of {self}{at}" if name else f"{self}{at}"
        if isinstance(error, HFValidationError):
            raise ValueError(
                f"{self.repo_id!r} is no folder here and cannot be a repository id; expected a path that exists, or "
                "owner/name"
            ) from error
        if isinstance(error, OfflineModeIsEnabled):
            raise ValueError(f"{what} needs the Hub, and HF_HUB_OFFLINE is set; unset it") from error
        if isinstance(error, LocalEntryNotFoundError):
            raise ValueError(
                f"{what} is no folder here, is not in the local cache, and the Hub was not reached "
                f"({_reason(error)}); check the name and the connection, or unset HF_HUB_OFFLINE"
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
        if status == 412:
            raise PushConflict(
                f"{self} got another version while this one was on its way; that one is whole. Run the same command "
                "again to publish on top of it"
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


def _matches(name: str, pattern: str) -> bool:
    """Whether a path matches a glob pattern part by part."""
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


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
    found = re.fullmatch(r"(.*?)(\d+)", tag)
    stem, number = (found.group(1), int(found.group(2))) if found else (f"{tag}-", 1)
    while f"{stem}{number}" in taken or f"{stem}{number}" == tag:
        number += 1
    return f"{stem}{number}"


def _passing(error: HTTPError) -> bool:
    """Whether the same request may succeed in a moment."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in PASSING


def _patiently(ask: Callable[[], Result]) -> Result:
    """The answer, asked for again where the Hub is busy or the connection breaks.

    The client itself repeats uploads and downloads, and not what is asked before and after them.
    """
    for wait in WAITS:
        try:
            return ask()
        except HTTPError as error:
            if not _passing(error):
                raise
            seconds = min(_asked_for(error) or wait, LONGEST_WAIT)
            logger.warning("the Hub: %s; asking again in %.0f s", _reason(error), seconds)
        time.sleep(seconds)
    return ask()


def _asked_for(error: HTTPError) -> float | None:
    """The seconds in Retry-After, where the Hub says them."""
    said = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(said) if re.fullmatch(r"\d+(\.\d+)?", said) else None


def _reason(error: BaseException) -> str:
    """An error in one line of bounded length: what the Hub says of it, where it says something."""
    said = str(error)
    if isinstance(error, HfHubHTTPError) and error.server_message:
        said = f"{error.response.status_code}: {error.server_message}"
    said = " ".join(said.split()) or type(error).__name__
    return said if len(said) <= 200 else said[:199] + "…"
