"""Configuration: dataclasses whose fields are the command line, and the one parser that fills them.

Each field is documented once, in its `HfArg`. A YAML file gives defaults and the command line wins. A YAML key that no
dataclass has is an error that names the nearest one: a misspelt hyper-parameter must never be ignored.
"""

import argparse
import dataclasses
import difflib
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from transformers.hf_argparser import HfArg, HfArgumentParser, string_to_bool

from .shipped import shipped

__all__ = [
    "BASELINES",
    "DataArguments",
    "DistillConfig",
    "HfArg",
    "HubArguments",
    "LoopConfig",
    "OptimizedConfig",
    "PathArg",
    "ProcessArguments",
    "find_preset",
    "load_yaml",
    "parse_args",
    "presets",
]

INTERPOLATIONS = ("bicubic", "bilinear")
NAMED = 10  # mistakes in one message
MOST_RESIZED = 10  # times the crop that is cut out of them, images may be resized to
# Subsets of the real images that a distilled set is compared with; the first are the usual ones, ALL stands for all.
BASELINES = ("random", "herding", "k-center", "centroid", "neighbour", "el2n", "forgetting", "ccs", "bps")
USUAL, ALL = BASELINES[:3], "all"
LOOKS = 10  # at images on the way, of methods that evaluate nothing there


