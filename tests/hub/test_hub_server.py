"""The Hub of the tests, asked by the real clients: what they are told here is what the real one would tell them."""

import hashlib
import os
import re
import threading
from pathlib import Path

import datasets
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.helpers.hub_cards import LICENSES, check_card
from tests.helpers.hub_server import GITATTRIBUTES, Hub
from tests.helpers.loopback import LoopbackHub

try:
    import httpx2 as httpx
except ImportError:  # huggingface_hub 1
    import httpx

BYTES = hashlib.shake_128(b"x").digest(300_000)
CARD = b"""---
license: mit
configs:
- config_name: default
  data_files: [{split: train, path: "data/train-*.parquet"}]
---
# Numbers
"""


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(token=hub.token)


@pytest.fixture
def repo(hub) -> str:
    """A model repository of the test's own."""
    return f"{hub.namespace}/things"


def add(**files: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name.replace("__", "."), data) for name, data in files.items()]


def asked(hub: Hub, pattern: str) -> list:
    return [request for request in hub.requests if re.search(pattern, f"{request.method} {request.path}")]


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


# Repositories and commits


def test_a_new_repository_has_one_commit_and_creating_it_again_is_a_conflict(hub, api, repo):
    assert api.create_repo(repo).repo_id == repo
    assert hub.files("model", repo) == {".gitattributes": GITATTRIBUTES.encode()}
    assert len(hub.commits("model", repo)) == 1
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(repo)
    assert status(error) == 409
    assert api.create_repo(repo, exist_ok=True).repo_id == repo
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info(repo, repo_type="dataset")
    api.delete_repo(repo)
    assert not api.repo_exists(repo)


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_a_commit_comes_back_byte_for_byte_with_large_files_as_lfs_objects(hub, api, repo, repo_type):
    api.create_repo(repo, repo_type=repo_type)
    before = hub.head(repo_type, repo)
    operations = add(config__json=b"{}", weights__safetensors=BYTES)
    api.preupload_lfs_files(repo, operations, repo_type=repo_type)
    assert hub.head(repo_type, repo) == before
    made = api.create_commit(repo, operations, commit_message="all", repo_type=repo_type, parent_commit=before)
    assert hub.commits(repo_type, repo) == [made.oid, before]
    folder = snapshot_download(repo, repo_type=repo_type)
    files = {"config.json": b"{}", "weights.safetensors": BYTES, ".gitattributes": GITATTRIBUTES.encode()}
    assert {name: Path(folder, name).read_bytes() for name in os.listdir(folder)} == files
    assert hub.files(repo_type, repo) == files
    listed = {entry.path: entry for entry in api.list_repo_tree(repo, repo_type=repo_type)}
    assert listed["weights.safetensors"].lfs.sha256 == hashlib.sha256(BYTES).hexdigest()
    assert listed["config.json"].lfs is None
    assert listed["config.json"].blob_id == hashlib.sha1(b"blob 2\0{}").hexdigest()
    assert [entry.commit_id for entry in api.list_repo_commits(repo, repo_type=repo_type)] == [made.oid, before]
    assert api.repo_info(repo, repo_type=repo_type).sha == made.oid


def test_an_upload_that_changes_nothing_sends_nothing_and_makes_no_commit(hub, api, repo, tmp_path):
    api.create_repo(repo)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.bin").write_bytes(BYTES)
    (tmp_path / "folder" / "b.json").write_bytes(b"[]")
    first = api.upload_folder(repo_id=repo, folder_path=tmp_path / "folder")
    hub.clear()
    assert api.upload_folder(repo_id=repo, folder_path=tmp_path / "folder").oid == first.oid
    assert len(hub.commits("model", repo)) == 2
    assert not asked(hub, "^PUT|/commit/")


def test_an_object_that_is_there_is_not_sent_again(hub, api, repo):
    api.create_repo(repo)
    api.preupload_lfs_files(repo, add(one__bin=BYTES))
    hub.clear()
    made = api.create_commit(repo, add(two__bin=BYTES), commit_message="again")
    assert not asked(hub, "^PUT")
    assert hub.files("model", repo, made.oid)["two.bin"] == BYTES


