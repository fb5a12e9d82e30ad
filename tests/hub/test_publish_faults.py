"""A push or a load that meets a fault ends well or in one clear line, and every reader finds a whole version."""

import hashlib
import json
import os
import re
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.utils import _http
from safetensors.torch import save

from hf_distill.data.preprocessing import Preprocessing
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.hub import repository
from hf_distill.hub.files import save_json
from hf_distill.hub.repository import PushConflict
from hf_distill.hub.results import EvalReport, EvalRow
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.trajectories import EXPERT_FILE, INDEX, METADATA, ExpertTrajectories
from tests.helpers.loopback import LoopbackHub
from tests.helpers.sets import make, same

pytestmark = pytest.mark.slow

COMMIT, TAG, PUT = "POST .*/commit/main", "POST .*/tag/", "PUT /storage"
SECRET = "hf_" + "0" * 34


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Who asks again, we or the client, does so at once; the Hub's own delays are as long as they are."""
    at_once = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(repository, "time", at_once)
    monkeypatch.setattr(_http, "time", at_once)


@pytest.fixture
def repo(hub) -> str:
    return f"{hub.namespace}/artifact"


def experts(folder: Path, count: int = 3, seed: int = 0, params: int = 500) -> ExpertTrajectories:
    """Random trajectories of two rows in the files that training would write."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    for expert in range(count):
        rows = torch.randn(2, params, generator=generator)
        content = save({"params": rows}, {METADATA: json.dumps({"expert": expert})})
        (folder / EXPERT_FILE.format(expert)).write_bytes(content)
    results = {f"{split}_accuracy": [0.5] * count for split in ("train", "test")}
    results |= {f"epoch_{name}": [[0.5]] * count for name in ("loss", "accuracy")}
    config = {
        "format_version": 1,
        "num_experts": count,
        "num_epochs": 1,
        "num_params": params,
        "student": StudentSpec("convnet_d1", 2, 1, (8, 8), {"width": 4, "norm": "instance"}).to_dict(),
        "class_names": ["cat", "dog"],
        "preprocessing": Preprocessing(1, (8, 8), (0.5,), (0.5,)).to_config(),
        "source": {"name": "pets"},
        "results": results,
        "bytes": count * params * 8,
        "training": {},
        "device": "cpu",
        "versions": {},
    }
    save_json(folder / INDEX, config)
    return ExpertTrajectories.from_pretrained(folder)


def equal(found: ExpertTrajectories, expected: ExpertTrajectories) -> bool:
    """Whether all rows agree bit for bit."""
    rows = [(e, t) for e in range(expected.num_experts) for t in (0, 1)]
    return found.num_experts == expected.num_experts and all(
        torch.equal(found.row(*row), expected.row(*row)) for row in rows
    )


def state(hub: LoopbackHub, kind: str, repo: str) -> tuple[Any, ...]:
    """All that a reader of a repository can see."""
    return hub.files(kind, repo), hub.tags(kind, repo), hub.head(kind, repo)


def asked(hub: LoopbackHub, pattern: str) -> list[Any]:
    return [request for request in hub.requests if re.search(pattern, f"{request.method} {request.path}")]


def stored(hub: LoopbackHub) -> list[str]:
    """The digests of the objects that were uploaded whole, in order."""
    return [r.path.split("?")[0].rsplit("/", 1)[1] for r in asked(hub, f"^{PUT}") if r.status == 200]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    assert SECRET not in text
    return text


def check_published(hub: LoopbackHub, kind: str, repo: str, before: list[str], oid: str, tag: str) -> None:
    """One commit more than `before`, which `oid` and `tag` name."""
    assert hub.commits(kind, repo) == [oid, *before]
    assert hub.tags(kind, repo)[tag] == oid


# Uploads


def test_an_upload_that_is_cut_once_goes_through_and_readers_find_the_old_version_meanwhile(hub, repo):
    old, new = make(), make(seed=1)
    old.push_to_hub(repo, tag="v1", token=hub.token)
    before = hub.commits("dataset", repo)
    found = []
    cut = hub.fail(PUT, after_bytes=100, then=lambda: found.append(DistilledSet.from_pretrained(repo)))
    commit = new.push_to_hub(repo, tag="v2", token=hub.token)
    assert cut.times == 0
    assert same(found[0], old)
    check_published(hub, "dataset", repo, before, commit.oid, "v2")
    assert same(DistilledSet.from_pretrained(repo), new)


@pytest.mark.slow
def test_an_upload_that_is_cut_for_good_changes_nothing_and_the_next_push_sends_what_lacks(hub, repo, tmp_path):
    experts(tmp_path / "old", seed=1).push_to_hub(repo, tag="v1", token=hub.token)
    made, old = experts(tmp_path / "new"), state(hub, "model", repo)
    before, lost = hub.commits("model", repo), digest(made.folder / EXPERT_FILE.format(1))
    hub.clear()
    hub.fail(f"{PUT}.*{lost}", after_bytes=100, times=99)
    with pytest.raises(OSError, match=r"nothing was published.*run the same command again") as error:
        made.push_to_hub(repo, tag="v2", token=hub.token)
    one_line(error)
    assert state(hub, "model", repo) == old
    first = stored(hub)
    assert lost not in first
    hub.clear()
    commit = made.push_to_hub(repo, tag="v2", token=hub.token)
    assert sorted(first + stored(hub)) == sorted(digest(p) for p in made.folder.glob("expert-*"))
    check_published(hub, "model", repo, before, commit.oid, "v2")


def test_an_upload_that_the_storage_refuses_changes_nothing(hub, repo, tmp_path):
    made = experts(tmp_path / "new")
    hub.fail(PUT, status=403, body=b"<Error>expired</Error>", times=99)
    with pytest.raises(OSError, match="nothing was published") as error:
        made.push_to_hub(repo, tag="v1", token=hub.token)
    one_line(error)
    assert hub.files("model", repo).keys() == {".gitattributes"}
    hub.clear()
    made.push_to_hub(repo, tag="v1", token=hub.token)
    assert equal(ExpertTrajectories.from_pretrained(repo), made)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again_after_the_time_it_says_at_every_step(hub, repo, status, caplog):
    made = make()
    busy = {"status": status, "body": b"busy"}
    soon, later = ({**busy, "headers": {"Retry-After": seconds}} for seconds in "07")
    faults = [hub.fail(COMMIT, **later), hub.fail("POST .*repos/create", **soon), hub.fail(TAG, **soon)]
    faults += [hub.fail(f"GET .*{repo}{what}", **soon) for what in ("/refs", "/revision/main")]
    faults += [hub.fail(f"POST .*{step}", **soon) for step in ("preupload", "objects/batch", "validate-yaml")]
    faults += [hub.fail(PUT, **soon)]
    commit = made.push_to_hub(repo, tag="v1", token=hub.token)
    assert [fault.times for fault in faults] == [0] * len(faults)
    assert sum("asking again in 7 s" in message for message in caplog.messages) == 1
    assert len(hub.commits("dataset", repo)) == 2
    assert hub.tags("dataset", repo) == {"v1": commit.oid}
    assert same(DistilledSet.from_pretrained(repo), made)


@pytest.mark.parametrize("step", ["POST .*repos/create", "GET .*/refs", "GET .*/revision/main", COMMIT])
def test_a_hub_that_stays_busy_is_one_clear_error_and_the_old_version(hub, repo, step):
    make().push_to_hub(repo, tag="v1", token=hub.token)
    old = state(hub, "dataset", repo)
    fault = hub.fail(step, status=503, headers={"Retry-After": "0"}, times=99)
    with pytest.raises(OSError, match="did not answer") as error:
        make(seed=1).push_to_hub(repo, tag="v2", token=hub.token)
    one_line(error)
    assert 99 - fault.times == 1 + len(repository.WAITS)
    assert state(hub, "dataset", repo) == old
    hub.clear()
    assert same(DistilledSet.from_pretrained(repo), make())


# Xet, which the client takes where nobody says otherwise

XET = """
import os, sys
del os.environ["HF_HUB_DISABLE_XET"]
from pathlib import Path
from hf_distill.hub.repository import Repository
repo, token, path = sys.argv[1:]
owned, files = ["data/*.parquet"], {"data/rows.parquet": Path(path), "index.json": Path(path)}
for name in (repo, f"{repo}-2"):
    repository = Repository(name, "dataset", token=token)
    repository.prepare(owned, "index.json")
    try:
        commit = repository.publish(files, owned, "index.json", tag="v1")
        print(commit.oid, repository.fetch("data/rows.parquet").read_bytes() == Path(path).read_bytes())
    except (ValueError, OSError) as error:
        print(error)
