"""`Lesson`: a student of a set, trained on the CPU while somebody looks on. No gradio.

A student learns whole images, by the protocol of its set where that is of such, and else by "quick"; with the labels of
the set where these are at hand, and else with its classes. What differs from how the set was evaluated is in words.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..augmentation.dsa import DSA
from ..config import DataArguments
from ..data.feed import Pool
from ..data.images import RealImages
from ..distilled.distilled_set import DistilledSet
from ..distilled.labels import HardLabels, LabelSource, NetworkLabels
from ..distilled.targets import targets_of
from ..evaluation.accuracy import accuracy
from ..evaluation.evaluate import check_data, distilled_pool, learned_rates, protocol_for
from ..evaluation.protocols import QUICK, EvalProtocol
from ..evaluation.students import student_name, train_along
from ..hub.checks import is_number
from ..networks.architectures import CONVNETS, StudentSpec
from ..runs.start import source_arguments

__all__ = ["Lesson", "Seen", "guesses", "test_images"]

logger = logging.getLogger(__name__)

POINTS, MOST = 25, 250  # of a curve
WIDE = 64  # pixels of a side up to which students have the usual width; a CPU takes too long for larger images
TIMED_VALUES = 2**17  # of pixels in the steps that are timed, which stand for the others


class Seen(NamedTuple):
    """A student on its way.

    Attributes:
        epoch: From 1, that it has behind it.
        epochs: Of its training.
        accuracy: In [0, 1], on the images of `Lesson.tested`.
        student: In evaluation mode.
    """

    epoch: int
    epochs: int
    accuracy: float
    student: nn.Module


@dataclass(frozen=True)
class Lesson:
    """How students of a set are trained here.

    Attributes:
        pool: The images of the set, as students see them.
        labels: What students learn.
        spec: The architecture.
        protocol: The schedule.
        lr: Learning rate before any drop.
        tested: What accuracies are measured on: real test images, or those of the set.
        notes: What differs from the evaluation of the set, a sentence each.
    """

    pool: Pool
    labels: LabelSource
    spec: StudentSpec
    protocol: EvalProtocol
    lr: float
    tested: Pool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, distilled: DistilledSet, test: RealImages | None = None) -> Self:
        """The lesson of a set.

        Args:
            distilled: The set, on the CPU.
            test: What accuracies are measured on; the images of the set if not given.

        Raises:
            ValueError: `test` is not like the set.
        """
        pool = distilled_pool(distilled, torch.device("cpu"))
        labels, no_labels = _labels(distilled)
        spec, no_student = _student(distilled)
        protocol, no_protocol = _protocol(distilled)
        tested = pool
        if test is not None:
            check_data(distilled, test)
            tested = Pool(test, test.labels, preprocessing=distilled.preprocessing)
        notes = tuple(filter(None, (no_student, no_protocol, no_labels)))
        return cls(pool, labels, spec, protocol, _rate(distilled, spec, protocol, labels), tested, notes)

    @cached_property
    def targets(self) -> Tensor:
        """Classes (N,), or logits (N, K), of the images of the set."""
        return targets_of(self.pool, self.labels)

    @property
    def tests(self) -> bool:
        """True where accuracies are measured on images that students do not learn from."""
        return self.tested is not self.pool

    def train(self, epochs: int, seed: int) -> Iterator[Seen]:
        """A fresh student again and again during its training, which closing this ends.

        It is seen `POINTS` times, or about once in a second of a longer training.

        Args:
            epochs: Passes over the set.
            seed: Of the student and of all that it sees.
        """
        points = min(MOST, max(POINTS, int(epochs * self.seconds_per_epoch)))
        marks = sorted({max(1, round(epochs * (i + 1) / points)) for i in range(points)})
        along = train_along(self.pool, self.targets, self.spec, self.protocol, marks, lr=self.lr, seed=seed)
        for epoch, student in zip(marks, along, strict=True):
            yield Seen(epoch, epochs, accuracy(student, self.tested), student)

    @cached_property
    def seconds_per_epoch(self) -> float:
        """An estimate for this machine: a few steps on as many images as take a moment, scaled up to all."""
        count = min(len(self.pool), max(2, TIMED_VALUES // self.pool.values))
        rows = torch.arange(count)
        along = train_along(
            self.pool.images(rows), self.pool.labels[rows], self.spec, self.protocol, range(1, 4), lr=self.lr, seed=0
        )
        times = [perf_counter() for _ in along]
        return min(later - earlier for earlier, later in pairwise(times)) * len(self.pool) / count

    def epochs_within(self, seconds: float) -> int:
        """Those of the protocol, or as many as take about so long here; at least one."""
        return max(1, min(self.protocol.epochs, int(seconds / self.seconds_per_epoch)))


def _labels(distilled: DistilledSet) -> tuple[LabelSource, str]:
    """What students of a set learn, and a sentence where these are not its own labels."""
    source = distilled.label_source
    if isinstance(source, NetworkLabels):
        source.ask_with(None, True)  # what is not on this machine is not fetched for a visitor
        try:
            source.ready("cpu")
        except (ValueError, OSError) as error:
            logger.warning("students learn classes: %s", error)
            return HardLabels(), (
                f"The labels of this set are those of a {source.kind}, {source.name}, which is not at hand: students "
                "learn the classes of the images in their place."
            )
        return source, (
            f"Labels are those that the {source.kind} {source.name} gives whole images, once, and not every view."
        )
    return source, ""


def _student(distilled: DistilledSet) -> tuple[StudentSpec, str]:
    """A ConvNet for a set, and a sentence where the set was made for something else."""
    made_for = distilled.config.get("student")
    known = made_for if isinstance(made_for, dict) else {}
    if known.get("name") in CONVNETS:
        return StudentSpec.from_dict(known), ""
    channels, height, width = distilled.pixel_values.shape[1:]
    depth = min(8, max(2, round(math.log2(max(height, width))) - 2))
    channels_within = 128 if max(height, width) <= WIDE else 32
    small = StudentSpec.for_images(
        f"convnet_d{depth}", distilled.num_classes, (channels, height, width), width=channels_within, norm="instance"
    )
    name = known.get("name")
    made = f"The set was made for {name}" if isinstance(name, str) else "The set names no network that it was made for"
    return small, f"{made}; students here are {student_name(small)}."


def _protocol(distilled: DistilledSet) -> tuple[EvalProtocol, str]:
    """A protocol of whole images for a set, and a sentence where its own is another."""
    own = protocol_for(distilled)
    if isinstance(own, EvalProtocol):
        return own, ""
    strategy = distilled.config.get("dsa_strategy") or QUICK.dsa_strategy
    if distilled.preprocessing.channels == 1:  # signs in gray are read one way
        strategy = "_".join(name for name in DSA(strategy).operations if name != "flip")
    quick = QUICK.with_augmentation(strategy)
    return quick, f"Its own protocol is {own.name}, and students here learn whole images by {quick.name}."


def _rate(distilled: DistilledSet, spec: StudentSpec, protocol: EvalProtocol, labels: LabelSource) -> float:
    """The learning rate that the report of a set has for such students, else the learned one, else the protocol's."""
    meta = {} if distilled.report is None else distilled.report.meta
    about = meta.get(f"{protocol.title}, {student_name(spec)}")
    rates = about.get("learning_rates") if isinstance(about, dict) else None
    hard = isinstance(labels, HardLabels)
    found = rates.get(f"distilled, {'hard' if hard else 'soft'} labels") if isinstance(rates, dict) else None
    if isinstance(found, int | float) and is_number(found) and found > 0:
        return found
    learned = () if hard != isinstance(distilled.label_source, HardLabels) else learned_rates(distilled, protocol)
    return next(iter((*learned, *protocol.lrs)))


def test_images(distilled: DistilledSet) -> RealImages | None:
    """The test images of what a set was made of, where they come with scikit-learn; None for all others."""
    if (distilled.config.get("source") or {}).get("name") != "digits":
        return None
    _, test = RealImages.train_and_test(source_arguments(distilled, DataArguments()))
    try:
        check_data(distilled, test)
    except ValueError as error:  # another dataset of that name
        logger.warning("students are tested on the set itself: %s", error)
        return None
    return test


@torch.no_grad()
def guesses(student: nn.Module, images: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """The probability that a student gives each class for an image.

    Args:
        student: In evaluation mode.
        images: (1, C, H, W) float32, preprocessed.
        class_names: K names.
    """
    (probabilities,) = student(images).float().softmax(1).tolist()
    return dict(zip(class_names, probabilities, strict=True))
