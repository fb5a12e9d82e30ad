"""What is published is what was made: every artifact over HTTP and back, for readers with and without this library."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from peft import LoraConfig, PeftModel, get_peft_model

from hf_distill.config import HubArguments
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.epoch_labels import EpochLabels
from hf_distill.hub.cards import render_card, source_context
from hf_distill.hub.edits import marked, with_edits
from hf_distill.hub.files import load_json, save_json
from hf_distill.hub.folder import Home, HubFolder
from hf_distill.hub.repository import Repository
from hf_distill.hub.results import EvalReport, EvalRow
from hf_distill.networks.projector import LabelProjector
from hf_distill.networks.teachers import Teacher
from hf_distill.networks.trajectories import ExpertTrajectories
from hf_distill.runs.processes import make_accelerator
from hf_distill.runs.publishing import prepare_push
from tests.helpers import ROOT
from tests.helpers.digits import DISTIL, TINY
from tests.helpers.goldens import check_golden
from tests.helpers.sets import CONFIG, NAMES, REPORT, make
from tests.helpers.sets import network as teacher

PUBLISHED = {
    "SHA256SUMS",
    ".gitattributes",
    "README.md",
    "assets/grid.png",
    "distill_config.json",
    "results.json",
    "data/train-00000-of-00001-{}.parquet",
    "tensor/train-00000-of-00001-{}.parquet",
}


SOURCE = {
    "name": "org/pets",
    "split": "train",
    "revision": "0123456789abcdef0123456789abcdef01234567",
    "license": "cc-by-nc-4.0",
    "gated": "auto",
    "homepage": "https://huggingface.co/datasets/org/pets",
    "num_images": 7000,
}


LABELS = {
    "metadata": "tags:\n- hf_distill",
    "call": '"org/labels"',
    "config": {
        "images": 3,
        "epochs": 2,
        "classes": 10,
        "bytes": 1000,
        "views": {"mix": "none"},
        "images_sha256": "0" * 64,
        "versions": {"torch": "9.9"},
    },
    "per_label": "All are stored.",
    **source_context(SOURCE),
}


def card_of(hub: Any, kind: str, repo: str) -> str:
    return hub.files(kind, repo)["README.md"].decode()


def asked(hub: Any, method: str) -> list[str]:
    """The last parts of the paths of files that were asked for."""
    return [
        r.path.split("?")[0].rsplit("/", 1)[1] for r in hub.requests if r.method == method and "/resolve/" in r.path
    ]


@pytest.fixture(scope="module")
def experts(recipes, tmp_path_factory) -> ExpertTrajectories:
    folder = tmp_path_factory.mktemp("trained")
    done = recipes("experts", {**TINY, "output_dir": folder / "experts"}, folder)
    assert done.status == [0], done.err
    return ExpertTrajectories.from_pretrained(folder / "experts")


# Distilled images


@pytest.mark.parametrize("zca", [False, True])
def test_a_published_set_comes_back_bit_for_bit_with_all_that_belongs_to_it(hub, zca):
    repo, made = f"{hub.namespace}/set", make(zca=zca, lr=0.02, teacher=True, config=CONFIG, report=REPORT)
    commit = made.push_to_hub(repo, tag="v1.0.0", token=hub.token)
    assert hub.tags("dataset", repo) == {"v1.0.0": commit.oid}
    again = DistilledSet.from_pretrained(repo, revision="v1.0.0")
    for name, tensor in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert torch.equal(again.teacher.thetas, made.teacher.thetas)
    assert again.preprocessing.fingerprint() == made.preprocessing.fingerprint()
    assert (again.class_names, again.config, again.report) == (made.class_names, made.config, made.report)
    assert (again.origin.repo_id, again.origin.revision) == (repo, commit.oid)


READER = """
import sys
sys.modules["hf_distill"] = None  # as where it is not installed
import json, numpy as np
from datasets import load_dataset
repo, out = sys.argv[1:]
images = load_dataset(repo, revision="v1.0.0", split="train")
floats = load_dataset(repo, "tensor", revision="v1.0.0", split="train").with_format("numpy")
streamed = load_dataset(repo, "tensor", revision="v1.0.0", split="train", streaming=True).with_format("numpy")
rows = list(load_dataset(repo, revision="v1.0.0", split="train", streaming=True))
np.savez(out, pixels=np.stack(list(floats["pixel_values"])), labels=floats["label"],
         soft=np.stack(list(images["soft_label"])), images=np.stack([np.asarray(i) for i in images["image"]]),
         streamed=np.stack([row["pixel_values"] for row in streamed]),
         streamed_images=np.stack([np.asarray(row["image"]) for row in rows]))
