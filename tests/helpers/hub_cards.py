"""What the Hub says of the metadata of a card; for `hub_server.py`."""

import re
from itertools import pairwise
from typing import Any

import yaml

LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown
    unlicense wtfpl zlib
""".split()  # noqa: SIM905
TASKS = """
    any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition depth-estimation
    document-question-answering feature-extraction fill-mask graph-ml image-classification image-feature-extraction
    image-segmentation image-text-to-text image-to-3d image-to-image image-to-text image-to-video keypoint-detection
    mask-generation multiple-choice object-detection other question-answering reinforcement-learning robotics
    sentence-similarity summarization table-question-answering table-to-text tabular-classification
    tabular-regression tabular-to-text text-classification text-generation text-ranking text-retrieval text-to-3d
    text-to-audio text-to-image text-to-speech text-to-video time-series-forecasting token-classification
    translation unconditional-image-generation video-classification video-text-to-text video-to-video
    visual-document-retrieval visual-question-answering voice-activity-detection zero-shot-classification
    zero-shot-image-classification zero-shot-object-detection
""".split()  # noqa: SIM905
_POWERS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
SIZES = ["n<1K", *(f"{a}<n<{b}" for a, b in pairwise(_POWERS)), "n>1T"]


def check_card(content: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a card's metadata."""
    block = re.match(r"\A---[ \t]*\r?\n(.*?)(?:^---[ \t]*$|\Z)", content, re.DOTALL | re.MULTILINE)
    if block is None or not block[1].strip():
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        card = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {' '.join(str(error).split())}"], []
    if not isinstance(card, dict):
        return ["YAML Metadata Error: the metadata must be a mapping"], []
    errors, warned = [], []

    def names(key: str) -> list[Any]:
        value = card.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        errors.extend(f'"{key}" must be a string, or a list of strings' for v in values if not isinstance(v, str))
        return [v for v in values if isinstance(v, str)]

    for key in ("tags", "language", "datasets", "base_model", "metrics", "pretty_name", "source_datasets"):
        names(key)
    errors += [
        f'"license" must be one of {", ".join(LICENSES)}; got {v}' for v in names("license") if v not in LICENSES
    ]
    errors += [
        f'"size_categories" must be one of {", ".join(SIZES)}; got {v}'
        for v in names("size_categories")
        if v not in SIZES
    ]
    tasks = [(key, v) for key in ("task_categories", "pipeline_tag") for v in names(key) if v not in TASKS]
    warned += [f'The {key} "{v}" is not in the official list: {", ".join(TASKS)}' for key, v in tasks]
    if repo_type == "dataset":
        errors += _config_errors(card.get("configs", []))
    else:
        errors += _index_errors(card.get("model-index", []))
    return errors, warned


def _config_errors(configs: Any) -> list[str]:
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        return ['"configs" must be a list of mappings']
    errors = []
    for config in configs:
        files = config.get("data_files", [])
        files = files if isinstance(files, list) else [files]
        if not isinstance(config.get("config_name"), str):
            errors.append('"configs" must each have a "config_name"')
        for entry in files:
            path = entry.get("path") if isinstance(entry, dict) and isinstance(entry.get("split"), str) else entry
            if not all(isinstance(part, str) for part in (path if isinstance(path, list) and path else [path])):
                errors.append('"configs.data_files" must be paths, or a list with a "split" and a "path" each')
    called = [config.get("config_name") for config in configs]
    if len(set(map(str, called))) < len(called) or sum(config.get("default") is True for config in configs) > 1:
        errors.append('"configs" must have different names, and at most one default')
    return errors


def _index_errors(index: Any) -> list[str]:
    wrong = ['"model-index" must be a list of a "name" and "results" with a task, a dataset and metrics']
    if not isinstance(index, list):
        return wrong
    for model in index:
        results = model.get("results") if isinstance(model, dict) and isinstance(model.get("name"), str) else None
        if not isinstance(results, list):
            return wrong
        for result in results:
            parts = [result.get(key) if isinstance(result, dict) else None for key in ("task", "dataset")]
            metrics = (result.get("metrics") if isinstance(result, dict) else None) or [None]
            if not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in [*parts, *metrics]):
                return wrong
            if not isinstance(parts[1].get("name"), str) or not all("value" in metric for metric in metrics):
                return wrong
    return []
