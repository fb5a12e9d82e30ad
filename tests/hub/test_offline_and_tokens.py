"""Without the Hub, what is in the cache works and what is not is named; and no token is ever written down."""

import os
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from hf_distill.config import HubArguments
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.hub.repository import Repository
from hf_distill.networks.trajectories import ExpertTrajectories
from tests.helpers.digits import DISTIL, TINY
from tests.helpers.experts import make_experts
from tests.helpers.sets import CONFIG, make

READ = """
import sys
from datasets import load_dataset
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.networks.trajectories import ExpertTrajectories
space = sys.argv[1]
def attempt(name, work):
    try:
        print(name, work())
    except (ValueError, OSError) as error:
        print(name, type(error).__name__, error)
def pixels(repo, **where):
    return DistilledSet.from_pretrained(repo, **where).pixel_values.double().sum().item()
attempt("set", lambda: pixels(f"{space}/set"))
experts = ExpertTrajectories.from_pretrained(f"{space}/experts")
attempt("expert 1", lambda: experts.row(1, 1).double().sum().item())
"""
DATASETS = """
for config in ("default", "tensor"):
    attempt(config, lambda: load_dataset(f"{space}/set", config, split="train")["label"][:])
"""
# Here the client would ask again and again where the Hub is gone, and not where it is told to be offline.
FILES = """
attempt("expert 0", lambda: experts.row(0, 1).double().sum().item())
attempt("cold experts", lambda: ExpertTrajectories.from_pretrained(f"{space}/cold-experts"))
"""
REST = """
attempt("cold", lambda: pixels(f"{space}/cold"))
attempt("revision", lambda: pixels(f"{space}/set", revision="v2"))
attempt("push", lambda: DistilledSet.from_pretrained(f"{space}/set").push_to_hub(f"{space}/set", token="hf_x"))
"""
# Before the client is imported: it asks again without a pause.
AT_ONCE = "import time; time.sleep = lambda seconds: None\n"


def said(finished: Any) -> dict[str, str]:
    """What each attempt gave, one line each."""
    assert finished.status == [0], finished.err
    names = ("set", "expert 1", "default", "tensor", "expert 0", "cold experts", "cold", "revision", "push")
    found = {}
    for line in finished.out.splitlines():
        name = next(name for name in names if line.startswith(f"{name} "))
        found[name] = line.removeprefix(f"{name} ")
    return found


def test_without_the_hub_the_cache_works_and_what_it_lacks_is_named(hub, online, tmp_path):
    space, local = hub.namespace, ExpertTrajectories.from_pretrained(make_experts(tmp_path / "experts"))
    for name in ("set", "cold"):
        make(config=CONFIG).push_to_hub(f"{space}/{name}", tag="v1", token=hub.token)
    for name in ("experts", "cold-experts"):
        local.push_to_hub(f"{space}/{name}", token=hub.token)
    labels = str(make().labels.tolist())
    expected = {
        "set": str(make().pixel_values.double().sum().item()),
        "expert 1": str(local.row(1, 1).double().sum().item()),
        "default": labels,
        "tensor": labels,
    }
    assert said(online(READ + DATASETS, space)) == expected

    hub.put("dataset", f"{space}/set", {"README.md": b"moved on"}, tag="v2")
    head = hub.head("dataset", f"{space}/set")
    hub.clear()
    offline = said(online(READ + DATASETS + FILES + REST, space, env={"HF_HUB_OFFLINE": "1"}))
    assert not hub.requests
    assert {name: offline[name] for name in expected} == expected
    missing = {
        "expert 0": (f"{space}/experts", "expert-00000.safetensors"),
        "cold": (f"{space}/cold",),
        "cold experts": (f"{space}/cold-experts",),
        "revision": (f"{space}/set", "'v2'"),
        "push": (f"{space}/set",),
    }
    for name, words in missing.items():
        assert offline[name].startswith("ValueError"), name
        assert all(word in offline[name] for word in (*words, "HF_HUB_OFFLINE")), offline[name]
    assert hub.head("dataset", f"{space}/set") == head

    hub.stop()
    gone = said(online(AT_ONCE + READ + REST, space))
    assert {name: gone[name] for name in ("set", "expert 1")} == {name: expected[name] for name in ("set", "expert 1")}
    for name in ("cold", "revision", "push"):
        assert gone[name].startswith(("ValueError", "OSError")), name
        assert all(word in gone[name] for word in missing[name]), gone[name]


# Tokens

SMALL = {**TINY, "num_experts": 1, "expert_train_epochs": 2, "experts_at_once": 1}
DISTILLED = {
    **{name: value for name, value in SMALL.items() if name not in ("num_experts", "expert_train_epochs")},
    **DISTIL,
    "report_to": "tensorboard",
    "logging_steps": 1,
    "save_steps": 1,
    "max_steps": 2,
}
OWN = ("token", "stored_tokens")  # where the client itself keeps what `hf auth login` was given


def holding(secret: str, *folders: Path) -> list[Path]:
    """The files, and the names of files, that hold `secret`."""
    wanted = secret.encode()
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            own = path.parent == Path(constants.HF_HOME) and path.name in OWN
            if secret in path.name or (path.is_file() and not own and wanted in path.read_bytes()):
                found.append(path)
    return found


def everything(hub: Any, tmp_path: Path) -> list[Path]:
    """What a run leaves behind: its folders, the Hub's and the client's own."""
    return [tmp_path, Path(constants.HF_HOME), hub.folder]


