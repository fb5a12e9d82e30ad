"""Flags and YAML: what is said last wins, and what is misspelt is one line and status 2."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from hf_distill.config import DataArguments, HfArg, LoopConfig, configure, find_preset, load_yaml, parse_args, presets
from hf_distill.methods import MTTConfig, SRe2LConfig, TESLAConfig
from hf_distill.runs.settings import settings_of
from hf_distill.training.experts import ExpertConfig

CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "configs"


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


@pytest.mark.parametrize(
    "names",
    ["007 010 08 0x1f 0b11 1_000 1:30 190:20:30", "1.10 1e3 .5 .inf .nan -1 +1", "no Yes on OFF true", "2024-01-02"],
)
def test_what_stands_in_the_file_is_taken_as_text(yaml, names):
    names = [*names.split(), "2001-12-14 21:59:43"]
    for text in (f"classes: [{', '.join(names)}]", "classes:" + "".join(f"\n- {name}" for name in names)):
        assert parse_args(DataArguments, args=["--config", yaml(text)])[0].classes == names
    for name in names:
        (data,) = parse_args(DataArguments, args=["--config", yaml(f"dataset_config: {name}")])
        assert data.dataset_config == name
    (data,) = parse_args(DataArguments, args=["--config", yaml("dataset_config: 'null'\nclasses: ['~', \"\"]")])
    assert (data.dataset_config, data.classes) == ("null", ["~", ""])


def test_a_text_that_begins_with_a_dash_is_no_flag(yaml):
    path = yaml("dataset_config: --loud\nclasses: [-1, -2]\n")
    data, extra = parse_args(DataArguments, Extra, args=["--config", path])
    assert (data.dataset_config, data.classes, extra.loud) == ("--loud", ["-1", "-2"], True)


def test_a_preset_from_python_is_read_as_one_from_the_command_line(yaml):
    path = yaml("ipc: 010\nreport_to: none\nsave_total_limit: ~\neval_baselines: []\nlr_img: 1e2\n")
    (config,), _ = settings_of("mtt", (MTTConfig,), path, {"seed": 3})
    assert (config.ipc, config.seed, config.lr_img) == (10, 3, 100)
    assert (config.save_total_limit, config.eval_baselines) == (None, [])


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
        ("3: 10", "unknown key '3'"),
        ("icp: 1\nipc: 2\nsede: 1", "unknown key 'icp'; did you mean 'ipc'? unknown key 'sede'; did you mean 'seed'?"),
        ("ipc:", "ipc is empty; expected a value like 1"),
        ("- ipc", "holds a list; expected lines of the form `flag: value`"),
        ("ipc: [", "is not valid YAML"),
        ("ipc: 1\nseed: 2\nipc: 10", "is not valid YAML: ipc stands there twice"),
        ("classes: [cat, ~]", "classes holds None; expected one value, or a list of single values; write 'null'"),
        ("classes: [[cat, dog], [eel]]", "classes holds ['cat', 'dog']; expected one value, or a list of single"),
        ("ipc: {of: 3}", "ipc holds {'of': '3'}; expected one value"),
        ("classes: [--seed, '5']", "classes holds '--seed'; expected no value that begins as a flag does"),
        ("ipc: 0x1f", "--ipc: invalid int value: '0x1f'"),
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
        (["--icp", "1", "--sede=2"], "--icp; did you mean --ipc? unknown argument --sede=2; did you mean --seed?"),
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


# Presets by name


@dataclass
class Everything:
    """What the test reads of a preset; the rest is passed over."""

    dataset_name: str | None = HfArg(default=None, help="Of the data.")
    ipc: int = HfArg(default=0, help="Images per class.")


def preset(*words: str, recipe: str = "tesla") -> Everything:
    demo = CONFIGS / recipe / "digits-ipc1.yaml"
    others = (DataArguments, ExpertConfig, TESLAConfig, MTTConfig)
    (given,) = parse_args(Everything, args=words, default_config=demo, passed_over=others)
    return given


def test_a_preset_is_found_by_its_name_beside_the_recipes_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preset("--config", "cifar10-ipc10") == Everything("uoft-cs/cifar10", 10)
    assert preset("--config", "cifar10-ipc10", recipe="mtt") == Everything("uoft-cs/cifar10", 10)
    assert preset("--config", "cifar10-ipc10", "--ipc", "3") == Everything("uoft-cs/cifar10", 3)
    assert preset("--config", "digits-ipc10") == Everything(None, 10)


def test_a_preset_is_found_by_the_path_it_has_in_a_checkout_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preset("--config", "recipes/configs/mtt/cifar100-ipc50.yaml") == Everything("uoft-cs/cifar100", 50)


def test_a_file_of_ones_own_comes_before_a_preset_of_its_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10-ipc10").mkdir()
    assert preset("--config", "cifar10-ipc10").ipc == 10
    (tmp_path / "cifar10-ipc1").write_text("ipc: 7\n")
    assert preset("--config", "cifar10-ipc1").ipc == 7
    (tmp_path / "recipes" / "configs" / "mtt").mkdir(parents=True)
    (tmp_path / "recipes" / "configs" / "mtt" / "cifar10-ipc1.yaml").write_text("ipc: 8\n")
    assert preset("--config", "recipes/configs/mtt/cifar10-ipc1.yaml").ipc == 8


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifar10-ip10", "--config is no file, and tesla has no preset 'cifar10-ip10'; did you mean cifar10-ipc10 or"),
        ("zzzz", "--config is no file, and tesla has no preset 'zzzz'; expected one of cifar10-ipc1, cifar10-ipc10,"),
        ("cifar10-ipc11.yaml", "--config cifar10-ipc11.yaml cannot be read"),
        ("tesla/cifar10-ipc10", "--config tesla/cifar10-ipc10 cannot be read"),
        ("recipes/configs/tesla/cifar10.yaml", "--config recipes/configs/tesla/cifar10.yaml cannot be read"),
    ],
)
def test_a_presets_name_misspelt_is_one_line_with_the_nearest(capsys, tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    demo = CONFIGS / "tesla" / "digits-ipc1.yaml"
    assert says in refused(capsys, "--config", name, default_config=demo)


def test_a_recipe_without_presets_says_so(capsys):
    assert "has no preset 'digits-ipc1'; give a YAML file" in refused(capsys, "--config", "digits-ipc1")


def test_help_lists_the_presets_by_the_names_that_config_takes(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_args(Extra, args=["--help"], default_config=CONFIGS / "mtt" / "digits-ipc1.yaml")
    _, _, listed = capsys.readouterr().out.partition("presets for --config:")
    assert set(listed.split()) == {path.stem for path in (CONFIGS / "mtt").glob("*.yaml")}


def test_the_presets_of_a_recipe_are_those_of_its_folder():
    assert presets("rded") == {path.stem: path for path in (CONFIGS / "rded").iterdir()}
    assert find_preset("imagenette-ipc10", "rded") == CONFIGS / "rded" / "imagenette-ipc10.yaml"
    with pytest.raises(ValueError, match="rded has no preset 'imagenete-ipc10'; did you mean imagenette-ipc10"):
        find_preset("imagenete-ipc10", "rded")


# Paths


def test_home_and_variables_in_every_path_are_expanded_wherever_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", "runs")
    (tmp_path / "preset.yaml").write_text("output_dir: ~/$RUNS/x\nexperts: ${RUNS}/e\n")
    classes = (DataArguments, ExpertConfig, TESLAConfig)
    data, experts, config = parse_args(*classes, args=["--config=~/preset.yaml", "--dataset_name", "~/images"])
    assert (data.dataset_name, experts.experts, config.output_dir) == (
        f"{tmp_path}/images",
        "runs/e",
        f"{tmp_path}/runs/x",
    )
    (config,) = configure(TESLAConfig, values={"output_dir": "~/y"}, source="settings")
    assert config.output_dir == f"{tmp_path}/y"
    (config,) = configure(SRe2LConfig, values={"teachers": ["~/a", "timm:resnet18", "me/net"]}, source="settings")
    assert config.teachers == [f"{tmp_path}/a", "timm:resnet18", "me/net"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "argument --output_dir/--output-dir: it is empty; expected a path, or leave it out"),
        ("  ", "it is empty"),
        ("$NOT_SET/x", "'$NOT_SET/x' has a variable or a home that there is not"),
        ("${NOT_SET}", "has a variable or a home that there is not"),
        ("~nobody-of-this-name/x", "has a variable or a home that there is not"),
    ],
)
def test_a_path_that_is_none_is_one_line(capsys, value, says):
    with pytest.raises(SystemExit):
        parse_args(TESLAConfig, args=["--output_dir", value])
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_path_that_is_there_is_taken_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("~x", "a$b"):
        Path(name).mkdir()
        assert parse_args(TESLAConfig, args=["--output_dir", name])[0].output_dir == name


@pytest.mark.parametrize("numbers", [("-1e3", "3e3"), ("-1024", "3071"), ("-1.5e+05", "-.5"), ("-2", "-1E0")])
def test_numbers_below_zero_are_no_flags(numbers):
    (data,) = parse_args(DataArguments, args=["--value_range", *numbers])
    assert data.value_range == [float(number) for number in numbers]


@pytest.mark.parametrize("nothing", ["null", "~", ""])
def test_nothing_in_yaml_takes_a_default_back_where_a_flag_may_be_absent(yaml, nothing):
    path = yaml(f"save_total_limit: {nothing}\neval_baselines: []\n")
    (config,) = parse_args(LoopConfig, args=["--config", path])
    assert (config.save_total_limit, config.eval_baselines) == (None, [])
    (config,) = parse_args(LoopConfig, args=["--config", path, "--save_total_limit", "3"])
    assert config.save_total_limit == 3
