"""Labels against their bytes: the same students for every source, the same numbers as an evaluation, one picture."""

import json
import math
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image

from hf_distill.augmentation.views import Views
from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.epoch_labels import Codec, EpochLabels, relabel
from hf_distill.distilled.labels import HardLabels, NetworkLabels, StoredLabels
from hf_distill.distilled.targets import targets_of
from hf_distill.evaluation.accuracy import accuracy
from hf_distill.evaluation.coresets import random_rows
from hf_distill.evaluation.crop_students import train_on_crops
from hf_distill.evaluation.evaluate import distilled_pool, evaluate, real_pool
from hf_distill.evaluation.label_comparison import compare_labels
from hf_distill.evaluation.protocols import CropProtocol, EvalProtocol
from hf_distill.hub import plots
from hf_distill.hub.plots import MOST_NAMES, MOST_PANELS, labels_plot
from hf_distill.hub.results import EvalReport, EvalRow, LabelRow
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import derive_seed

SPEC = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 8, "norm": "batch"})
VIEWS = Views(seed=4, scale=(0.5, 1.0), flip=0.0)
PROTOCOL = CropProtocol(
    "tiny-crops", epochs=4, full_data_epochs=1, batch_size=8, lrs=(0.03, 0.003), views=VIEWS, temperature=4.0
)
SEEDS = 2


pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def data() -> tuple[RealImages, RealImages, RealImages]:
    train, test = RealImages.train_and_test(DataArguments(max_train_samples=400, max_test_samples=100))
    train, held_out = train.split(0.2, seed=0)
    return train, held_out, test


@pytest.fixture(scope="module")
def teacher(data) -> NetworkLabels:
    """A network that has learned the digits a little."""
    train, _, _ = data
    pool = distilled_pool(a_set(train, 20), torch.device("cpu"))
    model = train_on_crops(pool, pool.labels, torch.arange(200), SPEC, PROTOCOL, 8, 0.02, 3)
    return NetworkLabels(Teacher(model, SPEC, train.class_names, train.preprocessing))


def a_set(train: RealImages, ipc: int, teacher: NetworkLabels | None = None) -> DistilledSet:
    """Real images, as the bytes they are, as if they had been distilled for `SPEC`."""
    rows = random_rows(train, [ipc] * 10, 3)
    config = {"student": SPEC.to_dict(), "source": {"name": "digits"}}
    pixels, names = train.uint8(rows), train.class_names
    return DistilledSet(pixels, train.labels[rows], names, train.preprocessing, teacher=teacher, config=config)


@pytest.fixture(scope="module")
def distilled(data, teacher) -> DistilledSet:
    return a_set(data[0], 2, teacher)


@pytest.fixture(scope="module")
def sources(distilled, teacher, accelerator, tmp_path_factory) -> dict[str, HardLabels]:
    folder, pool = tmp_path_factory.mktemp("labels"), distilled_pool(distilled, accelerator.device)

    def stored(name: str, epochs: int, kept: int | None = None) -> EpochLabels:
        options = {"codec": Codec(kept), "accelerator": accelerator, "disable_tqdm": True}
        return relabel(teacher, pool, VIEWS, epochs, folder / name, **options)

    return {
        "hard": HardLabels(),
        "one per image": StoredLabels(targets_of(pool, teacher)),
        "stored": stored("whole", 4),
        "pruned": stored("pruned", 2),
        "top 3": stored("top", 4, 3),
        "online": teacher,
    }


@pytest.fixture(scope="module")
def rows(distilled, sources, data, accelerator) -> dict[str, LabelRow]:
    found = compare(distilled, sources, data, accelerator)
    assert [row.labels for row in found] == list(sources)
    return {row.labels: row for row in found}


def compare(distilled, sources, data, accelerator, protocol=PROTOCOL, **options) -> list[LabelRow]:
    options = {"num_seeds": SEEDS, "accelerator": accelerator, "disable_tqdm": True, **options}
    return compare_labels(distilled, sources, data[2], held_out=data[1], protocol=protocol, **options)


