"""How much a computation holds, and how much of it fits."""

import pytest
import torch

from hf_distill.engine.memory import SavedBytes, largest_size, parse_bytes, peak_bytes


def test_a_number_of_bytes_is_what_its_unit_says():
    for text, wanted in (
        ("6GB", 6 * 10**9),
        ("512 mb", 512 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("20k", 20_000),
        ("7", 7),
        ("7B", 7),
    ):
        assert parse_bytes("memory_budget", text) == wanted
    for text in ("", "GB", "-1GB", "0", "6 bits", "1e9", "nan", "9" * 400 + "GB"):
        with pytest.raises(ValueError, match=r"--memory_budget is .*; expected a number of bytes above 0, such as 6GB"):
            parse_bytes("memory_budget", text)


def test_what_autograd_holds_is_counted_once_for_as_long_as_it_is_held():
    x = torch.ones(100, requires_grad=True)
    with SavedBytes() as saved:
        loss = (x.sin() * x).sum()  # sin keeps x; the product keeps both of its factors, one of which is x again
        assert saved.now == saved.peak == 800
        loss.backward()
        assert saved.now == 0
    assert saved.peak == 800
    assert peak_bytes(lambda: (x.sin() * x).sum().backward(), torch.device("cpu")) == 800


@pytest.mark.parametrize(("budget", "wanted"), [(99, 0), (110, 1), (119, 1), (120, 2), (199, 9), (10**9, 50)])
def test_the_largest_size_lies_on_a_line_through_two_measurements(budget, wanted):
    asked = []

    def measure(size: int) -> int:
        asked.append(size)
        return 100 + 10 * size

    assert largest_size(measure, budget, 50) == (wanted, 110)
    assert len(asked) == 2
    assert max(asked) < 50


def test_a_group_of_one_image_fits_or_does_not():
    assert largest_size(lambda size: 10, 9, 1) == (0, 10)
    assert largest_size(lambda size: 10, 10, 1) == (1, 10)