print(json.dumps(images.features["label"].names))
"""


def test_datasets_alone_loads_a_private_set_exactly_and_streams_it(hub, online, tmp_path):
    repo, made = f"{hub.namespace}/private", make(config=CONFIG)
    made.push_to_hub(repo, tag="v1.0.0", private=True, token=hub.token)
    read = online(READER, repo, tmp_path / "read.npz", env={"HF_TOKEN": hub.token})
    assert read.status == [0], read.err
    assert json.loads(read.out.splitlines()[-1]) == NAMES
    found = np.load(tmp_path / "read.npz")
    pixels = made.pixel_values.detach().numpy()
    assert np.array_equal(found["pixels"], pixels)
    assert np.array_equal(found["streamed"], pixels)
    assert np.array_equal(found["labels"], made.labels.numpy())
    assert np.array_equal(found["soft"].astype(np.float16), made.soft_labels.numpy())
    for name in ("images", "streamed_images"):
        assert np.array_equal(found[name], made.images_uint8().permute(0, 2, 3, 1).numpy())
    stranger = online(READER, repo, tmp_path / "no.npz", env={"HF_HOME": str(tmp_path / "stranger")})
    assert stranger.status != [0]
    assert "doesn't exist on the Hub or cannot be accessed" in stranger.err


def test_loading_fetches_no_picture_and_nothing_that_is_not_of_the_artifact(hub):
    repo = f"{hub.namespace}/set"
    make(report=REPORT).push_to_hub(repo, token=hub.token)
    hub.put("dataset", repo, {"weights.pkl": b"junk", "tensor/other.bin": b"junk"})
    hub.clear()
    DistilledSet.from_pretrained(repo)
    data_id = json.loads(hub.files("dataset", repo)["distill_config.json"])["data_id"]
    about = {"README.md", "SHA256SUMS", "distill_config.json", "results.json"}
    expected = {*about, f"train-00000-of-00001-{data_id}.parquet"}
    assert set(asked(hub, "GET")) | set(asked(hub, "HEAD")) == expected


def test_a_new_version_replaces_the_old_one_whose_tag_stays_what_it_was(hub):
    repo, first, second = f"{hub.namespace}/set", make(), make(seed=1)
    one = first.push_to_hub(repo, tag="v1", token=hub.token)
    hub.put("dataset", repo, {"notes.md": b"mine"})
    two = second.push_to_hub(repo, tag="v2", token=hub.token)
    assert hub.tags("dataset", repo) == {"v1": one.oid, "v2": two.oid}
    now = hub.files("dataset", repo)
    assert now["notes.md"] == b"mine"
    assert len([name for name in now if name.endswith(".parquet")]) == 2
    assert torch.equal(DistilledSet.from_pretrained(repo, revision="v1").pixel_values, first.pixel_values)
    assert torch.equal(DistilledSet.from_pretrained(repo).pixel_values, second.pixel_values)


def test_the_card_pins_its_version_and_a_saved_copy_speaks_of_its_folder(hub, tmp_path):
    repo = f"{hub.namespace}/set"
    make(config=CONFIG).push_to_hub(repo, tag="v1.0.0", token=hub.token)
    card = hub.files("dataset", repo)["README.md"].decode()
    assert f'load_dataset("{repo}", revision="v1.0.0", split="train")' in card
    assert f'load_dataset("{repo}", "tensor", revision="v1.0.0", split="train")' in card
    saved = DistilledSet.from_pretrained(repo).save_pretrained(tmp_path / "copy")
    assert "v1.0.0" not in (saved / "README.md").read_text()
    assert "release" not in load_json(saved / "distill_config.json")


# Experts


def test_of_published_experts_only_the_files_that_are_touched_are_fetched(hub, experts, tmp_path):
    repo = f"{hub.namespace}/experts"
    commit = experts.push_to_hub(repo, tag="v1.0.0", token=hub.token)
    hub.put("model", repo, {"expert-00000.safetensors": b"moved on"})
    hub.clear()
    there = ExpertTrajectories.from_pretrained(repo, revision="v1.0.0")
    assert sorted(asked(hub, "GET")) == ["SHA256SUMS", "expert_config.json", "making.json"]
    assert there.making == experts.making
    for _ in range(2):
        for found, expected in zip(there.segment(2, 0, 2), experts.segment(2, 0, 2), strict=True):
            assert torch.equal(found, expected)
    assert [name for name in asked(hub, "HEAD") if name.startswith("expert-")] == ["expert-00002.safetensors"]
    assert there.load_call == f'ExpertTrajectories.from_pretrained("{repo}", revision="{commit.oid}")'
    saved = there.save_pretrained(tmp_path / "saved")
    for path in experts.folder.glob("expert-*.safetensors"):
        assert (saved / path.name).read_bytes() == path.read_bytes()


def test_experts_in_a_local_folder_never_touch_the_network(hub, experts, tmp_path):
    copy = experts.save_pretrained(tmp_path / "copy")
    (copy / "expert-00003.safetensors").unlink()
    local = ExpertTrajectories.from_pretrained(copy)
    local.segment(0, 0, 2)
    with pytest.raises(ValueError, match=r"lacks expert-00003\.safetensors"):
        local.row(3, 0)
    assert not hub.requests


def test_the_card_of_experts_has_their_accuracy_as_the_hub_reads_it(hub, recipes, digits_repo, tmp_path):
    repo = f"{hub.namespace}/experts"
    flags = {**TINY, "num_experts": 2, "dataset_name": digits_repo, "output_dir": tmp_path / "experts"}
    push = {"push_to_hub": True, "hub_model_id": repo, "hub_tag": "v1", "hub_token": hub.token}
    done = recipes("experts", {**flags, **push}, tmp_path)
    assert done.status == [0], done.err
    assert f'load: ExpertTrajectories.from_pretrained("{repo}", revision="v1")' in done.out
    files = hub.files("model", repo, "v1")
    accuracies = json.loads(files["expert_config.json"])["results"]["test_accuracy"]
    (tmp_path / "card.md").write_bytes(files["README.md"])
    name, results = model_index_to_eval_results(metadata_load(tmp_path / "card.md")["model-index"])
    test = next(result for result in results if result.dataset_split == "test")
    assert (name, test.dataset_type, test.metric_type) == ("experts", digits_repo, "accuracy")
    assert test.metric_value == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert test.dataset_revision == hub.head("dataset", digits_repo)
    assert not [path for path in files if path.startswith(".eval_results")]  # for registered benchmarks alone
    check = ModelCard.load(tmp_path / "card.md")
    assert check.data.to_dict()["datasets"] == [digits_repo]


# Cards that people edited

NOTE = "## Errata\n\nImage 3 is a *dog*.\n\n```python\n## no heading\n```"
KEYS = "draft: no\nversion: 1.10\nviewer: false\nthumbnail: 'https://x/y.png'\n"


def edited(card: str, *, marks: bool = True) -> str:
    """A card with a section before its licence, keys and a tag of a person's; without marks as version 0.1 wrote it."""
    card = card.replace("---\n", f"---\n{KEYS}", 1).replace("tags:\n", "tags:\n- mine\n", 1)
    heading = "<!-- hf_distill: licence -->\n## Licence" if marks else "## Licence"
    card = (card if marks else re.sub(r"<!-- hf_distill: .* -->\n", "", card)).replace(heading, f"{NOTE}\n\n{heading}")
    assert NOTE in card
    return card


