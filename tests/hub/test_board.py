"""A board: what it reads of sets, old and new, whole and damaged, and the table, card and text that it makes."""

import base64
import hashlib
import json
import random
import re
import statistics
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

import hf_distill.__main__ as console
from hf_distill.hub.board import REGIMES, read_sets, regime_of
from hf_distill.hub.board_page import COLUMNS, board_table, page_of, save_board
from hf_distill.hub.making import Work, save_making
from hf_distill.hub.results import EvalRow
from tests.helpers import ROOT
from tests.helpers.boards import HOSTILE, a_row, a_set

WRITTEN = ROOT / "tests" / "artifacts-0.1"
COST = {"regime": "online", "steps": 7, "images_seen": 70, "teacher_images": 70}
COST |= {"student_flop": 2_000, "teacher_flop": 3_000, "image_bytes": 640, "label_bytes": 99}


def rows_of(*places: Path | str) -> list[dict[str, Any]]:
    return board_table([row for each in read_sets([*places]) for row in each.rows]).to_pylist()


# What is read


def test_the_table_has_every_measurement_of_sets_of_0_1_with_what_it_needs_to_be_compared():
    rows = rows_of(WRITTEN)
    names = ["set-pictures", "set-projector", "set-stored"]
    said = [(name, row) for name in names for row in json.loads((WRITTEN / name / "results.json").read_text())["rows"]]
    assert len(rows) == len(said) == 12
    for row, (name, saying) in zip(rows, said, strict=True):
        assert row["name"] == name
        for key in ("set", "labels", "student", "protocol", "split", "images", "accuracies", "device"):
            assert row[key] == saying[key]
        assert row["n"] == len(saying["accuracies"])
        assert row["mean"] == pytest.approx(sum(saying["accuracies"]) / row["n"], abs=1e-12)
        assert row["std"] == pytest.approx(statistics.stdev(saying["accuracies"]), abs=1e-12)
        assert (row["dataset"], row["classes"], row["resolution"], row["test_images"]) == ("digits", 3, "8x8", 30)
        assert (row["ipc"], row["link"], row["revision"]) == (2, None, None)
    methods = {row["name"]: row["method"] for row in rows}
    assert methods == {"set-pictures": "cda", "set-projector": "hello", "set-stored": "tesla"}
    # 6 images and 3 classes: 36 bytes of float16 logits; a teacher of 1,012 bytes; a projector of 150.
    assert {(row["name"], row["labels"], row["regime"], row["label_bytes"]) for row in rows} == {
        *((name, "hard", "hard labels", 0) for name in names),
        ("set-stored", "soft", "stored labels", 36),
        ("set-pictures", "soft", "labels asked online", 1012),
        ("set-projector", "soft", "labels asked online", 150),
    }


def test_what_the_making_took_comes_from_its_file(tmp_path):
    folder = a_set(tmp_path / "set", [a_row()])
    work = Work(steps=7, seconds=90.0, device="cpu")
    save_making(folder / "making.json", {"distillation": work, "experts": None})
    (found,) = read_sets([folder])
    assert found.making == {"distillation": work, "experts": None}
    page = page_of([found], "Sets")
    assert "1.5 min, 7 steps, cpu" in page
    assert "not measured" in page


def test_a_set_of_version_2_brings_its_costs_and_scores_and_what_is_said_beside_them_is_passed_over(tmp_path):
    rows = [a_row(labels="soft", cost=COST), a_row("random", later="?")]
    a_set(tmp_path / "new", rows, version=2, scores=[{"name": "label robust", "mean": 0.4}], later={"a": 1})
    a_set(tmp_path / "old", [a_row()])
    (new, old), table = read_sets([tmp_path]), rows_of(tmp_path)
    assert (new.scores, new.differences) == ([{"name": "label robust", "mean": 0.4}], [])
    assert [row.flop for row in (*new.rows, *old.rows)] == [5_000, None, None]
    assert (new.rows[0].regime, new.rows[0].label_bytes) == ("labels asked online", 99)
    assert [row["cost_student_flop"] for row in table] == [2_000, None, None]
    assert "cost_regime" not in table[0]  # which is a column