def environment(token: str) -> str:
    # The client reads HF_TOKEN whenever it asks for something.
    return f"import os; os.environ['HF_TOKEN'] = {token!r}"


def test_the_search_for_tokens_finds_one_that_is_there(hub, tmp_path):
    for place in (tmp_path / "a" / "b.bin", hub.folder / "blobs" / "c", Path(constants.HF_HOME) / "logs" / "d"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"\x00 Authorization: Bearer " + hub.token.encode() + b"\xff")
        assert place in holding(hub.token, *everything(hub, tmp_path))
        place.unlink()
    assert not holding(hub.token, *everything(hub, tmp_path))


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_no_token_is_left_by_recipes_that_publish(hub, recipes, digits_repo, tmp_path, by):
    given = {"hub_token": hub.token} if by == "flag" else {}
    before = environment(hub.token) if by == "environment" else ""
    experts, folder = f"{hub.namespace}/experts", tmp_path / "run"
    target = {"push_to_hub": True, "hub_model_id": experts, "hub_tag": "v1", **given}
    trained = recipes(
        "experts",
        {**SMALL, "dataset_name": digits_repo, "output_dir": tmp_path / "experts", **target},
        tmp_path,
        before=before,
    )
    assert trained.status == [0], trained.err
    target = {**target, "hub_model_id": f"{hub.namespace}/set"}
    flags = {**DISTILLED, "dataset_name": digits_repo, "experts": experts, "output_dir": folder, **target}
    done = recipes("tesla", flags, tmp_path, before=before)
    assert done.status == [0], done.err
    assert "v1" in hub.tags("model", experts)
    assert "v1" in hub.tags("dataset", f"{hub.namespace}/set")
    assert list(folder.rglob("*tfevents*"))
    assert list(folder.glob("checkpoint-*"))
    assert not holding(hub.token, *everything(hub, tmp_path))
    for run in (trained, done):
        assert hub.token not in run.out + run.err
    for kind, repo in (("model", experts), ("dataset", f"{hub.namespace}/set")):
        assert not [name for name, data in hub.files(kind, repo).items() if hub.token.encode() in data]


@pytest.mark.parametrize("by", ["flag", "environment"])
@pytest.mark.parametrize("when", ["before the work", "after it"])
def test_no_token_is_left_by_a_push_that_fails(hub, recipes, tmp_path, by, when):
    wrong = hub.read_token if when == "after it" else "hf_" + "wrong" * 7
    secret = hub.token if when == "after it" else wrong
    if when == "after it":  # the rights are lost on the way: the commit is refused
        hub.fail("POST .*/commit/", times=99, status=403, body=b'{"error": "Forbidden"}')
    given = {"hub_token": secret} if by == "flag" else {}
    target = {"push_to_hub": True, "hub_model_id": f"{hub.namespace}/experts", **given}
    flags = {**SMALL, "output_dir": tmp_path / "experts", **target}
    before = environment(secret) if by == "environment" else ""
    done = recipes("experts", flags, tmp_path, before=before)
    assert done.status == [1]
    assert "error: " in done.err
    assert "Traceback" not in done.err
    assert secret not in done.out + done.err
    assert not holding(secret, *everything(hub, tmp_path))
    assert (tmp_path / "experts" / "expert_config.json").exists() == (when == "after it")


def chain(error: BaseException | None) -> str:
    return "".join(traceback.format_exception(error)) if error else ""


def test_no_text_about_a_repository_or_its_errors_shows_the_token(hub, tmp_path):
    arguments = HubArguments(push_to_hub=True, hub_model_id="org/name", hub_token=hub.token)
    repository = Repository("org/name", "dataset", token=hub.token)
    texts = [repr(arguments), str(arguments), f"{arguments}", repr(repository), str(repository)]
    texts += [repr(repository.pinned(Path("main"))), str(vars(make().push_to_hub("org/name", token=hub.token)))]
    texts += [str(vars(make()).get("origin")), repr(DistilledSet.from_pretrained("org/name", token=hub.token).origin)]
    wrong = "hf_" + "wrong" * 7
    failures = [
        (wrong, lambda: make().push_to_hub("org/other", token=wrong)),
        (wrong, lambda: DistilledSet.from_pretrained("org/none", token=wrong)),
        (hub.token, lambda: make().push_to_hub("elsewhere/name", token=hub.token)),
        (hub.token, lambda: DistilledSet.from_pretrained("org/none", token=hub.token)),
        (hub.token, lambda: DistilledSet.from_pretrained("org/name", revision="none", token=hub.token)),
        (hub.read_token, lambda: make().push_to_hub("org/name", token=hub.read_token)),
    ]
    for secret, work in failures:
        with pytest.raises((ValueError, OSError)) as error:
            work()
        text = chain(error.value) + repr(error.value)
        assert secret not in text, text
    assert not [text for text in texts if hub.token in text]


def test_a_checkpoint_and_an_artifact_hold_nothing_of_the_environment_that_is_secret(hub, tmp_path):
    loaded = DistilledSet.from_pretrained(_pushed(hub), token=hub.token)
    loaded.save_pretrained(tmp_path / "copy")
    loaded.export_pt(tmp_path / "copy" / "set.pt")
    torch.save(loaded.state_dict(), tmp_path / "copy" / "state.pt")
    assert not holding(hub.token, *everything(hub, tmp_path))
    assert hub.token not in str(os.environ)


def _pushed(hub: Any) -> str:
    make().push_to_hub(f"{hub.namespace}/set", token=hub.token)
    return f"{hub.namespace}/set"