def check_choice(flag: str, value: str, choices: Sequence[str]) -> None:
    """Raise a `ValueError` that names `flag`, `value` and the `choices` unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"--{flag} is {value!r}; expected one of {', '.join(choices)}")


def check_at_least(flag: str, value: float | None, least: float) -> None:
    """Raise a `ValueError` that names `flag` when `value` is given and below `least`, or no finite number."""
    if value is not None and not (math.isfinite(value) and value >= least):
        raise ValueError(f"--{flag} is {value}; expected at least {least}")


def check_resize(resize: int | None, size: Sequence[int]) -> None:
    """Raise a `ValueError` unless a crop of this height and width fits into images of that shorter side, and is not
    the smallest part of them."""
    if resize is not None and not min(size) <= resize <= MOST_RESIZED * min(size):
        crop = "x".join(map(str, size))
        raise ValueError(
            f"--resize is {resize} and the crop out of it has {crop} pixels; expected {min(size)} to "
            f"{MOST_RESIZED * min(size)}, such as 256 for --resolution 224"
        )


def check_keep_side(side: str | None, size: Sequence[int]) -> None:
    """Raise a `ValueError` where images are kept smaller than the height and width that crops of them get."""
    if side not in (None, "source") and int(str(side)) < min(size):
        raise ValueError(
            f"--keep_side is {side} and crops are brought to {'x'.join(map(str, size))} pixels; expected at least "
            f"{min(size)}, source, or none"
        )


def PathArg(**options: Any) -> Any:
    """As `HfArg`, for a flag that takes files, folders, or repositories: `~` and variables in a value are expanded."""
    return HfArg(**options, metadata={"path": True})


def _expanded(value: str) -> str:
    """A path without `~` and variables; raises what argparse reports where it is empty, or they mean nothing."""
    path = os.path.expanduser(os.path.expandvars(value))
    if not path.strip():
        raise argparse.ArgumentTypeError("it is empty; expected a path, or leave it out")
    if re.match("~|.*[$]([A-Za-z_]|{)", path) and not os.path.lexists(path):
        raise argparse.ArgumentTypeError(f"{value!r} has a variable or a home that there is not; expected a path")
    return path


@dataclass
class DataArguments:
    """Which images to distil, and what to make of them before anything is trained on them.

    Example:
        >>> hd.DataArguments(dataset_name="uoft-cs/cifar10", resolution=[32]).short_name
        'cifar10'
    """

    dataset_name: str | None = PathArg(
        default=None, help="Hub name or local folder that `load_dataset` reads. Without it: scikit-learn's digits."
    )
    dataset_config: str | None = HfArg(default=None, help="Configuration of the dataset, where it has several.")
    dataset_revision: str | None = HfArg(default=None, help="Branch, tag or commit of the dataset repository.")
    dataset_train_split: str = HfArg(default="train", help="Split to distil.")
    dataset_test_split: str | None = HfArg(
        default=None, help="Split to report on. Without it: test, validation, valid or val; if none, a fifth of train."
    )
    dataset_streaming: bool = HfArg(
        default=False, help="Read the source once, as a stream, and keep only the resized pixels on disk."
    )
    image_column_name: str | None = HfArg(default=None, help="Column of the images. Without it: the one image column.")
    label_column_name: str | None = HfArg(default=None, help="Column of the labels. Without it: the one label column.")
    resolution: list[int] | None = HfArg(
        default=None, help="Height and width in pixels (one number: square). Without it: the size that all images have."
    )
    resize: int | None = HfArg(
        default=None,
        help="Shorter side in pixels of test and held-out images before their centre is cut out at the resolution: 256 "
        "for 224 in most published figures. Without it: what a named teacher says, else no more is cut off than must.",
    )
    interpolation: str | None = HfArg(
        default=None,
        help="Filter that resizes all images: bicubic or bilinear. Without it: a named teacher's, or bicubic.",
    )
    keep_side: str | None = HfArg(
        default=None,
        help="Take the random crops of RDED, HeLlO, FADRM and a teacher's rrc from images kept on disk with this "
        "shorter side (pixels; none is enlarged), or from `source`, decoded on demand. Without it: from the resized "
        "centres.",
    )
    color: str = HfArg(default="auto", help="rgb, gray, or auto (gray only when every inspected image is gray).")
    value_range: list[float] | None = HfArg(
        default=None,
        help="Values in the files that become black and white, such as 0 4095 for 12 bits in 16; what lies beyond is "
        "cut off. Without it: all that 8 or 16 bits hold.",
    )
    classes: list[str] | None = HfArg(default=None, help="Names of the classes to keep, in this order.")
    max_train_samples: int | None = HfArg(
        default=None, help="Use only so many training images, evenly from all classes."
    )
    max_test_samples: int | None = HfArg(default=None, help="Use only so many test images, evenly from all classes.")
    normalization: str = HfArg(default="mean_std", help="mean_std, zca (whitening) or none.")
    mean: list[float] | None = HfArg(default=None, help="Mean per channel in [0, 1]; computed from train if not given.")
    std: list[float] | None = HfArg(default=None, help="Deviation per channel in [0, 1]; computed if not given.")
    zca_eps: float = HfArg(default=0.1, help="Added to the eigenvalues of the covariance of [0, 1] pixels by ZCA.")
    validation_fraction: float = HfArg(
        default=0.1,
        help="Part of train held out of everything, to choose the best step and learning rates by, never by test; 0 "
        "for none.",
    )
    skip_corrupt: bool = HfArg(
        default=False, help="Leave images out that cannot be decoded, and count them on the card, in place of an error."
    )
    num_proc: int | None = HfArg(default=None, help="Processes that decode and resize images the first time.")

    def __post_init__(self) -> None:
        check_choice("color", self.color, ("auto", "rgb", "gray"))
        check_choice("normalization", self.normalization, ("mean_std", "zca", "none"))
        if self.resolution is not None and (len(self.resolution) not in (1, 2) or min(self.resolution) < 1):
            raise ValueError(f"--resolution is {self.resolution}; expected one or two positive numbers (height width)")
        if self.interpolation is not None:
            check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_at_least("resize", self.resize, 1)
        if self.resolution is not None:
            check_resize(self.resize, (self.resolution[0], self.resolution[-1]))
        side = self.keep_side
        if side is not None and side != "source" and not (side.isascii() and side.isdecimal() and int(side)):
            raise ValueError(f"--keep_side is {side!r}; expected a number of pixels, such as 384, or source")
        if side is not None and self.dataset_streaming:
            raise ValueError(
                f"--keep_side {side} looks at the images again, and --dataset_streaming reads them once; leave one out"
            )
        if self.resolution is not None:
            check_keep_side(side, (self.resolution[0], self.resolution[-1]))
        span = self.value_range
        if span is not None and not (len(span) == 2 and all(map(math.isfinite, span)) and span[0] < span[1]):
            raise ValueError(f"--value_range is {span}; expected two numbers, the lower one first, such as 0 4095")
        if (self.mean is None) != (self.std is None):
            raise ValueError("--mean and --std go together: give both, or neither to have them computed from train")
        if self.mean is not None and not all(0 <= value <= 1 for value in self.mean):
            raise ValueError(f"--mean is {self.mean}; expected numbers in [0, 1], one for each channel")
        if self.std is not None and (
            len(self.std) != len(self.mean or []) or not all(0 < value < math.inf for value in self.std)
        ):
            raise ValueError(f"--std is {self.std}; expected one positive number for each of the means {self.mean}")
        if self.mean is not None and self.normalization != "mean_std":
            raise ValueError(f"--mean and --std are for --normalization mean_std, and it is {self.normalization!r}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"--validation_fraction is {self.validation_fraction}; expected 0 up to, not including, 1")
        if self.classes is not None and len(self.classes) < 2:
            raise ValueError(f"--classes is {self.classes}; expected at least two names")
        check_at_least("max_train_samples", self.max_train_samples, 1)
        check_at_least("max_test_samples", self.max_test_samples, 1)
        check_at_least("zca_eps", self.zca_eps, 0)

    @property
    def short_name(self) -> str:
        """The dataset's name without its owner or parent folders, for the names of output folders."""
        return "digits" if self.dataset_name is None else Path(self.dataset_name).name


