"""The robust scores as modules of `evaluate`."""

import math

import pytest

from hf_distill.evaluation.metrics import AugmentationRobustScore, LabelRobustScore

ARMS = {
    LabelRobustScore: ("full_hard", "distilled_hard", "distilled_own", "random_own"),
    AugmentationRobustScore: (
        *("distilled_augmented", "random_augmented", "distilled_unaugmented", "random_unaugmented"),
    ),
}


def f(alpha: float) -> float:
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


@pytest.mark.parametrize(
    ("kind", "arms", "alphas", "parts"),
    [
        (
            LabelRobustScore,
            ([0.8, 0.9], [0.6, 0.5], [0.7, 0.75], [0.3, 0.25]),
            [0.25 * 0.4 - 0.75 * 0.2, 0.25 * 0.5 - 0.75 * 0.4],
            {"HLR": 0.3, "IOR": 0.45},
        ),
        (
            AugmentationRobustScore,
            ([0.8, 0.9], [0.6, 0.5], [0.7, 0.75], [0.3, 0.25]),
            [0.25 * 0.2 + 0.75 * 0.4, 0.25 * 0.4 + 0.75 * 0.5],
            {"augmented": 0.3, "unaugmented": 0.45},
        ),
    ],
)
def test_robust_scores_need_neither_network_nor_disk_and_give_seeds_means_and_parts(
    kind, arms, alphas, parts, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    metric = kind(keep_in_memory=True, cache_dir=str(tmp_path))
    measured = dict(zip(ARMS[kind], arms, strict=True))
    score = metric.compute(**measured, weight=0.25)
    one, two = map(f, alphas)
    assert score["values"] == pytest.approx([one, two])
    assert score["mean"] == pytest.approx((one + two) / 2)
    assert score["std"] == pytest.approx(abs(one - two) / math.sqrt(2))
    half = 12.7062 * score["std"] / math.sqrt(2)  # the quantile of one degree of freedom
    assert score["interval"] == pytest.approx([score["mean"] - half, score["mean"] + half], abs=1e-4)
    assert {name: part["mean"] for name, part in score["components"].items()} == pytest.approx(parts)
    assert metric.compute(**measured, weight=0.25) == score
    assert metric.compute(**measured) != score
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ARMS)
def test_percent_is_refused_in_one_line(kind):
    percent = {arm: [61.2, 62.0] for arm in ARMS[kind]}
    with pytest.raises(ValueError, match=r"has 61\.2; expected fractions in \[0, 1\]"):
        kind(keep_in_memory=True).compute(**percent)
