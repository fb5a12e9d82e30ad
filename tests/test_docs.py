"""The README and the pages of docs/: their code runs as it stands there, in order, and their commands are there."""

import re
import shlex
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import hf_distill as hd
from hf_distill.__main__ import recipes
from hf_distill.config import find_preset
from hf_distill.networks.trajectories import ExpertTrajectories
from tests.helpers import ROOT
from tests.helpers.experts import make_experts
from tests.helpers.loopback import LoopbackHub
from tests.helpers.pages import DOCS, measured_in, python_of, rows_of, section_of
from tests.helpers.recipes import Recipes
from tests.helpers.sets import files

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
# Of these all Python runs, but what is behind `<!-- not run: why -->`, and the ten lines, which test_api.py runs.
RUN = ("../README.md", "index.md", "quickstart.md", "your-data.md", "evaluating.md", "publishing.md")


def commands_of(page: Path) -> list[list[str]]:
    """The words of each command on a page: lines of fenced bash, and indented lines that begin as a command does."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^ *```bash\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
    indented = re.findall(r"^ {4,}((?:accelerate|hf-distill|python|make|uv|torchrun) .*)$", prose, flags=re.MULTILINE)
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines + indented if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def digits_set(one_thread) -> hd.DistilledSet:
    """Ten digits with all that a set of TESLA has, which nobody distilled."""
    train, _ = hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=100, max_test_samples=50))
    rows = torch.cat([train.class_rows(label)[:1] for label in range(10)])
    student = hd.StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 8}).to_dict()
    config = {"method": "tesla", "source": train.provenance, "student": student}
    about = train.labels[rows], train.class_names, train.preprocessing
    return hd.DistilledSet(train.images(rows), *about, lr=0.1, soft_labels=torch.eye(10), config=config)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_the_python_of_a_page_runs(name, digits_set, hub: LoopbackHub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.add_user("me", hub.token)
    folder = digits_set.save_pretrained("outputs/tesla-digits-ipc1")
    hub.put("dataset", "me/digits-distilled-ipc1", files(folder), tag="v1.0.0")
    hub.put("model", "me/digits-experts", files(make_experts(tmp_path / "experts")), tag="v1.0.0")
    names = {"__name__": "page"}
    for block in python_of(DOCS / name):
        if 'load_dataset("uoft-cs/cifar10"' not in block:
            exec(compile(block, name, "exec"), names)
    if name == "publishing.md":
        assert isinstance(names["experts"], ExpertTrajectories)
        assert hd.DistilledSet.from_pretrained("me/digits-distilled-ipc1", revision="v1.0.1").num_classes == 10
        assert names["seen"].num_classes == 6


def test_the_readme_fits_its_lines_and_links_to_what_is_there():
    text = PAGES[0].read_text(encoding="utf-8")
    assert 100 <= len(text.splitlines()) <= 130
    pages = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert link.removeprefix("docs/") in pages or (ROOT / link).exists(), link  # `make docs` looks for the pages


def test_the_accuracies_of_the_readmes_methods_are_those_of_the_files_beside_them():
    rows = [row for row in rows_of(section_of(PAGES[0], "Methods")) if "](docs/methods/" in row[0]]
    assert len(rows) == len(hd.METHODS)
    for *_, line in rows:
        measured = measured_in([ROOT / re.search(r"\((benchmarks/\S+\.json)\)", line)[1]])
        for own, deviation, mark, random in re.findall(r"(\d+\.\d) ± (\d\.\d) \((\**)(\d+\.\d)\**\)", line):
            assert f"{own} ± {deviation}" in measured, line
            assert random in {figure.split()[0] for figure in measured}, line
            assert bool(mark) == (float(random) > float(own)), line
    assert sum("±" in line for *_, line in rows) == len(rows) - 1  # of SRe2L's no student was trained


def test_the_ten_lines_are_those_of_the_readme_wherever_they_stand():
    lines = {block.strip() for page in PAGES for block in python_of(page) if "hd.TESLA.distill" in block}
    assert len({re.sub(r" +#.*", "", block) for block in lines if "uoft-cs/cifar10" in block}) == 1


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The flags of each recipe, and those that all have."""
    added = re.findall(r'add_argument\(\s*"--(\w+)"', (ROOT / "hf_distill" / "config.py").read_text(encoding="utf-8"))
    known = {name: {f.name for part in Recipes.dataclasses(name) for f in fields(part)} for name in recipes()}
    return {name: {"config", "help", *added, *own, *(f"no_{flag}" for flag in own)} for name, own in known.items()}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_name_recipes_flags_and_presets_that_are_there(page, flags):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    entry = (ROOT / "hf_distill" / "__main__.py").read_text()
    console = re.findall(r'"(\w+)"', "".join(re.findall(r"^[A-Z, ]+ = (\".*)$", entry, flags=re.MULTILINE)))
    for words in commands_of(page):
        said = " ".join(words)
        for word in words:
            if re.match(r"(recipes|benchmarks|tests)/\S+\.(py|yaml)$", word):
                assert (ROOT / word).exists(), said
        if words[0] == "make" and len(words) > 1:
            assert words[1] in targets, said
        match = re.search(r"(?:\bhf-distill|-m hf_distill|recipes/(?=\w+\.py)) ?(\w+)(?:\.py)?", said)
        if match is None:
            continue
        recipe, rest = match[1], shlex.split(said[match.end() :])
        if recipe in console:
            continue
        assert recipe in flags, said
        for flag, value in pairwise([*rest, ""]):
            if flag.startswith("--"):
                name = flag[2:].partition("=")[0]
                assert name in flags[recipe], f"{said}: {recipe} has no flag {flag}"
                if name == "config" and not value.endswith(".yaml"):
                    assert find_preset(value, recipe), said


