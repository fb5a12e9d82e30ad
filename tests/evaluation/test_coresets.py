"""Coresets by scores and clusters, against NumPy; and the scores that experts leave, kept beside them."""

import errno
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from sklearn.cluster import KMeans

from hf_distill.config import DataArguments
from hf_distill.data.feed import Pool
from hf_distill.data.images import RealImages
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.labels import NetworkLabels
from hf_distill.evaluation import difficulty as difficulty_module
from hf_distill.evaluation.coresets import bps, ccs, coresets, highest, random_rows
from hf_distill.evaluation.difficulty import Difficulty, el2n, entropy, forgetting, margin
from hf_distill.evaluation.evaluate import EvalProtocol, baselines_for, evaluate
from hf_distill.evaluation.trainer import Result, Trainer
from hf_distill.methods import CLPDD, DM, LGM, MTT, RDED, MTTConfig, RDEDConfig
from hf_distill.networks.architectures import features_and_logits
from hf_distill.networks.teachers import Teacher
from hf_distill.networks.trajectories import ExpertTrajectories
from hf_distill.rng import derive_seed, generator
from hf_distill.training.experts import ExpertConfig, train_experts

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ExpertConfig(
    student="convnet_d1", student_width=4, num_experts=2, batch_train=40, lr_teacher=0.1, experts_at_once="2"
)
EPOCHS = 3
SHORT = EvalProtocol("short", epochs=2, full_data_epochs=1)
ALL = ["random", "herding", "k-center", "centroid", "neighbour", "el2n", "forgetting", "ccs", "bps"]


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def data() -> tuple[RealImages, RealImages]:
    return RealImages.train_and_test(DataArguments(max_train_samples=150, max_test_samples=30))