@dataclass
class ProcessArguments:
    """Settings of every recipe: how its processes share the machine."""

    cpu_threads: int | None = HfArg(
        default=None,
        help="CPU threads of each process; the number changes rounding. Without it: OMP_NUM_THREADS, but all cores "
        "shared by the processes where a launcher has set that to 1.",
    )
    cudnn_deterministic: bool = HfArg(
        default=True, help="Ask cuDNN for kernels that give the same bits every time; without, others may be faster."
    )
    tf32: bool | None = HfArg(
        default=None,
        help="Round what float32 networks multiply to TF32 on GPUs that have it, or nothing. Without it: convolutions "
        "alone, as PyTorch does.",
    )

    @property
    def for_processes(self) -> dict[str, Any]:
        """These settings, for `make_accelerator`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(ProcessArguments)}


@dataclass
class DistillConfig(ProcessArguments):
    """Settings of every method: how many images, how they are evaluated, and where to put things."""

    ipc: int = HfArg(default=1, help="Images per class.")
    output_dir: str | None = PathArg(
        default=None, help="Folder of the artifact and checkpoints. Without it: a fresh one under outputs/."
    )
    overwrite_output_dir: bool = HfArg(default=False, help="Replace the run that the output folder holds.")
    resume_from_checkpoint: str | None = PathArg(
        default=None, help="`latest`, or the path of a checkpoint folder. The same command line goes on, bit for bit."
    )
    seed: int = HfArg(default=0, help="The one seed; everything random derives from it.")
    eval_protocol: str = HfArg(default="mtt", help="How students are trained on the set: mtt (the papers'), or quick.")
    eval_also: list[str] = HfArg(
        default_factory=list, help="Further protocols that the final table has rows of; nothing is chosen by them."
    )
    eval_seeds: int = HfArg(default=5, help="Students trained for each line of the final table.")
    eval_full_data: bool = HfArg(default=True, help="Train on all real images too, for the last line of that table.")
    eval_baselines: list[str] = HfArg(
        default_factory=lambda: list(USUAL),
        help="What that table compares with: random, herding, k-center, centroid, neighbour, el2n, forgetting, ccs, "
        "bps; or all that can be made with what the run has. All but random look at every real image.",
    )
    eval_unaugmented: bool = HfArg(
        default=False,
        help="Also train on the set and on random images without augmentation, for the augmentation robust score.",
    )
    report_to: str = HfArg(default="none", help="none, tensorboard, wandb or trackio.")
    disable_tqdm: bool = HfArg(default=False, help="No progress bars.")

    def __post_init__(self) -> None:
        check_choice("report_to", self.report_to, ("none", "tensorboard", "wandb", "trackio"))
        for name in self.eval_baselines:
            check_choice("eval_baselines", name, (*BASELINES, ALL))
        if self.eval_unaugmented and not {"random", ALL} & {*self.eval_baselines}:
            raise ValueError("--eval_unaugmented compares with random images; add random to --eval_baselines")
        check_at_least("ipc", self.ipc, 1)
        check_at_least("eval_seeds", self.eval_seeds, 1)
        check_at_least("seed", self.seed, 0)


@dataclass
class OptimizedConfig(DistillConfig):
    """Settings beside these of methods that optimise their images."""

    init: str = HfArg(default="real", help="Start from real images or from noise.")
    max_steps: int = HfArg(default=5000, help="Distillation iterations.")
    logging_steps: int = HfArg(default=10, help="Iterations between two lines in the trackers.")
    save_frames: int | None = HfArg(
        default=None,
        help="Iterations between two pictures of the images as they form, in frames/ of the output folder, with an "
        "animation of them. Without it: none; trackers show some at evaluations, or ten.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("save_frames", self.save_frames, 1)
        check_choice("init", self.init, ("real", "noise"))
        check_at_least("max_steps", self.max_steps, 0)
        check_at_least("logging_steps", self.logging_steps, 1)

    @property
    def look_steps(self) -> int:
        """Iterations between two looks at the images."""
        return self.save_frames or max(1, self.max_steps // LOOKS)


@dataclass
class LoopConfig(OptimizedConfig):
    """Settings beside these of methods that optimise the whole set at once: how often to look, and what to keep.

    Example:
        >>> hd.LoopConfig(ipc=10).eval_steps
        100
    """

    gradient_accumulation_steps: int = HfArg(
        default=1, help="Gradients averaged by each process before an update; N processes average N times as many."
    )
    save_steps: int = HfArg(default=500, help="Iterations between two checkpoints.")
    save_total_limit: int | None = HfArg(default=2, help="Checkpoints to keep; the oldest go first.")
    eval_steps: int = HfArg(default=100, help="Iterations between two evaluations on the held-out part of train.")
    eval_nets: int = HfArg(default=3, help="Fresh students trained at each such evaluation.")
    select: str = HfArg(
        default="best", help="Keep the best step by held-out accuracy, or the last one: so too if none is held out."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("select", self.select, ("best", "last"))
        for flag in ("gradient_accumulation_steps", "save_steps", "eval_steps", "eval_nets"):
            check_at_least(flag, getattr(self, flag), 1)
        check_at_least("save_total_limit", self.save_total_limit, 1)

    @property
    def look_steps(self) -> int:
        """As of `OptimizedConfig`; at evaluations, unless frames are kept."""
        return self.save_frames or self.eval_steps


@dataclass(repr=False)
class HubArguments:
    """Settings of publishing the result, if it is. Nothing of it is written into an artifact, a checkpoint or a log."""

    push_to_hub: bool = HfArg(default=False, help="Publish the result on the Hub, in one commit.")
    hub_model_id: str | None = HfArg(
        default=None, help="Its repository, owner/name; made if there is none. For images it is a dataset repository."
    )
    hub_tag: str | None = HfArg(default=None, help="Tag of this version, such as v1.0.0; it must be a new one.")
    hub_private_repo: bool = HfArg(default=False, help="Make a repository that only its owners see.")
    hub_overwrite_foreign: bool = HfArg(
        default=False, help="Publish also where the repository holds something else, and replace that."
    )
    hub_token: str | None = HfArg(
        default=None,
        help="Token with the right to write there. Better: HF_TOKEN or `hf auth login`, which no process list shows.",
    )

    def __post_init__(self) -> None:
        if self.hub_model_id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.hub_model_id):
            raise ValueError(f"--hub_model_id is {self.hub_model_id!r}; expected owner/name")
        flags = ("hub_model_id", "hub_tag", "hub_private_repo", "hub_overwrite_foreign")
        given = [flag for flag in flags if getattr(self, flag)]
        if given and not self.push_to_hub:
            raise ValueError(f"--{given[0]} is given without --push_to_hub, so nothing would be published; add it")

    def __repr__(self) -> str:
        return f"HubArguments(push_to_hub={self.push_to_hub}, hub_model_id={self.hub_model_id!r})"


class _TextLoader(yaml.SafeLoader):
    """Reads scalars as the text that stands in the file, for YAML's guess at a type would make 7 of the class `007`.

    Nothing, `null` and `~` without quotes are None.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands there twice", problem_mark=key.start_mark)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file: its scalars as text, or None where there is nothing.

    Raises:
        ValueError: The file is absent, is not YAML, or holds something else than `key: value` lines.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _TextLoader)
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {path} is not UTF-8 text ({error.reason}); expected a YAML file") from error
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} holds a {type(values).__name__}; expected lines of the form `flag: value`")
    return values