def evaluated(distilled, data, accelerator, protocol=PROTOCOL, **options) -> EvalReport:
    options = {"num_seeds": SEEDS, "accelerator": accelerator, "disable_tqdm": True, **options}
    train, held_out, test = data
    options |= {"held_out": held_out, "protocol": protocol}
    return evaluate(distilled, train, test, baselines=(), full_data=False, **options)


# Students


def test_every_source_has_its_row_about_the_same_images_and_students(rows):
    for row in rows.values():
        assert row.context == (20, "convnet_d1 norm=batch width=8", "tiny-crops", "test")
        assert (row.n, row.device) == (SEEDS, "cpu")
        assert row.lr in PROTOCOL.lrs
    assert len({tuple(row.accuracies) for row in rows.values()}) > 1


def test_bytes_are_those_of_the_files_on_disk(rows, sources, teacher, tmp_path):
    for name in ("stored", "pruned", "top 3"):
        paths = (sources[name].folder / "soft_labels").glob("*.parquet")
        assert rows[name].num_bytes == sum(path.stat().st_size for path in paths) > 0
    np.save(tmp_path / "one.npy", sources["one per image"].logits.numpy())
    assert rows["one per image"].num_bytes == (tmp_path / "one.npy").stat().st_size - 128  # of the header
    assert rows["hard"].num_bytes == 0
    tensors = teacher.teacher.model.state_dict().values()
    assert rows["online"].num_bytes == pytest.approx(sum(tensor.nbytes for tensor in tensors), abs=64)


@pytest.mark.parametrize("name", ["stored", "pruned", "top 3", "online"])
def test_a_row_is_what_an_evaluation_with_these_labels_measures(name, rows, sources, distilled, data, accelerator):
    labels = None if name == "online" else sources[name]  # the set's own labels are those of its teacher
    report = evaluated(distilled, data, accelerator, labels=labels)
    (soft,) = (row for row in report.rows if row.labels == "soft")
    (context,) = report.meta.values()
    assert rows[name].accuracies == soft.accuracies
    assert rows[name].lr == context["learning_rates"]["distilled, soft labels"]


@pytest.mark.parametrize("name", ["hard", "one per image"])
def test_students_of_a_number_have_one_seed_whatever_their_labels(name, rows, sources, distilled, data, accelerator):
    pool, tested = distilled_pool(distilled, accelerator.device), real_pool(distilled, data[2], accelerator)
    targets = pool.labels if name == "hard" else sources[name]
    expected = []
    for number in range(SEEDS):
        seed = derive_seed(0, "student", "distilled", "soft", "convnet_d1 norm=batch width=8", number)
        student = train_on_crops(pool, targets, torch.arange(20), SPEC, PROTOCOL, 4, rows[name].lr, seed)
        expected.append(accuracy(student, tested))
    assert rows[name].accuracies == expected


def test_the_other_sources_change_no_number(rows, sources, distilled, data, accelerator):
    (alone,) = compare(distilled, {"pruned": sources["pruned"]}, data, accelerator)
    assert alone == rows["pruned"]


def test_labels_of_whole_images_that_are_certain_teach_what_classes_teach(distilled):
    pool = distilled_pool(distilled, torch.device("cpu"))
    certain = StoredLabels(1e4 * F.one_hot(pool.labels, 10).float())
    protocol = replace(PROTOCOL, temperature=1.0)
    assert protocol.views.mix == "cutmix"  # which neither of them must see
    found, expected = (
        train_on_crops(pool, targets, torch.arange(20), SPEC, protocol, 4, 0.01, 1)
        for targets in (certain, pool.labels)
    )
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_protocol_without_views_compares_labels_of_whole_images(distilled, sources, data, accelerator):
    protocol = EvalProtocol("whole", epochs=5, full_data_epochs=1, lrs=(0.05,))
    chosen = {name: sources[name] for name in ("hard", "one per image", "online")}
    hard, stored, online = compare(distilled, chosen, data, accelerator, protocol)
    assert stored.accuracies == online.accuracies  # which stores what it says of each image
    assert stored.num_bytes < online.num_bytes
    assert hard.lr == 0.05
    with pytest.raises(ValueError, match="looks at no views"):
        compare(distilled, sources, data, accelerator, protocol)


