"""The benchmark that repeats reports of nothing gained: what it counts, and that it goes on."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hf_distill.evaluation import trainer as trainer_module
from tests.helpers import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")


def run(monkeypatch, output: Path, reports: int) -> dict:
    flags = [
        "--num_seeds",
        "3",
        "--epochs",
        "3",
        "--width",
        "4",
        "--max_train_samples",
        "100",
        "--max_test_samples",
        "50",
    ]
    flags += ["--reports", str(reports), "--output_dir", str(output.parent), "--output", str(output), "--disable_tqdm"]
    monkeypatch.setattr(sys, "argv", ["coverage.py", *flags])
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    runpy.run_path(str(ROOT / "benchmarks" / "coverage.py"), run_name="__main__")
    return json.loads(output.read_text())


@pytest.mark.slow
def test_reports_of_random_images_are_counted_by_whether_their_interval_holds_zero(tmp_path, monkeypatch, capsys):
    trained, train = [], trainer_module.train_students

    def counted(*args, seeds, **options):
        trained.append(seeds)
        return train(*args, seeds=seeds, **options)

    monkeypatch.setattr(trainer_module, "train_students", counted)
    two = run(monkeypatch, tmp_path / "two.json", 2)
    first = len(trained)
    three = run(monkeypatch, tmp_path / "three.json", 3)
    assert three["differences"][:2] == two["differences"]
    assert len(trained) - first == first / 2  # of the third report alone
    assert trained[0] == trained[1]  # students of both sets start alike
    assert len({tuple(seeds) for seeds in trained}) == 3
    values = [each["values"] for each in three["differences"]]
    assert len({tuple(each) for each in values}) == 3
    p = [stats.ttest_1samp(each, 0).pvalue if np.std(each) else 1 for each in values]
    assert three["held"] == sum(value > 0.05 for value in p)
    assert f"{three['held']} of 3 intervals" in capsys.readouterr().out
