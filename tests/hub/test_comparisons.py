"""What rows say together, worked by hand; and `results.json` beside its schema."""

import json
import math
from importlib import resources

import jsonschema
import pytest

from hf_distill.hub.results import EvalReport, EvalRow, LabelRow

SCHEMA = json.loads(resources.files("hf_distill.hub").joinpath("results.schema.json").read_text("utf-8"))


def row(kind: str, labels: str = "soft", accuracies: tuple[float, ...] = (0.5, 0.6, 0.7), **changes) -> EvalRow:
    images = 1000 if kind == "full data" else 10
    fields = {"student": "resnet18", "protocol": "quick", "images": images, "device": "cpu", **changes}
    return EvalRow(kind, labels, accuracies=[*accuracies], **fields)


def f(alpha: float) -> float:
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


ROWS = [
    row("distilled", accuracies=(0.6, 0.7, 0.65)),
    row("distilled", "hard", (0.5, 0.55, 0.6)),
    row("random", accuracies=(0.4, 0.45, 0.5)),
    row("random", "hard", (0.5, 0.5, 0.5)),
    row("herding", accuracies=(0.3, 0.3, 0.3)),
    row("k-center", accuracies=(0.6, 0.72, 0.65)),
    row("full data", "hard", (0.9, 0.95, 0.9)),
    row("full data", accuracies=(0.8, 0.8, 0.8)),
]
META = {"quick, resnet18": {"epochs": {"distilled, hard labels": 200, "full data, hard labels": 30}}}
BARE = [
    row("distilled", accuracies=(0.5, 0.5, 0.6), protocol="quick without augmentation"),
    row("random", accuracies=(0.4, 0.3, 0.4), protocol="quick without augmentation"),
]


def test_the_set_is_compared_with_random_images_and_the_best_other_subset_by_labels_of_one_kind():
    found = EvalReport(ROWS).differences
    assert [(each.against, each.labels, each.difference.verdict) for each in found] == [
        ("random", "soft", "better"),
        ("k-center", "soft", "no difference shown"),
        ("random", "hard", "no difference shown"),
    ]
    assert found[0].difference.values == pytest.approx([0.2, 0.25, 0.15])
    low, high = found[0].difference.interval  # 4.3027, the quantile of two degrees of freedom, times 0.05 / √3
    assert (low, high) == pytest.approx((0.2 - 0.12421, 0.2 + 0.12421), abs=1e-5)


def test_centroid_and_neighbour_are_compared_with_whether_or_not_they_are_the_best():
    own = row("distilled", accuracies=(0.5, 0.6))
    means = {"neighbour": 0.4, "el2n": 0.3, "centroid": 0.45, "herding": 0.2, "random": 0.1}
    rows = [own, *(row(name, accuracies=(mean, mean)) for name, mean in means.items())]
    found = EvalReport(rows).differences
    assert [each.against for each in found] == ["random", "centroid", "neighbour"]
    assert [each.difference.values for each in found] == [
        pytest.approx((0.4, 0.5)),
        pytest.approx((0.05, 0.15)),
        pytest.approx((0.1, 0.2)),
    ]
    better = [*rows, row("el2n", accuracies=(0.9, 0.9))]  # the later row of el2n counts
    assert [each.against for each in EvalReport(better).differences] == ["random", "el2n", "centroid", "neighbour"]


def test_rows_of_another_student_split_size_or_protocol_are_no_partners():
    own = row("distilled")
    others = [{"student": "convnet_d3"}, {"split": "validation"}, {"images": 20}, {"protocol": "mtt"}]
    assert not EvalReport([own, *(row("random", **changes) for changes in others)]).differences


def test_pairs_are_those_of_the_seeds_that_both_have():
    found = EvalReport([row("distilled", accuracies=(0.5, 0.75, 0.5)), row("random", accuracies=(0.25, 0.25))])
    assert found.differences[0].difference.values == (0.25, 0.5)