def check_kept(card: str) -> None:
    front, body = card.removeprefix("---\n").split("---\n", 1)
    for key in KEYS.splitlines():
        assert front.splitlines().count(key) == 1
    assert front.splitlines().count("- mine") == front.count("tags:")
    assert body.count(NOTE) == 1
    assert body.count("## Licence") == 1
    assert body.index(NOTE) < body.index("## Licence")


@pytest.mark.parametrize("marks", [True, False], ids=["marked", "0.1"])
@pytest.mark.parametrize("golden", ["distilled", "experts", "labels", "teacher", "projector"])
def test_what_a_person_wrote_into_the_card_of_any_artifact_stays(golden, marks):
    path = ROOT / "tests" / "goldens" / f"{golden}.md"
    card = path.read_text(encoding="utf-8") if path.exists() else render_card("labels.md", **LABELS)
    once = with_edits(card, edited(card, marks=marks), ours=True)
    check_kept(once)
    assert with_edits(card, once, ours=True) == once
    assert with_edits(card, once.replace("\n", "\r\n"), ours=True) == once
    assert with_edits(card, card, ours=True) == card


@pytest.mark.parametrize("marks", [True, False], ids=["marked", "0.1"])
def test_the_next_version_and_an_evaluation_keep_what_a_person_wrote_into_the_card(hub, marks, tmp_path):
    repo, first, second = f"{hub.namespace}/set", make(config=CONFIG), make(seed=1, config=CONFIG)
    first.push_to_hub(repo, tag="v1", token=hub.token)
    hub.put("dataset", repo, {"README.md": edited(card_of(hub, "dataset", repo), marks=marks).encode()})
    first.push_results(repo, REPORT, token=hub.token)
    check_kept(card_of(hub, "dataset", repo))
    assert REPORT.rows[0].percent() in card_of(hub, "dataset", repo)
    done = second.push_to_hub(repo, tag="v2", token=hub.token)
    check_kept(card_of(hub, "dataset", repo))
    assert 'revision="v1"' not in card_of(hub, "dataset", repo)
    assert len(load_dataset(repo, split="train")) == len(second)
    assert second.push_to_hub(repo, tag="v2", token=hub.token).oid == done.oid == hub.head("dataset", repo)
    here = tmp_path / "set"
    second.save_pretrained(here)
    (here / "README.md").write_text(edited((here / "README.md").read_text(), marks=marks))
    first.save_pretrained(here)
    check_kept((here / "README.md").read_text())