def test_a_commit_on_another_head_than_was_meant_is_refused(hub, api, repo):
    api.create_repo(repo)
    before = hub.head("model", repo)
    hub.put("model", repo, {"other": b""})
    with pytest.raises(HfHubHTTPError) as error:
        api.create_commit(repo, add(mine=b""), commit_message="mine", parent_commit=before)
    assert status(error) == 412
    assert "mine" not in hub.files("model", repo)


def test_deletions_remove_files_and_folders_or_nothing_at_all(hub, api, repo):
    hub.put("model", repo, {"a/1": b"", "a/2": b"", "ab": b"", "c": b""})
    head = hub.head("model", repo)
    with pytest.raises(EntryNotFoundError):
        api.create_commit(repo, [CommitOperationDelete("c"), CommitOperationDelete("d")], commit_message="no")
    assert hub.head("model", repo) == head
    api.create_commit(repo, [CommitOperationDelete("a/"), CommitOperationDelete("c")], commit_message="yes")
    assert hub.files("model", repo).keys() == {".gitattributes", "ab"}


def commit_directly(hub: Hub, repo: str, key: str, value: dict) -> httpx.Response:
    lines = b'{"key": "header", "value": {"summary": "x"}}\n%s\n' % repr({"key": key, "value": value}).encode()
    headers = {"Authorization": f"Bearer {hub.token}"}
    url = f"{hub.url}/api/models/{repo}/commit/main"
    return httpx.post(url, content=lines.replace(b"'", b'"'), headers=headers, trust_env=False)


def test_a_pointer_without_its_object_and_a_path_out_of_the_repository_are_refused(hub, repo):
    hub.create("model", repo)
    head = hub.head("model", repo)
    pointer = {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 5}
    assert commit_directly(hub, repo, "lfsFile", pointer).status_code == 400
    for path in ("../a", "/a", "a//b", ".git/config"):
        assert commit_directly(hub, repo, "file", {"path": path, "content": "x"}).status_code == 400
    assert hub.head("model", repo) == head
    assert commit_directly(hub, repo, "file", {"path": "a", "content": "x"}).status_code == 200


def test_pull_requests_take_the_commit_and_leave_the_branch(hub, api, repo):
    hub.create("model", "someone/else")
    made = api.create_commit("someone/else", add(a=b"1"), commit_message="please", create_pr=True)
    assert made.pr_revision == "refs/pr/1"
    assert hub.files("model", "someone/else", "refs/pr/1")["a"] == b"1"
    assert "a" not in hub.files("model", "someone/else")
    assert Path(hf_hub_download("someone/else", "a", revision="refs/pr/1")).read_bytes() == b"1"


def test_racing_commits_all_land_one_after_another(hub, api, repo):
    api.create_repo(repo)
    threads = [
        threading.Thread(target=api.create_commit, args=(repo, add(**{f"f{n}": b"x"})), kwargs={"commit_message": "x"})
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.commits("model", repo)) == 9
    assert {f"f{n}" for n in range(8)} < hub.files("model", repo).keys()


# Refs


def test_a_tag_pins_a_commit_and_an_existing_one_is_a_conflict(hub, api, repo):
    first = hub.put("model", repo, {"a": b"1"})
    api.create_tag(repo, tag="v1.0.0", revision=first)
    hub.put("model", repo, {"a": b"2"})
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(repo, tag="v1.0.0")
    assert status(error) == 409
    api.create_tag(repo, tag="v1.0.0", exist_ok=True)
    assert hub.tags("model", repo) == {"v1.0.0": first}
    assert [(tag.name, tag.target_commit) for tag in api.list_repo_refs(repo).tags] == [("v1.0.0", first)]
    assert Path(hf_hub_download(repo, "a", revision="v1.0.0")).read_bytes() == b"1"
    api.delete_tag(repo, tag="v1.0.0")
    assert hub.tags("model", repo) == {}


def test_a_branch_starts_where_it_is_told_and_moves_alone(hub, api, repo):
    first = hub.put("model", repo, {"a": b"1"})
    hub.put("model", repo, {"a": b"2"})
    api.create_branch(repo, branch="old/one", revision=first)
    api.create_commit(repo, add(b=b"3"), commit_message="there", revision="old/one")
    assert hub.files("model", repo, "old/one")["a"] == b"1"
    assert "b" not in hub.files("model", repo)
    assert api.list_repo_files(repo, revision="old/one") == [".gitattributes", "a", "b"]