@pytest.mark.parametrize(
    ("labels", "protocol", "kind", "about", "regime"),
    [
        ("hard", "rded", "teacher", {"views": {}}, "hard labels"),
        ("soft", "quick", "soft", None, "stored labels"),
        ("soft", "rded", "teacher", {"views": {}}, "labels asked online"),
        ("soft", "rded", "projector", None, "labels asked online"),
        ("soft", "mtt", "teacher", {"dsa_strategy": ""}, "stored labels"),
        ("soft", "rded, stored labels (1.1 MB)", "teacher", None, "stored labels"),
        ("soft", "rded, batches of 9, label projector 0a1b2c3d (9.4 kB)", "soft", None, "labels asked online"),
        ("soft", "quick", None, None, "labels of unknown origin"),
        ("hard", "quick", None, None, "hard labels"),
    ],
)
def test_the_regime_is_who_says_what_students_learn(labels, protocol, kind, about, regime):
    row = EvalRow("distilled", labels, "net", protocol, 10, [0.5], "cpu")
    meta = {} if about is None else {f"{protocol}, net": about}
    assert regime_of(row, kind, meta) == regime


def test_what_cannot_be_ranked_is_in_groups_of_its_own_and_what_follows_the_set_is_not_in_the_way(tmp_path):
    protocols = ["rded, batches of 10, 2x2 tiles", "rded, batches of 10", "rded, batches of 100", "mtt"]
    rows = [a_row(protocol=protocol) for protocol in protocols]
    rows += [a_row(student="other"), a_row(split="validation"), a_row(labels="soft", protocol="rded")]
    a_set(tmp_path / "a", rows)
    a_set(tmp_path / "b", [a_row(protocol="rded")], class_names=["0", "1"])
    (a, b) = read_sets([tmp_path])
    assert len({row.group for row in a.rows}) == 5
    assert len({row.group for row in a.rows[:3]}) == 1
    assert b.rows[0].group not in {row.group for row in a.rows}  # of two classes


def test_sets_of_some_classes_are_ranked_with_those_of_the_same_ones_alone(tmp_path):
    def task(name: str, names: list[str], **about: Any) -> str:
        (each,) = read_sets([a_set(tmp_path / name, class_names=names, **about)])
        return each.rows[0].task

    digits = [*"0123456789"]
    chosen = {"source": {"name": "digits", "arguments": {"classes": ["7", "8"]}}}
    taken = [{"operation": "select", "classes": [7, 8], "of": [{"classes": 10}]}]
    assert task("a", ["7", "8"], **chosen) == task("b", ["8", "7"], changes=taken) == "digits (2 classes 7 · 8, 8×8)"
    assert task("c", ["0", "1"], changes=taken) == "digits (2 classes 0 · 1, 8×8)"
    whole = [{"operation": "shuffle_classes", "of": [{"classes": 10}]}]
    tasks = [{"operation": "concatenate", "of": [{"classes": 5, "changes": whole}] * 2}]
    for changes in (None, whole, tasks):
        assert task("d", digits[::-1], changes=changes) == "digits (10 classes, 8×8)"
    many = [[f"class {number}" for number in (*range(50), last)] for last in (60, 61)]
    of = [{"operation": "select", "of": [{"classes": 100}]}]
    one, two = (task("e", names, changes=of) for names in many)
    assert one != two
    assert one.startswith("digits (51 classes class 0 · class 1 · class 10 · ")
    assert len(one) < 110


def test_two_sets_of_one_name_have_two_and_a_set_that_is_named_twice_is_there_once(tmp_path):
    for place in ("mine/digits", "yours/digits", "mine/letters"):
        a_set(tmp_path / place)
    sets = read_sets([tmp_path / "mine", tmp_path, tmp_path / "mine" / "digits" / ".." / "digits"])
    assert [each.name for each in sets] == ["mine/digits", "letters", "yours/digits"]


def test_where_a_dataset_lies_on_somebodys_machine_is_on_no_board(tmp_path):
    a_set(tmp_path / "set", source={"name": "/home/somebody/secret/pets"})
    assert rows_of(tmp_path)[0]["dataset"] == "pets"


