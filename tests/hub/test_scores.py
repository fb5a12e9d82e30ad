"""Robust scores and intervals, beside numbers worked by hand, NumPy, SciPy's own tests, and simulated reports."""

import math

import numpy as np
import pytest
from scipy import stats

from hf_distill.hub.intervals import Difference, Sample, paired
from hf_distill.hub.scores import augmentation_robust_score, label_robust_score, squashed

# HLR and IOR in points as DD-Ranking's table has them, and the score of their means, worked by hand.
PUBLISHED = [
    (52.66, 12.40, 19.1), (36.70, 18.54, 23.2), (26.31, 12.34, 24.0),  # DC at 1, 10 and 50 images per class
    (58.93, 13.16, 18.2), (35.14, 19.62, 23.7), (27.41, 10.96, 23.5),  # DSA
    (61.37, 8.73, 17.0), (39.37, 16.12, 22.2), (25.06, 12.66, 24.3),  # DM
    (42.21, 27.62, 23.9), (23.73, 30.90, 28.4), (16.52, 20.52, 27.8),  # MTT
    (26.84, 35.05, 28.7), (18.89, 23.89, 28.0),  # DATM
    (69.86, -0.27, 14.3), (67.82, -5.77, 13.8),  # SRe2L
    (60.58, 2.38, 16.2), (50.65, 1.11, 17.6),  # RDED
    (51.06, 6.68, 18.4), (39.88, 9.12, 20.8),  # D4M
]  # fmt: skip
FIVE = [0.61, 0.63, 0.6, 0.66, 0.62]


def test_the_score_of_nothing_gained_and_nothing_lost_is_between_those_of_all_lost_and_all_gained():
    assert squashed(-1) == 0
    assert squashed(0) == pytest.approx(0.26894, abs=5e-6)
    assert squashed(1) == 1


@pytest.mark.parametrize(("hlr", "ior", "expected"), PUBLISHED)
def test_scores_are_those_worked_by_hand_from_published_means(hlr, ior, expected):
    hard, random = 0.1, 0.1
    score = label_robust_score([hard + hlr / 100], [hard], [random + ior / 100], [random])
    assert 100 * score.values.mean == pytest.approx(expected, abs=0.1)


def test_a_score_is_the_mean_of_f_over_seeds_and_not_f_of_the_mean():
    score = label_robust_score([1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0])  # α = -½ and ½
    expected = [(math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1)) for alpha in (-0.5, 0.5)]
    assert score.values.values == pytest.approx(expected)
    assert score.values.mean == pytest.approx(sum(expected) / 2)
    assert score.values.mean > squashed(0) + 0.05
    assert [part.mean for part in score.components.values()] == [0.5, 0.5]


def test_arms_are_paired_by_the_number_of_the_seed():
    moved = label_robust_score(FIVE, [value - 0.2 for value in FIVE], FIVE, [value - 0.1 for value in FIVE])
    assert moved.components["HLR"].values == pytest.approx([0.2] * 5)
    assert moved.components["IOR"].std == pytest.approx(0)
    assert moved.values.values == pytest.approx([squashed(-0.05)] * 5)


def test_more_weight_on_what_is_gained_is_a_larger_score():
    arms = [0.9] * 3, [0.5] * 3, FIVE[:3], [0.4] * 3
    scores = [label_robust_score(*arms, weight=weight).values.mean for weight in np.linspace(0, 1, 11)]
    assert scores == sorted(scores)
    assert len(set(scores)) == 11


def test_all_images_as_a_distilled_set_lose_nothing():
    score = label_robust_score(FIVE, FIVE, FIVE, [0.3] * 5)
    assert score.components["HLR"].values == (0.0,) * 5


def test_the_augmentation_score_weighs_what_is_gained_with_and_without():
    score = augmentation_robust_score([0.6], [0.4], [0.5], [0.4], weight=0.75)
    assert score.values.values == pytest.approx([squashed(0.75 * 0.2 + 0.25 * 0.1)])
    assert {name: part.mean for name, part in score.components.items()} == pytest.approx(
        {"augmented": 0.2, "unaugmented": 0.1}
    )