def _as_arguments(
    values: dict[str, Any], source: str, known: dict[str, dataclasses.Field[Any]], passed_over: set[str]
) -> list[str]:
    """The command-line words that say what a YAML mapping says."""
    words: list[str] = []
    unknown = [str(key) for key in values if key not in known.keys() | passed_over]
    if unknown:
        raise ValueError(f"{source}: {_unknown('key', {key: repr(key) for key in unknown}, known)}")
    for key, value in values.items():
        if key in passed_over - known.keys():
            continue
        if value is None:
            field = known[key]
            if field.default is not None:
                usual = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
                raise ValueError(f"{source}: {key} is empty; expected a value like {usual!r}")
            continue
        if not isinstance(value, list | tuple):
            words.append(f"--{key}={_as_word(key, value, source)}")
            continue
        items = [_as_word(key, item, source) for item in value]
        for item in items:
            if item.startswith("-") and not _is_number(item):
                raise ValueError(f"{source}: {key} holds {item!r}; expected no value that begins as a flag does")
        words += [f"--{key}", *items]
    return words


def _unknown(kind: str, names: dict[str, str], known: Iterable[str], dashes: str = "") -> str:
    """What is to be said of up to ten keys or arguments that there are not, and are written so, and of near ones."""
    told = []
    for name, written in [*names.items()][:NAMED]:
        (nearest,) = difflib.get_close_matches(name, known, n=1) or ("",)
        meant = f"{dashes}{nearest}" if dashes else repr(nearest)
        told.append(f"unknown {kind} {written}; {f'did you mean {meant}?' if nearest else 'see --help for the flags'}")
    return " ".join(told)