@pytest.fixture(scope="module")
def trained(data, accelerator, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experts") / "experts"
    train_experts(data[0], CONFIG, folder, epochs=EPOCHS, accelerator=accelerator, disable_tqdm=True)
    return folder


@pytest.fixture
def experts(trained, tmp_path) -> ExpertTrajectories:
    """Experts beside which nothing is kept yet."""
    return ExpertTrajectories.from_pretrained(
        ExpertTrajectories.from_pretrained(trained).save_pretrained(tmp_path / "x")
    )


@pytest.fixture
def distilled(data) -> DistilledSet:
    train, _ = data
    rows = random_rows(train, [2] * 10, 3)
    about = {"student": CONFIG.student_spec(train).to_dict(), "source": {"name": "digits"}}
    return DistilledSet(train.images(rows), train.labels[rows], train.class_names, train.preprocessing, config=about)


def pool_of(train: RealImages) -> Pool:
    return Pool(train, train.labels, preprocessing=train.preprocessing)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# Scores


def test_scores_of_guesses_are_those_of_a_loop_over_images():
    logits = np.random.default_rng(0).normal(0, 3, (30, 5))
    labels = np.random.default_rng(1).integers(5, size=30)
    given = torch.from_numpy(logits), torch.from_numpy(labels)
    chances = softmax(logits)
    for i, (error, gap, unsure) in enumerate(zip(el2n(*given), margin(*given), entropy(given[0]), strict=True)):
        onehot = np.eye(5)[labels[i]]
        assert error.item() == pytest.approx(math.sqrt(sum((chances[i] - onehot) ** 2)))
        others = [logits[i, k] for k in range(5) if k != labels[i]]
        assert gap.item() == pytest.approx(logits[i, labels[i]] - max(others))
        assert unsure.item() == pytest.approx(-sum(p * math.log(p) for p in chances[i]))


def test_scores_have_the_values_that_are_known_by_hand():
    certain = torch.tensor([[1e4, 0.0, 0.0], [1e4, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        el2n(certain, torch.tensor([0, 1, 2])), torch.tensor([0, 2**0.5, (4 / 9 + 2 / 9) ** 0.5]).double()
    )
    torch.testing.assert_close(entropy(certain), torch.tensor([0, 0, math.log(3)]).double())
    assert margin(certain, torch.tensor([0, 1, 2])).tolist() == [1e4, -1e4, 0]


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_an_image_is_forgotten_whenever_it_was_right_and_is_wrong_and_one_never_learned_more_than_any_other(epochs):
    histories = list(itertools.product([False, True], repeat=epochs))
    found = forgetting(torch.tensor(histories).T).tolist()
    for history, count in zip(histories, found, strict=True):
        text = "".join("rw"[not right] for right in history)
        assert count == (text.count("rw") if "r" in text else epochs)
    never = histories.index((False,) * epochs)
    assert all(count < found[never] for number, count in enumerate(found) if number != never)


# One class


def ccs_by_hand(hardness: np.ndarray, n: int, draw: torch.Generator, dropped: float, strata: int) -> list[int]:
    """Algorithm 1 with lists: which images, in the order in which they are drawn."""
    order = sorted(range(len(hardness)), key=lambda i: hardness[i])
    while len(order) > n and len(hardness) - len(order) < int(dropped * len(hardness)):
        order.pop()
    low, high = hardness[order[0]], hardness[order[-1]]
    bins: dict[int, list[int]] = {}
    for i in order:
        place = 0 if high == low else min(strata - 1, math.floor((hardness[i] - low) / ((high - low) / strata)))
        bins.setdefault(place, []).append(i)
    rest, taken = [bins[place] for place in sorted(bins)], []
    while rest:
        smallest = min(rest, key=len)
        share = min(len(smallest), (n - len(taken)) // len(rest))
        taken += [smallest[place] for place in torch.randperm(len(smallest), generator=draw)[:share].tolist()]
        rest.remove(smallest)
    return taken


@pytest.mark.parametrize("kind", ["normal", "skewed", "ties", "equal", "counts"])
@pytest.mark.parametrize("n", [1, 7, 30, 59, 60])
def test_ccs_takes_what_its_algorithm_takes(kind, n):
    random = np.random.default_rng(2)
    hardness = {
        "normal": lambda: random.normal(size=60),
        "skewed": lambda: random.exponential(size=60) ** 3,  # strata of one image, and empty ones
        "ties": lambda: np.repeat(random.normal(size=6), 10),
        "equal": lambda: np.full(60, 0.3),
        "counts": lambda: random.integers(4, size=60).astype(float),
    }[kind]()
    found = ccs(torch.from_numpy(hardness), n, generator(5, "x"), dropped=0.25, strata=8).tolist()
    assert found == ccs_by_hand(hardness, n, generator(5, "x"), 0.25, 8)
    assert len(set(found)) == n
    if n <= 45 and kind in ("normal", "skewed"):  # of 60 the hardest 15 are left out, where enough are left
        assert not set(np.argsort(hardness)[45:]) & set(found)


def test_ccs_draws_evenly_where_the_strata_hold_enough():
    hardness = torch.cat([torch.full((count,), float(place)) for place, count in enumerate([40, 3, 20, 12])])
    found = ccs(hardness, 24, generator(0, "x"), dropped=0, strata=4)
    assert hardness[found].long().bincount().tolist() == [7, 3, 7, 7]


@pytest.mark.parametrize("n", [0, 1, 5, 12])
def test_the_hardest_come_first_and_of_equal_ones_the_first(n):
    scores = np.random.default_rng(3).integers(4, size=12).astype(float)
    assert highest(torch.from_numpy(scores), n).tolist() == sorted(range(12), key=lambda i: (-scores[i], i))[:n]


def bps_by_hand(features: np.ndarray, entropies: np.ndarray, n: int, seed: int) -> list[int]:
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    count = min(math.ceil(math.sqrt(n)), len(np.unique(directions, axis=0)))
    where = KMeans(count, n_init=4, random_state=seed).fit(directions).labels_
    sizes = [int((where == cluster).sum()) for cluster in range(count)]
    budgets = [n * size // len(features) for size in sizes]
    for cluster in sorted(range(count), key=lambda cluster: -sizes[cluster])[: n - sum(budgets)]:
        budgets[cluster] += 1
    taken = []
    for cluster, budget in enumerate(budgets):
        members = [i for i in range(len(features)) if where[i] == cluster]
        mean = directions[members].mean(axis=0)
        central = sorted(members, key=lambda i: -(directions[i] @ mean) / np.linalg.norm(mean))
        taken += central[: math.ceil(budget / 2)]
        unsure = sorted((i for i in members if i not in taken), key=lambda i: -entropies[i])
        taken += unsure[: budget // 2]
    return taken


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_bps_takes_the_centres_and_the_uncertain_of_clusters(n):
    random = np.random.default_rng(4)
    centres = 4 * random.normal(size=(3, 6))
    features = centres[random.integers(3, size=40)] + random.normal(size=(40, 6))
    entropies = random.random(40)
    found = bps(torch.from_numpy(features), torch.from_numpy(entropies), n, 9).tolist()
    assert found == bps_by_hand(features, entropies, n, 9)
    assert len(set(found)) == n
    assert found == bps(torch.from_numpy(features), torch.from_numpy(entropies), n, 9).tolist()


def test_bps_of_a_whole_class_is_the_class():
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    assert sorted(bps(features, features[:, 0], 40, 9).tolist()) == list(range(40))


@pytest.mark.parametrize("n", [1, 4, 6])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_images_are_taken_once_each_by_clusters_too(n, value, recwarn):
    found = bps(torch.full((6, 3), value), torch.zeros(6), n, 0).tolist()
    assert len(set(found)) == len(found) == n
    assert not recwarn.list


# All classes


def test_all_coresets_are_chosen_within_classes_in_one_pass(data):
    train, _ = data
    counts = [3, 0, 1] + [2] * 7
    pool, model = pool_of(train), CONFIG.student_spec(train).build(0).eval()
    shown: list[torch.Tensor] = []

    def look(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shown.append(images)
        return features_and_logits(model, images)

    names = ["herding", "k-center", "el2n", "ccs", "bps"]
    chosen = coresets(train, pool, counts, names, look, seed=7)
    looked_at = torch.cat(shown[2:]).flatten(1)  # after two batches that measure what an image takes
    assert len(looked_at) == len(train) - len(train.class_rows(1))
    again = coresets(train, pool, counts, names, look, seed=7)
    for name, rows in chosen.items():
        assert train.labels[rows].bincount(minlength=10).tolist() == counts, name
        assert len(rows.unique()) == sum(counts)
        assert torch.equal(rows, again[name])
    own = train.class_rows(0)
    with torch.no_grad():
        features, logits = features_and_logits(model, train.images(own))
    errors = np.linalg.norm(softmax(logits.double().numpy()) - np.eye(10)[0], axis=1)
    chances = softmax(logits.double().numpy())
    entropies = -(chances * np.log(chances)).sum(axis=1)
    assert chosen["el2n"][:3].tolist() == own[np.argsort(-errors, kind="stable")[:3]].tolist()
    assert chosen["ccs"][:3].tolist() == own[ccs_by_hand(errors, 3, generator(7, "ccs", 0), 0.3, 50)].tolist()
    seed = derive_seed(7, "bps", 0) % 2**32
    assert chosen["bps"][:3].tolist() == own[bps_by_hand(features.double().numpy(), entropies, 3, seed)].tolist()
    parts = [coresets(train, pool, counts, names, look, seed=7, classes=part) for part in (range(4), range(4, 10))]
    for name, rows in chosen.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), rows)


# What experts left


def scores_by_hand(experts: ExpertTrajectories, train: RealImages) -> dict[str, np.ndarray]:
    images, labels, model = train.images(range(len(train))), train.labels.numpy(), experts.flat_model()
    every = np.arange(len(train))
    totals = {name: np.zeros(len(train)) for name in ("el2n", "forgetting", "margin")}
    for expert in range(experts.num_experts):
        counts, was, ever = np.zeros(len(train)), np.zeros(len(train), bool), np.zeros(len(train), bool)
        for epoch in range(1, experts.num_epochs + 1):
            logits = model(experts.row(expert, epoch), images).double().numpy()
            right = logits.argmax(axis=1) == labels
            counts += was & ~right
            was, ever = right, ever | right
            own = logits[every, labels]
            logits[every, labels] = -np.inf
            totals["margin"] += own - logits.max(axis=1)
            logits[every, labels] = own
        totals["forgetting"] += np.where(ever, counts, experts.num_epochs)
        totals["el2n"] += np.linalg.norm(softmax(logits) - np.eye(10)[labels], axis=1)
    totals["margin"] /= experts.num_epochs
    return {name: total / experts.num_experts for name, total in totals.items()}


def test_experts_score_images_as_numpy_scores_them_and_once(experts, data, accelerator, monkeypatch):
    train, _ = data
    pool, expected = pool_of(train), scores_by_hand(experts, train)
    found = Difficulty.of_experts(experts, pool, accelerator, disable_tqdm=True)
    for name, scores in expected.items():
        np.testing.assert_allclose(getattr(found, name).numpy(), scores, rtol=1e-4, atol=1e-5)
    assert found.forgetting.max() > 0
    assert found.words("el2n") == "errors after epoch 3 of 2 experts of convnet_d1"
    assert found.words("forgetting") == "counts in 3 epochs of 2 experts of convnet_d1"
    assert torch.equal(found.hardness("ccs"), -found.margin)

    (path,) = experts.folder.glob("scores-*.safetensors")
    computed: list[int] = []
    scores = difficulty_module._scores
    monkeypatch.setattr(difficulty_module, "_scores", lambda *args: computed.append(1) or scores(*args))
    again = Difficulty.of_experts(experts, pool, accelerator, disable_tqdm=True)
    assert torch.equal(again.margin, found.margin)
    assert not computed
    Difficulty.of_experts(experts, pool_of(train.subset(range(140))), accelerator, disable_tqdm=True)  # other images
    Difficulty.of_experts(experts.limited(1, 3), pool, accelerator, disable_tqdm=True)  # other experts
    Difficulty.of_experts(experts.limited(2, 2), pool, accelerator, disable_tqdm=True)
    assert len(computed) == 3
    assert len(list(experts.folder.glob("scores-*.safetensors"))) == 4

    ExpertTrajectories.from_pretrained(experts.folder)  # and the experts load with what lies beside them
    train_experts(train, CONFIG, experts.folder, epochs=EPOCHS, accelerator=accelerator, disable_tqdm=True)
    assert path.is_file()
    assert not list(experts.save_pretrained(experts.folder.with_name("copy")).glob("scores-*"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "of others", "no tensors"])
def test_damaged_scores_are_said_and_computed_again(damage, experts, data, accelerator, caplog):
    pool = pool_of(data[0])
    found = Difficulty.of_experts(experts, pool, accelerator, disable_tqdm=True)
    (path,) = experts.folder.glob("scores-*.safetensors")
    whole = path.read_bytes()
    Difficulty.of_experts(experts.limited(1, 3), pool, accelerator, disable_tqdm=True)
    (other,) = set(experts.folder.glob("scores-*.safetensors")) - {path}
    broken = {
        "truncated": whole[:-5],
        "flipped": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        "of others": other.read_bytes(),
        "no tensors": b"",
    }
    path.write_bytes(broken[damage])
    again = Difficulty.of_experts(experts, pool, accelerator, disable_tqdm=True)
    assert torch.equal(again.el2n, found.el2n)
    assert "is damaged; the scores of images are computed again" in caplog.text
    assert path.read_bytes() == whole


def test_where_scores_cannot_be_kept_that_is_said(experts, data, accelerator, caplog, monkeypatch):
    def full(*args) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(args[0]))

    monkeypatch.setattr(difficulty_module, "atomic_write", full)
    Difficulty.of_experts(experts, pool_of(data[0]), accelerator, disable_tqdm=True)
    (told,) = caplog.records
    assert told.getMessage().startswith(f"scores of images are not kept in {experts.folder} (No space left on device):")


# In a report


def test_a_report_has_all_baselines_and_says_by_what_each_was_chosen(experts, distilled, data, accelerator, tmp_path):
    train, test = data
    options = {"protocol": SHORT, "num_seeds": 2, "accelerator": accelerator, "disable_tqdm": True}
    options |= {"held_out": train.subset([]), "experts": experts, "baselines": ["all"]}
    report = evaluate(distilled, train, test, full_data=False, output_dir=tmp_path / "run", **options)
    assert [row.set for row in report.rows] == ["distilled", *ALL]
    assert {row.images for row in report.rows} == {20}
    (context,) = report.meta.values()
    expert = Teacher.from_expert(experts, 0)
    features = f"features of the teacher convnet_d1 ({expert.digest})"
    assert context["coresets"] == {
        **dict.fromkeys(("herding", "k-center", "centroid", "neighbour", "bps"), features),
        "el2n": "errors after epoch 3 of 2 experts of convnet_d1",
        "forgetting": "counts in 3 epochs of 2 experts of convnet_d1",
        "ccs": "margins in 3 epochs of 2 experts of convnet_d1",
    }
    table = " ".join(report.table().split())
    assert (
        f" · herding, k-center, centroid, neighbour and bps by {features} · el2n by errors after epoch 3 of 2 experts"
        in table
    )
    again = evaluate(distilled, train, test, full_data=False, output_dir=tmp_path / "run", **options)
    assert again == report


def chosen_with(distilled: DistilledSet, names: list[str] | None, **given) -> list[str]:
    return baselines_for(distilled, names, **{"full_data": False, **given})


def test_all_are_those_that_can_be_made_and_one_line_says_which_are_left_out(distilled, experts, data, caplog):
    train, _ = data
    teacher = Teacher(
        CONFIG.student_spec(train).build(0), CONFIG.student_spec(train), train.class_names, train.preprocessing
    )
    assert chosen_with(distilled, ["all"], experts=experts) == ALL
    assert not caplog.records
    without = [name for name in ALL if name != "forgetting"]
    assert chosen_with(distilled, ["all"], full_data=True) == without
    assert chosen_with(distilled, ["all"], guide=teacher) == without
    assert len(caplog.records) == 2
    assert "left out: forgetting (needs experts (--experts), and none are given)" in caplog.records[0].getMessage()
    caplog.clear()
    assert chosen_with(distilled, ["all", "random"]) == ALL[:5]
    (told,) = caplog.records
    assert all(name in told.getMessage() for name in ("el2n", "forgetting", "ccs", "bps"))
    labelled = DistilledSet(
        distilled.pixel_values, distilled.labels, train.class_names, train.preprocessing, teacher=NetworkLabels(teacher)
    )
    assert chosen_with(labelled, ["all"]) == without


@pytest.mark.parametrize("name", ["el2n", "forgetting", "ccs", "bps"])
def test_a_baseline_that_is_named_and_lacks_something_is_one_line(name, distilled):
    with pytest.raises(ValueError, match=f"--baselines has {name}, which needs .*--experts.*; give that, or") as error:
        chosen_with(distilled, ["random", name])
    assert "\n" not in str(error.value)


def test_a_teacher_of_other_classes_is_refused_before_an_image_is_looked_at(distilled, data):
    spec = CONFIG.student_spec(data[0])
    other = Teacher(spec.build(0), spec, [f"other {k}" for k in range(10)], data[0].preprocessing)
    with pytest.raises(ValueError, match="use a teacher of these classes"):
        chosen_with(distilled, ["bps"], guide=other)
    assert chosen_with(distilled, ["random"], guide=other) == ["random"]
    assert chosen_with(distilled, ["bps"], guide=other, full_data=True) == ["bps"]


def test_what_the_set_was_compared_with_is_no_demand_later(distilled, caplog):
    distilled.config["hyperparameters"] = {"eval_baselines": ["forgetting", "random"], "eval_full_data": True}
    assert baselines_for(distilled) == ["random"]
    assert "forgetting" in caplog.text
    with pytest.raises(ValueError, match=f"one of {', '.join(ALL)}, all"):
        baselines_for(distilled, ["kmeans"])


def test_experts_with_batch_norm_score_nothing(distilled, data, accelerator, tmp_path):
    config = ExpertConfig(**{**vars(CONFIG), "student_norm": "batch", "num_experts": 1})
    experts = train_experts(data[0], config, tmp_path / "x", epochs=1, accelerator=accelerator, disable_tqdm=True)
    with pytest.raises(
        ValueError, match=r"forgetting, which needs experts .*BatchNorm, whose statistics are not stored"
    ):
        chosen_with(distilled, ["forgetting"], experts=experts)
    assert chosen_with(distilled, ["el2n"], experts=experts, full_data=True) == ["el2n"]


def test_a_method_without_experts_refuses_forgetting_before_it_looks_at_an_image(data, accelerator):
    outline = data[0].outline
    RDED.check(RDEDConfig(eval_baselines=["el2n", "ccs", "bps"]), outline, accelerator)
    MTT.check(MTTConfig(eval_baselines=["forgetting"]), outline, accelerator)
    with pytest.raises(
        ValueError, match=r"--eval_baselines has forgetting, which needs the epochs of experts, and RDED"
    ):
        RDED.check(RDEDConfig(eval_baselines=["forgetting"]), outline, accelerator)


@pytest.mark.parametrize("name", ["el2n", "ccs", "bps"])
@pytest.mark.parametrize("method", [DM, LGM, CLPDD])
def test_a_method_without_a_network_that_knows_images_refuses_scores_without_full_data(method, name, data, accelerator):
    outline, wanted = data[0].outline, {"eval_baselines": ["random", name]}
    method.check(method.config_class(**wanted), outline, accelerator)
    method.check(method.config_class(eval_full_data=False, eval_baselines=["all"]), outline, accelerator)
    with pytest.raises(
        ValueError, match=f"--eval_baselines has {name}, .*{method.__name__} has none; give --eval_full_data true"
    ) as error:
        method.check(method.config_class(eval_full_data=False, **wanted), outline, accelerator)
    assert "\n" not in str(error.value)


def test_experts_with_batch_norm_are_refused_for_scores_before_images_are_made(data, accelerator, tmp_path):
    train, batch = data[0], ExpertConfig(**{**vars(CONFIG), "student_norm": "batch", "num_experts": 1})
    scored = {name: MTTConfig(eval_baselines=[name], eval_full_data=False) for name in ("forgetting", "el2n")}
    for config in scored.values():
        MTT.check(config, train.outline, accelerator, [CONFIG])
    epochs = scored["el2n"].expert_epochs_needed
    folder = tmp_path / "batch"
    experts = train_experts(train, batch, folder, epochs=epochs, accelerator=accelerator, disable_tqdm=True)
    for name, config in scored.items():
        for settings in (batch, ExpertConfig(**{**vars(batch), "experts": str(folder)})):
            with pytest.raises(
                ValueError, match=f"--eval_baselines has {name}, .*with BatchNorm lack its statistics; "
            ):
                MTT.check(config, train.outline, accelerator, [settings])
        with pytest.raises(ValueError, match=f"--eval_baselines has {name}, .*with BatchNorm lack its statistics; "):
            MTT(replace(config, output_dir=str(tmp_path)), train, experts=experts, accelerator=accelerator)
    MTT.check(MTTConfig(eval_baselines=["el2n"]), train.outline, accelerator, [batch])


def test_experts_of_other_images_are_refused(experts, distilled, data, accelerator):
    train, test = data
    options = {"full_data": False, "baselines": ["el2n"], "experts": experts, "accelerator": accelerator}
    whitened = RealImages.from_arguments(DataArguments(max_train_samples=150, normalization="zca"))
    rows = random_rows(train, [1] * 10, 0)
    names, zca = train.class_names, whitened.preprocessing
    other = DistilledSet(zca(train.uint8(rows)), train.labels[rows], names, zca, config=distilled.config)
    with pytest.raises(ValueError, match=r"the experts in .* are for preprocessing .*; use other experts") as error:
        evaluate(other, train, test, held_out=train.subset([]), **options)
    assert "\n" not in str(error.value)


def _choose_on_each(distilled, data, experts: Path, folder: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # the parent's, which the fork brought along
    rank, accelerator = Accelerator(cpu=True).process_index, Accelerator(cpu=True)
    Path(folder, f"{rank}.json").write_text(json.dumps(chosen_rows(distilled, data, experts, accelerator)))


def chosen_rows(distilled, data, folder: Path, accelerator: Accelerator) -> dict[str, list[int]]:
    """What a report trains students on."""
    rows: dict[str, list[int]] = {"processes": [accelerator.num_processes]}

    def measure(self, cases) -> list[Result]:
        rows.update({case.set: case.rows[0].tolist() for case in cases})
        return [Result(case, 0.1, [0.5]) for case in cases]

    train, test = data
    options = {"held_out": train.subset([]), "protocol": SHORT, "full_data": False, "accelerator": accelerator}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "measure", measure)
        experts = ExpertTrajectories.from_pretrained(folder)
        evaluate(distilled, train, test, baselines=["all"], experts=experts, num_seeds=1, disable_tqdm=True, **options)
    return rows


@pytest.mark.slow
def test_two_processes_choose_what_one_chooses(distilled, data, experts, accelerator, tmp_path):
    debug_launcher(_choose_on_each, (distilled, data, experts.folder, str(tmp_path)), num_processes=2)
    (path,) = experts.folder.glob("scores-*.safetensors")
    whole = path.read_bytes()
    path.unlink()
    alone = chosen_rows(distilled, data, experts.folder, accelerator)
    assert path.read_bytes() == whole
    assert len(alone) == 2 + len(ALL)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {**alone, "processes": [2]}