def test_two_calls_give_equal_bits():
    assert label_robust_score(FIVE, FIVE, FIVE, FIVE).to_json() == label_robust_score(FIVE, FIVE, FIVE, FIVE).to_json()


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (([61.2], [0.5], [0.5], [0.4]), "full_hard has 61.2; expected fractions"),
        (([0.6], [0.5], [0.5], [-0.1]), "random_own has -0.1"),
        (([0.6], [math.nan], [0.5], [0.1]), "distilled_hard has nan"),
        (([0.6, 0.7], [0.5], [0.5], [0.4]), "full_hard 2, distilled_hard 1"),
        (([], [], [], []), "full_hard 0, distilled_hard 0"),
        (([0.6], [0.5], [0.5], [0.4], 50), "weight has 50"),
        (([0.6], [0.5], [0.5], [0.4], "x"), "weight has x"),
        (([0.6], [None], [0.5], [0.4]), "distilled_hard has None"),
        ((0.6, [0.5], [0.5], [0.4]), "full_hard is 0.6; expected accuracies in a list"),
    ],
)
def test_percent_and_arms_that_are_no_pairs_are_one_line(arms, words):
    with pytest.raises(ValueError, match=words) as error:
        label_robust_score(*arms)
    assert "\n" not in str(error.value)


def test_an_alpha_of_percent_is_one_line():
    with pytest.raises(ValueError, match=r"alpha is 12\.4; expected a number in"):
        squashed(12.4)


# Intervals


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_an_interval_is_the_one_of_scipy(n):
    values = np.random.default_rng(n).normal(0.6, 0.03, n)
    low, high = stats.t.interval(0.95, n - 1, values.mean(), values.std(ddof=1) / math.sqrt(n))
    assert Sample(tuple(values)).interval == pytest.approx((low, high))


@pytest.mark.parametrize("values", [(0.6,), (1.0, 1.0, 1.0), (0.3 - 0.2, 0.4 - 0.3, 0.1)])
def test_one_value_and_equal_ones_have_no_interval_and_show_nothing(values):
    difference = Difference(values)
    assert difference.interval is None
    assert difference.verdict == "no difference shown"
    assert difference.seeds_for() is None


def test_a_verdict_is_that_of_the_paired_t_test():
    draw = np.random.default_rng(3)
    seen = set()
    for shift in np.linspace(-0.04, 0.04, 41):
        one, other = draw.normal(0.5, 0.02, 5), draw.normal(0.5 + shift, 0.02, 5)
        tested = stats.ttest_rel(one, other)
        expected = "no difference shown" if tested.pvalue > 0.05 else "better" if tested.statistic > 0 else "worse"
        assert paired(one, other).verdict == expected
        seen.add(expected)
    assert len(seen) == 3


def test_students_of_seeds_that_one_alone_has_are_no_pairs():
    assert paired([0.5, 0.75, 1.0], [0.25, 0.25]).values == (0.25, 0.5)


@pytest.mark.parametrize("std", [0.002, 0.01, 0.02, 0.05])
def test_as_many_seeds_as_are_said_show_a_point_in_four_of_five_evaluations(std):
    def power(n: int) -> float:  # of the two-sided test, by the noncentral t distribution
        far, limit = 0.01 * math.sqrt(n) / std, stats.t.ppf(0.975, n - 1)
        return stats.nct.sf(limit, n - 1, far) + stats.nct.cdf(-limit, n - 1, far)

    n = Difference((-std / math.sqrt(2), std / math.sqrt(2))).seeds_for()
    exact = next(count for count in range(2, 1000) if power(count) >= 0.8)
    assert abs(n - exact) <= 1


def test_the_interval_of_random_against_random_holds_zero_in_nineteen_of_twenty_reports():
    draw = np.random.default_rng(0)
    common = draw.normal(0, 0.03, (2000, 5))  # what a seed does to both
    one, other = (draw.binomial(360, np.clip(0.6 + common + draw.normal(0, 0.03, (2000, 5)), 0, 1)) / 360
                  for _ in range(2))  # fmt: skip
    intervals = [paired(*report).interval for report in zip(one.tolist(), other.tolist(), strict=True)]
    held = sum(interval is None or interval[0] <= 0 <= interval[1] for interval in intervals)
    assert 0.93 <= held / 2000 <= 0.97