DAMAGED = {
    "no JSON": "{",
    "a list": "[]",
    "no rows": "{}",
    "of nothing": {"rows": []},
    "no split": {"rows": [a_row(split=None)]},
    "newer": {"version": 3, "rows": []},
    "no version": {"version": "new", "rows": [a_row()]},
    "of other images": {"data_id": "ffffffff", "rows": [a_row()]},
    "rows": {"rows": [7]},
    "percent": {"rows": [{**a_row(), "accuracies": [61.2]}]},
    "no number": {"rows": [{**a_row(), "accuracies": [float("nan")]}]},
    "a student": {"rows": [{**a_row(), "student": ["a"]}]},
    "images": {"rows": [{**a_row(), "images": "many"}]},
    "meta": {"rows": [a_row()], "meta": [1]},
    "labels": {"rows": [a_row()], "labels": [{"labels": "x"}]},
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_set_is_named_in_a_line_and_the_others_are_shown(tmp_path, caplog, content):
    a_set(tmp_path / "whole")
    a_set(tmp_path / "broken")
    path = tmp_path / "broken" / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert [each.name for each in read_sets([tmp_path])] == ["whole"]
    (line,) = caplog.messages
    assert str(path) in line
    assert len(line.splitlines()) == 1
    with pytest.raises(ValueError, match="no set with results"):
        read_sets([tmp_path / "broken"])


@pytest.mark.parametrize(
    "about",
    [
        {"class_names": [1]},
        {"source": "here"},
        {"method": 7},
        {"preprocessing": {"image_size": ["a", "b"]}},
        {"label_source": {"teacher": 7}},
        {"release": {"repo_id": 7}},
    ],
    ids=str,
)
def test_a_config_that_says_nonsense_is_named_too(tmp_path, caplog, about):
    a_set(tmp_path / "set", **about)
    with pytest.raises(ValueError, match="no set with results"):
        read_sets([tmp_path])
    assert "distill_config.json" in caplog.text


ODD = [None, 7, -1, 10**400, 1e308, float("nan"), True, "x", "\ud800", [], {}, [1], [None], {"a": 1}, [{"a": [1]}]]


def places_in(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values inside of one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, each in inner for place in places_in(each, (*at, key)))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results.json", "distill_config.json"])
def test_any_value_in_any_place_is_shown_or_the_set_is_named(tmp_path, name):
    draw, label = random.Random(7), {**a_row(), "labels": "x", "num_bytes": 7}
    del label["set"]
    found = {"mean": 0.4, "interval": [0.1, 0.2], "components": {"HLR": {"mean": 0.1}}}
    about = {"release": {"repo_id": "a/b", "tag": "v1"}, "student": {"name": "n"}}
    about |= {
        "paper": {"title": "t", "arxiv_id": "1"},
        "label_source": {"kind": "teacher", "teacher": {"num_bytes": 5}},
    }
    folder = a_set(tmp_path / "set", [a_row(labels="soft", cost=COST)], scores=[found], labels=[label], **about)
    whole = json.loads((folder / name).read_text())
    for _ in range(20):
        place, value = draw.choice(places_in(whole)), draw.choice(ODD)
        print(place, value)
        changed = inner = {"all": json.loads(json.dumps(whole))}
        *way, last = ("all", *place)
        for key in way:
            inner = inner[key]
        inner[last] = value
        (folder / name).write_text(json.dumps(changed["all"]))
        try:
            sets = read_sets([folder])
        except ValueError:
            continue
        board_table(sets[0].rows)
        page_of(sets, "Sets").encode()


@pytest.mark.parametrize(
    ("student", "told"),
    [
        ({"name": "convnet_d3"}, "convnet_d3"),
        ({"probe": {"name": "org/vit", "digest": "0a1b2c3d"}}, "probe:org/vit (0a1b2c3d)"),
        ({"probe": ["vit"]}, None),
        ("convnet_d3", None),
    ],
)
def test_the_page_says_what_network_or_backbone_a_set_was_made_for(student, told, tmp_path):
    page = page_of(read_sets([a_set(tmp_path / "set", student=student)]), "Sets")
    assert ("made for" in page) is (told is not None)
    assert told is None or told in page


def test_a_set_without_config_picture_or_card_is_shown_with_what_is_known(tmp_path):
    folder = a_set(tmp_path / "bare", [a_row(labels="soft")])
    (folder / "distill_config.json").unlink()
    (folder / "README.md").unlink()
    (row,) = rows_of(folder)
    assert (row["dataset"], row["method"], row["regime"]) == ("unknown dataset", None, "labels of unknown origin")
    assert "bare" in (save_board(tmp_path / "board", read_sets([folder])) / "index.html").read_text()


def test_a_repository_gives_its_small_files_alone_and_a_link_to_the_commit(hub, tmp_path):
    folder, repo = a_set(tmp_path / "set"), f"{hub.namespace}/set"
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.put("dataset", repo, {**files, "data/train-00000-of-00001-0a1b2c3d.parquet": b"large"})
    first = hub.head("dataset", repo)
    files["results.json"] = json.dumps({"rows": [a_row(accuracies=[0.75])]}).encode()
    hub.put("dataset", repo, files)
    (now,) = read_sets([repo])
    assert (now.name, now.revision) == (repo, hub.head("dataset", repo))
    assert now.link == f"{hub.url}/datasets/{repo}/tree/{now.revision}"
    assert now.rows[0].accuracies == [0.75]
    both = read_sets([repo, f"{repo}@{first}"])
    assert [each.name for each in both] == [f"{repo}@{now.revision[:8]}", f"{repo}@{first[:8]}"]
    assert both[1].rows[0].accuracies == [0.5, 0.6]
    assert not list(now.picture.parent.parent.rglob("*.parquet"))
    with pytest.raises(ValueError, match="no folder here and no dataset repository"):
        read_sets([folder, f"{hub.namespace}/nowhere"])


def test_a_folder_that_was_published_links_to_its_release(tmp_path):
    a_set(tmp_path / "set", release={"repo_id": "org/name", "tag": "v1.0.0"})
    (there,) = read_sets([tmp_path])
    assert (there.link.partition("/datasets/")[2], there.revision) == ("org/name/tree/v1.0.0", "v1.0.0")
    a_set(tmp_path / "set", release={"repo_id": "javascript:alert(1)//", "tag": None})
    assert read_sets([tmp_path])[0].link is None


# What is written


@pytest.mark.slow
def test_the_folder_is_a_static_space_and_a_dataset(tmp_path):
    a_set(tmp_path / "set")
    board = save_board(tmp_path / "board", read_sets([tmp_path / "set"]), title='Our "sets": all')
    front = yaml.safe_load((board / "README.md").read_text().split("---\n")[1])
    assert (front["sdk"], front["title"]) == ("static", 'Our "sets": all')
    assert {path.name for path in board.iterdir()} == {"README.md", "index.html", "board.parquet"}
    rows = load_dataset(str(board), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["name"] == ["set"]
    assert rows["accuracies"] == [[0.5, 0.6]]
    assert rows.column_names == pq.read_schema(board / "board.parquet").names


def test_the_page_about_boards_names_every_column_and_regime():
    text = (ROOT / "docs" / "board.md").read_text(encoding="utf-8")
    table = text.partition("| column | what |")[2].partition("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(named) == sorted(COLUMNS.names)
    assert re.findall(r"^\| ([^|]*labels[^|]*?) \|", text, re.MULTILINE)[: len(REGIMES)] == [*REGIMES]


def test_a_board_replaces_a_board_keeps_what_people_wrote_and_never_takes_the_place_of_something_else(tmp_path):
    a_set(tmp_path / "set")
    sets = read_sets([tmp_path / "set"])
    board = save_board(tmp_path / "board", sets)
    card = board / "README.md"
    card.write_text(card.read_text().replace("emoji: 📊", "emoji: 🐝") + "\n## Mine\n\nA note.\n")
    save_board(board, sets * 2)
    assert "emoji: 🐝" in card.read_text()
    assert "A note." in card.read_text()
    assert pq.read_metadata(board / "board.parquet").num_rows == 2
    for name in ("README.md", "index.html"):
        foreign = tmp_path / f"with-{name}"
        foreign.mkdir()
        (foreign / name).write_text("mine")
        with pytest.raises(ValueError, match=f"has a {re.escape(name)} and no board.parquet"):
            save_board(foreign, sets)
        assert (foreign / name).read_text() == "mine"
    with pytest.raises(ValueError, match="is a file"):
        save_board(card, sets)


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in = tag

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in in self.inside:
            self.inside[self._in].append(data)


def test_no_text_of_a_set_becomes_an_element_an_attribute_or_a_place_to_go(tmp_path):
    harmless, hostile = a_set(tmp_path / "harmless" / "set"), a_set(tmp_path / "hostile" / "set")
    for folder, text in ((harmless, "words"), (hostile, HOSTILE)):
        paper = {"title": text, "arxiv_id": text, "bibtex": text}
        about = {"method": text, "source": {"name": f"x{text}", "revision": text}, "hyperparameters": {text: [text]}}
        row = {"student": text, "protocol": text, "device": text, "split": text}
        scores = [{text: text, "mean": 0.5, "interval": [text], "components": {text: {"mean": text}}, "values": text}]
        label = {**a_row(), **row, "labels": text, "num_bytes": 7}
        del label["set"]
        a_set(folder, [a_row(**row)], scores=scores, labels=[label], card=text, paper=paper, **about)
    pages = []
    for folder, title in ((harmless, "words"), (hostile, HOSTILE)):
        board = save_board(tmp_path / f"board-{folder.parent.name}", read_sets([folder]), title=title)
        pages.append(Page((board / "index.html").read_text()))
    tags = [[(tag, sorted(attributes)) for tag, attributes in page.elements] for page in pages]
    assert tags[0] == tags[1]
    for page in pages:
        (policy,) = [each["content"] for _, each in page.elements if "http-equiv" in each]
        for kind, (text,) in page.inside.items():
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
        assert "default-src 'none'" in policy
        for tag, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            for name in {"href", "src"} & attributes.keys():
                allowed = r"#[\w-]+|https://[\w./%-]+|board\.parquet|data:(image/webp;base64,[\w+/=]+|,)"
                assert re.fullmatch(allowed, attributes[name]), (tag, attributes[name])


def test_the_picture_of_a_set_is_drawn_anew_and_small_and_what_is_no_picture_is_left_out(tmp_path):
    large = a_set(tmp_path / "large")
    Image.new("RGB", (3000, 1500), "red").save(large / "assets" / "grid.png")
    evil = a_set(tmp_path / "evil")
    (evil / "assets" / "grid.png").write_bytes(b"<svg onload=alert(1)>")
    page = Page((save_board(tmp_path / "board", read_sets([large, evil])) / "index.html").read_text())
    (source,) = [attributes["src"] for tag, attributes in page.elements if tag == "img" and "src" in attributes]
    (tmp_path / "picture.webp").write_bytes(base64.b64decode(source.partition(",")[2]))
    with Image.open(tmp_path / "picture.webp") as picture:
        assert picture.size == (640, 320)


# The console


def test_the_console_makes_a_board_and_a_mistake_is_one_line(monkeypatch, capsys, tmp_path):
    a_set(tmp_path / "sets" / "a")

    def entry(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["hf-distill", "board", *words])
        console.main()

    monkeypatch.chdir(tmp_path)
    entry("sets")
    assert capsys.readouterr().out == f"1 sets with 1 rows of results: open {Path('board', 'index.html')}\n"
    with pytest.raises(SystemExit, match=r"^error: .* has a README\.md and no board\.parquet"):
        entry("sets", "--output_dir", "sets/a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"^error: no set with results in empty; expected"):
        entry("empty")
    for words in ([], ["sets", "--output", "x"]):
        with pytest.raises(SystemExit, match="2"):
            entry(*words)
        assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(SystemExit, match="0"):
        entry("--help")
    assert "--output_dir" in capsys.readouterr().out
