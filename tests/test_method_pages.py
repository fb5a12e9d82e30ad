"""The pages of methods: alike, true of the code, and run as they stand there; and what which-method.md says of each."""

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml

import hf_distill as hd
from hf_distill.hub.intervals import paired
from hf_distill.methods import adjoint, batchnorm, patches, recovering, trajectory, unroll
from hf_distill.runs.settings import SIDES
from tests.helpers import ROOT
from tests.helpers.pages import DOCS, measured_in, python_of, rows_of, section_of

PAGES = {method: DOCS / "methods" / f"{method.__name__.lower()}.md" for method in hd.METHODS}
WHICH, RESULTS = DOCS / "which-method.md", DOCS / "results.md"
MEASURED = section_of(WHICH, "What was measured here").split("\n### On ")  # the demos, and larger images
SHARED = [inspect.getsource(module) for module in (adjoint, batchnorm, patches, recovering, trajectory, unroll)]
HEADINGS = [
    *("Equation", "When to choose it", "From Python", "Recipe", "Presets", "Cost", "Measured"),
    *("What differs from the paper", "Preset values"),
]
FACTS = {
    row[1].strip("`"): row
    for row in rows_of(section_of(WHICH, "What each needs, and what it makes"))
    if row[1].startswith("`")
}


def of_each(test):
    return pytest.mark.parametrize("method", hd.METHODS, ids=lambda method: method.__name__)(test)


def flags_of(method: type[hd.Method]) -> set[str]:
    """The flags of a method and of what it learns from."""
    return {
        field.name for part in (hd.DataArguments, *method.learns_from, method.config_class) for field in fields(part)
    }


def test_every_method_has_a_page_and_a_row():
    assert sorted(PAGES.values()) == sorted((DOCS / "methods").glob("*.md"))
    assert FACTS.keys() == {page.stem for page in PAGES.values()}


@of_each
def test_pages_have_the_same_parts_in_the_same_order(method):
    text = PAGES[method].read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == HEADINGS
    assert f"https://huggingface.co/papers/{method.paper.arxiv_id}" in text
    for link in re.findall(r"\]\((\.\./\.\./[^)#]+)", text):
        assert (PAGES[method].parent / link).exists(), link


@of_each
def test_the_symbols_of_a_page_have_the_names_that_the_code_has(method):
    source = "".join([inspect.getsource(inspect.getmodule(method)), *SHARED])
    for row in rows_of(section_of(PAGES[method], "Equation")):
        for name in re.findall(r"`(\w+)", row[1]):
            assert name in flags_of(method) or re.search(rf"\b{name}\b", source), name


def measured_on(page: Path) -> list[list[str]]:
    """The rows of a page that say what was measured, but of the demos in `WHICH`, which are looked at below."""
    if page == RESULTS:
        return rows_of(page.read_text(encoding="utf-8"))
    return rows_of(section_of(page, "Measured") or MEASURED[1])


@pytest.mark.parametrize("page", [*PAGES.values(), WHICH, RESULTS], ids=lambda page: page.stem)
def test_accuracies_are_in_the_file_of_results_that_their_row_names_or_the_row_says_that_there_is_none(page):
    files: list[Path] = []
    for row in measured_on(page):
        line = " | ".join(row)
        named = [page.parent / link for link in re.findall(r"\]\((\S+/results/\S+\.json)\)", line)]
        files = named or (files if "the same" in line else [])
        if told := set(re.findall(r"\d+\.\d ± \d+\.\d", line)):
            assert files or "no file" in line, line
            assert not files or told <= measured_in(files), line


def demos() -> dict[str, dict[tuple[str, str], list[float]]]:
    """Accuracies of the students of each demo, by method, and by set and labels."""
    results = json.loads((ROOT / "benchmarks" / "results" / "gallery-digits.json").read_text(encoding="utf-8"))
    return {
        result["command"].split()[1]: {(row["set"], row["labels"]): row["accuracies"] for row in result["rows"]}
        for result in results["results"]
    }


def written(accuracies: list[float] | None) -> str:
    return f"{100 * mean(accuracies):.1f} ± {100 * stdev(accuracies):.1f}" if accuracies else ""