def test_the_next_version_of_a_network_keeps_what_a_person_wrote_into_its_card(hub):
    repo = f"{hub.namespace}/network"
    teacher().push_to_hub(repo, token=hub.token)
    hub.put("model", repo, {"README.md": edited(card_of(hub, "model", repo)).encode()})
    teacher(seed=1).push_to_hub(repo, token=hub.token)
    check_kept(card_of(hub, "model", repo))


def changed(front: str, key: str, value: str) -> str:
    """Metadata with another value of a key, whatever it was."""
    return re.sub(rf"^{key}:.*\n(?: .*\n|- .*\n)*", lambda _: f"{key}: {value}\n", front, flags=re.MULTILINE)


def metadata_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n", 2)[1])


@pytest.mark.parametrize("golden", ["distilled", "teacher", "projector"])
def test_a_value_that_a_person_changed_stays_and_what_nobody_changed_follows_the_version(golden):
    card = (ROOT / "tests" / "goldens" / f"{golden}.md").read_text(encoding="utf-8")
    theirs = changed(card, "license", "cc0-1.0")
    theirs = theirs.replace("- hf_distill\n", "- mine\n", 1)  # one tag came, and one went
    later = card.replace("library_name: ", "library_name: other-").replace("- dataset-distillation\n", "- renamed\n")
    later = changed(later, "license", "mit")
    written = re.sub("(<!-- hf_distill: wrote .*)", lambda found: marked(later).splitlines()[-1], later)
    for _ in range(2):
        theirs = with_edits(written, theirs, ours=True)
        found = metadata_of(theirs)
        assert found["license"] == "cc0-1.0"
        assert found.get("library_name") == metadata_of(later).get("library_name")
        assert {"mine", "renamed"} <= {*found["tags"]}
        assert not {"hf_distill", "dataset-distillation"} & {*found["tags"]}
    back = with_edits(written, changed(theirs, "license", "mit"), ours=True)
    assert metadata_of(with_edits(card, back, ours=True))["license"] == metadata_of(card)["license"]


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("license", "[mit, cc-by-4.0]", ["mit", "cc-by-4.0"]),
        ("pretty_name", "'Three pets: distilled'", "Three pets: distilled"),
        ("pretty_name", "1.10", 1.1),
        ("size_categories", "[1K<n<10K]", ["1K<n<10K"]),
        ("size_categories", "1K<n<10K", ["1K<n<10K"]),
        ("tags", "[]", []),
        ("annotations_creators", "[found]", ["found"]),  # which no version writes
    ],
)
def test_a_value_of_any_form_stays(key, value, kept):
    card = (ROOT / "tests" / "goldens" / "distilled.md").read_text(encoding="utf-8")
    theirs = changed(card, key, value) if f"\n{key}:" in card else card.replace("---\n", f"---\n{key}: {value}\n", 1)
    once = with_edits(card, theirs, ours=True)
    assert metadata_of(once) == {**metadata_of(card), key: kept}
    assert with_edits(card, once, ours=True) == once


def test_an_evaluation_and_the_next_version_keep_the_values_that_a_person_changed(hub):
    repo, first = f"{hub.namespace}/set", make(config=CONFIG)
    first.push_to_hub(repo, token=hub.token)
    theirs = changed(card_of(hub, "dataset", repo), "license", "cc0-1.0")
    hub.put("dataset", repo, {"README.md": theirs.encode()})
    first.push_results(repo, REPORT, token=hub.token)
    assert metadata_of(card_of(hub, "dataset", repo))["license"] == "cc0-1.0"
    make(seed=1, config={**CONFIG, "method": "another"}).push_to_hub(repo, token=hub.token)
    found = metadata_of(card_of(hub, "dataset", repo))
    assert (found["license"], found["tags"]) == ("cc0-1.0", ["dataset-distillation", "another", "ipc-3", "hf_distill"])


@pytest.mark.parametrize("marks", [True, False], ids=["marked", "0.1"])
def test_the_tags_of_a_set_are_those_of_its_method_and_of_people(marks):
    card = (ROOT / "tests" / "goldens" / "distilled.md").read_text(encoding="utf-8")
    old = edited(card, marks=marks)
    new = card.replace("- some-method\n", "- another\n").replace("- ipc-3\n", "- ipc-50\n")
    tags = ["dataset-distillation", "another", "ipc-50", "hf_distill", "mine"]
    assert metadata_of(with_edits(new, old, ours=True))["tags"] == tags


def test_a_card_that_is_written_before_the_first_version_stays_behind_it(hub):
    repo = f"{hub.namespace}/new"
    hub.put("dataset", repo, {"README.md": b"---\nlicense: mit\npaper: x\n---\n# Ours\n\nSoon.\n"})
    for seed in (0, 1):
        make(seed=seed, config=CONFIG).push_to_hub(repo, token=hub.token)
        card = card_of(hub, "dataset", repo)
        assert "license: cc-by-4.0\n" in card
        assert "paper: x\n" in card
        assert card.index("## Citation") < card.index("# Ours\n\nSoon.")
        assert card.count("# Ours") == 1


