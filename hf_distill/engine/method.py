"""`Method`: what every method is, whatever makes its images: a paper, a config, real images, and its evaluation."""

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator

from ..config import DistillConfig, check_choice
from ..data.images import RealImages
from ..distilled.distilled_set import DistilledSet
from ..evaluation.evaluate import PROTOCOLS, evaluate_distilled
from ..hub.cards import Paper
from ..hub.files import package_versions
from ..hub.results import EvalReport

__all__ = ["FREE_TO_CHANGE", "SOURCE", "DistillationDiverged", "Method"]

SOURCE = ("name", "config", "split", "revision")  # of the provenance: what a continued run must read again
# What may differ between a run and its continuation without a word: it changes no update.
FREE_TO_CHANGE = {
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "report_to",
    "disable_tqdm",
    "cpu_threads",
    "max_steps",
}


class DistillationDiverged(RuntimeError):
    """The loss, a gradient or the learned learning rate left the numbers that training can use."""


class Method(ABC):
    """A way to make a small set out of a large one.

    Args:
        config: The hyper-parameters; `output_dir` must be given here (`runs.start.start_run` does).
        train: The images to distil.
        held_out: Part of train that nothing else sees, to select on.
        accelerator: Processes, device and trackers (`runs.start.start_run` makes one); a plain one if not given.
    """

    paper: ClassVar[Paper]
    config_class: ClassVar[type[DistillConfig]]

    def __init__(
        self,
        config: DistillConfig,
        train: RealImages,
        *,
        held_out: RealImages | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        if config.output_dir is None:
            raise ValueError("the distiller's config has no output_dir; expected a folder for checkpoints")
        check_choice("eval_protocol", config.eval_protocol, list(PROTOCOLS))
        self.config = config
        self.train = train
        self.held_out = held_out if held_out is not None and len(held_out) else None
        self.protocol = PROTOCOLS[config.eval_protocol]
        self.accelerator = accelerator or Accelerator()
        self.output_dir = Path(config.output_dir)
        self.distilled: DistilledSet

    @property
    def device(self) -> torch.device:
        """Where the synthetic images live."""
        return self.accelerator.device

    @property
    def name(self) -> str:
        """The method's name in lower case, as tags and folders have it."""
        return type(self).__name__.lower()

    @abstractmethod
    def distill(self) -> DistilledSet:
        """The distilled set. All processes call it."""

    def _data_identity(self) -> dict[str, Any]:
        """What says that a continued run reads the images that it began with, as JSON types."""
        train = self.train
        return {
            "dataset": {key: train.provenance.get(key) for key in SOURCE},
            "classes": train.class_names,
            "images": [len(train), hashlib.sha256(train.labels.numpy().tobytes()).hexdigest()[:16]],
            "preprocessing": train.preprocessing.fingerprint(),
        }

    def evaluate(self, test: RealImages) -> EvalReport:
        """Students trained on the distilled set and on the baselines, tested on `test`. All processes call it."""
        report = evaluate_distilled(
            self.distilled,
            self.train,
            self.held_out,
            test,
            self.protocol,
            num_seeds=self.config.eval_seeds,
            baselines=self.config.eval_baselines,
            full_data=self.config.eval_full_data,
            seed=self.config.seed,
            accelerator=self.accelerator,
            disable_tqdm=self.config.disable_tqdm,
        )
        self.distilled.report = report
        return report

    def start_trackers(self) -> None:
        """Begin with what `--report_to` names; all processes call it, and `end_trackers` in the end."""
        if self.config.report_to != "none":
            flat = {k: v if isinstance(v, int | float | str) else str(v) for k, v in vars(self.config).items()}
            self.accelerator.init_trackers("hf_distill", config=flat)

    def end_trackers(self) -> None:
        """Let trackers write what they still hold. `Accelerator.end_training` would end the process group as well."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _provenance(self) -> dict[str, Any]:
        """What `distill_config.json` says of this run, beside what the set knows by itself."""
        kept = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in FREE_TO_CHANGE or k == "max_steps"}
        return {
            "method": self.name,
            "hyperparameters": kept,
            "versions": package_versions(),
            "source": self.train.provenance,
            "seed": self.config.seed,
            "processes": self.accelerator.num_processes,
            "paper": dataclasses.asdict(self.paper),
        }