def test_what_does_not_fit_the_images_is_one_clear_line_before_any_training(distilled, sources, data, accelerator):
    other = a_set(data[0], 1)
    for images, wrong, words in (
        (distilled, {}, "no labels to compare"),
        (distilled, {"a": StoredLabels(torch.zeros(20, 9))}, r"\(20, 9\); expected \(20, 10\)"),
        (other, {"a": sources["stored"]}, "of 20 other images than these 10"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            compare(images, {"hard": HardLabels(), **wrong} if wrong else {}, data, accelerator)
        assert "\n" not in str(error.value)


# The report


def row(labels: str = "projector", num_bytes: int = 1_694_720, **changes) -> LabelRow:
    values = {"student": "resnet18", "protocol": "rded", "images": 50_000, "accuracies": [0.5, 0.54], "device": "cpu"}
    return LabelRow(labels, num_bytes, **{**values, **changes})


ROWS = [row("hard", 0, accuracies=[0.38, 0.39]), row(lr=0.001), row("stored", 30_000_000_000, accuracies=[0.56])]


def test_a_report_with_labels_comes_back_from_json_as_it_was():
    report = EvalReport([EvalRow("random", "hard", "vit", "quick", 12, [0.25], "cpu")], {"note": "x"}, ROWS)
    written = json.loads(json.dumps(report.to_json()))
    assert EvalReport.from_json(written) == report
    assert [line["std"] for line in written["labels"]] == [ROWS[0].std, ROWS[1].std, None]


def test_results_from_before_there_were_labels_have_none():
    assert EvalReport.from_json({"rows": [], "meta": {}}).labels == []


def test_merging_replaces_labels_of_the_same_name_and_keeps_the_others():
    new = [row(accuracies=[0.9], num_bytes=7), row(student="vit"), row("online", 8)]
    merged = EvalReport(labels=ROWS).merge(EvalReport(labels=new)).labels
    assert merged == [ROWS[0], new[0], ROWS[2], new[1], new[2]]


def test_the_table_goes_from_the_dearest_labels_to_the_cheapest():
    report = EvalReport(labels=ROWS)
    assert report.labels_table().splitlines() == [
        "labels        bytes         accuracy",
        "------------------------------------",
        "stored      30.0 GB         56.0 (1)",
        "projector    1.7 MB   52.0 ± 2.8 (2)",
        "hard            0 B   38.5 ± 0.7 (2)",
        "",
        "accuracy in %, mean ± standard deviation (number of seeds) · 50,000 images · student resnet18 ·",
        "protocol rded · split test · device cpu",
    ]
    assert report.labels_markdown().splitlines()[:3] == [
        "| labels | bytes | accuracy |",
        "| --- | ---: | ---: |",
        "| stored | 30.0 GB | 56.0 (1) |",
    ]
    assert EvalReport().labels_table() == "no results"
    assert EvalReport().labels_markdown() == ""


def test_what_differs_between_label_rows_becomes_a_column_and_a_panel():
    report = EvalReport(labels=[*ROWS, *(replace(one, student="vit") for one in ROWS)])
    lines = report.labels_table().splitlines()
    assert lines[0].split() == ["labels", "bytes", "student", "accuracy"]
    assert ["vit" in line for line in lines[2:8]] == [False] * 3 + [True] * 3
    width, height = labels_plot(ROWS).size
    assert labels_plot(report.labels).size == (width, 2 * height)
    many = [row(student=f"student {number}") for number in range(MOST_PANELS + 3)]
    assert labels_plot(many).height == MOST_PANELS * height


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_bytes": -1}, "-1 bytes"),
        ({"num_bytes": 1.5}, "num_bytes 1.5"),
        ({"num_bytes": "7"}, "damaged"),
        ({"labels": ""}, "no name"),
        ({"labels": 7}, "labels 7"),
        ({"accuracies": [1.5]}, "accuracies"),
        ({"accuracies": None}, "damaged"),
        ({"lr": -1.0}, "lr -1.0"),
        ({"lr": "fast"}, "lr 'fast'"),
        ({"split": None}, "split None"),
        ({"student": ["a"]}, "student"),
        ({"unknown": 1}, "unknown"),
        (None, "damaged"),
    ],
)
def test_label_rows_of_others_that_cannot_be_are_one_clear_line(distilled, tmp_path, changes, words):
    distilled.report = EvalReport(labels=[row()])
    folder = distilled.save_pretrained(tmp_path / "set")
    results = json.loads((folder / "results.json").read_text())
    results["labels"] = None if changes is None else [{**results["labels"][0], **changes}]
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=words) as error:
        DistilledSet.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert "results.json" in str(error.value)


