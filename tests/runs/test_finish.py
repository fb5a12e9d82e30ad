"""How a recipe ends."""

import pytest
import torch

from hf_distill.runs.finish import run_recipe


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone, which is gone afterwards whatever a test does."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_a_recipe_leaves_no_process_group_whose_threads_outlive_the_interpreter(group):
    seen = []
    run_recipe(lambda: seen.append(torch.distributed.is_initialized()))
    assert seen == [True]
    assert not torch.distributed.is_initialized()


def test_a_recipe_without_a_process_group_ends_as_well():
    run_recipe(lambda: None)
