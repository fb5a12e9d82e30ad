"""Distil any image-classification dataset into a tiny one, and share it on the Hugging Face Hub."""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .config import DataArguments
    from .data import RealImages
    from .distilled import DistilledSet
    from .distiller import Distiller
    from .epoch_labels import EpochLabels
    from .evaluation import EvalProtocol, evaluate_distilled
    from .projector import LabelProjector
    from .results import EvalReport
    from .teachers import Teacher
    from .trajectories import ExpertTrajectories
    from .transforms import Preprocessing

# Loaded when first used: reading a card needs no torch.
_HOME = {
    "DataArguments": "config",
    "DistilledSet": "distilled",
    "Distiller": "distiller",
    "EpochLabels": "epoch_labels",
    "EvalProtocol": "evaluation",
    "EvalReport": "results",
    "ExpertTrajectories": "trajectories",
    "LabelProjector": "projector",
    "Preprocessing": "transforms",
    "RealImages": "data",
    "Teacher": "teachers",
    "evaluate_distilled": "evaluation",
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
    "evaluate_distilled",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