@pytest.mark.parametrize(
    "edit",
    [
        lambda card: card.replace("## Limits\n", f"{NOTE}\n\n## Limits\n"),  # between a mark and its heading
        lambda card: card.replace("\n<!-- hf_distill: end -->", f"\n\n{NOTE}\n<!-- hf_distill: end -->", 1),
        lambda card: card.replace("<!-- hf_distill: end -->", NOTE, 1),  # in place of a mark
        lambda card: card.replace("<!-- hf_distill: limits -->", NOTE),
        lambda card: f"{card}\n{NOTE}",
        lambda card: card.replace("# Distilled", f"{NOTE}\n\n# Distilled", 1),
        lambda card: card.replace("---\n", "---\n: [\n", 1) + NOTE,  # metadata that are none
        lambda card: card.split("---\n", 2)[2] + NOTE,
        lambda card: re.sub(r"<!-- hf_distill: wrote .* -->\n", "", card) + NOTE,
        lambda card: "\ufeff" + card.replace("\n", "\r\n") + NOTE,
        lambda card: (card + NOTE).replace("\n", "\r"),
        lambda card: card + card.split("---\n", 2)[2] + NOTE,  # all of it twice
        lambda card: card.replace("<!-- hf_distill: end -->\n", "") + NOTE,
        lambda card: re.sub('"tags": ', '"tags": [{"a": 1}], "x": ', card) + NOTE,  # what nobody wrote
        lambda card: changed(changed(card, "tags", ""), "license", "") + NOTE,  # values that are none
    ],
)
def test_a_section_of_a_person_stays_wherever_it_stands(edit):
    card = (ROOT / "tests" / "goldens" / "distilled.md").read_text(encoding="utf-8")
    kept = with_edits(card, edit(card), ours=True)
    assert kept.count(NOTE) == 1
    assert kept.split("---\n", 2)[1] == card.split("---\n", 2)[1]
    assert with_edits(card, kept, ours=True) == kept
    assert {*card.splitlines()} <= {*kept.splitlines()}


# Adapters: a folder with what PEFT writes and a JSON file of its own


class Adapter(HubFolder):
    """A PEFT adapter with a note of its own."""

    repo_type = "model"
    config_name = "note.json"
    owned = ("README.md", "note.json", "adapter_config.json", "adapter_model.safetensors")
    fetched = owned
    loader = "PeftModel.from_pretrained"

    def __init__(self, model: PeftModel) -> None:
        self.model, self.config = model, {}

    def _write(self, folder: Path, home: Home) -> None:
        self.model.save_pretrained(folder)
        save_json(folder / "note.json", {"home": home.name})
        (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n")

    @classmethod
    def _read(cls, folder: Path) -> "Adapter":
        return cls(PeftModel.from_pretrained(network(), folder))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))


def test_peft_alone_loads_an_adapter_that_was_published(hub):
    repo, images = f"{hub.namespace}/adapter", torch.randn(2, 4)
    adapted = get_peft_model(network(), LoraConfig(target_modules=["0"], init_lora_weights=False))
    Adapter(adapted).push_to_hub(repo, tag="v1.0.0", token=hub.token)
    loaded = PeftModel.from_pretrained(network(), repo, revision="v1.0.0")
    assert torch.equal(loaded(images), adapted(images))
    assert not torch.equal(loaded(images), network()(images))
    assert torch.equal(Adapter.from_pretrained(repo, revision="v1.0.0").model(images), adapted(images))


# Recipes


