"""Where users work: what the headers, configurations, scripts and images of docs/running.md say is so."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from hf_distill.methods.apm import APMConfig
from tests.helpers import ROOT

if sys.version_info >= (3, 11):
    import tomllib

RECIPES = sorted((ROOT / "recipes").glob("*.py"))
LAUNCHERS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
# As PEP 723 finds it.
HEADER = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


# uv run recipes/tesla.py


def header(path: Path) -> str:
    (found,) = HEADER.finditer(path.read_text(encoding="utf-8"))
    return "".join(line[2:] if line.startswith("# ") else line[1:] for line in found["content"].splitlines(True))


def test_every_recipe_needs_the_checkout_that_it_is_in_and_nothing_else():
    texts = {header(path) for path in RECIPES}
    (text,) = texts
    if sys.version_info >= (3, 11):
        about = tomllib.loads(text)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert about["requires-python"] == project["requires-python"]
        assert about["dependencies"] == [project["name"]]
        source = about["tool"]["uv"]["sources"][project["name"]]
        assert ((ROOT / "recipes") / source["path"]).resolve() == ROOT
        assert source["editable"]


# accelerate launch --config_file


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_a_configuration_of_accelerate_is_read_and_its_first_lines_launch_a_recipe(path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.num_processes % config.num_machines == 0
    (words,) = re.findall(r"accelerate launch (.*)", path.read_text(encoding="utf-8"))
    args = launch_command_parser().parse_args(words.split())
    assert (ROOT / args.config_file) == path
    assert (ROOT / args.training_script).exists()


def test_the_page_names_every_configuration():
    page = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    assert set(re.findall(r"recipes/accelerate/([\w-]+\.yaml)\)", page)) == {path.name for path in LAUNCHERS}


# sbatch


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Starts the script as Slurm would, with stand-ins for what Slurm brings; they write down what they were told."""
    stand_ins = {
        # A run that ends at once, or waits for a signal and then takes a moment for its checkpoint.
        "srun": 'echo "$@" > srun.txt\n[ -e slow ] || exit 0\n'
        "trap 'sleep 0.2; echo stopped > stopped.txt; exit 1' TERM\ntouch started\nwhile :; do sleep 0.02; done\n",
        "scontrol": 'echo "$@" > scontrol.txt\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in stand_ins.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/bash\n{text}")
        file.chmod(0o755)
    slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_JOB_ID": "77"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def start(sent: signal.Signals | None = None) -> int:
        if sent:
            (tmp_path / "slow").touch()
        script = [str(ROOT / "recipes" / "slurm" / "shards.sbatch"), "apm", "--config", "x y", "--teachers", "t"]
        with subprocess.Popen(["bash", *script], cwd=tmp_path, env=environment) as process:
            while sent and not (tmp_path / "started").exists():
                time.sleep(0.01)
            if sent:
                process.send_signal(sent)
            return process.wait(timeout=30)

    return start


def test_a_job_of_an_array_makes_its_shard_and_goes_on_where_it_was(cluster, tmp_path):
    assert cluster() == 0
    words = (tmp_path / "srun.txt").read_text().split()
    assert words[:6] == ["--ntasks=1", "python", "-m", "hf_distill", "apm", "--config"]
    assert APMConfig(shard=words[words.index("--shard") + 1], teachers=["t"]).part == (3, 8)
    assert words[words.index("--output_dir") + 1] == "outputs/shard-3"
    assert words[words.index("--resume_from_checkpoint") + 1] == "latest"
    assert not (tmp_path / "scontrol.txt").exists()


@pytest.mark.parametrize(("sent", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_job_that_must_end_lets_its_run_stop_and_asks_for_another_turn_at_the_time_limit(
    cluster, tmp_path, sent, again
):
    assert cluster(sent) == 1
    assert (tmp_path / "stopped.txt").exists(), "it waits for the checkpoint"
    assert (tmp_path / "scontrol.txt").exists() == again
    if again:
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 77_3\n"


# docker build


def test_the_image_is_built_of_what_the_wheel_is_built_of():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    steps = [line.split() for line in lines if line and not line.startswith("#")]
    assert {step[0] for step in steps} == {"FROM", "ARG", "RUN", "COPY", "ENV", "WORKDIR", "ENTRYPOINT"}
    copied = {name for step in steps if step[0] == "COPY" for name in step[1:-1]}
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "hf_distill", "recipes", "model_cards"}
    assert all((ROOT / name).exists() for name in copied)
    (torch,) = [line for line in lines if "--index-url" in line and line.startswith("RUN")]
    needed = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{each}",' in needed for each in re.findall(r'"(torch\w*>=[\d.]+)"', torch))
