"""Texts that are compared whole."""

import pytest

from tests.helpers import ROOT


def check_golden(name: str, text: str) -> None:
    """Compare with tests/goldens/<name>; to renew one, delete it and run the test once."""
    path = ROOT / "tests" / "goldens" / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        pytest.fail(f"{path} was written; read it, then run again")
    assert text == path.read_text(encoding="utf-8")