def _as_word(key: str, value: Any, source: str) -> str:
    if value is None or isinstance(value, list | tuple | dict | set | bytes):
        hint = "; write 'null' in quotes to mean the word" if value is None else ""
        raise ValueError(f"{source}: {key} holds {value!r}; expected one value, or a list of single values{hint}")
    return str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def presets(recipe: str) -> dict[str, Path]:
    """The presets that come with `recipes/<recipe>.py`: YAML files by the names that `--config` takes."""
    return {path.stem: path for path in sorted((shipped("recipes") / "configs" / recipe).glob("*.yaml"))}


def find_preset(name: str, recipe: str) -> Path:
    """The YAML file of a preset of `recipes/<recipe>.py`.

    Raises:
        ValueError: There is none of this name; the message says which are near.
    """
    known = presets(recipe)
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"expected one of {', '.join(known)}"
    raise ValueError(f"{recipe} has no preset {name!r}; {hint if known else 'give a YAML file'}")


def _config_file(given: str, recipe: str) -> Path:
    """The file that `--config` means: one that is there, a preset by its name, or by its path in a checkout."""
    path = Path(given)
    documented = shipped("recipes").joinpath(*path.parts[1:])
    if not path.is_file() and path.parts[:1] == ("recipes",) and documented.is_file():
        return documented
    if path.is_file() or path.name != given or path.suffix:
        return path
    try:
        return find_preset(given, recipe)
    except ValueError as error:
        raise ValueError(f"--config is no file, and {error}") from error


class _Parser(HfArgumentParser):
    def __init__(self, config_classes: Sequence[type], presets: Iterable[str], **options: Any) -> None:
        super().__init__(list(config_classes), **options)
        # Until Python 3.14 a number such as -1e3 is taken for a flag, unless it stands behind "=".
        self._negative_number_matcher = re.compile(r"-\.?\d")
        self._presets = list(presets)

    def format_help(self) -> str:
        # Not as an epilog, which is broken at the hyphens of names.
        if not self._presets:
            return super().format_help()
        lines = textwrap.wrap(" ".join(self._presets), 100, break_on_hyphens=False)
        demo = "Without --config and --dataset_name the recipe takes the preset of the digits, not the defaults above."
        return "\n  ".join([f"{super().format_help()}\n{demo}\n\npresets for --config:", *lines]) + "\n"

    def add_argument(self, *names: Any, path: bool = False, **options: Any) -> argparse.Action:
        """As that of `ArgumentParser`; the value of a `path` is expanded, a flag that is true, false or neither may
        stand without one, which means true, and a number that may be absent may be `none`, where a preset has it."""
        kind = options.get("type")
        if kind is string_to_bool:
            options = {"nargs": "?", "const": True, **options}
        elif kind in (int, float) and "nargs" not in options and options.get("default", 0) is None:
            options["type"] = _or_none(kind)
        return super().add_argument(*names, **options | ({"type": _expanded} if path else {}))

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _or_none(kind: type[int] | type[float]) -> Callable[[str], float | None]:
    """What reads a number, or `none`."""

    def read(text: str) -> float | None:
        return None if text.lower() == "none" else kind(text)

    read.__name__ = kind.__name__  # which messages say
    return read


