"""Recipes that make, publish and compare label projectors, and the one line that a mistake gets."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.labels import ProjectorLabels
from hf_distill.networks.projector import LabelProjector
from hf_distill.networks.teachers import Teacher

DATA = {"max_train_samples": 200, "max_test_samples": 40, "validation_fraction": 0.1, "disable_tqdm": True}
TEACHER = {
    "student": "convnet_d1",
    "student_width": 8,
    "student_norm": "batch",
    "teacher_epochs": 2,
    "batch_train": 50,
    "weak_teachers": 2,
}
PROJECTOR = {
    "prior_epochs": 1,
    "prompts": "simple",
    "lora_r": 2,
    "lora_head_r": 1,
    "projector_epochs": 1,
    "batch_projector": 50,
}
EVALUATION = {"num_seeds": 1, "full_data": False, "disable_tqdm": True}


@pytest.fixture(scope="module")
def home(recipes, tmp_path_factory) -> Path:
    """A folder with a set of RDED in `set`, its teacher, and a projector for it in `projector` with `labelled`."""
    home = tmp_path_factory.mktemp("home")
    teacher = {name: value for name, value in TEACHER.items() if name != "weak_teachers"}
    rded = {"ipc": 2, "factor": 1, "num_crops": 2, "eval_protocol": "crops-tiny", "eval_seeds": 1}
    rded |= {"eval_full_data": False, "eval_baselines": "random", "output_dir": "set"}
    done = recipes("rded", {**DATA, **teacher, **rded}, home)
    assert done.status == [0], done.err
    folders = {"output_dir": "projector", "labelled_output_dir": "labelled"}
    done = recipes("projector", {**flags(home), **folders}, home)
    assert done.status == [0], done.err
    (home / "out").write_text(done.out)
    return home


def flags(home: Path) -> dict[str, Any]:
    return {"distilled_dataset": "set", "disable_tqdm": True, **TEACHER, **PROJECTOR}


def test_images_of_another_method_get_a_projector_that_the_recipe_speaks_of(home):
    projector, labelled = (
        cls.from_pretrained(home / name) for cls, name in ((LabelProjector, "projector"), (DistilledSet, "labelled"))
    )
    plain, out = DistilledSet.from_pretrained(home / "set"), (home / "out").read_text()
    assert isinstance(labelled.teacher, ProjectorLabels)
    assert isinstance(labelled.label_source, ProjectorLabels)
    assert labelled.teacher.digest == projector.digest
    assert torch.equal(labelled.pixel_values, plain.pixel_values)
    assert labelled.preprocessing.fingerprint() == plain.preprocessing.fingerprint()
    assert projector.config["training"]["num_images"] == 180  # the held-out tenth is nobody's
    assert len(projector.config["teachers"]) == 2
    assert projector.results["asked_about"] == "distilled images"
    assert f"{100 * projector.results['agreement']:.1f} % of the cases" in out
    assert "projector with all that is shared" in out
    assert 'load: DistilledSet.from_pretrained("labelled").teacher' in out
    # Students of the old labels say nothing of the new ones.
    assert {row.labels for row in plain.report.rows} == {"soft", "hard"}
    assert {row.labels for row in labelled.report.rows} == {"hard"}


# Evaluated and compared


def test_a_projector_gives_the_soft_row_of_another_set_and_is_compared_with_what_it_has(home, recipes):
    given = {**EVALUATION, "distilled_dataset": "set", "labels": "projector", "output_dir": "evaluated"}
    compared = ["--compare_labels", "hard", "own", "projector"]
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    done = recipes("evaluate", words + compared, home)
    assert done.status == [0], done.err
    report, digest = DistilledSet.from_pretrained(home / "evaluated").report, load(home).digest
    before = DistilledSet.from_pretrained(home / "set").report.rows
    added = [row for row in report.rows if row not in before]
    (soft,) = [row for row in added if (row.set, row.labels) == ("distilled", "soft")]
    size = load(home).num_bytes
    assert soft.protocol.startswith(f"crops-tiny, label projector {digest} (")
    assert {row.labels: row.num_bytes for row in report.labels} == {
        "hard": 0,
        "own (teacher)": Teacher.from_pretrained(next((home / "set" / "teacher").iterdir())).num_bytes,
        "projector": size,
    }
    # The same students, whoever asks.
    (alone,) = [row for row in report.labels if row.labels == "projector"]
    assert alone.accuracies == soft.accuracies
    card = (home / "evaluated" / "README.md").read_text()
    assert f"label projector {digest}" in card
    assert "own (teacher)" in card
    assert "assets/labels.png" in card
    assert (home / "evaluated" / "assets" / "labels.png").stat().st_size > 0
    assert "own (teacher)" in done.out


def load(home: Path) -> LabelProjector:
    return LabelProjector.from_pretrained(home / "projector")


# Published


LOADED = """
import sys
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from hf_distill import DistilledSet
constants.HF_HUB_CACHE = {cache!r}
constants.HF_HUB_OFFLINE = {offline}
torch.set_num_threads(1)
distilled = DistilledSet.from_pretrained({repo!r}, revision="v1.0.0", token={token!r})
labels = distilled.teacher(distilled.floats(), distilled.labels, torch.arange(len(distilled)))
save_file({{"images": distilled.floats(), "labels": labels}}, {path!r})
"""


def test_hello_publishes_a_projector_and_a_set_that_names_it_and_finds_taken_tags_before_the_work(
    recipes, hub, tmp_path
):
    repo = f"{hub.namespace}/digits"
    given = {**DATA, **TEACHER, **PROJECTOR, "ipc": 1, "factor": 1, "num_crops": 2, "eval_seeds": 1}
    given |= {"eval_protocol": "hello-tiny", "eval_full_data": False, "eval_baselines": "random"}
    given |= {"compare_labels": "none", "output_dir": "run"}
    push = {"push_to_hub": True, "hub_model_id": repo, "hub_tag": "v1.0.0", "hub_token": hub.token}
    done = recipes("hello", {**given, **push, "hub_private_repo": True}, tmp_path)
    assert done.status == [0], done.err
    commit = hub.head("model", f"{repo}-projector")
    published = hub.files("dataset", repo, "v1.0.0")
    about = json.loads(published["distill_config.json"])
    assert about["label_source"]["kind"] == "projector"
    assert about["label_source"]["teacher"]["shared"] == {"repo_id": f"{repo}-projector", "revision": commit}
    assert not [name for name in published if name.startswith("projector/")]
    assert hub.tags("model", f"{repo}-projector") == {"v1.0.0": commit}
    card = published["README.md"].decode()
    assert f"[{repo}-projector](https://huggingface.co/{repo}-projector) at commit `{commit[:12]}`" in card
    local = DistilledSet.from_pretrained(tmp_path / "run")
    assert local.teacher.shared
    assert local.report.rows
    assert done.out.count("published: ") == 2

    # In another process without anything in its cache, with the token, and then from that cache alone.
    for offline, token in ((False, hub.token), (True, hub.token)):
        where = {"cache": str(tmp_path / "cache"), "repo": repo, "path": str(tmp_path / f"found-{offline}")}
        asked = recipes("evaluate", ["--help"], tmp_path, before=LOADED.format(**where, offline=offline, token=token))
        assert asked.status == [0], asked.err
    online, offline = (load_file(tmp_path / f"found-{name}") for name in (False, True))
    assert torch.equal(online["images"], local.floats())
    assert torch.equal(online["labels"], offline["labels"])
    projector = LabelProjector.from_pretrained(tmp_path / "run" / "label-projector")
    with torch.no_grad():
        torch.testing.assert_close(online["labels"], projector(local.floats()), rtol=1e-5, atol=1e-5)
    stranger = {"cache": str(tmp_path / "empty"), "repo": repo, "path": str(tmp_path / "none"), "offline": False}
    refused = recipes("evaluate", ["--help"], tmp_path, before=LOADED.format(**stranger, token=False))
    assert refused.status == [1]  # both are private
    assert not (tmp_path / "none").exists()

    taken, other = {**given, **push, "output_dir": "again"}, f"{hub.namespace}/other"
    hub.put("model", f"{other}-projector", {"notes.md": b"mine"}, tag="v1.0.0")
    for repo_id, said in ((repo, f"{repo}"), (other, f"model repository '{other}-projector'")):
        done = recipes("hello", {**taken, "hub_model_id": repo_id}, tmp_path)
        assert done.status == [1]
        (line,) = done.err.strip().splitlines()
        assert line.startswith("error: ")
        assert said in line
        assert "v1.0.1 is free" in line
        assert not (tmp_path / "again").exists()


def test_the_set_of_another_method_is_published_with_its_projector(home, recipes, hub):
    repo = f"{hub.namespace}/rded"
    push = {"push_to_hub": True, "hub_model_id": repo, "hub_token": hub.token}
    folders = {"output_dir": "projector", "labelled_output_dir": "published", "resume_from_checkpoint": "latest"}
    done = recipes("projector", {**flags(home), **folders, **push}, home)
    assert done.status == [0], done.err
    shared = {"repo_id": f"{repo}-projector", "revision": hub.head("model", f"{repo}-projector")}
    about = json.loads(hub.files("dataset", repo)["distill_config.json"])
    assert about["label_source"]["teacher"]["shared"] == shared
    assert about["label_source"]["teacher"]["sha256"][:8] == load(home).digest
    given = {**EVALUATION, "distilled_dataset": "set", "labels": f"{repo}-projector", "hub_token": hub.token}
    done = recipes("evaluate", {**given, "output_dir": "elsewhere"}, home)
    assert done.status == [0], done.err
    rows = DistilledSet.from_pretrained(home / "elsewhere").report.rows
    assert any(f"label projector {load(home).digest}" in row.protocol for row in rows)


# Mistakes


def inf_teacher(home: Path) -> str:
    """A teacher whose every parameter is a number, and whose logits are none."""
    teacher = Teacher.from_pretrained(next((home / "set" / "teacher").iterdir()))
    with torch.no_grad():
        *_, last = (module for module in teacher.model.modules() if isinstance(module, torch.nn.Linear))
        last.weight.fill_(3e38)
    broken = Teacher(teacher.model, teacher.spec, teacher.class_names, teacher.preprocessing)
    return str(broken.save_pretrained(home / "inf"))


def words(home: Path, name: str, content: Any) -> str:
    (home / name).write_text(json.dumps(content))
    return name


MISTAKES = {
    "no set": (
        lambda home: {"distilled_dataset": "nowhere/at all"},
        "'nowhere/at all' is no folder here and cannot be a repository id",
    ),
    "no views": (lambda home: {"protocol": "mtt"}, "--protocol is 'mtt'; expected one of"),
    "no prior": (
        lambda home: {"model_name_or_path": "nowhere/at all"},
        "'nowhere/at all' is no folder here and cannot be a repository id",
    ),
    "no file of words": (lambda home: {"class_words": "none.json"}, "--class_words none.json cannot be read"),
    "absent words": (
        lambda home: {"class_words": words(home, "absent.json", {"0": "zero"})},
        "--class_words absent.json has no word for the class '1'; add it",
    ),
    "too few words": (
        lambda home: {"class_words": words(home, "few.json", ["zero", "one"])},
        "has 2 words, and there are 10 classes",
    ),
    "empty words": (
        lambda home: {"class_words": words(home, "empty.json", [*"zerotwofo", " "])},
        "none of them empty",
    ),
    "rank": (
        lambda home: {"lora_head_r": 11},
        "the LoRA rank of the head is 11, and 10 classes of 64 features make a matrix of rank 10",
    ),
    "modules": (lambda home: {"lora_target_modules": "visual.nothing"}, "matches no module of the image tower"),
    "inf": (lambda home: {"teachers": inf_teacher(home)}, "a teacher's logits are not"),
    "taken": (lambda home: {"output_dir": "projector"}, "projector"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_without_a_traceback(home, recipes, name):
    change, says = MISTAKES[name]
    done = recipes("projector", {**flags(home), "output_dir": f"new-{name}", **change(home)}, home)
    assert done.status[0] in (1, 2)
    assert "Traceback" not in done.err
    (line,) = [line for line in done.err.splitlines() if "error: " in line]
    assert line.startswith("error: ")
    assert says in line
    assert not (home / f"new-{name}" / "projector_config.json").exists()


@pytest.mark.parametrize("name", ["empty words", "rank"])
def test_hello_finds_what_its_projector_cannot_be_before_it_makes_images(home, recipes, name):
    change, says = MISTAKES[name]
    given = {**DATA, **TEACHER, **PROJECTOR, "ipc": 1, "factor": 1, "eval_protocol": "crops-tiny", **change(home)}
    done = recipes("hello", {**given, "output_dir": "hello"}, home)
    assert done.status == [1]
    assert done.err.strip().splitlines()[-1].startswith("error: ")
    assert says in done.err
    assert not list((home / "hello").glob("*"))


def test_a_prior_that_is_not_in_the_cache_is_one_line_without_a_network(home, recipes):
    offline = "from huggingface_hub import constants\nconstants.HF_HUB_OFFLINE = True"
    given = {**flags(home), "model_name_or_path": "someone/clip", "output_dir": "offline"}
    done = recipes("projector", given, home, before=offline)
    assert done.status == [1]
    (line,) = [line for line in done.err.strip().splitlines() if "held out" not in line]
    assert line.startswith("error: ")
    assert "someone/clip" in line
    assert "is not in the local cache" in line


def test_a_projector_whose_base_is_another_is_refused_wherever_it_is_asked(home, recipes, tmp_path):
    folder = tmp_path / "other"
    load(home).save_pretrained(folder)
    path = folder / "base" / "open_clip_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, path)
    given = {**EVALUATION, "distilled_dataset": "set", "labels": folder, "output_dir": "refused"}
    done = recipes("evaluate", given, home)
    assert done.status == [1]
    (line,) = done.err.strip().splitlines()
    assert "was trained on" in line
    assert "give the prior that it was trained on" in line
    assert not (home / "refused").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"labels": "nowhere/at all"}, "'nowhere/at all' is no folder here and cannot be a repository id"),
        ({"labels": "set"}, "labels_config.json"),
        ({"compare_labels": "nowhere/at all"}, "'nowhere/at all' is no folder here and cannot be a repository id"),
    ],
)
def test_labels_that_there_are_not_are_one_line(home, recipes, given, says):
    done = recipes("evaluate", {**EVALUATION, "distilled_dataset": "set", **given, "output_dir": "none"}, home)
    assert done.status == [1]
    (line,) = done.err.strip().splitlines()
    assert says in line
