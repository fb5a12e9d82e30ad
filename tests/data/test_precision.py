"""Functions that autocast does not reach."""

import torch
from torch import Tensor

from hf_distill.data.precision import without_autocast


@without_autocast
def product(number: float, *, one: Tensor, other: Tensor) -> Tensor:
    """Says so."""
    return number * one @ other


def test_products_keep_the_type_of_their_tensors_and_the_caller_its_autocast():
    one, other = torch.tensor([[1 + 2.0**-20]]), torch.tensor([[1.0]])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(product(1, one=one, other=other), one)
        assert (one @ other).dtype == torch.bfloat16
    assert (product.__name__, product.__doc__) == ("product", "Says so.")
