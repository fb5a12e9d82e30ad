"""Publishing the result of a run: whether it can be done is found out before the work, and it is done after it."""

import dataclasses
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..config import HubArguments
from ..distilled.distilled_set import DistilledSet
from ..distilled.labels import ProjectorLabels
from ..hub.folder import Home, HubFolder
from ..hub.repository import Repository
from ..networks.projector import LabelProjector
from .processes import on_main

__all__ = ["prepare_push", "push", "push_with_projector"]


def prepare_push(
    hub: HubArguments, artifact: type[HubFolder], accelerator: Accelerator, *, projector: bool = False
) -> None:
    """Find out before the work whether its result can be published. All processes call it.

    Args:
        hub: Where.
        artifact: What.
        accelerator: The processes.
        projector: A label projector is to be published beside it.

    Raises:
        ValueError: No repository is given, the token may not write there, the tag exists already, or the repository
            holds something else.
    """

    def prepare() -> None:
        if hub.hub_model_id is None:
            raise ValueError("--push_to_hub needs the name of a repository; give --hub_model_id owner/name")
        places: dict[str, type[HubFolder]] = {hub.hub_model_id: artifact}
        if projector:
            places[_of_projector(hub.hub_model_id)] = LabelProjector
        about: dict[str, Any] = {
            "private": hub.hub_private_repo or None,
            "overwrite_foreign": hub.hub_overwrite_foreign,
        }
        for repo_id, kind in places.items():
            repository = Repository(repo_id, kind.repo_type, token=hub.hub_token)
            repository.prepare(kind.owned, kind.index(), tag=hub.hub_tag, **about)

    if hub.push_to_hub:
        on_main(accelerator, prepare)


def _of_projector(repo_id: str | None) -> str:
    return f"{repo_id}-projector"


def push_with_projector(
    distilled: DistilledSet, projector: LabelProjector, hub: HubArguments, folder: str | Path, own: str | Path
) -> str:
    """Publish a projector as `<repository>-projector`, and the set, which then names it; one process calls it.

    Args:
        distilled: The set, which is saved again in `folder`.
        projector: The projector, which is saved in `own`.
        hub: Where the set is to be published.
        folder, own: For them, and for messages.

    Returns:
        A line for each, as `push`.

    Raises:
        ValueError, OSError: As `push`.
    """
    repo_id = _of_projector(hub.hub_model_id)
    first = push(projector, dataclasses.replace(hub, hub_model_id=repo_id), own)
    shared = LabelProjector.from_pretrained(repo_id, revision=hub.hub_tag, token=hub.hub_token, prior=projector.prior)
    distilled.label_with(ProjectorLabels(shared))
    distilled.save_pretrained(folder)
    return f"{first}\n{push(distilled, hub, folder)}"


def push(artifact: HubFolder, hub: HubArguments, folder: str | Path) -> str:
    """Publish an artifact that is saved in `folder`; one process calls it.

    Returns:
        A line that says where it is and which call loads it.

    Raises:
        ValueError, OSError: As `HubFolder.push_to_hub`; the message says how to publish it later.
    """
    repo_id, tag = hub.hub_model_id or "", hub.hub_tag
    about: dict[str, Any] = {"private": hub.hub_private_repo or None, "overwrite_foreign": hub.hub_overwrite_foreign}
    try:
        commit = artifact.push_to_hub(repo_id, tag=tag, token=hub.hub_token, **about)
    except (ValueError, OSError) as error:
        name = type(artifact).__name__
        raise ValueError(
            f"{error}. The result is whole in {folder}: publish it later with "
            f'{name}.from_pretrained("{folder}").push_to_hub("{repo_id}"{f", tag={tag!r}" if tag else ""})'
        ) from error
    return f"published: {commit.commit_url}   load: {artifact.loader}({Home(repo_id, tag).arguments()})"
