"""Flags and YAML: what is said last wins, and what is misspelt is one line and status 2."""

from dataclasses import dataclass

import pytest

from hf_distill.config import DataArguments, HfArg, LoopConfig, load_yaml, parse_args


@dataclass
class Extra:
    rate: float = HfArg(default=0.5, help="A number.")
    sizes: list[int] | None = HfArg(default=None, help="Some numbers.")
    loud: bool = HfArg(default=True, help="A switch.")


@pytest.fixture
def yaml(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "preset.yaml").write_text(text)
        return str(tmp_path / "preset.yaml")

    return write


def refused(capsys, *words: str, classes=(DataArguments, LoopConfig, Extra), **kwargs) -> str:
    """The one line that a mistake leaves on stderr, and nothing on stdout."""
    with pytest.raises(SystemExit) as stop:
        parse_args(*classes, args=words, **kwargs)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


def test_defaults_then_yaml_then_the_command_line(yaml):
    path = yaml("ipc: 10\nmax_steps: 7\nsizes: [3, 4]\nloud: false\nclasses: [cat, dog]\n")
    data, config, extra = parse_args(DataArguments, LoopConfig, Extra, args=["--config", path, "--ipc", "50"])
    assert (config.ipc, config.max_steps, config.seed) == (50, 7, 0)
    assert (extra.sizes, extra.loud, extra.rate) == ([3, 4], False, 0.5)
    assert data.classes == ["cat", "dog"]


def test_a_list_on_the_command_line_replaces_that_of_the_yaml(yaml):
    path = yaml("sizes: [3, 4]\n")
    (extra,) = parse_args(Extra, args=["--sizes", "5", "--config", path], default_config=None)
    assert extra.sizes == [5]


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001", "'0.001'"])
def test_a_number_may_be_written_as_papers_write_it(yaml, written):
    (extra,) = parse_args(Extra, args=["--config", yaml(f"rate: {written}")])
    assert extra.rate == 0.001


def test_an_empty_value_leaves_what_may_be_absent(yaml):
    data, _ = parse_args(DataArguments, LoopConfig, args=["--config", yaml("dataset_name:\noutput_dir: null\n")])
    assert data.dataset_name is None


def test_an_empty_file_is_no_defaults(yaml):
    assert parse_args(Extra, args=["--config", yaml("# nothing yet\n")]) == (Extra(),)


def test_the_demo_counts_only_where_neither_a_config_nor_a_dataset_is_named(yaml, tmp_path):
    demo = yaml("ipc: 3\n")
    other = tmp_path / "other.yaml"
    other.write_text("seed: 5\n")

    def ipc(*words: str) -> int:
        return parse_args(DataArguments, LoopConfig, args=words, default_config=demo)[1].ipc

    assert ipc() == 3
    assert ipc("--ipc", "4") == 4
    assert ipc("--dataset_name", "mnist") == 1
    assert ipc("--config", str(other)) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("icp: 10", "unknown key 'icp'; did you mean 'ipc'?"),
        ("zzzz: 10", "unknown key 'zzzz'; see --help"),
        ("3: 10", "unknown key 3"),
        ("ipc:", "ipc is empty; expected a value like 1"),
        ("- ipc", "holds a list; expected lines of the form `flag: value`"),
        ("ipc: [", "is not valid YAML"),
        ("ipc: ten", "--ipc: invalid int value: 'ten'"),
        ("ipc: 0", "--ipc is 0; expected at least 1"),
        ("select: worst", "--select is 'worst'; expected one of best, last"),
    ],
)
def test_a_mistake_in_the_yaml_is_one_line_that_says_what_to_write(yaml, capsys, text, says):
    assert says in refused(capsys, "--config", yaml(text))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--icp", "10"], "unknown argument --icp; did you mean --ipc?"),
        (["--icp=10"], "unknown argument --icp=10; did you mean --ipc?"),
        (["--max_step", "10"], "unknown argument --max_step; did you mean --max_steps?"),
        (["--zzzz"], "unknown argument --zzzz; see --help"),
        (["digits"], "unknown argument digits"),
        (["--ipc"], "--ipc: expected one argument"),
        (["--ipc", "-3"], "--ipc is -3; expected at least 1"),
        (["--seed", "-1"], "--seed is -1; expected at least 0"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml cannot be read: No such file or directory"),
        (["--loud", "perhaps"], "perhaps"),
        (["--color", "blue"], "--color is 'blue'; expected one of auto, rgb, gray"),
        (["--resolution", "1", "2", "3"], "--resolution is [1, 2, 3]; expected one or two positive numbers"),
        (["--mean", "0.5"], "--mean and --std go together"),
        (["--mean", "0.5", "--std", "0"], "expected one positive number for each of the means"),
        (["--mean", "0.5", "--std", "1", "--normalization", "zca"], "and it is 'zca'"),
        (["--validation_fraction", "1"], "expected 0 up to, not including, 1"),
        (["--classes", "cat"], "expected at least two names"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_that_names_the_flag(capsys, words, says):
    assert says in refused(capsys, *words)


def test_a_yaml_that_is_a_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        load_yaml(tmp_path)


@pytest.mark.parametrize(
    ("name", "short"), [(None, "digits"), ("uoft-cs/cifar10", "cifar10"), ("/data/my images/", "my images")]
)
def test_the_short_name_of_a_dataset_is_without_its_owner(name, short):
    assert DataArguments(dataset_name=name).short_name == short


@pytest.mark.parametrize(
    "words", [["--mean", "nan", "--std", "1"], ["--mean", "0", "--std", "inf"], ["--zca_eps", "nan"]]
)
def test_a_number_that_is_none_is_refused(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_args(DataArguments, args=words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err or "--std" in words


def test_a_yaml_file_that_is_no_text_is_named(tmp_path, capsys):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SystemExit):
        parse_args(DataArguments, args=["--config", str(path)])
    assert "binary.yaml is not UTF-8" in capsys.readouterr().err
