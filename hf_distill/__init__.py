"""Distil any image-classification dataset into a tiny one, and share it on the Hugging Face Hub.

import hf_distill as hd
from datasets import load_dataset

train = hd.RealImages.from_dataset(load_dataset("uoft-cs/cifar10", split="train"), resolution=32)
test = hd.RealImages.from_dataset(load_dataset("uoft-cs/cifar10", split="test"), like=train)

distilled = hd.TESLA.distill(train, ipc=10, output_dir="outputs/mine")
report = hd.evaluate(distilled, train, test)
distilled.push_to_hub("me/cifar10-ipc10", tag="v1.0.0")
"""

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .starting import begin, is_recipe

if is_recipe():
    begin()

if TYPE_CHECKING:
    from .config import DataArguments, HfArg, LoopConfig
    from .data.images import RealImages
    from .data.outlines import Outlines
    from .data.preprocessing import Preprocessing
    from .distilled.distilled_set import DistilledSet
    from .distilled.epoch_labels import EpochLabels
    from .engine.blocks import Block, BlockDistiller
    from .engine.loop import Distiller
    from .engine.method import Method, Preparation
    from .engine.plan import Plan, plan
    from .evaluation.audit import audit
    from .evaluation.evaluate import evaluate
    from .evaluation.protocols import EvalProtocol
    from .hub.cards import Paper
    from .hub.results import EvalReport
    from .methods import METHODS
    from .methods.apm import APM, APMConfig
    from .methods.datm import DATM, DATMConfig
    from .methods.dm import DM, DMConfig
    from .methods.fadrm import FADRM, FADRMConfig
    from .methods.hello import HeLlO, HeLlOConfig
    from .methods.lgm import CLPDD, LGM, CLPDDConfig, LGMConfig
    from .methods.mtt import MTT, MTTConfig
    from .methods.rded import RDED, RDEDConfig
    from .methods.sre2l import CDA, CDAConfig, SRe2L, SRe2LConfig
    from .methods.tesla import TESLA, TESLAConfig
    from .networks.architectures import StudentSpec
    from .networks.backbones import Backbone
    from .networks.projector import LabelProjector
    from .networks.teachers import Teacher
    from .networks.trajectories import ExpertTrajectories
    from .runs.callbacks import Callback, RunState
    from .runs.finish import DistillationDiverged
    from .training.experts import ExpertConfig, train_experts
    from .training.small_clip import PriorArguments
    from .training.teachers import TeacherConfig, train_teacher

# Loaded when first used: reading a card needs no torch.
_HOME = {
    "APM": "methods.apm",
    "APMConfig": "methods.apm",
    "Backbone": "networks.backbones",
    "Block": "engine.blocks",
    "BlockDistiller": "engine.blocks",
    "CDA": "methods.sre2l",
    "CDAConfig": "methods.sre2l",
    "CLPDD": "methods.lgm",
    "CLPDDConfig": "methods.lgm",
    "Callback": "runs.callbacks",
    "DATM": "methods.datm",
    "DATMConfig": "methods.datm",
    "DM": "methods.dm",
    "DMConfig": "methods.dm",
    "DataArguments": "config",
    "DistillationDiverged": "runs.finish",
    "DistilledSet": "distilled.distilled_set",
    "Distiller": "engine.loop",
    "EpochLabels": "distilled.epoch_labels",
    "EvalProtocol": "evaluation.protocols",
    "EvalReport": "hub.results",
    "ExpertConfig": "training.experts",
    "ExpertTrajectories": "networks.trajectories",
    "FADRM": "methods.fadrm",
    "FADRMConfig": "methods.fadrm",
    "HeLlO": "methods.hello",
    "HeLlOConfig": "methods.hello",
    "HfArg": "config",
    "LGM": "methods.lgm",
    "LGMConfig": "methods.lgm",
    "LabelProjector": "networks.projector",
    "LoopConfig": "config",
    "METHODS": "methods",
    "MTT": "methods.mtt",
    "MTTConfig": "methods.mtt",
    "Method": "engine.method",
    "Outlines": "data.outlines",
    "Paper": "hub.cards",
    "Plan": "engine.plan",
    "Preparation": "engine.method",
    "Preprocessing": "data.preprocessing",
    "PriorArguments": "training.small_clip",
    "RDED": "methods.rded",
    "RDEDConfig": "methods.rded",
    "RealImages": "data.images",
    "RunState": "runs.callbacks",
    "SRe2L": "methods.sre2l",
    "SRe2LConfig": "methods.sre2l",
    "StudentSpec": "networks.architectures",
    "TESLA": "methods.tesla",
    "TESLAConfig": "methods.tesla",
    "Teacher": "networks.teachers",
    "TeacherConfig": "training.teachers",
    "audit": "evaluation.audit",
    "evaluate": "evaluation.evaluate",
    "plan": "engine.plan",
    "train_experts": "training.experts",
    "train_teacher": "training.teachers",
}

__all__ = [
    "APM",
    "CDA",
    "CLPDD",
    "DATM",
    "DM",
    "FADRM",
    "LGM",
    "METHODS",
    "MTT",
    "RDED",
    "TESLA",
    "APMConfig",
    "Backbone",
    "Block",
    "BlockDistiller",
    "CDAConfig",
    "CLPDDConfig",
    "Callback",
    "DATMConfig",
    "DMConfig",
    "DataArguments",
    "DistillationDiverged",
    "DistilledSet",
    "Distiller",
    "EpochLabels",
    "EvalProtocol",
    "EvalReport",
    "ExpertConfig",
    "ExpertTrajectories",
    "FADRMConfig",
    "HeLlO",
    "HeLlOConfig",
    "HfArg",
    "LGMConfig",
    "LabelProjector",
    "LoopConfig",
    "MTTConfig",
    "Method",
    "Outlines",
    "Paper",
    "Plan",
    "Preparation",
    "Preprocessing",
    "PriorArguments",
    "RDEDConfig",
    "RealImages",
    "RunState",
    "SRe2L",
    "SRe2LConfig",
    "StudentSpec",
    "TESLAConfig",
    "Teacher",
    "TeacherConfig",
    "__version__",
    "audit",
    "evaluate",
    "plan",
    "train_experts",
    "train_teacher",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        nearest = difflib.get_close_matches(name, __all__, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}", name=name, obj=None)
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return __all__
