"""The notebooks: they run at toy size, and what is shown in them is of the code beside it."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from jupyter_client.manager import KernelManager
from PIL import Image

import hf_distill as hd
from tests.helpers import ROOT
from tests.helpers.notebooks import NOTEBOOKS, code_cells, digest, execute, pictures, read, texts, with_settings

SHORT = {"student": "convnet_d1", "student_width": 4, "eval_protocol": "tiny", "disable_tqdm": True}
TRAJECTORY = {"num_experts": 1, "experts_at_once": 1, "expert_train_epochs": 2, "syn_steps": 2, "expert_epochs": 1}
TINY: dict[str, dict[str, Any]] = {
    "digits": {
        "most_images": 100,
        "seeds": 2,
        "settings": {**SHORT, **TRAJECTORY, "max_start_epoch": 1, "max_steps": 2, "select": "last", "batch_train": 50},
    },
    "photographs": {"resolution": 16, "ipc": 1, "seeds": 1, "settings": {**SHORT, "max_steps": 2}},
    "evaluate": {
        "most_images": 200,
        "plain_protocol": "tiny",
        "seeds": 2,
        "settings": {
            **SHORT,
            "eval_protocol": "crops-tiny",
            "teacher_epochs": 2,
            "num_candidates": 10,
            "num_crops": 2,
            "ipc": 1,
        },
    },
}


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One for all notebooks, for it takes seconds to import what they use."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(ROOT))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.fixture
def toy(kernel, tmp_path, hub):
    """Runs a notebook with the settings of a test, in a folder of the test, as somebody who may publish."""

    def run(name: str, **settings: Any):
        before = f"""
for name in [name for name in globals() if name.strip("_") == name and name not in ("In", "Out", "get_ipython")]:
    del globals()[name]
import os
import torch
from tests.helpers.protocols import know_short_protocols
know_short_protocols()
torch.set_num_threads(1)
os.chdir({str(tmp_path)!r})
os.environ["HF_TOKEN"] = {hub.token!r}
"""
        notebook = read(ROOT / "notebooks" / f"{name}.ipynb")
        return code_cells(execute(with_settings(notebook, {**TINY[name], **settings}, before), kernel))

    return run


@pytest.mark.slow
def test_the_digits_are_distilled_evaluated_and_loaded(toy, tmp_path):
    cells = toy("digits")
    assert len(pictures(cells)) == 3  # real ones, distilled ones, and one that was loaded
    assert "num_rows: 10" in texts(cells)
    distilled = hd.DistilledSet.from_pretrained(tmp_path / "outputs" / "notebook-digits")
    assert distilled.report.table() in texts(cells)


@pytest.mark.slow
def test_a_folder_of_photographs_is_read_distilled_and_published(toy, hub):
    repo = f"{hub.namespace}/photographs"
    cells = toy("photographs", repo=repo)
    assert "48 images of 3 classes, 3x16x16" in texts(cells)
    assert f"{hub.url}/datasets/{repo}/commit/{hub.tags('dataset', repo)['v1.0.0']}" in texts(cells)
    images = datasets.load_dataset(repo, revision="v1.0.0", split="train", token=hub.token)
    assert images.features["label"].names == ["forest", "sea", "sun"]
    (shown,) = pictures(cells)[2:]
    picture = Image.open(io.BytesIO(base64.b64decode(shown)))
    assert picture.convert("RGB").tobytes() == images[0]["image"].resize((128, 128)).convert("RGB").tobytes()


@pytest.mark.slow
def test_a_set_is_evaluated_audited_and_taken_for_one_of_pictures_alone(toy):
    cells = toy("evaluate")
    shown = texts(cells)
    for word in ("method's labels", "hard labels", "label robust score", "distilled - random", "membership test"):
        assert word in shown
    assert len(pictures(cells)) == 2  # the set, and its images beside the nearest real ones


def test_a_folder_that_is_not_there_is_one_line():
    (cell,) = [cell for cell in code_cells(read(ROOT / "notebooks" / "photographs.ipynb")) if "is_dir" in cell.source]
    with pytest.raises(ValueError, match=r"^folder is 'photos', and there is no such folder; expected one with a fol"):
        exec(cell.source, {"folder": "photos"})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_shows_is_of_the_code_beside_it_and_of_no_machine(path: Path):
    notebook = read(path)
    assert notebook.metadata.get("hf_distill") == {"outputs_of": digest(notebook)}, "run `make notebooks`"
    assert pictures(code_cells(notebook))
    assert path.stat().st_size < 200_000
    assert not re.search(r"(/tmp|/root|/home|/work)/", json.dumps(notebook))
    for cell in code_cells(notebook):
        assert not [output for output in cell.outputs if output.get("name") == "stderr"]


def test_the_page_about_notebooks_names_them_all():
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(\.\./notebooks/(\w+)\.ipynb\)", page)) == {path.stem for path in NOTEBOOKS}
    for name in re.findall(r"papermill notebooks/(\w+)\.ipynb", page):
        assert (ROOT / "notebooks" / f"{name}.ipynb").exists()