# Rights


def test_without_a_right_token_nothing_is_written(hub, api, repo):
    api.create_repo(repo)
    head = hub.head("model", repo)
    for token, expected in ((False, 401), ("hf_wrong", 401), (hub.read_token, 403)):
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(token=token).create_commit(repo, add(a=b""), commit_message="no")
        assert status(error) == expected
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(token=token).create_repo(f"{hub.namespace}/more")
        assert status(error) == expected
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(token=token).create_tag(repo, tag="v1")
        assert status(error) == expected
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("someone/else")
    assert status(error) == 403
    assert (hub.head("model", repo), hub.tags("model", repo), len(hub.repos())) == (head, {}, 1)


def test_a_private_repository_is_not_there_for_others(hub, api, repo):
    api.create_repo(repo, private=True)
    hub.put("model", repo, {"a": b"1"})
    assert api.repo_info(repo).private
    for token in (False, hub.read_token):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).repo_info(repo)
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(repo, "a", token=token)
    assert Path(hf_hub_download(repo, "a", token=hub.token)).read_bytes() == b"1"


def test_a_gated_repository_shows_its_name_and_keeps_its_files(hub, repo):
    hub.create("dataset", repo, gated="manual")
    hub.put("dataset", repo, {"a": b"1"})
    reader = HfApi(token=hub.read_token)
    assert reader.repo_info(repo, repo_type="dataset").gated == "manual"
    for token in (False, hub.read_token):
        with pytest.raises(GatedRepoError):
            hf_hub_download(repo, "a", repo_type="dataset", token=token)
    hub.grant("dataset", repo, "reader")
    assert Path(hf_hub_download(repo, "a", repo_type="dataset", token=hub.read_token)).read_bytes() == b"1"


def test_what_is_not_there_has_the_error_of_its_kind(hub, api, repo):
    hub.create("model", repo)
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info(f"{hub.namespace}/nothing")
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("nothing")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(repo, revision="v9")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(repo, "nothing.json")


def test_whoami_tells_the_name_the_role_and_the_organisations(hub, api):
    found = api.whoami()
    assert found["name"] == "tester"
    assert {org["name"] for org in found["orgs"]} == {"org", hub.namespace}
    assert HfApi(token=hub.read_token).whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError):
        HfApi(token="hf_wrong").whoami()


def test_no_token_goes_to_the_storage_and_its_addresses_cannot_be_guessed(hub, api, repo):
    api.create_repo(repo, private=True)
    api.create_commit(repo, add(a__bin=BYTES), commit_message="a")
    snapshot_download(repo, token=hub.token)
    there = [request for request in hub.requests if request.host.startswith("localhost")]
    assert [(request.method, request.user) for request in there] == [("PUT", None), ("GET", None)]
    path = there[1].path
    assert httpx.get(hub.url + path, trust_env=False).content == BYTES
    assert httpx.get(hub.url + path[:-4] + "0000", trust_env=False).status_code == 403


# Listing and reading


def test_long_trees_come_in_pages_and_paths_can_be_asked_for(hub, api, repo):
    hub.page_size = 3
    names = [f"folder/{n}" for n in range(10)]
    hub.put("model", repo, dict.fromkeys(names, b"x"))
    later = hub.put("model", repo, {"folder/3": b"changed"})
    hub.clear()
    assert api.list_repo_files(repo) == [".gitattributes", *names]
    assert [entry.path for entry in api.list_repo_tree(repo, "folder")] == names
    assert [entry.path for entry in api.list_repo_tree(repo)] == [".gitattributes", "folder"]
    assert len(asked(hub, "/tree/")) == 4 + 4 + 1
    found = api.get_paths_info(repo, ["folder", "folder/3", "absent"], expand=True)
    assert [(entry.path, entry.last_commit.oid) for entry in found] == [("folder", later), ("folder/3", later)]


def test_names_that_leave_the_folder_can_be_listed(hub, api, repo):
    hostile = {"../evil": b"1", "/etc/evil": b"2", "a/../../evil": b"3"}
    hub.put("model", repo, hostile)
    assert hostile.keys() < set(api.list_repo_files(repo))
    assert hostile.keys() < {sibling.rfilename for sibling in api.repo_info(repo).siblings}
    # Clients before 2 ask for another page than they name, which is not there.
    with pytest.raises((ValueError, RepositoryNotFoundError), match=r"Invalid filename|Not Found"):
        snapshot_download(repo)


