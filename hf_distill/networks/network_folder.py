"""The parts that folders of networks share: files, rules of the JSON file, preprocessing, metadata of the card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from safetensors.torch import load_file, save

from ..data.preprocessing import Preprocessing
from ..hub.cards import eval_results, source_context, source_datasets
from ..hub.checks import COUNT_OR_NULL, NAMES, OBJECT, OBJECT_OR_NULL, TEXT_OR_NULL, Rules, are_names
from ..hub.files import atomic_write
from ..hub.folder import Home

EVAL_RESULTS = ".eval_results/hf_distill.yaml"  # which version 0.1 wrote; a save removes it
ZCA_FILE = "preprocessing.safetensors"


def _is_licence(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(text, str) for text in texts)


# What is computed with, or put into sentences; the preprocessing says itself what it can be.
RULES: Rules = {
    "class_names": (NAMES, are_names),
    "preprocessing": OBJECT,
    "source": OBJECT,
    "source.name": TEXT_OR_NULL,
    "source.split": TEXT_OR_NULL,
    **dict.fromkeys(("source.num_images", "source.num_corrupt"), COUNT_OR_NULL),
    "source.license": ("a text, a list of texts, or null", _is_licence),
    "results": OBJECT,
    "training": OBJECT_OR_NULL,
    "versions": OBJECT_OR_NULL,
    "device": TEXT_OR_NULL,
    "release": OBJECT_OR_NULL,
}


def read_preprocessing(config: dict[str, Any], path: Path) -> Preprocessing:
    """The preprocessing that `to_config` gave, with its whitening from the file at `path` where it has one.

    Raises:
        ValueError, SafetensorError, OSError: It cannot be, or its file is absent or damaged.
    """
    return Preprocessing.from_config(config, load_file(path) if config.get("zca") else None)


def write_whitening(folder: Path, preprocessing: Preprocessing) -> None:
    """Write the file of the preprocessing's whitening, where it has one."""
    if preprocessing.zca is not None:
        atomic_write(folder / ZCA_FILE, save(preprocessing.tensors()))


def known_accuracies(results: dict[str, Any]) -> dict[str, Any]:
    """The accuracies in `results` by "train" and "test", as far as they are known: a number, or one for each expert."""
    by_split = {split: results.get(f"{split}_accuracy") for split in ("train", "test")}
    return {split: accuracy for split, accuracy in by_split.items() if accuracy not in (None, [])}


def card_metadata(
    source: dict[str, Any], scores: dict[str, float], home: Home, *, library: str, tags: Sequence[str], **more: Any
) -> str:
    """The YAML at the top of a network's card.

    Args:
        source: The dataset that it was made from, as `RealImages.provenance`.
        scores: Accuracies in [0, 1] by split of that dataset.
        home: Where readers find it.
        library: That loads it.
        tags: Beside those that all artifacts have.
        more: Other fields of `ModelCardData`.
    """
    about_source = source_context(source)
    metadata = ModelCardData(
        license=about_source["license"],
        extra_gated_prompt=about_source["gated_note"],
        library_name=library,
        datasets=source_datasets(source),
        tags=["dataset-distillation", *tags, "hf_distill"],
        model_name=Path(home.name).name if scores else None,
        eval_results=eval_results(source, scores) or None,
        **more,
    )
    return metadata.to_yaml()
