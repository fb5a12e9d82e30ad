"""Examples in docstrings: they run, and give what they say."""

import doctest

import pytest

import hf_distill as hd


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", hd.__all__)
def test_the_examples_of_what_the_package_exports_give_what_they_say(name):
    exported = getattr(hd, name)
    if isinstance(exported, str):
        return
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for example in doctest.DocTestFinder(recurse=False).find(exported, name, globs={}):
        assert runner.run(example).failed == 0
