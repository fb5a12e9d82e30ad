"""Examples in docstrings: all that is exported has one, they run, and give what they say."""

import doctest
import inspect

import pytest

import hf_distill as hd

OURS = [name for name in hd.__all__ if getattr(getattr(hd, name), "__module__", "").startswith("hf_distill")]


@pytest.fixture(scope="module")
def names() -> dict:
    """What examples take for granted: the package, and some of scikit-learn's digits."""
    train, test = hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=100, max_test_samples=50))
    return {"hd": hd, "train": train, "test": test}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", OURS)
def test_what_the_package_exports_has_an_example_that_gives_what_it_says(name, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exported = getattr(hd, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(exported, name, globs=dict(names))
    assert example.examples, f"{name} has no example"
    assert inspect.getdoc(exported).count("Example:") == 1
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert runner.run(example).failed == 0