def test_a_recipe_publishes_what_it_saved_and_names_every_commit_it_read(hub, recipes, digits_repo, tmp_path):
    repo, folder = f"{hub.namespace}/digits-ipc1", tmp_path / "run"
    trained = {**TINY, "dataset_name": digits_repo, "output_dir": tmp_path / "experts"}
    push = {"push_to_hub": True, "hub_token": hub.token}
    done = recipes("experts", {**trained, **push, "hub_model_id": f"{hub.namespace}/experts"}, tmp_path)
    assert done.status == [0], done.err
    experts_commit = hub.head("model", f"{hub.namespace}/experts")
    hub.put("model", f"{hub.namespace}/experts", {"notes.md": b"later"})
    hub.clear()
    flags = {name: value for name, value in TINY.items() if name not in ("num_experts", "expert_train_epochs")}
    given = {"experts": f"{hub.namespace}/experts", "experts_revision": experts_commit, "dataset_name": digits_repo}
    target = {**push, "hub_model_id": repo, "hub_tag": "v0.1"}
    done = recipes("tesla", {**flags, **DISTIL, **given, **target, "output_dir": folder}, tmp_path)
    assert done.status == [0], done.err
    assert f'load: datasets.load_dataset("{repo}", revision="v0.1")' in done.out
    assert (
        len({name for name in asked(hub, "HEAD") if name.startswith("expert-")}) == 1
    )  # of four; one step, one expert

    files = hub.files("dataset", repo, "v0.1")
    config = json.loads(files["distill_config.json"])
    assert config["experts"]["source"] == f"{hub.namespace}/experts"
    assert config["experts"]["revision"] == experts_commit
    assert config["source"]["revision"] == hub.head("dataset", digits_repo)
    assert config["release"] == {"repo_id": repo, "tag": "v0.1"}
    assert set(files) == {name.format(config["data_id"]) for name in (*PUBLISHED, "making.json")}
    parts = json.loads(files["making.json"])["parts"]
    assert list(parts) == ["distillation", "experts"]
    assert all(part["steps"] > 0 and part["seconds"] > 0 for part in parts.values())
    saved = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(saved) - set(files)  # checkpoints, which stay at home
    for name in set(files) - {".gitattributes", "README.md", "SHA256SUMS", "distill_config.json"}:
        assert files[name] == saved[name].read_bytes(), name
    card = files["README.md"].decode()
    assert experts_commit in card
    assert f'load_dataset("{repo}", revision="v0.1", split="train")' in card

    evaluate = {"num_seeds": 1, "protocol": "tiny", "disable_tqdm": True, "full_data": False, "max_test_samples": 50}
    evaluate |= {"distilled_dataset": repo, "distilled_revision": "v0.1", "student": "convnet_d2", **push}
    done = recipes("evaluate", evaluate, tmp_path)
    assert done.status == [0], done.err
    now, about = hub.files("dataset", repo), {"README.md", "SHA256SUMS", "results.json", "assets/results.png"}
    assert {name for name in now if now[name] != files.get(name)} == about
    rows = EvalReport.from_json(json.loads(now["results.json"])).rows
    added = [row for row in rows if row.student == "convnet_d2" and row.set == "distilled"]
    assert len(rows) > len(EvalReport.from_json(json.loads(files["results.json"])).rows)
    assert added
    assert all(row.percent() in now["README.md"].decode() for row in added)
    assert f'load_dataset("{repo}", revision="v0.1", split="train")' in now["README.md"].decode()


def test_what_cannot_be_published_is_said_before_the_work(hub, recipes, tmp_path):
    repo = f"{hub.namespace}/set"
    make().push_to_hub(repo, tag="v1.0.0", token=hub.token)
    target = {"push_to_hub": True, "hub_model_id": repo, "hub_tag": "v1.0.0", "hub_token": hub.token}
    done = recipes("tesla", {**TINY, **DISTIL, **target, "output_dir": tmp_path / "run"}, tmp_path)
    assert done.status == [1]
    assert done.err.startswith("error: dataset repository")
    assert "v1.0.1 is free" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("run/*"))
    assert not (tmp_path / "outputs").exists()


def test_flags_of_publishing_that_would_do_nothing_are_refused():
    with pytest.raises(ValueError, match="--hub_tag is given without --push_to_hub"):
        HubArguments(hub_tag="v1")
    with pytest.raises(ValueError, match="expected owner/name"):
        HubArguments(push_to_hub=True, hub_model_id="justaname")
    with pytest.raises(ValueError, match="give --hub_model_id owner/name"):
        prepare_push(HubArguments(push_to_hub=True), DistilledSet, make_accelerator())


# Repositories of something else

KINDS = (DistilledSet, EpochLabels, ExpertTrajectories, Teacher, LabelProjector)
CARD = b"---\nlicense: mit\n---\n\n# Ours since 2019\n"
FOREIGN = {
    "a dataset": {"README.md": CARD, "data/train-00000-of-00001.parquet": b"rows"},
    "a table without a folder": {"README.md": CARD, "train.csv": b"a,b\n1,2\n"},
    "a model of timm": {"README.md": CARD, "config.json": b"{}", "model.safetensors": b"weights"},
    "a model without a card": {"config.json": b"{}", "model.safetensors": b"weights"},
    "a lone table": {"train.csv": b"a,b\n1,2\n"},
    "pictures": {"photos/cat/1.png": b"pixels", ".gitattributes": b"*.png filter=lfs"},
    "a script": {"README.md": CARD, "loading.py": b"import os", "LICENSE": b"MIT"},
    "an adapter": {"README.md": CARD, "adapter_config.json": b"{}", "adapter_model.safetensors": b"matrices"},
    "another kind": {"README.md": CARD, **{kind.index(): b"{}" for kind in KINDS}},
}