def test_tiles_and_batches_that_follow_a_set_keep_no_row_from_its_partners():
    rows = [
        row("distilled", protocol="rded, batches of 10, 2x2 tiles"),
        row("distilled", "hard", protocol="rded, batches of 10, 2x2 tiles"),
        row("random", protocol="rded, batches of 10"),
        row("full data", "hard", protocol="rded, batches of 100"),
        row("random", protocol="rded without augmentation, batches of 10"),
        row("distilled", protocol="rded without augmentation, batches of 10"),
    ]
    assert len(EvalReport(rows).differences) == 2  # of which one is without augmentation
    assert [each.score.name for each in EvalReport(rows).scores] == ["label robust score", "augmentation robust score"]


def test_sets_of_other_tiles_have_partners_of_their_own():
    rows = [
        row("random", "hard", (0.1, 0.1, 0.2), protocol="rded, batches of 10"),
        row("full data", "hard", (0.6, 0.6, 0.7), protocol="rded, batches of 100"),
        row("random", "hard", (0.3, 0.3, 0.4), protocol="rded, batches of 10, crops as of 2x2 tiles"),
        row("full data", "hard", (0.9, 0.9, 1.0), protocol="rded, batches of 100, crops as of 2x2 tiles"),
    ]
    own = [row("distilled", "hard", (0.5, 0.5, 0.5), protocol=f"rded, batches of 10{of}") for of in ("", ", 2x2 tiles")]
    whole, tiles = EvalReport([*rows, *own]).scores
    assert [each.score.components["HLR"].values[0] for each in (whole, tiles)] == pytest.approx([0.1, 0.4])
    assert [each.difference.values[0] for each in EvalReport([*rows, *own]).differences] == pytest.approx([0.4, 0.2])


def test_of_rows_that_a_report_came_to_have_twice_the_last_counts():
    old = [row("full data", "hard", (0.6, 0.6, 0.6), protocol="rded, batches of 10")]
    new = [row("full data", "hard", (0.9, 0.9, 0.9), protocol="rded, batches of 100")]
    rest = [row(name, "hard", (0.5, 0.5, 0.5), protocol="rded, batches of 20") for name in ("distilled", "random")]
    (found,) = EvalReport(old + new + rest).scores
    assert found.score.components["HLR"].values == pytest.approx([0.4] * 3)


def test_labels_that_were_given_apart_take_no_score_from_a_set_of_hard_labels():
    hard = [each for each in ROWS if each.labels == "hard"]
    given = row("distilled", protocol="quick, stored labels (12 kB)")
    assert EvalReport([given, *hard]).scores == EvalReport(hard).scores != []


@pytest.mark.parametrize("more", ["stored labels (12 kB)", "label projector 0123 (1 MB)"])
def test_labels_that_random_images_have_not_are_compared_with_nothing(more):
    rows = [row("distilled", protocol=f"quick, {more}"), *ROWS[1:]]
    assert [each.labels for each in EvalReport(rows).differences] == ["hard"]
    assert not EvalReport(rows).scores


def test_the_label_robust_score_is_made_of_its_four_arms_by_seed():
    (found,) = EvalReport(ROWS, META).scores
    alphas = [0.5 * (0.2 - 0.4), 0.5 * (0.25 - 0.4), 0.5 * (0.15 - 0.3)]
    assert found.score.values.values == pytest.approx([f(alpha) for alpha in alphas])
    assert (found.labels, found.epochs, found.full_data_epochs, found.shortened) == ("soft", 200, 30, True)


def test_a_method_of_hard_labels_has_them_in_all_arms():
    rows = [each for each in ROWS if each.labels == "hard"]
    (found,) = EvalReport(rows).scores
    assert found.score.components["IOR"].values == pytest.approx([0.0, 0.05, 0.1])
    assert found.shortened is None


def test_all_images_beside_themselves_lose_nothing():
    full = row("full data", "hard", (0.9, 0.95, 0.9), images=10)
    (found,) = EvalReport([row("distilled", "hard", (0.9, 0.95, 0.9)), row("random", "hard"), full]).scores
    assert found.score.components["HLR"].values == (0.0,) * 3


