"""`make artifacts`: what the project publishes is built, pushed, listed, and gone on with after a failure."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi

import hf_distill as hd
from hf_distill.config import parse_args, presets
from hf_distill.methods import METHODS
from tests.helpers import ROOT

SCRIPT = ROOT / "artifacts" / "build.py"
DATA = "--max_train_samples 100 --max_test_samples 30 --cpu_threads 1"
NETWORK = "--student convnet_d1 --student_width 4"
EXPERTS = "--num_experts 1 --experts_at_once 1 --expert_train_epochs 2 --batch_train 50"
TABLE = "--select last --eval_seeds 1 --eval_protocol tiny --eval_full_data false --eval_baselines random"
TINY = {
    "title": "Tiny sets",
    "description": "Sets of a test.",
    "page": "tiny-sets",
    "tag": "v0.1.0",
    "artifacts": {
        "digits-experts": f"experts {DATA} {NETWORK} {EXPERTS}",
        "digits-tesla": f"tesla {DATA} {NETWORK} {TABLE} --max_steps 1 --syn_steps 2 --expert_epochs 1 "
        "--max_start_epoch 1 --expert_train_epochs 2 --experts {digits-experts} --experts_revision {tag}",
        "digits-dm": f"dm {DATA} {NETWORK} {TABLE} --max_steps 1",
    },
}


@pytest.fixture(scope="module")
def build() -> Any:
    spec = importlib.util.spec_from_file_location("build_artifacts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def listed(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False))
    return path


@pytest.fixture
def as_user(hub, monkeypatch) -> str:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub.namespace


def test_all_are_built_and_listed_what_fails_is_named_and_the_next_call_goes_on(
    build, as_user, listed, hub, recipes, tmp_path, capsys
):
    started = []

    def run(words: list[str], log: Path) -> int:
        started.append(words[0])
        before = f"import os; os.environ['HF_TOKEN'] = {hub.token!r}"
        done = recipes(words[0], words[1:], tmp_path, before=before)
        log.write_text(done.out + done.err)
        return done.status[0]

    def call(*words: str) -> tuple[int, str]:
        where = ["--org", as_user, "--list", str(listed), "--output_dir", str(tmp_path / "out"), *words]
        return build.main(where, run), capsys.readouterr().out

    hub.put("dataset", f"{as_user}/digits-dm", {"README.md": b"# Somebody's", "data.csv": b"1,2"})  # a push is refused
    status, out = call()
    assert status == 1
    assert started == ["experts", "tesla", "dm"]
    assert re.search(r"1 of 3 are not there.*\n  digits-dm: .*has a data.csv and no distill_config.json", out)

    experts = hd.ExpertTrajectories.from_pretrained(f"{as_user}/digits-experts", revision="v0.1.0")
    tesla = hd.DistilledSet.from_pretrained(f"{as_user}/digits-tesla", revision="v0.1.0")
    assert tesla.config["experts"]["revision"] == experts.origin.revision
    row = next(row for row in tesla.report.rows if row.set == "distilled" and row.labels == "hard")
    page = hub.files("dataset", f"{as_user}/tiny-sets")["README.md"].decode()
    assert f"{100 * row.mean:.1f}" in page
    assert "digits-dm" not in page

    hub.delete("dataset", f"{as_user}/digits-dm")
    assert call("--plan")[1].splitlines() == [
        f"there  {as_user}/digits-experts (model): hf-distill {TINY['artifacts']['digits-experts']}",
        f"there  {as_user}/digits-tesla (dataset): hf-distill "
        + TINY["artifacts"]["digits-tesla"].format(**{"digits-experts": f"{as_user}/digits-experts"}, tag="v0.1.0"),
        f"lacks  {as_user}/digits-dm (dataset): hf-distill {TINY['artifacts']['digits-dm']}",
    ]
    status, out = call()
    assert status == 0
    assert started == ["experts", "tesla", "dm", "dm"]
    assert out.count("there already") == 2
    (collection,) = HfApi().list_collections(owner=as_user)
    items = [
        (item.item_id.removeprefix(f"{as_user}/"), item.item_type)
        for item in HfApi().get_collection(collection.slug).items
    ]
    assert items == [
        ("tiny-sets", "dataset"),
        ("digits-experts", "model"),
        ("digits-tesla", "dataset"),
        ("digits-dm", "dataset"),
    ]


def test_what_needs_something_that_failed_is_left_out_and_a_server_without_collections_is_said(
    build, as_user, listed, hub, tmp_path, capsys
):
    def run(words: list[str], log: Path) -> int:
        if words[0] == "experts":
            log.write_text("a line\nerror: no room\n")
            return 1
        hub.put("dataset", words[words.index("--hub_model_id") + 1], {"data.csv": b"1,2"}, tag="v0.1.0")
        return 0

    hub.fail("GET /api/collections", status=404, body=b"{}")
    assert build.main(["--org", as_user, "--list", str(listed), "--output_dir", str(tmp_path / "out")], run) == 1
    out = capsys.readouterr().out
    assert "digits-experts: failed: no room" in out
    assert "digits-tesla: failed: needs digits-experts, not there" in out
    assert "no collection, which this server refuses" in out
    assert f"{as_user}/digits-dm" in hub.files("dataset", f"{as_user}/tiny-sets")["README.md"].decode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a": "tesle --ipc 1"}, r"tiny.yaml: a: 'tesle' is no recipe; did you mean tesla\?"),
        ({"a": "tesla --experts {b}", "b": "experts"}, r"a: \{b\} is no artifact that stands before it"),
        ({"b": "experts", "a": "tesla --experts {bb}"}, r"\{bb\} is no artifact that stands before it; did you mean b"),
        ({"a/b": "experts"}, "the name is none of a repository"),
        ({"a": None}, "None is no recipe with flags"),
        ({"a": "dm --ipc '1"}, r"tiny.yaml: a: .* is no command line: no closing quotation"),
        ({}, r"^error: --list .*tiny.yaml lists no artifact; expected a name and a recipe"),
        (None, "tiny.yaml lists no artifact"),
        ([], "tiny.yaml is no list of artifacts"),
    ],
)
def test_a_mistake_in_the_list_is_one_line_before_anything_runs(build, listed, capsys, change, says):
    listed.write_text(yaml.safe_dump({**TINY, "artifacts": change}, sort_keys=False))
    assert build.main(["--org", "me", "--list", str(listed)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.search(says, err)


@pytest.mark.parametrize(
    ("launch", "says"), [("", "is ''"), ("accelerate 'x", "no closing quotation"), ("nowhere -m", "nowhere")]
)
def test_what_starts_nothing_is_one_line_before_anything_runs(build, listed, capsys, launch, says):
    assert build.main(["--org", "me", "--list", str(listed), "--launch", launch]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: --launch")
    assert says in err


def test_who_builds_for_whom_is_asked_before_anything_runs(build, listed, hub, monkeypatch, capsys):
    where = ["--list", str(listed), "--plan"]
    with pytest.raises(SystemExit, match="2"):
        build.main(where)
    assert "error: the following arguments are required: --org" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for token, says in [(None, "nobody is logged in"), (hub.token, "--org is 'me', and the token is of tester")]:
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        assert build.main(["--org", "me", *where]) == 1
        assert says in capsys.readouterr().err
    hub.stop()
    assert build.main(["--org", "tester", *where]) == 1
    assert f"error: the Hub at {hub.url} does not answer; try again: " in capsys.readouterr().err
    hub.start()
    assert build.main(["--org", "tester", *where, "--only", "digits-dm", "digits-tsla"]) == 1
    assert "--only digits-tsla is none of the list; did you mean digits-tesla?" in capsys.readouterr().err


def test_a_recipe_is_started_as_the_console_entry_and_what_it_says_is_kept(build, tmp_path):
    for words, status, says in [(["--version"], 0, hd.__version__), (["tesle"], 2, "did you mean tesla?")]:
        assert build.runs([sys.executable])(words, tmp_path / "log") == status
        assert says in (tmp_path / "log").read_text()


def test_make_asks_whose_artifacts_they_are_before_it_installs_anything():
    def make(*words: str) -> subprocess.CompletedProcess[str]:
        words = ("make", "--no-print-directory", "-n", "BIN=nowhere", "artifacts", *words)
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)

    done = make()
    assert (done.returncode, done.stdout) == (2, "")
    assert "whose are they? make artifacts ORG=me" in done.stderr
    for words, flags in [((), ""), (("PLAN=1",), " --plan"), (("PLAN=0",), ""), (("PLAN=",), "")]:
        last = make("ORG=me", *words).stdout.splitlines()[-1]
        assert last.split() == f"nowhere/python artifacts/build.py --org me{flags}".split()


def test_the_list_of_the_project_says_only_what_its_recipes_know(build, recipes):
    listed = build.read_list(build.LIST)
    assert listed.tag == f"v{hd.__version__}"
    for artifact in listed.artifacts:
        words = build.command(artifact, "me", listed.tag, Path("out"))
        flags = words[1:]
        methods = [method.config_class for method in METHODS] if artifact.recipe == "teacher" else []
        demo = next(iter(presets(artifact.recipe).values()))  # for the names of presets
        parts = parse_args(*recipes.dataclasses(artifact.recipe), args=flags, default_config=demo, passed_over=methods)
        (hub,) = [part for part in parts if type(part).__name__ == "HubArguments"]
        assert hub.hub_model_id == f"me/{artifact.name}"
    made = {artifact.recipe for artifact in listed.artifacts}
    assert made == {*(method.__name__.lower() for method in METHODS), "experts", "teacher"}