def _parser(config_classes: Sequence[type], presets: Iterable[str] = (), **options: Any) -> _Parser:
    # Without abbreviations a misspelt flag is an error.
    return _Parser(config_classes, presets, allow_abbrev=False, **options)


def _fields(config_classes: Sequence[type]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for config_class in config_classes for field in dataclasses.fields(config_class)}


def configure(*config_classes: type, values: dict[str, Any], source: str) -> tuple[Any, ...]:
    """One instance of each dataclass, from values as a YAML file or keyword arguments have them.

    Args:
        config_classes: Dataclasses with `HfArg` fields; no two share a field name.
        values: By field name.
        source: Where they are from, for messages.

    Raises:
        ValueError: One of them is of no dataclass, of another type than its field, or out of its range.
    """
    parser = _parser(config_classes)
    return parser.parse_args_into_dataclasses(args=_taken(parser, values, source, config_classes))


def _taken(
    parser: _Parser,
    values: dict[str, Any],
    source: str,
    config_classes: Sequence[type],
    passed_over: Sequence[type] = (),
) -> list[str]:
    """The command-line words of a YAML mapping; `parser` takes what no word says for its defaults."""
    empty = _empty(values, config_classes)
    parser.set_defaults(**empty)
    rest = {name: value for name, value in values.items() if name not in empty}
    return _as_arguments(rest, source, _fields(config_classes), set(_fields(passed_over)))


def _empty(values: dict[str, Any], config_classes: Sequence[type]) -> dict[str, Any]:
    """The values that no word of a command line says: None and lists of nothing, of fields that may be these."""
    # Not the types of the fields, which a parser narrows as it reads them.
    hints = {name: hint for config_class in config_classes for name, hint in get_type_hints(config_class).items()}
    known = _fields(config_classes)
    return {
        name: None if value is None else []
        for name, value in values.items()
        if name in known and _is_empty(value, hints[name])
    }


def _is_empty(value: Any, hint: Any) -> bool:
    """True for None where a field may be None, and for a list of nothing where it holds a list."""
    kinds = (hint, *get_args(hint))
    if value is None:
        return type(None) in kinds
    return isinstance(value, list | tuple) and not value and any(get_origin(kind) is list for kind in kinds)


def parse_args(
    *config_classes: type,
    args: Sequence[str] | None = None,
    default_config: str | Path | None = None,
    passed_over: Sequence[type] = (),
) -> tuple[Any, ...]:
    """One instance of each dataclass, from `--config file.yaml` (defaults) and the command line (wins).

    Args:
        config_classes: Dataclasses with `HfArg` fields; no two share a field name.
        args: Words of the command line; those of this process if not given.
        default_config: YAML used when neither `--config` nor `--dataset_name` is given: the recipe's own demo, in the
            folder of its presets.
        passed_over: Dataclasses whose fields a YAML file may name too, for it is another recipe's as well.

    Returns:
        A tuple, one instance per class.

    A mistake by the user ends the process with status 2 and one line on stderr.
    """
    recipe = "this recipe" if default_config is None else Path(default_config).parent.name
    usage = "%(prog)s [--config FILE.yaml or PRESET] [--flag value ...]   (--help)"
    parser = _parser(config_classes, presets(recipe), usage=usage)
    parser.add_argument(
        "--config",
        path=True,
        metavar="FILE.yaml",
        help="YAML file of defaults, or a preset's name; the command line wins.",
    )
    words = list(sys.argv[1:] if args is None else args)
    known = _fields(config_classes)
    try:
        given, _ = parser.parse_known_args(words)
        source: str | Path | None = None if given.config is None else _config_file(given.config, recipe)
        if source is None and default_config is not None and given.dataset_name is None:
            source = default_config
        if source is not None:
            words = _taken(parser, load_yaml(source), str(source), config_classes, passed_over) + words
        *configs, _, unknown = parser.parse_args_into_dataclasses(args=words, return_remaining_strings=True)
        if unknown:
            flags = [word for word in unknown if word.startswith("--")] or unknown
            raise ValueError(
                _unknown("argument", {flag.lstrip("-").split("=")[0]: flag for flag in flags}, known, "--")
            )
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    return tuple(configs)