def prepare(kind: type[HubFolder], repo: str, hub: Any, **options: Any) -> None:
    Repository(repo, kind.repo_type, token=hub.token).prepare(kind.owned, kind.index(), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_repository_of_something_else_is_refused_before_the_work_unless_that_is_meant(hub, kind):
    for name, content in FOREIGN.items():
        repo = f"{hub.namespace}/{name.replace(' ', '-')}"
        hub.put(kind.repo_type, repo, {path: data for path, data in content.items() if path != kind.index()})
        with pytest.raises(ValueError, match=rf"and no {kind.index()}.*--hub_overwrite_foreign") as error:
            prepare(kind, repo, hub)
        assert "\n" not in str(error.value)
        prepare(kind, repo, hub, overwrite_foreign=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_repository_that_was_only_just_made_is_nobodys(hub, kind):
    hub.put(kind.repo_type, f"{hub.namespace}/new", {"README.md": CARD, "LICENSE": b"MIT"})
    prepare(kind, f"{hub.namespace}/new", hub)


@pytest.mark.parametrize(("kind", "made"), [("dataset", make), ("model", teacher)])
def test_a_push_replaces_nothing_of_somebody_else_also_what_came_during_the_work(hub, kind, made):
    repo, theirs = f"{hub.namespace}/theirs", {**FOREIGN["a dataset"], **FOREIGN["a model of timm"]}
    hub.put(kind, repo, theirs)
    before = hub.files(kind, repo)
    for options in ({}, {"create_pr": True}):
        with pytest.raises(ValueError, match="so it holds something else"):
            made().push_to_hub(repo, token=hub.token, **options)
    assert hub.files(kind, repo) == before
    late = f"{hub.namespace}/late"
    prepare(type(made()), late, hub)
    hub.fail("GET .*/revision/main", then=lambda: None)  # of `prepare` in the push; the next one is of the commit
    hub.fail("GET .*/revision/main", then=lambda: hub.put(kind, late, theirs))
    with pytest.raises(ValueError, match="so it holds something else"):
        made().push_to_hub(late, token=hub.token)
    assert hub.files(kind, late) == before
    made().push_to_hub(repo, token=hub.token, overwrite_foreign=True)
    assert "README.md" in hub.files(kind, repo)
    assert hub.files(kind, repo)["README.md"] != CARD


def test_a_recipe_refuses_the_repository_of_something_else_before_its_work(hub, recipes, tmp_path):
    repo = f"{hub.namespace}/theirs"
    hub.put("dataset", repo, FOREIGN["a dataset"])
    before = hub.files("dataset", repo)
    target = {"push_to_hub": True, "hub_model_id": repo, "hub_token": hub.token}
    done = recipes("tesla", {**TINY, **DISTIL, **target, "output_dir": tmp_path / "run"}, tmp_path)
    assert done.status == [1]
    (line,) = done.err.strip().splitlines()
    assert line.startswith(f"error: dataset repository '{repo}' has a data/train-00000-of-00001.parquet and no")
    assert not list(tmp_path.glob("run/*"))
    evaluated = make(config=CONFIG).save_pretrained(tmp_path / "set")
    done = recipes("evaluate", {"distilled_dataset": evaluated, **target}, tmp_path)
    assert done.status == [1]
    assert "has no distill_config.json" in done.err
    assert hub.files("dataset", repo) == before


def test_results_are_added_only_to_the_images_that_were_evaluated(hub):
    repo = f"{hub.namespace}/set"
    made = make(report=REPORT)
    made.push_to_hub(repo, tag="v1", token=hub.token)
    row = EvalRow("distilled", "soft", "vit", "quick", 12, [0.5], "cpu")
    made.push_results(repo, EvalReport([row]), token=hub.token)
    assert DistilledSet.from_pretrained(repo).report.rows == [*REPORT.rows, row]
    assert DistilledSet.from_pretrained(repo, revision="v1").report.rows == REPORT.rows
    with pytest.raises(ValueError, match="other images than those that are evaluated"):
        make(seed=1).push_results(repo, EvalReport([row]), token=hub.token)


# Cards


def test_a_published_card_is_kept_as_a_golden_and_is_valid_on_the_hub(hub):
    made = make(lr=0.0312, teacher=True, config={**CONFIG, "source": SOURCE}, report=REPORT)
    made.push_to_hub("org/pets-distilled-ipc3", tag="v1.0.0", token=hub.token)  # which the Hub refuses if invalid
    card = hub.files("dataset", "org/pets-distilled-ipc3")["README.md"].decode()
    check_golden("distilled_published.md", card)
    assert DatasetCard(card).data.to_dict()["license"] == "cc-by-nc-4.0"
    assert "more information needed" not in card.lower()


def test_an_import_is_published_with_the_name_and_the_hash_of_its_files(hub, recipes, tmp_path):
    path, repo = make(config=CONFIG).export_pt(tmp_path / "images.pt"), f"{hub.namespace}/imported"
    flags = {"images": path, "output_dir": tmp_path / "imported", "disable_tqdm": True}
    push = {"push_to_hub": True, "hub_model_id": repo, "hub_tag": "v1", "hub_token": hub.token}
    done = recipes("import", {**flags, **push}, tmp_path)
    assert done.status == [0], done.err
    again = DistilledSet.from_pretrained(repo, revision="v1")
    assert torch.equal(again.pixel_values, make().pixel_values)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"`images.pt` (SHA-256 `{sha256}`)" in hub.files("dataset", repo)["README.md"].decode()


# Said again


def test_a_push_that_had_ended_says_again_what_it_published_whatever_others_added_since(hub):
    repo, made = f"{hub.namespace}/set", make()
    first = made.push_to_hub(repo, tag="v1", token=hub.token)
    hub.put("dataset", repo, {"notes.md": b"mine"})
    assert made.push_to_hub(repo, tag="v1", token=hub.token).oid == first.oid
    with pytest.raises(ValueError, match="v2 is free"):
        make(seed=1).push_to_hub(repo, tag="v1", token=hub.token)


def test_a_tag_that_comes_late_names_the_commit_that_made_the_version(hub):
    repo, made = f"{hub.namespace}/set", make()
    hub.fail("POST .*/tag/", status=403)
    with pytest.raises(ValueError, match="lacks its tag 'v1'"):
        made.push_to_hub(repo, tag="v1", token=hub.token)
    first = hub.head("dataset", repo)
    hub.put("dataset", repo, {"data/extra.md": b"of somebody else"})
    assert made.push_to_hub(repo, tag="v1", token=hub.token).oid == first
    assert hub.tags("dataset", repo) == {"v1": first}


def test_results_get_no_tag_that_cannot_name_a_version(hub):
    repo, made = f"{hub.namespace}/set", make()
    first = made.push_to_hub(repo, token=hub.token)
    for tag in ("a b", "HEAD", "refs/heads/x"):
        with pytest.raises(ValueError, match="cannot name a version"):
            made.push_results(repo, REPORT, tag=tag, token=hub.token)
    assert hub.head("dataset", repo) == first.oid


def test_results_touch_nothing_but_what_tells_of_them(hub):
    repo, made = f"{hub.namespace}/set", make(config=CONFIG)
    made.push_to_hub(repo, token=hub.token)
    before = hub.files("dataset", repo)
    hub.clear()
    made.push_results(repo, REPORT, tag="v2", token=hub.token)
    after = hub.files("dataset", repo)
    assert {name for name in after if after[name] != before.get(name)} == {
        "README.md",
        "SHA256SUMS",
        "distill_config.json",
        "results.json",
    }
    assert not any(request.method == "PUT" for request in hub.requests)
    assert DistilledSet.from_pretrained(repo, revision="v2").report == REPORT


def test_a_learning_rate_is_part_of_what_was_evaluated(hub):
    repo = f"{hub.namespace}/set"
    make(lr=0.1).push_to_hub(repo, token=hub.token)
    with pytest.raises(ValueError, match="other images"):
        make(lr=1.0).push_results(repo, REPORT, token=hub.token)


def test_a_revision_of_a_folder_is_a_mistake(tmp_path):
    folder = make().save_pretrained(tmp_path / "set")
    with pytest.raises(ValueError, match="has no revision 'v1'"):
        DistilledSet.from_pretrained(folder, revision="v1")


def test_experts_of_another_training_are_not_saved_over(experts, tmp_path):
    folder = experts.save_pretrained(tmp_path / "copy")
    config = load_json(folder / "expert_config.json")
    save_json(folder / "expert_config.json", {**config, "training": {**config["training"], "lr_teacher": 9}})
    with pytest.raises(ValueError, match="holds experts of another training"):
        experts.save_pretrained(folder)


def test_an_evaluation_for_a_repository_that_does_not_hold_the_set_is_refused_before_the_work(hub, recipes, tmp_path):
    folder = make(config=CONFIG).save_pretrained(tmp_path / "set")
    flags = {"distilled_dataset": folder, "push_to_hub": True, "hub_model_id": f"{hub.namespace}/typo"}
    done = recipes("evaluate", {**flags, "hub_token": hub.token, "disable_tqdm": True}, tmp_path)
    assert done.status == [1]
    assert "no dataset repository on the Hub" in done.err
    assert not hub.repos()


def test_rows_of_other_splits_and_sizes_are_other_rows_and_what_is_known_of_them_stays():
    row = {"labels": "soft", "student": "vit", "protocol": "quick", "accuracies": [0.5], "device": "cpu"}
    one = EvalReport([EvalRow("full data", images=10, **row)], {"quick, vit": {"epochs": {"full data": 3}}})
    other = EvalReport([EvalRow("full data", images=5, **row)], {"quick, vit": {"epochs": {"random": 4}}})
    third = EvalReport([EvalRow("full data", images=10, split="validation", **row)])
    merged = one.merge(other).merge(third)
    assert len(merged.rows) == 3
    assert merged.meta == {"quick, vit": {"epochs": {"full data": 3, "random": 4}}}