def test_the_augmentation_robust_score_is_made_of_its_four_arms_by_seed():
    found = EvalReport([*ROWS, *BARE]).scores
    assert [each.score.name for each in found] == ["label robust score", "augmentation robust score"]
    alphas = [0.5 * (0.2 + 0.1), 0.5 * (0.25 + 0.2), 0.5 * (0.15 + 0.2)]
    assert found[1].score.values.values == pytest.approx([f(alpha) for alpha in alphas])


def test_the_terminal_says_verdicts_scores_and_what_they_do_not_compare_with():
    text = EvalReport([*ROWS, *BARE], META).table()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "random method's labels quick +20.0 (3) +7.6 to +32.4 better 199" in lines
    assert "random hard labels quick +5.0 (3) -7.4 to +17.4 no difference shown 199" in lines
    scores = [line for line in lines if "robust score" in line]
    assert [line.split(" 95")[0].split(" (3)")[0] for line in scores] == [
        "label robust score 23.5 ± 0.6",
        "augmentation robust score 35.5 ± 2.0",
    ]
    assert "HLR +36.7 · IOR +20.0 30 epochs, shortened: the set has 200" in scores[0]
    said = " ".join(lines)
    assert "not comparable with the table that it ships" in said
    assert "it says nothing of other test images" in said


def test_one_seed_has_no_interval_and_shows_no_difference():
    rows = [row("distilled", accuracies=(0.9,)), row("random", accuracies=(0.1,))]
    said = " ".join(EvalReport(rows).table().split())
    assert "random method's labels +80.0 (1) none no difference shown unknown" in said


def test_what_differs_becomes_a_column_and_the_card_has_the_same_lines():
    rows = [*ROWS, *(row(each.set, each.labels, each.accuracies, student="convnet") for each in ROWS)]
    first = EvalReport(rows).compared_markdown().splitlines()[0]
    assert first.startswith("| distilled against | labels | student | difference |")
    assert EvalReport(ROWS[2:]).compared_markdown() == ""


# Files


def everything() -> EvalReport:
    labels = [LabelRow("hard", 0, "resnet18", "quick", 10, [0.5], "cpu")]
    return EvalReport([*ROWS, *BARE, row("random", student="single", accuracies=(0.1,))], META, labels, {"copies": 3})


@pytest.mark.parametrize("report", [EvalReport(), EvalReport(ROWS[:1]), everything()])
def test_what_is_written_is_as_the_schema_says_and_comes_back(report):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    written = json.loads(json.dumps({"data_id": "0", **report.to_json()}))
    jsonschema.validate(written, SCHEMA)
    assert EvalReport.from_json(written) == report


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value["rows"][0]["accuracies"].append(61.2),
        lambda value: value["rows"][0].update(labels="sharp"),
        lambda value: value["rows"][0].update(more=1),
        lambda value: value["differences"][0].update(verdict="good"),
        lambda value: value["scores"][0]["components"]["HLR"].update(mean=36.7),
        lambda value: value.update(version=3),
        lambda value: value.pop("scores"),
    ],
)
def test_the_schema_knows_what_is_no_report(damage):
    value = everything().to_json()
    damage(value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, SCHEMA)


def test_a_report_of_a_later_release_is_refused_and_those_before_had_no_version():
    old = {name: value for name, value in everything().to_json().items() if name in ("rows", "meta", "labels")}
    assert EvalReport.from_json(old) == EvalReport.from_json({"version": 1, **old})
    assert len(EvalReport.from_json(old).differences) == 4
    with pytest.raises(ValueError, match=r"the report has version 3 and hf_distill .* reads up to 2; upgrade"):
        EvalReport.from_json({**old, "version": 3})
    with pytest.raises(ValueError, match="the report has version 'two'; expected a number from 1 to 2"):
        EvalReport.from_json({**old, "version": "two"})


def test_merging_keeps_both_audits():
    one, other = EvalReport(audit={"copies": 1, "members": 2}), EvalReport(audit={"copies": 3})
    assert one.merge(other).audit == {"copies": 3, "members": 2}
