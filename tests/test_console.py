"""The console entry, and what `pip install` of the wheel gives: every recipe, its presets, and cards."""

import ast
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from datasets import Image, load_dataset

import hf_distill.__main__ as console

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {path.stem: path for path in (ROOT / "recipes").glob("*.py")}
TINY = {
    "max_train_samples": 100,
    "max_test_samples": 30,
    "num_experts": 1,
    "expert_train_epochs": 2,
    "student_width": 4,
    "max_steps": 1,
    "syn_steps": 2,
    "expert_epochs": 1,
    "max_start_epoch": 1,
    "eval_nets": 1,
    "eval_seeds": 1,
    "eval_protocol": "quick",
    "eval_baselines": "random",
    "eval_full_data": False,
    "disable_tqdm": True,
    "cpu_threads": 1,
}
WORDS = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]


def entry(monkeypatch, *words: str) -> None:
    """`hf-distill` with these words, in this process."""
    monkeypatch.setattr(sys, "argv", ["hf-distill", *words])
    console.main()


# The list of recipes


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_each_recipe_is_listed_with_the_sentence_it_opens_with(monkeypatch, capsys, words):
    entry(monkeypatch, *words)
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.partition("recipes:\n")[2].splitlines())
    assert listed.keys() == RECIPES.keys()
    for name, path in RECIPES.items():
        sentence = ast.parse(path.read_text()).body[0].value.value.splitlines()[0]
        assert sentence.endswith("."), f"{name}: the first sentence is longer than a line"
        assert listed[name] == sentence


def test_the_list_is_there_before_torch_and_transformers_are_loaded():
    code = (
        "import sys; sys.argv = ['hf-distill']; from hf_distill.__main__ import main; main()\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_a_misspelt_recipe_is_one_line_with_the_nearest(monkeypatch, capsys):
    known = ", ".join(sorted([*RECIPES, "board", "demo", "gallery"]))
    for name, hint in [("tesle", "did you mean tesla?"), ("zzzz", f"expected one of {known}")]:
        with pytest.raises(SystemExit, match="2"):
            entry(monkeypatch, name, "--ipc", "1")
        out, err = capsys.readouterr()
        assert (out, err) == ("", f"error: {name!r} is no recipe; {hint}\n")


def test_a_demo_without_gradio_and_on_a_port_that_cannot_be_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    needs = r'^error: hf-distill demo needs gradio, which is not installed: pip install "hf_distill\[demo\]"$'
    with pytest.raises(SystemExit, match=needs):
        entry(monkeypatch, "demo", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"^error: --port {port} cannot be used \(.*\); give another, or none"):
            entry(monkeypatch, "demo", str(tmp_path), "--port", str(port))
    with pytest.raises(SystemExit, match=r"^error: --port is 70000; expected a number from 1 to 65535"):
        entry(monkeypatch, "demo", str(tmp_path), "--port", "70000")


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    entry(monkeypatch, "--version")
    assert capsys.readouterr().out == f"hf_distill {hf_distill_version()}\n"


def hf_distill_version() -> str:
    return ast.literal_eval((ROOT / "hf_distill" / "_version.py").read_text().rpartition("=")[2].strip())


# A recipe


def test_a_recipe_gets_the_words_behind_its_name_and_its_status_is_the_entrys(monkeypatch, tmp_path, capsys):
    (tmp_path / "recipe.py").write_text("import sys\nprint(__name__, *sys.argv[1:])\nsys.exit(3)\n")
    monkeypatch.setattr(console, "shipped", lambda name: tmp_path)
    with pytest.raises(SystemExit, match="3"):
        entry(monkeypatch, "recipe", "--flag", "a value", "--help")
    assert capsys.readouterr().out == "__main__ --flag a value --help\n"


def test_a_recipes_mistake_is_the_line_it_has_without_the_entry(monkeypatch, tmp_path):
    # Its name is no name of a module, either.
    (tmp_path / "empty.pt").touch()
    with pytest.raises(SystemExit, match=r"^error: .*empty\.pt"):
        entry(monkeypatch, "import", "--images", str(tmp_path / "empty.pt"), "--output_dir", str(tmp_path / "out"))


@pytest.mark.parametrize("name", ["evaluate", "experts", "tesla"])
def test_ctrl_c_while_a_recipe_is_still_importing_is_one_line(tmp_path, name):
    (tmp_path / "transformers.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    default = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell may ignore it
    start = (
        f"{default} import runpy; sys.argv = [{str(RECIPES[name])!r}]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", start], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "interrupted\n")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of the end of the one above it")
def test_a_process_ends_with_the_launcher_that_started_it():
    begins = "import time; from hf_distill.starting import follow_launcher; follow_launcher(); print(flush=True)"
    child = f"{begins}; time.sleep(60); print('still there')"
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_DYNAMO_MODE": "default"}
    with subprocess.Popen([sys.executable, "-c", launcher], env=env, stdout=subprocess.PIPE) as started:
        started.stdout.readline()
        started.kill()
        assert started.stdout.read() == b""


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built aside."""
    source = tmp_path_factory.mktemp("source")
    for name in ("hf_distill", "recipes", "model_cards"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *offline, "-w", "dist", "."], check=True, cwd=source)
    (built,) = (source / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel in it, which sees what the package needs, and not the checkout."""
    env = tmp_path_factory.mktemp("installed") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    python = env / "bin" / "python"
    options = ["--no-deps", "--no-index", "--quiet"]
    # Not seeing PYTHONPATH, where a checkout with the traces of an editable install would pass for the wheel.
    run([sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], env).check_returncode()
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # A folder that is named in a .pth file has none of its own .pth files read: an editable install stays behind.
    needed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(purelib, "dependencies.pth").write_text("\n".join(needed) + "\n")
    return env


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300)


def files(folder: str, pattern: str) -> set[str]:
    """The names in a wheel of files of the checkout."""
    inside = "" if folder == "hf_distill" else "hf_distill/"
    return {inside + path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob(pattern)}


@pytest.mark.slow
def test_the_wheel_holds_the_package_the_recipes_their_presets_and_the_cards_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = files("hf_distill", "**/*.py") | files("hf_distill", "py.typed") | files("hf_distill", "hub/*.json")
    carried = files("recipes", "*.py") | files("recipes", "configs/**/*.yaml") | files("model_cards", "*")
    assert held == package | {name for name in carried if not name.endswith("__pycache__")}


@pytest.mark.slow
def test_the_installed_package_is_not_the_checkout(installed, tmp_path):
    code = "import hf_distill, sys; print(hf_distill.__file__); print([type(it).__module__ for it in sys.meta_path])"
    done = run([installed / "bin" / "python", "-c", code], tmp_path)
    where, finders = done.stdout.splitlines()
    assert Path(where).is_relative_to(installed)
    assert "editable" not in finders
    assert str(ROOT) not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launched", [False, True], ids=["hf-distill", "accelerate launch -m hf_distill"])
def test_an_installed_wheel_distils_the_digits(installed, tmp_path, launched):
    python = installed / "bin" / "python"
    launch = [python, "-m", "accelerate.commands.launch", "--cpu", "--quiet", "-m", "hf_distill"]
    start = launch if launched else [installed / "bin" / "hf-distill"]
    preset = [] if launched else ["--config", "digits-ipc10", "--ipc", "1"]
    done = run([*start, "tesla", *preset, *WORDS, "--output_dir", "set"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'datasets.load_dataset("set", split="train")' in done.stdout
    images = load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert images.num_rows == 10
    assert isinstance(images.features["image"], Image)
    assert "dataset-distillation" in (tmp_path / "set" / "README.md").read_text()
