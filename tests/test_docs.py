"""The pages of docs/: their code runs as it stands there, in order."""

import re
from pathlib import Path

import pytest
import torch

import hf_distill as hd

DOCS = Path(__file__).resolve().parents[1] / "docs"


def python_of(page: Path) -> list[str]:
    """The Python blocks of a page, each on the lines that it has there."""
    text = page.read_text(encoding="utf-8")
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return ["\n" * text[: block.start(1)].count("\n") + block[1] for block in blocks]


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
