"""Shards: parts of a set that runs made apart from each other, and the set that they are together."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distilled.distilled_set import DistilledSet
from ..distilled.labels import NetworkLabels
from ..hub.making import add_up

__all__ = ["describe_shard", "join_shards"]

SHARD = "shard"
# What runs of one set may differ in: where they ran and found their teachers, whose weights are compared; how much they
# looked at together; and how the whole is to be evaluated.
SETTINGS = ("segment_size", "memory_budget", "teachers", "experts")
FREE = (SHARD, "processes", *(f"hyperparameters.{name}" for name in SETTINGS))
EVALUATION = "hyperparameters.eval_"


def describe_shard(number: int, count: int, images: int, rows: Tensor) -> dict[str, Any]:
    """The description of a shard for its configuration.

    Args:
        number: Which one, from 1.
        count: How many there are.
        images: Images of the whole set.
        rows: (R,) ascending, where in it those of the shard belong.
    """
    return {"number": number, "count": count, "images": images, "rows": _as_text(rows.tolist())}


def _as_text(rows: Sequence[int]) -> str:
    """Row numbers as `0-4,7`."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and runs[-1][1] == row - 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _rows(about: Any, count: int, path: str | Path) -> list[int]:
    """The rows that a shard says it has."""
    rows: list[int] = []
    text = about.get("rows") if isinstance(about, dict) else None
    if isinstance(text, str) and all(re.fullmatch(r"\d{1,9}(-\d{1,9})?", part) for part in text.split(",")):
        bounds = [[int(bound) for bound in part.split("-")] for part in text.split(",")]
        if sum(part[-1] - part[0] + 1 for part in bounds) == count:
            rows = [row for part in bounds for row in range(part[0], part[-1] + 1)]
    numbers = [about.get(name) if rows else None for name in ("number", "count", "images")]
    whole = all(type(value) is int and value >= 1 for value in numbers)
    if not (whole and numbers[0] <= numbers[1] and max(rows) < numbers[2] and len(set(rows)) == count):
        raise ValueError(f"{path} is no shard of a set; expected the folder of a run with --shard")
    return rows


def _compared(distilled: DistilledSet) -> dict[str, Any]:
    """All that must be the same for two shards to be of one set, part by part."""
    config = distilled.config
    about = {
        "class names": distilled.class_names,
        "preprocessing": distilled.preprocessing.fingerprint(),
        "teacher": distilled.teacher.digest if isinstance(distilled.teacher, NetworkLabels) else None,
        **{key: value for key, value in config.items() if key not in ("hyperparameters", "versions", *FREE)},
        **{f"hyperparameters.{key}": value for key, value in (config.get("hyperparameters") or {}).items()},
        "number of shards": config[SHARD]["count"],
        "number of images": config[SHARD]["images"],
    }
    return {key: value for key, value in about.items() if key not in FREE and not key.startswith(EVALUATION)}


def join_shards(paths: Sequence[str | Path]) -> DistilledSet:
    """The set whose shards are in these folders or repositories, in any order: as one run would have made it.

    Raises:
        ValueError: One of them is no shard, two are not of one set or have a row in common, or one is missing.
    """
    if not paths:
        raise ValueError("there are no shards to join; give the folders of all runs with --shard")
    shards = [DistilledSet.from_pretrained(path) for path in paths]
    places = [_rows(shard.config.get(SHARD), len(shard), path) for shard, path in zip(shards, paths, strict=True)]
    first, expected = shards[0], _compared(shards[0])
    owner: dict[int, str | Path] = {}
    for shard, rows, path in zip(shards, places, paths, strict=True):
        compared = _compared(shard)
        changed = next((key for key in (*expected, *compared) if expected.get(key) != compared.get(key)), None)
        if changed is not None:
            raise ValueError(
                f"{path} and {paths[0]} are of different runs: {changed} is {compared.get(changed)} and "
                f"{expected.get(changed)}; join the shards of one"
            )
        twice = next((row for row in rows if row in owner), None)
        if twice is not None:
            raise ValueError(f"{owner[twice]} and {path} both have image {twice}; give each shard once")
        owner |= dict.fromkeys(rows, path)
    about = first.config[SHARD]
    if len(owner) < about["images"]:
        given = {shard.config[SHARD]["number"] for shard in shards}
        count = about["count"]
        missing = ", ".join(f"{number}/{count}" for number in range(1, count + 1) if number not in given)
        lacking = about["images"] - len(owner)
        raise ValueError(f"{lacking:,} of {about['images']:,} images lack; give the shards {missing} too")
    order = torch.tensor([row for rows in places for row in rows]).argsort()

    def together(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)[order]

    soft = [shard.soft_labels for shard in shards if shard.soft_labels is not None]
    joined = DistilledSet(
        together([shard.pixel_values.detach() for shard in shards]),
        together([shard.labels for shard in shards]),
        first.class_names,
        first.preprocessing,
        soft_labels=together(soft) if len(soft) == len(shards) else None,
        teacher=first.teacher,
        config={key: value for key, value in first.config.items() if key != SHARD},
    )
    if first.making:
        joined.making = {**first.making, "distillation": add_up([each.making.get("distillation") for each in shards])}
    return joined