# The picture


BACKGROUND = 60  # of 255: how far the channels of a gray differ at most


def colours(picture: Image.Image) -> np.ndarray:
    """Where the left two thirds of a picture, in which the points are, have colour: (height, width) bool."""
    pixels = np.asarray(picture).astype(int)
    drawn = pixels.max(axis=2) - pixels.min(axis=2) > BACKGROUND
    drawn[:, round(0.62 * picture.width) :] = False
    return drawn


def dots(picture: Image.Image) -> np.ndarray:
    """The centres (x, y) of the points in a picture, from left to right."""
    drawn = scipy.ndimage.binary_opening(colours(picture), np.ones((7, 7)))  # bars are thinner
    blobs, count = scipy.ndimage.label(drawn)
    centres = np.array(scipy.ndimage.center_of_mass(drawn, blobs, range(1, count + 1)))[:, ::-1]
    return centres[np.argsort(centres[:, 0])]


def test_points_are_where_the_logarithm_of_the_bytes_and_the_accuracy_say():
    sizes, accuracies = [0, 10**3, 10**4, 3 * 10**5], [0.3, 0.42, 0.5, 0.61]
    picture = labels_plot([row(str(size), size, accuracies=[a]) for size, a in zip(sizes, accuracies, strict=True)])
    x, y = dots(picture).T
    assert len(x) == 4
    # The marks of points are no circles alone: their centres are theirs to a few pixels.
    np.testing.assert_allclose((x[1:] - x[1]) / (x[3] - x[1]), [0, 1 / math.log10(300), 1], atol=1e-2)
    np.testing.assert_allclose((y - y[0]) / (y[3] - y[0]), (np.array(accuracies) - 0.3) / 0.31, atol=2e-2)
    assert y[3] < y[0]  # better is higher
    assert x[0] < x[1] - 80  # apart from the axis of the others


def test_a_bar_is_as_long_as_two_deviations():
    rows = [
        row("a", 10**4, accuracies=[0.4, 0.5]),
        row("b", 10**6, accuracies=[0.4]),
        row("c", 10**5, accuracies=[0.5]),
    ]
    picture = labels_plot(rows)
    a, c, b = dots(picture)
    bar = np.nonzero(colours(picture)[:, round(a[0])])[0]
    expected = 2 * np.std([0.4, 0.5], ddof=1) / 0.1 * (b[1] - c[1])
    assert bar.max() - bar.min() == pytest.approx(expected, abs=6)