def test_each_exported_name_has_one_place_in_the_reference():
    pages = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    places = re.findall(r'^(?:::: |<h2 id=")hf_distill\.(\w+)', pages, flags=re.MULTILINE)
    assert sorted(places) == sorted(hd.__all__)


@pytest.fixture(scope="module")
def page(tmp_path_factory, one_thread) -> dict:
    """What the page about methods defines, once all of it has run."""
    file, names = DOCS / "writing-a-method.md", {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for block in python_of(file):
            exec(compile(block, str(file), "exec"), names)
    return names


@pytest.mark.slow
def test_the_method_of_the_page_moves_images_to_where_random_networks_see_the_real_ones(page):
    report, distilled = page["report"], page["distilled"]
    assert distilled.config["method"] == "dm"
    assert {row.set for row in report.rows} == {"random", "herding", "k-center", "distilled"}
    train = page["train"]
    spec = hd.StudentSpec("convnet_d2", 10, 1, (8, 8), {"width": 32})
    network = spec.build(12345)  # one that the run has not seen

    def distance(images: torch.Tensor, label: int) -> float:
        real = train.images(train.class_rows(label))
        with torch.no_grad():
            means = [page["DM"].features(network, x).mean(0) for x in (real, images)]
        return (means[0] - means[1]).square().sum().item()

    options = {"ipc": 1, "max_steps": 2, "eval_protocol": "quick", "select": "last", **page["network"]}
    again, once_more = (page["ScaledDM"].distill(train, **options) for _ in range(2))
    assert torch.equal(again.pixel_values, once_more.pixel_values)
    step = distilled.config["selected_step"]
    assert step in (0, 10, 20)
    if step:
        initial = page["DM"].distill(train, ipc=1, max_steps=0, eval_protocol="quick", disable_tqdm=True)
        gaps = [
            sum(distance(part.pixel_values[label : label + 1].detach(), label) for label in range(10))
            for part in (initial, distilled)
        ]
        assert gaps[1] < 0.6 * gaps[0]


@pytest.mark.slow
def test_a_step_of_the_page_is_one_of_the_method_that_the_library_has(page, tmp_path):
    settings = {
        "ipc": 2,
        "batch_real": 30,
        "student": "convnet_d2",
        "student_width": 8,
        "disable_tqdm": True,
        "select": "last",
    }
    found = []
    for number, (kind, config) in enumerate(((page["DM"], page["DMConfig"]), (hd.DM, hd.DMConfig))):
        augmented = {"dsa_strategy": "color_crop_cutout_scale_rotate", "output_dir": str(tmp_path / str(number))}
        method = kind(config(**settings, **augmented), page["train"])
        method.distilled = method.setup()
        pixels = method.distilled.pixel_values
        pixels.grad = torch.zeros_like(pixels)
        found.append((method.step(7)["loss"], pixels.grad))
    torch.testing.assert_close(*(loss for loss, _ in found), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(*(gradient for _, gradient in found), rtol=1e-3, atol=1e-6)
