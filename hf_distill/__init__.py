"""Distil any image-classification dataset into a tiny one, and share it on the Hugging Face Hub."""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .config import DataArguments
    from .data.images import RealImages
    from .data.preprocessing import Preprocessing
    from .distilled.distilled_set import DistilledSet
    from .distilled.epoch_labels import EpochLabels
    from .engine.loop import Distiller
    from .evaluation.evaluate import evaluate
    from .evaluation.protocols import EvalProtocol
    from .hub.results import EvalReport
    from .networks.projector import LabelProjector
    from .networks.teachers import Teacher
    from .networks.trajectories import ExpertTrajectories

# Loaded when first used: reading a card needs no torch.
_HOME = {
    "DataArguments": "config",
    "DistilledSet": "distilled.distilled_set",
    "Distiller": "engine.loop",
    "EpochLabels": "distilled.epoch_labels",
    "EvalProtocol": "evaluation.protocols",
    "EvalReport": "hub.results",
    "ExpertTrajectories": "networks.trajectories",
    "LabelProjector": "networks.projector",
    "Preprocessing": "data.preprocessing",
    "RealImages": "data.images",
    "Teacher": "networks.teachers",
    "evaluate": "evaluation.evaluate",
}

__all__ = [
    "DataArguments",
    "DistilledSet",
    "Distiller",
    "EpochLabels",
    "EvalProtocol",
    "EvalReport",
    "ExpertTrajectories",
    "LabelProjector",
    "Preprocessing",
    "RealImages",
    "Teacher",
    "__version__",
    "evaluate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