def test_parts_of_a_file_can_be_read(hub, repo):
    hub.put("model", repo, {"a.bin": BYTES, "a.txt": BYTES[:100]})
    for name, data in (("a.bin", BYTES), ("a.txt", BYTES[:100])):
        for wanted, part in (("5-9", data[5:10]), ("90-", data[90:]), ("-7", data[-7:]), ("0-9999999", data)):
            url = f"{hub.url}/{repo}/resolve/main/{name}"
            got = httpx.get(url, headers={"Range": f"bytes={wanted}"}, follow_redirects=True, trust_env=False)
            assert (got.status_code, got.content) == (206, part)
        got = httpx.get(url, headers={"Range": "bytes=9999999-"}, follow_redirects=True, trust_env=False)
        assert got.status_code == 416


@pytest.fixture
def numbers(hub, tmp_path) -> str:
    """A private dataset: at v1 the numbers to 99, now those to 49."""
    name = f"{hub.namespace}/numbers"
    hub.create("dataset", name, private=True)
    for count, tag in ((100, "v1"), (50, None)):
        datasets.Dataset.from_dict({"n": range(count)}).to_parquet(tmp_path / "n.parquet")
        data = (tmp_path / "n.parquet").read_bytes()
        hub.put("dataset", name, {"README.md": CARD, "data/train-00000-of-00001.parquet": data}, tag=tag)
    return name


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_gives_the_rows_of_the_revision(hub, numbers, streaming):
    for revision, count in ((None, 50), ("v1", 100)):
        loaded = datasets.load_dataset(numbers, split="train", token=hub.token, revision=revision, streaming=streaming)
        assert [row["n"] for row in loaded] == list(range(count))


def test_another_process_loads_with_a_cache_of_its_own(hub, numbers, online):
    code = "import datasets, sys; print(datasets.load_dataset(sys.argv[1], split='train').num_rows)"
    done = online(code, numbers, env={"HF_TOKEN": hub.token})
    assert (done.status, done.out.strip()) == ([0], "50"), done.err


def test_a_process_without_the_token_is_told_that_there_is_no_such_dataset(hub, numbers, online):
    done = online("import datasets, sys; datasets.load_dataset(sys.argv[1])", numbers)
    assert done.status == [1]
    assert "DatasetNotFoundError" in done.err


def test_recipes_reach_the_hub(hub, repo, recipes, tmp_path):
    ask = f"import huggingface_hub; print(huggingface_hub.HfApi(token={hub.token!r}).whoami()['name'])"
    done = recipes("tesla", ["--help"], tmp_path, before=ask)
    assert done.out.startswith("tester\n"), done.err


def test_no_other_machine_is_reached(hub):
    with pytest.raises(httpx.TransportError):
        httpx.get("http://192.0.2.1/")


# Cards


def test_a_card_with_wrong_metadata_is_refused_and_a_right_one_taken(hub, api, repo):
    api.create_repo(repo, repo_type="dataset")
    wrong = CARD.replace(b"mit", b"free-as-beer")
    with pytest.raises(ValueError, match='"license" must be one of'):
        api.create_commit(repo, add(README__md=wrong), commit_message="x", repo_type="dataset")
    api.create_commit(repo, add(README__md=CARD), commit_message="x", repo_type="dataset")
    assert api.dataset_info(repo).card_data.license == "mit"
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        api.create_commit(repo, add(README__md=b"# bare"), commit_message="x", repo_type="dataset")


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ("a: [", "YAML"),
        ("- a", "mapping"),
        ("license: 5", "license"),
        ("size_categories: [n<2K]", "size_categories"),
        ("tags: [1]", "tags"),
        ("configs: [{data_files: x}]", "config_name"),
        ("configs: [{config_name: a}, {config_name: a}]", "different names"),
        ("configs: [{config_name: a, data_files: [{path: x}]}]", "data_files"),
    ],
)
def test_each_mistake_in_a_card_is_named(metadata, says):
    (error,) = check_card(f"---\n{metadata}\n---\n", "dataset")[0]
    assert says in error


