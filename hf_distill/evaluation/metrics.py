"""`TopKAccuracy`: the accuracy of the reports as a metric of `evaluate`, which needs no network for it."""

from typing import Any

import datasets
import evaluate
import torch

from ..distilled.pools import topk_accuracy


class TopKAccuracy(evaluate.Metric):
    """The share of images whose class is among the `k` largest logits.

    Example:
        >>> TopKAccuracy().compute(predictions=[[0.1, 0.7, 0.2]], references=[2], k=2)
        {'accuracy': 1.0}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The share of images, in [0, 1], whose class is among the k largest logits.",
            citation="",
            inputs_description="predictions: logits (N, K); references: classes (N,); k: how many guesses count.",
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, *, predictions: Any, references: Any, k: int = 1) -> dict[str, float]:
        return {"accuracy": topk_accuracy(torch.as_tensor(predictions), torch.as_tensor(references), k)}
