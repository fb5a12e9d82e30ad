"""The metrics of the reports, as modules of `evaluate`, which need no network for them.

Importing `evaluate` takes seconds; whoever uses these imports them when there is something to measure.
"""

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Accuracy", "TopKAccuracy"]


class _HitRate(evaluate.Metric):
    """The share of images whose class is among those that are guessed of them."""

    def _build_data_dir(self) -> str:
        # `evaluate` makes a folder for the files of its modules. What is kept in memory has no files, and must work
        # where nothing can be written.
        return self._data_dir_root if self.keep_in_memory else super()._build_data_dir()

    def _describe(self, rule: str, predictions: str, kind: datasets.Value | datasets.List) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"The share of images, in [0, 1], {rule}.",
            citation="",
            inputs_description=f"predictions: {predictions}; references: classes (N,).",
            features=datasets.Features({"predictions": kind, "references": datasets.Value("int64")}),
        )

    def _compute(self, *, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        guesses = np.asarray(predictions).reshape(len(references), -1)  # (N, k)
        hits = (guesses == np.asarray(references)[:, None]).any(axis=1)
        return {"accuracy": int(hits.sum()) / len(hits)}


class Accuracy(_HitRate):
    """The share of images, in [0, 1], whose predicted class is theirs.

    Example:
        >>> Accuracy(keep_in_memory=True).compute(predictions=[1, 0, 2, 2], references=[1, 0, 2, 0])
        {'accuracy': 0.75}
    """

    def _info(self) -> evaluate.MetricInfo:
        return self._describe("whose predicted class is theirs", "classes (N,)", datasets.Value("int64"))


class TopKAccuracy(_HitRate):
    """The share of images, in [0, 1], whose class is among the k that are guessed.

    Example:
        >>> TopKAccuracy(keep_in_memory=True).compute(predictions=[[1, 2], [0, 1]], references=[2, 2])
        {'accuracy': 0.5}
    """

    def _info(self) -> evaluate.MetricInfo:
        guesses = datasets.List(datasets.Value("int64"))
        return self._describe("whose class is among the k that are guessed", "k classes each, (N, k)", guesses)