def test_a_right_card_has_no_errors_and_an_unknown_task_is_a_warning():
    good = "license: [cc-by-4.0, other]\nsize_categories: [n<1K, 1K<n<10K]\ntask_categories: [image-classification]"
    assert check_card(f"---\n{good}\n---\n", "dataset") == ([], [])
    errors, (warning,) = check_card("---\ntask_categories: [guessing]\n---\n", "dataset")
    assert not errors
    assert "guessing" in warning
    index = "model-index: [{name: a, results: [{task: {type: t}, dataset: {type: d, name: D}, metrics: [{type: m}]}]}]"
    assert "model-index" in check_card(f"---\n{index}\n---\n", "model")[0][0]
    assert check_card("---\n" + index.replace("{type: m}", "{type: m, value: 1}") + "\n---\n", "model") == ([], [])
    assert len(LICENSES) == len(set(LICENSES))


# Keeping


def test_a_hub_started_again_on_its_folder_serves_the_same(hub, api, repo):
    api.create_repo(repo, private=True)
    api.create_commit(repo, add(a__bin=BYTES, b=b"1"), commit_message="x")
    api.create_tag(repo, tag="v1")
    before = hub.head("model", repo), hub.tags("model", repo), hub.files("model", repo)
    hub.stop()
    with pytest.raises(httpx.ConnectError):
        api.repo_info(repo)
    with LoopbackHub(hub.folder) as again:
        assert (again.head("model", repo), again.tags("model", repo), again.files("model", repo)) == before
        assert again.repo("model", repo).settings["private"]
        assert [found.id for found in again.repos()] == [repo]


def test_people_see_repositories_files_and_the_card_as_text(hub, repo):
    hub.put("dataset", repo, {"README.md": b"<script>", "data/x": b""}, tag="v1")
    hub.create("model", f"{hub.namespace}/hidden", private=True)
    index, page = (httpx.get(hub.url + path, trust_env=False).text for path in ("/", f"/datasets/{repo}"))
    assert repo in index
    assert "hidden" not in index
    assert "data/x" in page
    assert "v1" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


# Parts


def test_objects_above_the_limit_are_uploaded_in_parts(hub, api, repo):
    hub.multipart_bytes = 100_000
    api.create_repo(repo)
    api.create_commit(repo, add(a__bin=BYTES + b"end", b__bin=b"small"), commit_message="x")
    assert sorted(put.bytes_in for put in asked(hub, "^PUT")) == [3, 5, 100_000, 100_000, 100_000]
    assert hub.files("model", repo)["a.bin"] == BYTES + b"end"
    assert not list(hub.repo("model", repo).folder.glob("lfs/*.parts"))


def test_bytes_with_another_digest_than_announced_are_not_kept(hub, api, repo):
    api.create_repo(repo)
    (operation,) = add(a__bin=BYTES)
    operation.upload_info.sha256 = bytes(32)
    with pytest.raises(RuntimeError, match="uploading"):
        api.preupload_lfs_files(repo, [operation])
    assert not list(hub.repo("model", repo).folder.glob("lfs/*"))


# Faults


@pytest.mark.slow
def test_a_status_is_answered_so_many_times_and_clients_try_again(hub, api, repo):
    api.create_repo(repo)
    hub.fail("PUT /storage", status=503, times=2, headers={"Retry-After": "0"}, body=b"busy")
    api.create_commit(repo, add(a__bin=BYTES), commit_message="x")
    assert [put.status for put in asked(hub, "^PUT")] == [503, 503, 200]


def test_an_error_on_the_commit_leaves_the_old_version(hub, api, repo):
    api.create_repo(repo)
    head = hub.head("model", repo)
    hub.fail("POST .*/commit/main", status=500)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_commit(repo, add(a=b"1"), commit_message="x")
    assert status(error) == 500
    assert hub.head("model", repo) == head


@pytest.mark.slow
def test_an_upload_cut_after_some_bytes_keeps_nothing_and_succeeds_the_second_time(hub, api, repo):
    api.create_repo(repo)
    fault = hub.fail("PUT /storage", after_bytes=100_000)
    api.create_commit(repo, add(a__bin=BYTES), commit_message="x")
    assert fault.times == 0
    assert [(put.status, put.bytes_in) for put in asked(hub, "^PUT")] == [(0, 100_000), (200, len(BYTES))]
    assert hub.files("model", repo)["a.bin"] == BYTES


