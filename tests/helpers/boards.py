"""Folders of sets as a board reads them: the small files, written by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

HOSTILE = (
    "</script></style></pre><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
    "\" onmouseover=\"window.pwned = 1\" ' autofocus onfocus='window.pwned = 1' {{ 7 * 7 }} javascript:alert(1)"
    "<style>body{display:none}</style>&lt;b&gt;--><!--\u202e"
)


def a_row(kind: str = "distilled", **changes: Any) -> dict[str, Any]:
    """A row of results.json."""
    row = {"set": kind, "labels": "hard", "student": "convnet_d2", "protocol": "quick", "images": 20}
    return {**row, "accuracies": [0.5, 0.6], "device": "cpu", "split": "test", "mean": 0.55, "std": 0.07, **changes}


def a_set(
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    *,
    version: int | None = None,
    scores: list[dict[str, Any]] | None = None,
    differences: list[dict[str, Any]] | None = None,
    labels: list[dict[str, Any]] | None = None,
    later: Any = None,
    card: str = "# A card\n",
    **about: Any,
) -> Path:
    """A folder with the small files of a set of ten classes, in place of what it held; `about` changes its config."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "assets").mkdir(parents=True)
    results = {"data_id": "0a1b2c3d", "rows": rows or [a_row()], "meta": {}, "labels": labels or []}
    results |= {} if version is None else {"version": version}
    results |= {} if scores is None else {"scores": scores, "differences": differences or []}
    config = {"data_id": "0a1b2c3d", "method": "some-method", "images": 20, "ipc": 2, "seed": 7}
    config |= {"class_names": [*"0123456789"], "preprocessing": {"image_size": [8, 8]}}
    config |= {"source": {"name": "digits"}, "label_source": {"kind": "soft"}, "hyperparameters": {"lr_img": 0.1}}
    (folder / "results.json").write_text(json.dumps({**results, "later": later}))
    (folder / "distill_config.json").write_text(json.dumps({**config, **about}))
    (folder / "README.md").write_text(card)
    Image.new("RGB", (60, 30), "teal").save(folder / "assets" / "grid.png")
    return folder