"""


def test_a_hub_without_xet_gets_files_by_lfs_and_other_faults_of_xet_name_the_way_without_it(
    hub, repo, online, tmp_path
):
    (tmp_path / "rows").write_bytes(b"rows" * 1000)
    hub.fail(f"GET .*{repo}-2/xet-write-token/", status=403, times=99)
    said = online(XET, repo, hub.token, tmp_path / "rows")
    assert said.status == [0], said.err
    published, failed = said.out.splitlines()
    assert asked(hub, f"GET .*{repo}/xet-write-token/")
    assert published.split() == [hub.tags("dataset", repo)["v1"], "True"]
    assert re.search(r"^uploading to .* failed \(.*403.*HF_HUB_DISABLE_XET=1", failed)
    assert hub.files("dataset", f"{repo}-2").keys() == {".gitattributes"}


# The commit and the tag


@pytest.mark.parametrize("how", [{"status": 500}, {"status": 504}, {"lose_answer": True}, {"after_bytes": 0}])
@pytest.mark.parametrize("step", [COMMIT, TAG])
def test_a_commit_or_a_tag_that_fails_once_is_there_once(hub, repo, step, how):
    old, new = make(), make(seed=1)
    old.push_to_hub(repo, tag="v1", token=hub.token)
    before = hub.commits("dataset", repo)
    fault = hub.fail(step, **how)
    commit = new.push_to_hub(repo, tag="v2", token=hub.token)
    assert fault.times == 0
    check_published(hub, "dataset", repo, before, commit.oid, "v2")
    assert same(DistilledSet.from_pretrained(repo, revision="v2"), new)
    assert same(DistilledSet.from_pretrained(repo, revision="v1"), old)


@pytest.mark.parametrize("step", [COMMIT, TAG])
def test_a_commit_or_a_tag_whose_answers_are_lost_after_a_failure_is_there_once(hub, repo, step):
    make().push_to_hub(repo, tag="v1", token=hub.token)
    before = hub.commits("dataset", repo)
    faults = [hub.fail(step, status=503), hub.fail(step, lose_answer=True)]
    commit = make(seed=1).push_to_hub(repo, tag="v2", token=hub.token)
    assert [fault.times for fault in faults] == [0, 0]
    check_published(hub, "dataset", repo, before, commit.oid, "v2")


def test_a_tag_that_cannot_be_set_is_all_that_lacks_and_the_same_push_sets_it(hub, repo):
    make().push_to_hub(repo, tag="v1", token=hub.token)
    before, made = hub.commits("dataset", repo), make(seed=1)
    hub.fail(TAG, status=500, times=99)
    with pytest.raises(OSError, match=r"published as commit [0-9a-f]{40}.* lacks its tag 'v2'") as error:
        made.push_to_hub(repo, tag="v2", token=hub.token)
    oid = hub.head("dataset", repo)
    assert oid in one_line(error)
    assert hub.commits("dataset", repo) == [oid, *before]
    assert same(DistilledSet.from_pretrained(repo), made)
    hub.clear()
    assert made.push_to_hub(repo, tag="v2", token=hub.token).oid == oid
    assert stored(hub) == []
    check_published(hub, "dataset", repo, before, oid, "v2")


def test_a_tag_that_somebody_takes_during_the_push_stays_theirs(hub, repo):
    first = make().push_to_hub(repo, token=hub.token)
    taken = hub.fail(TAG, status=503, then=lambda: hub.repo("dataset", repo).create_ref("tags", "v1", first.oid))
    with pytest.raises(ValueError, match=r"has v1 already.*v2 is free") as error:
        make(seed=1).push_to_hub(repo, tag="v1", token=hub.token)
    assert taken.times == 0
    assert hub.head("dataset", repo) in one_line(error)
    assert hub.tags("dataset", repo) == {"v1": first.oid}


def test_readers_find_the_old_version_until_the_commit_and_the_tag_after_it(hub, repo):
    old, new = make(), make(seed=1)
    old.push_to_hub(repo, tag="v1", token=hub.token)
    commit, tag = hub.pause(COMMIT), hub.pause(TAG)
    with ThreadPoolExecutor() as pool:
        push = pool.submit(new.push_to_hub, repo, tag="v2", token=hub.token)
        try:
            assert commit.reached.wait(30)
            assert same(DistilledSet.from_pretrained(repo), old)
            commit.release()
            assert tag.reached.wait(30)
            assert same(DistilledSet.from_pretrained(repo), new)
            with pytest.raises(ValueError, match="no revision 'v2'"):
                DistilledSet.from_pretrained(repo, revision="v2")
        finally:
            hub.clear()
        push.result()
    assert same(DistilledSet.from_pretrained(repo, revision="v2"), new)


# Others who publish


def test_of_two_pushes_that_race_the_later_one_is_told_and_the_other_is_whole(hub, repo):
    make().push_to_hub(repo, tag="v1", token=hub.token)
    mine, theirs = make(seed=1), make(seed=2)
    race = hub.fail(COMMIT, then=lambda: theirs.push_to_hub(repo, tag="v2", token=hub.token))
    with pytest.raises(PushConflict, match=r"another version.*that one is whole") as error:
        mine.push_to_hub(repo, tag="v3", token=hub.token)
    one_line(error)
    assert race.times == 0
    assert hub.tags("dataset", repo).keys() == {"v1", "v2"}
    assert hub.tags("dataset", repo)["v2"] == hub.head("dataset", repo)
    assert same(DistilledSet.from_pretrained(repo), theirs)
    mine.push_to_hub(repo, tag="v3", token=hub.token)
    assert same(DistilledSet.from_pretrained(repo, revision="v3"), mine)


def test_a_version_that_comes_between_a_lost_commit_and_the_next_attempt_is_a_conflict(hub, repo):
    make().push_to_hub(repo, tag="v1", token=hub.token)
    theirs = make(seed=2)
    hub.fail(COMMIT, status=500, then=lambda: theirs.push_to_hub(repo, tag="v2", token=hub.token))
    with pytest.raises(PushConflict):
        make(seed=1).push_to_hub(repo, tag="v3", token=hub.token)
    assert same(DistilledSet.from_pretrained(repo), theirs)
    assert hub.tags("dataset", repo).keys() == {"v1", "v2"}


def test_two_pushes_of_the_same_version_make_one_commit_and_both_succeed(hub, repo):
    before = [hub.head("dataset", hub.create("dataset", repo).id)]
    others = []
    hub.fail(COMMIT, then=lambda: others.append(make().push_to_hub(repo, token=hub.token)))
    commit = make().push_to_hub(repo, token=hub.token)
    assert [other.oid for other in others] == [commit.oid]
    assert hub.commits("dataset", repo) == [commit.oid, *before]


def test_a_version_that_is_there_already_only_gets_its_tag_though_others_publish_on_top_of_it(hub, repo):
    hub.fail(TAG, status=403)
    with pytest.raises(ValueError, match="lacks its tag 'v1'"):
        make().push_to_hub(repo, tag="v1", token=hub.token)
    oid = hub.head("dataset", repo)
    hub.clear()
    later = hub.fail(TAG, then=lambda: hub.put("dataset", repo, {"notes.md": b"later"}))
    assert make().push_to_hub(repo, tag="v1", token=hub.token).oid == oid
    assert later.times == 0
    assert not asked(hub, COMMIT)
    assert hub.tags("dataset", repo) == {"v1": oid} != {"v1": hub.head("dataset", repo)}


def test_a_tag_never_names_what_others_publish_on_top_of_the_same_version(hub, repo):
    make().push_to_hub(repo, tag="v1", token=hub.token)
    made = make(seed=1)

    def others() -> None:
        made.push_to_hub(repo, token=hub.token)
        hub.fail("POST .*validate-yaml", then=lambda: make(seed=2).push_to_hub(repo, token=hub.token))

    hub.fail("POST .*/preupload")  # of `prepare`; the next one is of the upload
    hub.fail("POST .*/preupload", then=others)
    commit = made.push_to_hub(repo, token=hub.token)
    assert same(DistilledSet.from_pretrained(repo, revision=commit.oid), made)


def test_a_push_for_a_commit_that_is_not_the_newest_is_a_conflict(hub, repo):
    first = make().push_to_hub(repo, token=hub.token)
    hub.put("dataset", repo, {"notes.md": b"mine"})
    old = state(hub, "dataset", repo)
    with pytest.raises(PushConflict):
        make(seed=1).push_to_hub(repo, token=hub.token, parent=first.oid)
    assert state(hub, "dataset", repo) == old


def report(student: str) -> EvalReport:
    return EvalReport([EvalRow("distilled", "hard", student, "quick", 12, [0.5], "cpu")])


def test_results_that_race_with_results_are_all_kept(hub, repo):
    made = make()
    made.push_to_hub(repo, tag="v1", token=hub.token)
    hub.fail(COMMIT, then=lambda: made.push_results(repo, report("theirs"), tag="v2", token=hub.token))
    made.push_results(repo, report("mine"), tag="v3", token=hub.token)
    rows = DistilledSet.from_pretrained(repo, revision="v3").report.rows
    assert {row.student for row in rows} == {"mine", "theirs"}
    assert hub.tags("dataset", repo)["v3"] == hub.head("dataset", repo)
    assert len(hub.commits("dataset", repo)) == 4


def test_results_with_a_tag_that_exists_change_nothing(hub, repo):
    made = make()
    made.push_to_hub(repo, tag="v1", token=hub.token)
    old = state(hub, "dataset", repo)
    with pytest.raises(ValueError, match=r"has v1 already.*v2 is free") as error:
        made.push_results(repo, report("mine"), tag="v1", token=hub.token)
    one_line(error)
    assert state(hub, "dataset", repo) == old


# What may not be


@pytest.mark.parametrize(
    ("who", "says"),
    [("nobody", "accepts no token"), ("wrong", "accepts no token, or not this one"), ("reader", "no right to do that")],
)
def test_without_the_right_to_write_nothing_is_made_nor_changed(hub, repo, who, says):
    token = {"nobody": False, "wrong": SECRET, "reader": hub.read_token}[who]
    with pytest.raises(ValueError, match=says) as error:
        make().push_to_hub(repo, tag="v1", token=token)
    assert str(token) not in one_line(error)
    assert hub.repos() == []
    make().push_to_hub(repo, tag="v1", token=hub.token)
    old = state(hub, "dataset", repo)
    hub.clear()
    with pytest.raises(ValueError, match=says) as error:
        make(seed=1).push_to_hub(repo, tag="v2", token=token)
    assert str(token) not in one_line(error)
    assert state(hub, "dataset", repo) == old
    assert not asked(hub, PUT)


@pytest.mark.parametrize("who", ["nobody", "wrong", "reader"])
def test_that_nothing_can_be_written_to_a_repository_is_found_before_the_work(hub, repo, who):
    make().push_to_hub(repo, tag="v1", token=hub.token)
    token = {"nobody": False, "wrong": SECRET, "reader": hub.read_token}[who]
    with pytest.raises(ValueError, match=r"accepts no token|no right to do that"):
        repository.Repository(repo, "dataset", token=token).prepare(DistilledSet.owned, DistilledSet.index(), tag="v2")


def test_in_the_space_of_somebody_else_nothing_is_made(hub):
    hub.add_user("other", SECRET)
    with pytest.raises(ValueError, match="no right to do that") as error:
        make().push_to_hub("tester/set", token=SECRET)
    assert SECRET not in one_line(error)
    assert hub.repos() == []


@pytest.mark.parametrize("who", ["nobody", "reader", "wrong"])
def test_a_private_repository_of_somebody_else_is_not_there(hub, repo, who):
    make().push_to_hub(repo, private=True, token=hub.token)
    token = {"nobody": False, "wrong": SECRET, "reader": hub.read_token}[who]
    says = "accepts no token, or not this one" if who == "wrong" else "no dataset repository.*if it is private"
    with pytest.raises(ValueError, match=says) as error:
        DistilledSet.from_pretrained(repo, token=token)
    assert str(token) not in one_line(error)
    assert same(DistilledSet.from_pretrained(repo, token=hub.token), make())


@pytest.mark.parametrize("kind", [DistilledSet, ExpertTrajectories])
def test_an_absent_repository_revision_or_file_is_one_clear_line(hub, repo, kind, tmp_path):
    with pytest.raises(ValueError, match=r"no folder here and no .* repository") as error:
        kind.from_pretrained(repo, token=hub.token)
    one_line(error)
    made = make() if kind is DistilledSet else experts(tmp_path / "new")
    made.push_to_hub(repo, tag="v1", token=hub.token)
    made.push_to_hub(repo, tag="v1.1", token=hub.token)
    for revision in ("v2", "0" * 40):
        with pytest.raises(ValueError, match=f"has no revision '{revision}'; .*v1, v1.1") as error:
            kind.from_pretrained(repo, revision=revision, token=hub.token)
        one_line(error)
    hub.put(kind.repo_type, repo, {kind.config_name: None})
    with pytest.raises(ValueError, match=f"has no {kind.config_name}") as error:
        kind.from_pretrained(repo, token=hub.token)
    one_line(error)


def test_an_experts_file_that_the_repository_lacks_is_one_clear_line(hub, repo, tmp_path):
    experts(tmp_path / "new").push_to_hub(repo, token=hub.token)
    hub.put("model", repo, {EXPERT_FILE.format(1): None})
    found = ExpertTrajectories.from_pretrained(repo)
    found.row(0, 0)
    with pytest.raises(ValueError, match=rf"has no {EXPERT_FILE.format(1)}") as error:
        found.row(1, 0)
    one_line(error)


@pytest.mark.parametrize("kind", [DistilledSet, ExpertTrajectories])
def test_a_gated_repository_says_that_its_terms_are_to_be_accepted(hub, repo, kind, tmp_path):
    made = make() if kind is DistilledSet else experts(tmp_path / "new")
    made.push_to_hub(repo, tag="v1", token=hub.token)
    hub.repo(kind.repo_type, repo).set(gated="manual")
    for token in (False, hub.read_token):
        with pytest.raises(ValueError, match="accept its terms on its page") as error:
            kind.from_pretrained(repo, token=token)
        one_line(error)
    hub.grant(kind.repo_type, repo, "reader")
    kind.from_pretrained(repo, token=hub.read_token)


@pytest.mark.parametrize(
    ("taken", "free"),
    [
        (["v1"], "v2"),
        (["release"], "release-1"),
        (["release", "release-1"], "release-2"),
        (["v1.0.9"], "v1.0.10"),
        (["v1.0.9", "v1.0.10"], "v1.0.11"),
        (["2031-09"], "2031-10"),
        (["r07"], "r08"),
    ],
)
def test_a_tag_that_exists_is_an_error_that_names_a_free_one(hub, repo, taken, free):
    first = make().push_to_hub(repo, token=hub.token)
    for tag in taken:
        hub.repo("dataset", repo).create_ref("tags", tag, first.oid)
    old = state(hub, "dataset", repo)
    hub.clear()
    with pytest.raises(ValueError, match=f"has {taken[0]} already.*; {free} is free") as error:
        make(seed=1).push_to_hub(repo, tag=taken[0], token=hub.token)
    one_line(error)
    assert state(hub, "dataset", repo) == old
    assert not asked(hub, f"{PUT}|{COMMIT}")
    make(seed=1).push_to_hub(repo, tag=free, token=hub.token)


def test_a_tag_may_not_have_the_name_of_a_branch(hub, repo):
    first = make().push_to_hub(repo, token=hub.token)
    hub.repo("dataset", repo).create_ref("heads", "stable", first.oid)
    for name in ("main", "stable"):
        with pytest.raises(ValueError, match=f"has {name} already.*{name}-1 is free"):
            make(seed=1).push_to_hub(repo, tag=name, token=hub.token)
    assert hub.tags("dataset", repo) == {}
    assert hub.head("dataset", repo) == first.oid


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "v 1",
        "-v1",
        "v1/2",
        "v1..0",
        "v1.",
        "v1.lock",
        "vé",
        "v1\n",
        "@",
        "HEAD",
        "0123456789abcdef" * 2 + "01234567",
    ],
)
def test_a_name_that_cannot_be_a_tag_is_refused_before_anything_is_asked(hub, repo, tag):
    with pytest.raises(ValueError, match=r"cannot name a version.*such as v1\.0\.0") as error:
        make().push_to_hub(repo, tag=tag, token=hub.token)
    one_line(error)
    assert not hub.requests


@pytest.mark.parametrize(
    "name", ["set", "a/b/c", "", "/set", "tester/", "tester/a b", "tester/a..b", "tester/" + "a" * 200]
)
def test_a_name_that_cannot_be_a_repository_is_refused_before_anything_is_asked(hub, name):
    with pytest.raises(ValueError, match="owner/name") as error:
        make().push_to_hub(name, token=hub.token)
    one_line(error)
    assert not hub.requests


def test_a_private_version_is_not_published_in_a_public_repository(hub, repo):
    make().push_to_hub(repo, token=hub.token)
    old = state(hub, "dataset", repo)
    with pytest.raises(ValueError, match="is public, and a private one was asked for") as error:
        make(seed=1).push_to_hub(repo, private=True, token=hub.token)
    one_line(error)
    assert state(hub, "dataset", repo) == old


def test_a_private_repository_whose_making_lost_its_answer_is_private(hub, repo):
    fault = hub.fail("POST .*repos/create", lose_answer=True)
    make().push_to_hub(repo, private=True, token=hub.token)
    assert fault.times == 0
    assert hub.repo("dataset", repo).settings["private"]


# What belongs to a version


def test_other_parameters_of_the_same_size_under_the_same_card_are_another_version(hub, repo, tmp_path):
    experts(tmp_path / "old").push_to_hub(repo, token=hub.token)
    before, made = hub.commits("model", repo), experts(tmp_path / "new", seed=1)
    commit = made.push_to_hub(repo, token=hub.token)
    assert hub.commits("model", repo) == [commit.oid, *before]
    assert equal(ExpertTrajectories.from_pretrained(repo), made)


def test_the_same_artifact_under_another_tag_is_a_version_whose_card_names_it(hub, repo):
    for tag in ("v1", "v2"):
        make().push_to_hub(repo, tag=tag, token=hub.token)
        assert f'revision="{tag}"' in hub.files("dataset", repo, tag)["README.md"].decode()


def test_a_version_with_fewer_files_leaves_none_of_the_old_and_all_of_others(hub, repo, tmp_path):
    experts(tmp_path / "old", count=4).push_to_hub(repo, tag="v1", token=hub.token)
    foreign = {"notes.md": b"mine", "expert-list.txt": b"mine", "more/expert-00009.safetensors": b"mine"}
    hub.put("model", repo, foreign)
    before, made = hub.commits("model", repo), experts(tmp_path / "new", count=2, seed=1)
    commit = made.push_to_hub(repo, tag="v2", token=hub.token)
    check_published(hub, "model", repo, before, commit.oid, "v2")
    files = hub.files("model", repo)
    assert {name for name in files if "expert-0" in name} - set(foreign) == {EXPERT_FILE.format(e) for e in range(2)}
    assert {name: files[name] for name in foreign} == foreign
    assert ".gitattributes" in files
    assert equal(ExpertTrajectories.from_pretrained(repo, revision="v2"), made)
    assert len([name for name in hub.files("model", repo, "v1") if name.startswith("expert-0")]) == 4


def test_what_only_lies_in_the_folder_is_never_pushed(hub, repo, tmp_path):
    distilled, trained = make().save_pretrained(tmp_path / "set"), experts(tmp_path / "experts").folder
    for folder in (distilled, trained):
        for name in (".saving-x/set/data.parquet", "checkpoint-5/model.safetensors", ".lock", "unfinished/run.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"at home")
        (folder / "log.txt").write_text("at home")
    DistilledSet.from_pretrained(distilled).push_to_hub(repo, token=hub.token)
    ExpertTrajectories.from_pretrained(trained).push_to_hub(repo, token=hub.token)
    data_id = json.loads(hub.files("dataset", repo)["distill_config.json"])["data_id"]
    shards = {f"{config}/train-00000-of-00001-{data_id}.parquet" for config in ("data", "tensor")}
    about = {".gitattributes", "README.md", "SHA256SUMS"}
    assert hub.files("dataset", repo).keys() == about | shards | {"distill_config.json", "assets/grid.png"}
    assert hub.files("model", repo).keys() == about | {INDEX} | {EXPERT_FILE.format(expert) for expert in range(3)}


def test_a_pull_request_leaves_the_branch_alone(hub, repo):
    make().push_to_hub(repo, tag="v1", token=hub.token)
    old = state(hub, "dataset", repo)
    hub.add_user("other", SECRET)
    commit = make(seed=1).push_to_hub(repo, create_pr=True, token=SECRET)
    assert state(hub, "dataset", repo) == old
    assert hub.repo("dataset", repo).refs("pr") == {"1": commit.oid}
    assert commit.pr_url.endswith("/discussions/1")
    assert same(DistilledSet.from_pretrained(repo, revision="refs/pr/1"), make(seed=1))


def test_a_pull_request_cannot_have_a_tag(hub, repo):
    make().push_to_hub(repo, tag="v1", token=hub.token)
    old = state(hub, "dataset", repo)
    hub.clear()
    with pytest.raises(ValueError, match="a pull request has no commit to tag yet") as error:
        make(seed=1).push_to_hub(repo, create_pr=True, tag="v2", token=hub.token)
    one_line(error)
    assert not hub.requests
    assert state(hub, "dataset", repo) == old


def test_a_pull_request_whose_answer_is_lost_is_not_made_twice(hub, repo):
    make().push_to_hub(repo, tag="v1", token=hub.token)
    old = state(hub, "dataset", repo)
    hub.fail(COMMIT, lose_answer=True)
    with pytest.raises(OSError, match="did not answer"):
        make(seed=1).push_to_hub(repo, create_pr=True, token=hub.token)
    assert state(hub, "dataset", repo) == old
    assert hub.repo("dataset", repo).refs("pr").keys() == {"1"}


# A process that is killed


@pytest.mark.parametrize("moment", ["upload", "commit", "tag"])
def test_the_push_of_a_killed_process_is_finished_by_the_same_call(hub, repo, tmp_path, monkeypatch, moment):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where a killed process leaves what it was to upload
    if moment == "tag":
        kind, old, folder = DistilledSet, make(), make(seed=1).save_pretrained(tmp_path / "new")
        parts = {digest(path) for path in folder.rglob("*") if path.suffix in (".parquet", ".png")}
    else:
        kind, old, folder = ExpertTrajectories, experts(tmp_path / "old", seed=1), experts(tmp_path / "new").folder
        parts = {digest(path) for path in folder.glob("expert-*")}
    old.push_to_hub(repo, tag="v1", token=hub.token)
    before, was = hub.commits(kind.repo_type, repo), state(hub, kind.repo_type, repo)
    lost = digest(folder / EXPERT_FILE.format(1)) if moment == "upload" else None
    hub.clear()

    def push() -> str:
        return kind.from_pretrained(folder).push_to_hub(repo, tag="v2", token=hub.token).oid

    def kill() -> None:
        while lost and set(stored(hub)) != parts - {lost}:
            threading.Event().wait(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)

    hub.fail({"upload": f"{PUT}.*{lost}", "commit": COMMIT, "tag": TAG}[moment], after_bytes=0, then=kill)
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the threads of the parent's pools do not exist here
            push()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    if moment == "tag":
        assert hub.commits(kind.repo_type, repo)[1:] == before
        assert hub.tags(kind.repo_type, repo) == was[1]
    else:
        assert state(hub, kind.repo_type, repo) == was
    assert sorted(stored(hub)) == sorted(parts - {lost})
    hub.clear()
    oid = push()
    assert stored(hub) == ([lost] if lost else [])
    check_published(hub, kind.repo_type, repo, before, oid, "v2")


# Downloads


@pytest.mark.parametrize("how", [{"after_bytes": 100}, {"status": 503}, {"status": 500}, {"status": 429}])
def test_a_download_that_fails_once_goes_through(hub, repo, tmp_path, how):
    how = {**how, "headers": {"Retry-After": "0"}}
    made, trained = make(), experts(tmp_path / "new")
    made.push_to_hub(repo, token=hub.token)
    trained.push_to_hub(repo, token=hub.token)
    faults = [hub.fail(match, **how) for match in (f"GET /api/datasets/{repo}/revision", "GET /cdn/datasets")]
    assert same(DistilledSet.from_pretrained(repo), made)
    faults += [hub.fail(f"GET .*{INDEX}", **how), hub.fail(f"GET /cdn/{repo}", **how)]
    found = ExpertTrajectories.from_pretrained(repo)
    assert equal(found, trained)
    assert [fault.times for fault in faults] == [0] * 4


def test_a_download_that_is_cut_half_way_goes_on_where_it_was(hub, repo, tmp_path):
    made = experts(tmp_path / "new", count=1, params=1_500_000)
    made.push_to_hub(repo, token=hub.token)
    found, size = ExpertTrajectories.from_pretrained(repo), (made.folder / EXPERT_FILE.format(0)).stat().st_size
    hub.clear()
    hub.fail("GET /cdn", after_bytes=11_000_000, in_order=True)
    assert equal(found, made)
    first, second = asked(hub, "GET /cdn")
    assert (first.bytes_out, second.range) == (11_000_000, f"bytes={10 * 2**20}-")  # written in pieces of 10 MiB
    assert second.bytes_out == size - 10 * 2**20


@pytest.mark.parametrize(
    "how", [{"after_bytes": 500}, {"status": 500}, {"status": 200, "body": b"not the whole"}, {"status": 403}]
)
def test_nothing_of_a_download_that_fails_for_good_is_ever_used(hub, repo, tmp_path, how):
    made, trained = make(), experts(tmp_path / "new")
    made.push_to_hub(repo, token=hub.token)
    trained.push_to_hub(repo, token=hub.token)
    found = ExpertTrajectories.from_pretrained(repo)
    hub.fail("GET /cdn", times=99, **how)
    for load in (lambda: DistilledSet.from_pretrained(repo), lambda: found.row(0, 0)):
        with pytest.raises((OSError, ValueError)) as error:
            load()
        assert repo in one_line(error)
    hub.clear()
    assert equal(found, trained)
    assert same(DistilledSet.from_pretrained(repo), made)


def test_a_set_that_is_half_in_the_cache_is_not_loaded_from_it(hub, repo):
    make().push_to_hub(repo, token=hub.token)
    hub.fail("GET /cdn", times=99, status=403)
    with pytest.raises((OSError, ValueError)):
        DistilledSet.from_pretrained(repo)
    with pytest.raises(ValueError, match="not in the local cache") as error:
        DistilledSet.from_pretrained(repo, local_files_only=True)
    one_line(error)


@pytest.mark.parametrize("how", [{"status": 503}, {"status": 429}, {"after_bytes": 0}])
def test_a_hub_that_never_answers_is_one_clear_error_or_the_cached_version(hub, repo, how):
    made, other = make(), f"{hub.namespace}/other"
    made.push_to_hub(repo, token=hub.token)
    make(seed=1).push_to_hub(other, token=hub.token)
    DistilledSet.from_pretrained(repo)
    hub.fail("GET /api/.*/revision", times=99, **how)
    with pytest.raises((OSError, ValueError), match=other) as error:
        DistilledSet.from_pretrained(other)
    one_line(error)
    if "status" in how:
        assert same(DistilledSet.from_pretrained(repo), made)


HURRY = """
import sys, torch
from hf_distill.networks.trajectories import ExpertTrajectories
folder, repo = sys.argv[1:]
expected = ExpertTrajectories.from_pretrained(folder)
for _ in range(2):
    found = ExpertTrajectories.from_pretrained(repo)
    assert all(torch.equal(found.row(e, 1), expected.row(e, 1)) for e in range(3))
"""


@pytest.mark.slow
def test_a_server_slower_than_the_timeout_is_asked_again_and_then_the_cache_serves(hub, repo, online, tmp_path):
    made = experts(tmp_path / "new")
    made.push_to_hub(repo, token=hub.token)
    last = digest(made.folder / EXPERT_FILE.format(2))
    slow = [hub.fail(f"HEAD .*{INDEX}", delay=1.5), hub.fail("GET /cdn", delay=1.5)]
    hub.fail(f"GET /cdn.*{last}", then=lambda: slow.append(hub.fail(".", delay=1.5, times=99)))
    env = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    done = online(HURRY, made.folder, repo, env=env)
    assert done.status == [0], done.err
    assert [fault.times for fault in slow] == [0, 0, 98]
