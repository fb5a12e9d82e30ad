"""Sets of a demo, and the Space that is made of it."""

import importlib.metadata
import runpy
import sys
from types import SimpleNamespace

import pytest
import yaml

import hf_distill.__main__ as console
from hf_distill.demo.sets import find_sets
from hf_distill.demo.space import save_space
from tests.helpers.sets import REPORT, files, make


@pytest.fixture
def folder(tmp_path):
    """A folder with two sets, one of which was evaluated."""
    make(1, 1, (8, 8)).save_pretrained(tmp_path / "sets" / "bare")
    make(1, 1, (8, 8), report=REPORT).save_pretrained(tmp_path / "sets" / "evaluated")
    return tmp_path / "sets"


def test_a_demo_shows_the_sets_of_a_folder_with_what_their_reports_say(folder):
    bare, evaluated = find_sets([folder])
    assert (bare.name, bare.rows, evaluated.name) == ("bare", [], "evaluated")
    assert [row.regime for row in evaluated.rows] == ["stored labels", "hard labels"]
    assert [each.name for each in find_sets([folder / "bare", f"{folder}/bare/"])] == [
        str(folder / "bare"),
        f"{folder}/bare/",
    ]


def test_what_is_no_set_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match=r"is no distilled set and contains none; expected a folder with a"):
            find_sets([place])
    with pytest.raises(ValueError, match="nowhere"):
        find_sets(["nowhere"])


def test_a_space_holds_its_sets_and_serves_them_from_where_it_lies(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"gradio": "6.5.0"}.__getitem__)
    title = 'Mine: "ten" images\'\n---\nsdk: static'
    for _ in range(2):  # the second in place of the first
        space = save_space(tmp_path / "space", find_sets([folder]), title=title)
    assert sorted(path.name for path in space.iterdir()) == ["README.md", "app.py", "requirements.txt", "sets"]
    front = yaml.safe_load((space / "README.md").read_text().split("---\n")[1])
    assert (front["sdk"], front["sdk_version"], front["app_file"]) == ("gradio", "6.5.0", "app.py")
    launched = []
    page = SimpleNamespace(launch=lambda places, title: launched.append((find_sets(places), title)))
    monkeypatch.setitem(sys.modules, "hf_distill.demo.page", page)
    monkeypatch.chdir(space)
    runpy.run_path("app.py")
    ((sets, said),) = launched
    assert ([each.name for each in sets], said) == (["bare", "evaluated"], title)


def test_a_set_of_the_hub_is_named_at_its_commit_and_not_copied_into_a_space(folder, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"gradio": "6.31.0"}.__getitem__)
    repo = f"{hub.namespace}/ten"
    hub.put("dataset", repo, files(folder / "evaluated"), tag="v1.0.0")
    (each,) = find_sets([f"{repo}@v1.0.0"])
    assert each.name == f"{repo}@v1.0.0"
    assert len(each.rows) == 2
    name, _, commit = each.place.partition("@")
    assert name == repo
    assert len(commit) == 40
    space = save_space(tmp_path / "space", [each], title="Ten")
    assert f"launch(['{each.place}'], title='Ten')" in (space / "app.py").read_text()
    assert not (space / "sets").exists()


def test_a_space_in_place_of_another_keeps_none_of_its_sets_and_what_else_lies_there(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"gradio": "6.5.0"}.__getitem__)
    space = save_space(tmp_path / "space", find_sets([folder]), title="Two")
    make(1, 1, (8, 8)).save_pretrained(space / "sets" / "mine")
    (space / "hf_distill.whl").touch()
    save_space(space, find_sets([space / "sets" / "bare"]), title="One")
    assert sorted(path.name for path in (space / "sets").iterdir()) == ["bare", "mine"]
    assert (space / "hf_distill.whl").exists()


def test_a_space_without_gradio_is_one_line_before_anything_is_read_or_written(folder, tmp_path, monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(SystemExit, match=r"^error: hf-distill demo needs gradio, which is not installed: pip install"):
        console.demo(["nowhere", "--space", str(tmp_path / "space")])
    with pytest.raises(ModuleNotFoundError):
        save_space(tmp_path / "space", find_sets([folder]), title="Two")
    assert not (tmp_path / "space").exists()


def test_a_space_replaces_nothing_of_somebody_else(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "app.py").write_text("import gradio\n")
    with pytest.raises(ValueError, match=r"^--space .*mine holds something else; give another folder"):
        save_space(tmp_path / "mine", find_sets([folder]), title="x")
    with pytest.raises(ValueError, match=r"^--space .*app.py is a file; expected a folder"):
        save_space(tmp_path / "mine" / "app.py", [], title="x")