def beside(own: list[float], *others: list[float] | None) -> str:
    """The best of real images as the table of demos writes it, beside a method's own."""
    best = max(filter(None, others), key=mean, default=None)
    if best is None:
        return "not in the demo"
    figure = f"**{written(best)}**" if mean(best) > mean(own) else written(best)
    return figure + " ~" * (paired(own, best).verdict == "no difference shown")


def test_the_table_of_demos_is_that_of_their_students():
    measured, method, found = demos(), "", []
    for name, _, labels, *figures, _ in rows_of(MEASURED[0])[2:]:
        method = re.search(r"/(\w+)\.md", name)[1] if name else method
        kind, of = "hard" if labels == "classes" else "soft", measured[method]
        own, real = of["distilled", kind], [of.get((which, kind)) for which in ("random", "herding", "k-center")]
        assert figures == [written(own), beside(own, real[0]), beside(own, *real[1:])], method
        found.append((method, kind))
    rows = [(name, kind) for name, of in measured.items() for which, kind in of if which == "distilled"]
    assert sorted(found) == sorted(rows)


def test_the_table_of_the_gallery_is_that_of_the_students_of_the_demos():
    measured = demos()
    rows = [row for row in rows_of(section_of(DOCS / "gallery.md", "The digits")) if row[1].isdigit()]
    assert {re.sub(r"\W", "", row[0]).lower() for row in rows} == measured.keys()
    for name, _, _, *figures in rows:
        of = measured[re.sub(r"\W", "", name).lower()]
        assert figures == [
            written(of.get((which, kind))) for which in ("distilled", "random") for kind in ("hard", "soft")
        ]


def test_the_figures_of_the_demos_stand_on_the_pages_of_their_methods():
    text = ""
    for method, *row in rows_of(MEASURED[0])[2:]:
        if link := re.search(r"\((methods/\w+\.md)", method):
            text = (DOCS / link[1]).read_text(encoding="utf-8")
        for figure in re.findall(r"\d+\.\d(?: ± \d+\.\d)?", " ".join(row)):
            assert figure in text, row


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where all pages run: experts and teachers that one has trained are there for the next."""
    return tmp_path_factory.mktemp("pages")


@pytest.mark.slow
@of_each
def test_the_code_of_a_page_runs_and_makes_the_labels_that_which_method_says(method, folder, monkeypatch, one_thread):
    monkeypatch.chdir(folder)
    names = {"__name__": "page"}
    for block in python_of(PAGES[method]):
        exec(compile(block, PAGES[method], "exec"), names)
    distilled = names["distilled"]
    assert distilled.config["method"] == PAGES[method].stem
    assert {row.set for row in names["report"].rows} == {"random", "distilled"}
    labels = "classes"
    if distilled.teacher is not None:
        labels = "of every view, by a projector" if distilled.teacher.kind == "projector" else "of every view"
    if distilled.soft_labels is not None:
        labels = "one for each image"
    _, _, _, makes, alone, _ = FACTS[PAGES[method].stem]
    assert makes == labels
    assert (alone == "always") == (labels == "classes")


@of_each
def test_which_method_says_what_a_method_needs_and_which_sizes_its_presets_have(method):
    name = PAGES[method].stem
    _, _, needs, _, alone, sizes = FACTS[name]
    learns = {kind.__name__ for kind in method.learns_from}
    if method.probes:
        wanted = ["backbone"]
    else:
        kinds = {"ExpertConfig": "experts", "TeacherConfig": "teacher", "PriorArguments": "CLIP"}
        wanted = [word for kind, word in kinds.items() if kind in learns] or ["nothing"]
    assert needs == ", ".join(wanted)
    assert (ROOT / "recipes" / f"{name}.py").exists()
    if alone.startswith("`"):
        flag, value = alone.strip("`").removeprefix("--").split()
        method.config_class(**{flag: value})
    found = set()
    for path in (ROOT / "recipes" / "configs" / name).glob("*.yaml"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        given = values.get("resolution") or SIDES[Path(values.get("dataset_name", "digits")).name]
        found.add(given[0] if isinstance(given, list) else given)
    assert sizes == ", ".join(map(str, sorted(found)))
