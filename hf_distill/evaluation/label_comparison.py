"""`compare_labels`: which labels are worth their bytes. Students of the same images, with labels from several sources.

Everything else is equal. Students number i of all sources start from the same weights and have the same seed; so they
see the images in the same order, and those labelled as they are seen or by whole images see the same crops. Stored
labels bring the views that they were made for. The learning rate is chosen for each source, among the same ones.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..config import check_at_least
from ..data.feed import Pool
from ..data.images import RealImages
from ..distilled.distilled_set import DistilledSet
from ..distilled.epoch_labels import EpochLabels
from ..distilled.labels import HardLabels, LabelSource, ProjectorLabels, StoredLabels
from ..hub.repository import Repository
from ..hub.results import LabelRow
from ..networks.architectures import StudentSpec
from ..networks.projector import INDEX, LabelProjector
from .accuracy import device_name
from .evaluate import check_labels, distilled_pool, learned_rates, protocol_for, student_specs, trainer_for
from .protocols import TrainingProtocol
from .students import check_protocol, check_student, student_name
from .trainer import Case

__all__ = ["compare_labels", "compared_cases", "find_labels", "label_sources"]


def compare_labels(
    distilled: DistilledSet,
    sources: Mapping[str, LabelSource],
    test: RealImages,
    *,
    held_out: RealImages | None = None,
    protocol: str | TrainingProtocol | None = None,
    student: str | StudentSpec | None = None,
    num_seeds: int = 5,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    output_dir: str | Path | None = None,
    disable_tqdm: bool = False,
) -> list[LabelRow]:
    """Train students on the images of a set with labels from each source, and test them. All processes call it.

        rows = compare_labels(
            distilled,
            {
                "hard": HardLabels(),
                "one per image": StoredLabels(logits),
                "stored per epoch": EpochLabels.from_pretrained("outputs/labels"),
                "online teacher": NetworkLabels(teacher),
            },
            test,
            held_out=held_out,
            protocol="rded",
        )
        report = EvalReport(labels=rows)
        print(report.labels_table())

    The seeds are those of the soft row of `evaluate`, whose numbers these are for the same labels.

    Args:
        distilled: The set.
        sources: By the name in the report. `HardLabels` are learned with the cross-entropy; these and `StoredLabels`
            are of whole images, so their views are not mixed.
        test: What the accuracies are measured on.
        held_out: Real images to choose learning rates on; None takes the first: that which was learned with the set,
            for a protocol of whole images, or the protocol's.
        protocol: As in `evaluate`. One that looks at no views has no use for labels that were stored of views.
        student: timm name or spec; the student that the set was made for if not given.
        num_seeds: Students per source.
        seed: The one seed.
        accelerator: Processes and device.
        output_dir: As in `evaluate`, whose results these are for the same labels.
        disable_tqdm: No progress bars.

    Returns:
        A row for each source, in their order.

    Raises:
        ValueError: There are no sources, stored labels are not of these images, the data are not those of the set, or
            the student does not fit.
    """
    accelerator = accelerator or Accelerator()
    check_at_least("num_seeds", num_seeds, 1)
    if not sources:
        raise ValueError("there are no labels to compare; expected at least one source")
    protocol = protocol_for(distilled, protocol)
    (spec,) = student_specs(distilled, None if student is None else [student])
    check_student(spec)
    check_protocol([spec], protocol)
    trainer = trainer_for(distilled, test, held_out, seed, accelerator, disable_tqdm, output_dir)
    results = trainer.measure(compared_cases(distilled, sources, spec, protocol, num_seeds, accelerator.device))
    return [
        LabelRow(
            labels=name,
            num_bytes=source.num_bytes,
            student=student_name(spec),
            protocol=protocol.title,
            images=len(distilled),
            accuracies=result.accuracies,
            device=device_name(accelerator.device),
            split=str(test.provenance["split"]),
            lr=result.lr,
        )
        for (name, source), result in zip(sources.items(), results, strict=True)
    ]


def compared_cases(
    distilled: DistilledSet,
    sources: Mapping[str, LabelSource],
    spec: StudentSpec,
    protocol: TrainingProtocol,
    num_seeds: int,
    device: torch.device,
) -> list[Case]:
    """The images of the set once for each source, with the same random streams for all."""
    pool = distilled_pool(distilled, device)
    rows = torch.arange(len(distilled))
    return [
        Case(
            set="distilled",
            labels="soft",
            spec=spec,
            pool=pool,
            targets=_targets(source, distilled, pool, protocol),
            rows=rows.expand(num_seeds, -1),
            trial=rows,
            lrs=(*learned_rates(distilled, protocol), *protocol.lrs),
            epochs=protocol.epochs,
            protocol=protocol,
        )
        for source in sources.values()
    ]


def _targets(
    source: LabelSource, distilled: DistilledSet, pool: Pool, protocol: TrainingProtocol
) -> Tensor | LabelSource:
    """The labels of a source as training takes them; a `ValueError` for all that is wrong with them."""
    if isinstance(source, HardLabels):
        return pool.labels
    check_labels(source, distilled, pool, protocol)
    if isinstance(source, StoredLabels):
        expected = (len(distilled), distilled.num_classes)
        if tuple(source.logits.shape) != expected:
            raise ValueError(
                f"one label per image is {tuple(source.logits.shape)}; expected {expected}, a row for each image and "
                "a logit for each class"
            )
        source = StoredLabels(source.logits.to(pool.device))
    return source


def find_labels(name: str | Path, *, token: str | bool | None = None) -> EpochLabels | ProjectorLabels:
    """The labels in a folder or Hub repository: those of every epoch, or a projector, known by its files.

    Raises:
        ValueError: There is no such folder or repository, or it holds neither, or something damaged.
        OSError: The Hub does not answer.
    """
    if _holds_projector(name, token):
        return ProjectorLabels(LabelProjector.from_pretrained(name, token=token))
    return EpochLabels.from_pretrained(name, token=token)


def _holds_projector(name: str | Path, token: str | bool | None) -> bool:
    if os.path.exists(name):
        return Path(name, INDEX).is_file()
    try:
        return (Repository(str(name), LabelProjector.repo_type, token=token).snapshot([INDEX]) / INDEX).is_file()
    except ValueError:  # there is none of models: labels of every epoch are in one of datasets
        return False


def label_sources(
    distilled: DistilledSet, names: Sequence[str], *, token: str | bool | None = None
) -> dict[str, LabelSource]:
    """The labels to compare, by the names that a report shows.

    Args:
        distilled: The set.
        names: "hard" for its classes, "own" for what its method trains with, or what `find_labels` takes.
        token: As in `from_pretrained`.

    Raises:
        ValueError: As `find_labels`, or two have one name.
        OSError: As `find_labels`.
    """
    sources: dict[str, LabelSource] = {}
    for name in names:
        shown, source = _source(distilled, name, token)
        if shown in sources:
            raise ValueError(f"two labels to compare are called {shown!r}; rename a folder, or give each once")
        sources[shown] = source
    return sources


def _source(distilled: DistilledSet, name: str, token: str | bool | None) -> tuple[str, LabelSource]:
    if name == "hard":
        return "hard", HardLabels()
    if name == "own":
        return f"own ({distilled.label_source.kind})", distilled.label_source
    return Path(name).name if Path(name).is_dir() else name, find_labels(name, token=token)
