"""Names of classes: of a file, of ImageNet, and the same class by its several names."""

import json

import pytest

from hf_distill.networks.class_names import Classes, imagenet_names, imagenet_order, read_class_names

IMAGENETTE = {
    "tench": 0,
    "English springer": 217,
    "cassette player": 482,
    "chain saw": 491,
    "church": 497,
    "French horn": 566,
    "garbage truck": 569,
    "gas pump": 571,
    "golf ball": 574,
    "parachute": 701,
}  # their places among the thousand, as the dataset's card lists them


@pytest.fixture(scope="module")
def numbers() -> list[str]:
    names = imagenet_names({"tag": "a1_in1k", "num_classes": 1000})
    assert names is not None
    return names


@pytest.fixture(scope="module")
def thousand(numbers) -> Classes:
    return Classes(numbers)


@pytest.fixture(scope="module")
def words() -> list[str]:
    """All words of each of the thousand classes; two of them are called "crane"."""
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_descriptions()


@pytest.mark.parametrize(
    ("tag", "count", "known"),
    [
        ("tv_in1k", 1000, True),
        ("fb_in22k_ft_in1k_384", 1000, True),
        ("sw_in12k", 11821, True),
        ("augreg_in21k", 21843, True),
        ("miil_in21k", 11221, True),
        ("fb_in22k", 1000, False),
        ("a1_in1k", 10, False),
        ("inat21", 1000, False),
        (None, 1000, False),
        (7, 1000, False),
    ],
)
def test_networks_of_imagenet_are_known_by_tag_and_number_of_classes(tag, count, known):
    names = imagenet_names({"tag": tag, "num_classes": count})
    assert (names is not None) == known
    assert names is None or (len(names) == len(set(names)) == count and "n01440764" in names)


def test_imagenettes_names_are_ten_of_the_thousand_however_they_are_written(thousand, numbers, words):
    rows = list(IMAGENETTE.values())
    assert thousand.find(list(IMAGENETTE)) == rows
    assert thousand.find([name.replace(" ", "_").upper() for name in IMAGENETTE]) == rows
    assert thousand.find([numbers[row] for row in rows]) == rows
    assert thousand.find([words[row] for row in rows][::-1]) == rows[::-1]


def test_a_network_that_has_words_knows_numbers_and_one_of_several_words(words):
    named = [name if row != 517 else "crane (machine)" for row, name in enumerate(words)]
    assert Classes(named).find(["n01440764", "English springer"]) == [0, 217]


def test_the_nearest_way_of_naming_a_class_counts(thousand):
    # A dog and a garment; gongs alone and "chime, bell, gong"; the first word of one, a later one of another.
    assert thousand.find(["Cardigan", "cardigan"]) == [264, 474]
    assert thousand.find(["maillot", "maillot, tank suit"]) == [638, 639]
    assert thousand.find(["missile", "harp", "crayfish"]) == [657, 594, 124]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["crane", "tench"], "2 classes that 'crane' can mean: 'n02012849' = 'crane', 'n03126707' = 'crane'"),
        (["panda", "tench"], "2 classes that 'panda' can mean: .*'lesser panda.*'giant panda"),
        (["tench", "n01440764"], "one class, 'n01440764' = 'tench, Tinca tinca', for both 'tench' and 'n01440764'"),
        (["tench", "hotdgo"], r"1 of these 2 are not among them: 'hotdgo' \(near: 'n07697537' = 'hotdog, hot dog"),
        (list("abcdefgh"), r"8 of these 8 are not among them: .* and 5 more; .*--teacher_class_names"),
    ],
)
def test_a_name_that_is_not_one_classs_is_one_line(thousand, names, says):
    with pytest.raises(ValueError, match=says) as error:
        thousand.find(names)
    assert "\n" not in str(error.value)


def test_all_names_in_order_are_known_by_their_place_also_where_two_are_alike(thousand, words, numbers):
    everything = list(range(1000))
    assert thousand.find(words) == everything
    # As a list of different names has to call one of the two.
    assert thousand.find([name if row != 517 else "crane2" for row, name in enumerate(words)]) == everything
    assert Classes([name if row != 517 else "crane2" for row, name in enumerate(words)]).find(numbers) == everything
    assert imagenet_order(words) == numbers
    firsts = [name.split(",")[0] for name in words]
    firsts[3], firsts[4] = firsts[4], firsts[3]
    with pytest.raises(ValueError, match="can mean"):  # no longer in order, so each must be one class's alone
        thousand.find(firsts)
    assert imagenet_order(firsts) is None
    assert imagenet_order(words[:999]) is None


def test_a_name_that_means_nothing_has_the_place_that_is_left_among_wordnets_numbers_alone(numbers, words, thousand):
    unknown = ["unicorn" if row == 7 else name for row, name in enumerate(words)]
    assert thousand.find(unknown) == list(range(1000))
    assert thousand.called_otherwise(unknown).startswith("'unicorn' -> 'n01514668' = 'cock'")
    plain = [f"c{row}" for row in range(100)]
    with pytest.raises(ValueError, match="1 of these 100 are not among them: 'unicorn'"):
        Classes(plain).find(["unicorn" if row == 7 else name for row, name in enumerate(plain)])


def test_classes_that_are_known_by_one_word_of_several_are_told_the_least_like_ones_first(thousand):
    told = thousand.called_otherwise(["kite", "capitulum", "n01440764"])
    assert told == "'capitulum' -> 'n13133613' = 'ear, spike, capitulum', 'kite' -> 'n01608432' = 'kite'"
    assert Classes(["cat", "dog"]).called_otherwise(["dog", "cat"]) == ""


def test_names_that_are_no_imagenets_are_compared_as_they_are():
    assert Classes(["0", "1", "2"]).find(["2", "0"]) == [2, 0]
    assert Classes(["black cat", "Black_Cat"]).find(["Black_Cat"]) == [1]
    with pytest.raises(ValueError, match="2 classes that 'BLACK CAT' can mean"):
        Classes(["black cat", "Black_Cat"]).find(["BLACK CAT"])


@pytest.mark.parametrize(
    "text",
    ["tench\nEnglish springer\n", '\ufeff["tench", "English springer"]', '{"1": "English springer", "0": "tench"}'],
    ids=["lines", "list", "by index"],
)
def test_names_are_read_from_lines_a_list_or_an_object(tmp_path, text):
    (tmp_path / "names").write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / "names") == ["tench", "English springer"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no names of classes"),
        (b"a\n\nb", "holds no names of classes, or an empty one"),
        (b"a\nb\na\n", "names 'a' twice"),
        (b"[1, 2]", "holds no names of classes"),
        (b'{"0": "a", "2": "b"}', "holds no names of classes"),
        (json.dumps({"0": ["n01440764", "tench"]}).encode(), "holds no names of classes"),
        (b'["a", ', "are no JSON"),
        (b"\xff\xfe\x00", "are no UTF-8 text"),
        (b'["a", "\\ud800"]', "one that is no text of whole characters"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_without_names_is_one_line(tmp_path, content, says):
    if content is not None:
        (tmp_path / "names").write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        read_class_names(tmp_path / "names")
    assert "\n" not in str(error.value)


def test_lines_may_begin_with_a_bracket_and_a_path_with_a_nul_is_one_line(tmp_path):
    (tmp_path / "names").write_text("[unused]\ncat")
    assert read_class_names(tmp_path / "names") == ["[unused]", "cat"]
    with pytest.raises(ValueError, match=r"class names in 'a\\x00b' cannot be read"):
        read_class_names("a\0b")
