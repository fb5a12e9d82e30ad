"""What `accelerate launch --dynamo_backend` asks for, for what is run again and again."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend

from .labels import LabelSource, NetworkLabels

__all__ = ["compiled", "compiled_labels"]

F = TypeVar("F", bound=Callable)


def compiled(function: F, accelerator: Accelerator | None) -> F:
    """`function` through `torch.compile` with the launcher's options, or as it is where it asks for none.

    Each shape has a graph of its own unless `--dynamo_use_dynamic` says otherwise: bits then do not depend on the
    shapes that came before, so not on which process has which work. Networks of one architecture share a graph.
    """
    plugin = None if accelerator is None else accelerator.state.dynamo_plugin
    if plugin is None or plugin.backend == DynamoBackend.NO:
        return function
    return torch.compile(function, **{"dynamic": False, **plugin.to_kwargs()})


def compiled_labels(source: LabelSource, accelerator: Accelerator | None, device: torch.device) -> LabelSource:
    """`source`, through `compiled` where a network with running statistics makes the labels of images on `device`."""
    label = compiled(source, accelerator)
    if label is source or not isinstance(source, NetworkLabels):
        return source
    source.ready(device)  # now, for neither fetching nor moving can be compiled
    return label