def test_points_of_as_many_bytes_and_the_same_accuracy_stand_side_by_side():
    for size in (0, 10**4):
        x, y = dots(labels_plot([row(name, size, accuracies=[0.5]) for name in "abc"])).T
        assert len(x) == 3
        np.testing.assert_allclose(y, y.mean(), atol=2)


def test_a_name_may_look_like_a_formula_and_the_drawing_is_the_same_each_time():
    rows = [row("$x_1$ \\frac{", 10**4), row("_hidden", 10**5)]
    assert labels_plot(rows).tobytes() == labels_plot(rows).tobytes()


def test_a_style_of_the_user_s_changes_nothing():
    expected = labels_plot(ROWS).tobytes()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "lines.linewidth": 9}):
        assert labels_plot(ROWS).tobytes() == expected
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    "rows",
    [
        [row("a", 0, accuracies=[1.0])],
        [row("a", 0, accuracies=[0.0])],
        [row("a", 1, accuracies=[0.5])],
        [row("a" * 500, 2**53, accuracies=[0.0, 1.0])],
        [row("a\nb", 10, accuracies=[0.1], student="s" * 999, split="t" * 999)],
        [row(str(number), number, accuracies=[0.5]) for number in range(MOST_NAMES + 40)],
    ],
)
def test_any_rows_make_a_picture(rows):
    assert labels_plot(rows).size == labels_plot(ROWS).size


def test_no_rows_make_none():
    with pytest.raises(ValueError, match="no labels to draw"):
        labels_plot([])


# The artifact


def test_a_set_keeps_the_picture_as_long_as_it_has_such_rows(distilled, tmp_path):
    distilled.report = EvalReport(labels=ROWS)
    folder = distilled.save_pretrained(tmp_path / "set")
    with Image.open(folder / "assets" / "labels.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(labels_plot(ROWS)))
    card = (folder / "README.md").read_text()
    assert card.index("](assets/labels.png)") < card.index("| stored | 30.0 GB | 56.0 (1) |")
    assert DistilledSet.from_pretrained(folder).report.labels == ROWS
    distilled.report = None
    distilled.save_pretrained(folder)
    assert not (folder / "assets" / "labels.png").exists()
    assert "labels.png" not in (folder / "README.md").read_text()


def test_without_matplotlib_a_card_has_the_table_and_no_picture(distilled, tmp_path, monkeypatch, caplog):
    distilled.report = EvalReport(labels=ROWS)
    distilled.save_pretrained(tmp_path / "set")
    find_spec = plots.importlib.util.find_spec
    monkeypatch.setattr(
        plots.importlib.util, "find_spec", lambda name, *args: None if name == "matplotlib" else find_spec(name, *args)
    )
    drawn = (tmp_path / "set" / "assets" / "labels.png").read_bytes()
    distilled.save_pretrained(tmp_path / "set")
    assert (tmp_path / "set" / "assets" / "labels.png").read_bytes() == drawn  # what cannot be drawn again is kept
    caplog.clear()
    distilled.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / "assets" / "labels.png").exists()
    card = (tmp_path / "new" / "README.md").read_text()
    assert "labels.png" not in card
    assert "| stored | 30.0 GB | 56.0 (1) |" in card
    assert [message for message in caplog.messages if "pip install" in message] == [
        "no picture of the labels without matplotlib; pip install 'hf_distill[plots]' to have one"
    ]


def test_results_that_are_pushed_carry_the_picture(distilled, hub):
    repo = f"{hub.namespace}/set"
    distilled.report = None
    distilled.push_to_hub(repo, token=hub.token)
    assert "assets/labels.png" not in hub.files("dataset", repo)
    distilled.push_results(repo, EvalReport(labels=ROWS[:2]), token=hub.token)
    distilled.push_results(repo, EvalReport(labels=ROWS[2:]), token=hub.token)
    assert DistilledSet.from_pretrained(repo).report.labels == ROWS
    assert {"assets/labels.png", "assets/grid.png"} <= set(hub.files("dataset", repo))
