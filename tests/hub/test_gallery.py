"""A gallery: what lies in its folder, what its page says, and where its real images come from."""

import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

import hf_distill.__main__ as console
from hf_distill.hub.board import read_sets
from hf_distill.hub.gallery import RealPicture, save_gallery
from hf_distill.hub.results import EvalReport, EvalRow
from hf_distill.runs.beside import real_beside
from tests.helpers.boards import HOSTILE, a_row, a_set

ABOUT = {"preprocessing": {"channels": 1, "image_size": [8, 8]}}


class Page(HTMLParser):
    """The tags of a page, with what they name, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def pictures(self) -> list[str]:
        return [str(about["src"]) for tag, about in self.tags if tag == "img"]


def real(shade: str = "gray") -> RealPicture:
    return RealPicture(Image.new("RGB", (60, 30), shade), "cc-by-4.0", gated=True)


def test_the_page_and_the_card_show_each_set_its_real_images_and_what_students_reach(tmp_path):
    a_set(tmp_path / "sets" / "one", [a_row(accuracies=[0.9]), a_row("random", accuracies=[0.412]), a_row("random")])
    (tmp_path / "sets" / "one" / "frames").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "sets" / "one" / "frames" / "animation.webp")
    a_set(tmp_path / "sets" / "two", [a_row(accuracies=[0.834])])
    (tmp_path / "sets" / "two" / "frames").mkdir()
    (tmp_path / "sets" / "two" / "frames" / "animation.webp").write_bytes(b"no animation")
    sets = read_sets([tmp_path / "sets"])
    folder = save_gallery(tmp_path / "gallery", sets, {"one": real()}, title="Mine")
    page = Page(folder / "index.html")
    assert page.pictures == [
        f"images/{name}" for name in ("one.png", "one.real.png", "one.webp", "two.png", "accuracy-1.plot.png")
    ]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*page.pictures, "index.html", "README.md", "gallery.json"}
    for words in ("Mine", "41.2", "83.4", "some-method", "cc-by-4.0; access is conditional"):
        assert words in page.text
    card = (folder / "README.md").read_text()
    assert "| distilled | 83.4 |" in card
    assert "sdk: static" in card
    assert set(re.findall(r"\]\((images/.*?)\)", card)) == {*page.pictures}


def test_a_gallery_in_the_place_of_another_takes_its_files_away_and_nothing_else(tmp_path):
    for name in ("one", "two"):
        a_set(tmp_path / "sets" / name)
    folder = save_gallery(tmp_path / "gallery", read_sets([tmp_path / "sets"]), {"two": real()})
    (folder / "images" / "mine.png").touch()
    with open(folder / "README.md", "a", encoding="utf-8") as card:
        card.write("\nWhat I think of them.\n")
    save_gallery(folder, read_sets([tmp_path / "sets" / "one"]), {})
    assert {path.name for path in (folder / "images").iterdir()} == {"one.png", "mine.png"}
    assert "What I think of them." in (folder / "README.md").read_text()


def test_what_sets_say_of_themselves_is_text_and_names_that_look_alike_have_files_of_their_own(tmp_path):
    row = a_row(student=HOSTILE, protocol=HOSTILE)
    for name in ("a b", "a-b", "__up"):
        a_set(tmp_path / "sets" / name, [row], method=HOSTILE, source={"name": f"x{HOSTILE}"})
    folder = save_gallery(tmp_path / "gallery", read_sets([tmp_path / "sets"]), {})
    page = Page(folder / "index.html")
    assert {tag for tag, _ in page.tags} & {"script", "iframe"} == set()
    assert not any(name.startswith("on") for _, about in page.tags for name in about)
    assert page.pictures[:-1] == ["images/up.png", "images/a-b.png", "images/a-b-2.png"]


def test_no_picture_of_a_set_takes_the_place_of_real_images_or_of_a_plot(tmp_path):
    for name in ("digits", "digits-real", "digits.real", "accuracy-1", "accuracy-1.plot"):
        a_set(tmp_path / "sets" / name)
    sets = read_sets([tmp_path / "sets"])
    shades = dict(zip((each.name for each in sets), ("red", "green", "blue", "gray", "black"), strict=True))
    folder = save_gallery(tmp_path / "gallery", sets, {name: real(shade) for name, shade in shades.items()})
    page = Page(folder / "index.html")
    assert len({*page.pictures}) == len(page.pictures) == 11
    assert json.loads((folder / "gallery.json").read_text())["files"] == page.pictures
    shown = [Image.open(folder / picture) for picture in page.pictures]
    assert [picture.getpixel((0, 0)) for picture in shown[:10:2]] == [ImageColor.getrgb("teal")] * 5
    assert [picture.getpixel((0, 0)) for picture in shown[1:10:2]] == [*map(ImageColor.getrgb, shades.values())]
    assert shown[10].width > 60


@pytest.mark.parametrize("index", [{"files": 5}, {"files": [5]}, {}, {"files": "images/a.png"}])
def test_a_damaged_index_is_one_line_before_anything_is_written(tmp_path, index):
    sets = read_sets([a_set(tmp_path / "one")])
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "gallery.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"gallery\.json has files .*; expected a list of the gallery's files$"):
        save_gallery(tmp_path / "gallery", sets, {})
    assert [path.name for path in (tmp_path / "gallery").iterdir()] == ["gallery.json"]


def test_an_index_names_nothing_outside_of_the_pictures(tmp_path):
    sets = read_sets([a_set(tmp_path / "one")])
    (tmp_path / "gallery" / "images").mkdir(parents=True)
    names = ["images/..", "images/.", "images/../gallery.json", "../one/README.md", "images/.hidden", "images/gone.png"]
    (tmp_path / "gallery" / "gallery.json").write_text(json.dumps({"files": names}))
    (tmp_path / "gallery" / "images" / ".hidden").touch()
    save_gallery(tmp_path / "gallery", sets, {})
    assert (tmp_path / "one" / "README.md").exists()
    assert (tmp_path / "gallery" / "images" / ".hidden").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    sets = read_sets([a_set(tmp_path / "one")])
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (tmp_path / "mine" / "images" / "holiday.png").touch()
    with pytest.raises(ValueError, match=r"mine has a images/holiday\.png and no gallery\.json"):
        save_gallery(tmp_path / "mine", sets, {})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file"):
        save_gallery(tmp_path / "file", sets, {})


# Real images


def photographs(folder: Path) -> Path:
    """Three plain images of each of two classes, in shades of red and of blue."""
    for name, place in (("cat", 0), ("dog", 2)):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            shade = [0, 0, 0]
            shade[place] = 100 + 50 * number
            Image.new("RGB", (12, 12), tuple(shade)).save(folder / name / f"{number}.png")
    return folder


def test_real_images_stand_where_those_of_their_class_do_and_only_of_what_is_named(tmp_path, caplog):
    place = photographs(tmp_path / "photos")
    about = {"class_names": ["cat", "dog"], "preprocessing": {"channels": 3, "image_size": [8, 8]}}
    for name in ("one", "two"):
        a_set(tmp_path / "sets" / name, ipc=2, source={"name": f"/home/somebody/{place.name}"}, **about)
    a_set(tmp_path / "sets" / "bare", ipc=2, source={"name": place.name})
    a_set(tmp_path / "sets" / "else", ipc=2, source={"name": "org/else"}, **about)
    a_set(tmp_path / "sets" / "theirs", ipc=2, source={"name": "org/digits"}, **about)  # and not scikit-learn's
    sets = read_sets([tmp_path / "sets"])
    with caplog.at_level(logging.WARNING):
        found = real_beside(sets, [str(place)])
    assert found.keys() == {"one", "two"}
    assert found["one"] is found["two"]
    assert found["one"].licence == "unknown"
    pixels = np.asarray(found["one"].picture).astype(int)
    columns = [pixels[:, :100], pixels[:, 104:]]  # two classes, and below each other their images
    for column, (own, other) in zip(columns, ((0, 2), (2, 0)), strict=True):
        shades = column[[50, 150], 50]
        assert {*shades[:, own]} < {100, 150, 200}
        assert len({*shades[:, own]}) == 2
        assert not shades[:, other].any()
    assert "no real images beside else: give --dataset_name with the place of else" in caplog.text
    assert "no real images beside bare: its distill_config.json does not say" in caplog.text
    with pytest.raises(
        ValueError, match=r"^--dataset_name org/none: no set here was made of it, but of digits, else, photos$"
    ):
        real_beside(sets, ["org/none"])


def test_real_digits_come_without_being_named(tmp_path, one_thread):
    about = {"preprocessing": {"channels": 1, "image_size": [8, 8]}}
    sets = read_sets([a_set(tmp_path / "one", ipc=1, **about)])
    one, other = (np.asarray(real_beside(sets, [], seed=seed)["one"].picture) for seed in (0, 1))
    assert one.shape == (248, 504, 3)  # two rows of five, with their classes below
    assert not np.array_equal(one, other)


def test_what_a_set_says_of_its_size_and_source_takes_no_memory_and_reads_nothing_else(tmp_path, caplog, one_thread):
    about = {"channels": 1, "image_size": [100_000, 50_000]}
    source = {"name": "digits", "arguments": {"dataset_name": "org/else", "resize": 2**40, "keep_side": 7}}
    a_set(tmp_path / "sets" / "large", ipc=1, preprocessing=about, source=source)
    a_set(tmp_path / "sets" / "flat", ipc=1, preprocessing={**about, "image_size": [1, 2**53]}, source=source)
    a_set(tmp_path / "sets" / "null", ipc=1, preprocessing=about, source={"name": "digits", "arguments": None})
    sizes = {name: real.picture.size for name, real in real_beside(read_sets([tmp_path / "sets"]), []).items()}
    assert sizes == {"flat": (664, 58), "large": (344, 312), "null": (344, 312)}  # two rows of five, 128 pixels a side
    assert "no real images" not in caplog.text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "error: dataset repository 'nowhere' is no folder here"),
        (["sets", "--seed", "-1"], "error: --seed is -1; expected at least 0"),
        ([], "the following arguments are required: SETS; see hf-distill gallery --help"),
        (["sets", "--no_real", "--dataset_name", "x"], "error: --no_real and --dataset_name exclude each other"),
        (["sets", "--dataset_name", "org/x"], "error: --dataset_name org/x: no set here was made of it, but of digits"),
        (["sets", "--output_dir", "sets/one"], "holds something else"),
    ],
)
def test_a_mistake_is_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a_set(tmp_path / "sets" / "one")
    with pytest.raises(SystemExit) as stopped:
        console.gallery(words)
    told = capsys.readouterr().err or str(stopped.value)
    assert line in told
    assert len(told.strip().splitlines()) == 1


def test_the_command_leaves_a_gallery(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a_set(tmp_path / "sets" / "one")
    console.gallery(["sets", "--no_real", "--title", "Mine"])
    assert capsys.readouterr().out == "1 sets, 0 of them beside real images: open gallery/index.html\n"
    assert json.loads((tmp_path / "gallery" / "gallery.json").read_text())["title"] == "Mine"


# What of a report is shown first


def test_the_first_results_are_of_one_student_under_one_protocol_in_four_columns_at_most():
    def row(
        name: str, labels: str, *accuracies: float, protocol: str = "crops, 2x2 tiles", images: int = 20
    ) -> EvalRow:
        return EvalRow(name, labels, "convnet_d2", protocol, images, list(accuracies), "cpu")

    rows = [
        row("distilled", "hard", 0.5, 0.6),
        row("distilled", "soft", 0.8, 0.9),
        row("random", "hard", 0.4, 0.4, protocol="crops"),
        row("random", "hard", 0.1, images=10),
        row("herding", "hard", 0.45),
        row("k-center", "hard", 0.48),
        row("full data", "hard", 0.99, protocol="crops, batches of 64", images=1000),
        row("distilled", "hard", 0.7, protocol="mtt"),
    ]
    cells, caption = EvalReport(rows).short_lines()
    assert cells == [
        ["trained on", "hard labels", "method's labels"],
        ["distilled", "55.0 ± 7.1", "85.0 ± 7.1"],
        ["random", "40.0 ± 0.0", ""],
        ["k-center", "48.0", ""],
        ["full data", "99.0", ""],
    ]
    assert caption.endswith("of 1–2 students · 20 images · convnet_d2 · protocol crops · test")
    assert EvalReport().short_markdown() == ""