@pytest.mark.slow
def test_a_download_cut_half_way_goes_on_where_it_was(hub, repo):
    data = hashlib.shake_128(b"y").digest(12_000_000)  # the client writes, and so resumes by, 10 MiB
    hub.put("model", repo, {"a.bin": data})
    hub.fail("GET /cdn", after_bytes=11_000_000, in_order=True)
    assert Path(hf_hub_download(repo, "a.bin")).read_bytes() == data
    first, second = asked(hub, "GET /cdn")
    assert (first.range, first.bytes_out) == (None, 11_000_000)
    assert (second.status, second.range) == (206, f"bytes={10 * 2**20}-")
    assert second.bytes_out == len(data) - 10 * 2**20


def test_a_download_that_is_reset_is_an_error_and_the_next_one_succeeds(hub, repo):
    hub.put("model", repo, {"a.bin": BYTES})
    hub.fail("GET /cdn", after_bytes=100_000)
    with pytest.raises(httpx.ReadError):
        hf_hub_download(repo, "a.bin")
    assert Path(hf_hub_download(repo, "a.bin")).read_bytes() == BYTES


def test_a_lost_answer_is_one_to_a_request_that_was_carried_out(hub, api, repo):
    api.create_repo(repo)
    hub.fail("POST .*/commit/main", lose_answer=True)
    with pytest.raises(httpx.TransportError):
        api.create_commit(repo, add(a=b"1"), commit_message="x")
    assert hub.files("model", repo)["a"] == b"1"


def test_a_delay_is_past_the_timeout_of_a_client_in_a_hurry(hub, repo, online):
    hub.put("model", repo, {"a": b"1"})
    hub.fail("HEAD .*/resolve/main/a", delay=2.5, times=2)
    code = "import sys; from huggingface_hub import hf_hub_download; hf_hub_download(sys.argv[1], 'a', etag_timeout=1)"
    hurried = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    done = online(code, repo, env=hurried)
    assert len(asked(hub, "HEAD .*/a$")) >= 2, done.err


def test_something_else_can_happen_just_before_a_request(hub, api, repo):
    api.create_repo(repo)
    head = hub.head("model", repo)
    hub.fail("POST .*/commit/main", then=lambda: hub.put("model", repo, {"theirs": b""}))
    with pytest.raises(HfHubHTTPError) as error:
        api.create_commit(repo, add(mine=b""), commit_message="x", parent_commit=head)
    assert status(error) == 412
    assert hub.files("model", repo).keys() == {".gitattributes", "theirs"}


def test_a_client_killed_while_its_request_waits_changes_nothing(hub, repo, online):
    hub.create("model", repo)
    pause = hub.pause("PUT /storage")
    code = (
        "import sys; from huggingface_hub import HfApi\n"
        "HfApi().upload_file(path_or_fileobj=b'x' * 9_000_000, path_in_repo='a.bin', repo_id=sys.argv[1])"
    )
    process = online.start(code, repo, env={"HF_TOKEN": hub.token})
    assert pause.reached.wait(60)
    process.kill()
    process.communicate()
    pause.release()
    hub.clear()
    assert hub.files("model", repo).keys() == {".gitattributes"}
    assert online(code, repo, env={"HF_TOKEN": hub.token}).status == [0]
    assert hub.files("model", repo)["a.bin"] == b"x" * 9_000_000


def test_clear_forgets_requests_and_faults(hub, api):
    hub.fail("whoami", status=500, times=9)
    waits = hub.pause("never")
    hub.clear()
    assert waits.released.is_set()
    assert api.whoami()["name"] == "tester"
    assert [request.path for request in hub.requests] == ["/api/whoami-v2"]


def test_no_token_is_in_what_the_hub_keeps(hub, api, repo):
    api.create_repo(repo)
    api.create_commit(repo, add(a=b"1"), commit_message="x")
    kept = b"".join(path.read_bytes() for path in hub.folder.rglob("*") if path.is_file())
    assert hub.token.encode() not in kept
    assert hub.token not in repr(hub.requests)
