"""`ExpertTrajectories`: the parameters of trained experts, one row per epoch, read two rows at a time.

One safetensors file per expert. Its rows are read by position, not mapped: what is asked for is what is read, on a disk
as on a network file system. In a Hub repository a file is fetched when it is first used.
"""

import hashlib
import json
import math
import os
import shutil
import statistics
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from typing_extensions import Self

from ..data.images import Outline, RealImages
from ..data.preprocessing import Preprocessing
from ..hub.cards import render_card, source_context
from ..hub.checks import OBJECT, TEXT_OR_NULL, Rules, check_values, is_share, is_whole
from ..hub.files import SUMS, atomic_write, check_format_version, check_sum, load_json, save_json
from ..hub.folder import Home, HubFolder
from ..hub.making import MAKING
from ..hub.markdown import escaped
from .architectures import FlatModel, StudentSpec
from .network_folder import (
    EVAL_RESULTS,
    RULES,
    ZCA_FILE,
    card_metadata,
    known_accuracies,
    read_preprocessing,
    write_whitening,
)

INDEX = "expert_config.json"
EXPERT_FILE = "expert-{:05d}.safetensors"
FORMAT_VERSION = 1
# Files of version 0.1 may be compact: "anchors" (A, P) is every tenth row, and "deltas" (T + 1 - A, P) float16 are the
# differences of the others to the anchor before them, each over one of "scales" (T + 1 - A,).
ANCHOR_EVERY = 10
DTYPES = {"F32": torch.float32, "F16": torch.float16}
# Of one value: the types that safetensors writes.
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
ITEM_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1}
HEADER_BYTES = 100_000_000  # as safetensors allows
TRAINED = ("student", "class_names", "preprocessing", "training", "imported_from")
SUM, ROW_SUMS = "sum", "row_sums"  # in the metadata: checksums of all else that it says, and of the rows of each tensor
METADATA = "hf_distill"  # the one metadata key: safetensors writes several in an order that changes from run to run


def _are_accuracies(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(is_share, value)))


def _are_curves(value: Any) -> bool:
    """True for a curve for each expert, all of one length: of numbers, or of nulls where nothing is known."""
    if not isinstance(value, list) or not value or not all(isinstance(curve, list) and curve for curve in value):
        return False
    points = [point for curve in value for point in curve]
    known = all(type(point) in (int, float) for point in points)  # the loss of an expert that diverged is no number
    return len(set(map(len, value))) == 1 and (known or points.count(None) == len(points))


INDEX_RULES: Rules = {
    **RULES,
    "student": OBJECT,
    "num_experts": ("a whole number from 1 to 1000000", lambda count: is_whole(count, most=10**6)),
    "num_epochs": ("a whole number from 1 to 1000000", lambda count: is_whole(count, most=10**6)),
    "num_params": ("a whole number from 1", is_whole),
    "results.train_accuracy": ("numbers in [0, 1], or null", _are_accuracies),
    "results.test_accuracy": ("numbers in [0, 1], or null", _are_accuracies),
    "results.epoch_loss": ("a list of numbers for each expert, of one length", _are_curves),
    "test_split": TEXT_OR_NULL,
    "bytes": ("a whole number", lambda count: count is None or is_whole(count, least=0)),
    "imported_from": (
        "an object with files, or null",
        lambda value: value is None or (isinstance(value, dict) and isinstance(value.get("files"), list)),
    ),
}
_LIST = ("a list", lambda value: isinstance(value, list))
_ACCURACY = ("a number in [0, 1], or null", lambda value: value is None or is_share(value))
# What an expert's file says of its training.
ABOUT: Rules = {"loss": _LIST, "accuracy": _LIST, "train_accuracy": _ACCURACY, "test_accuracy": _ACCURACY}


def tensor_file(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> bytes:
    """The content of a file for `TensorFile`: float tensors and JSON types, with checksums of all rows and the rest."""
    about = {**metadata, ROW_SUMS: {name: list(map(_sum, _rows(tensor))) for name, tensor in tensors.items()}}
    return save(tensors, {METADATA: json.dumps({**about, SUM: _sum(about)}, sort_keys=True)})


def _rows(tensor: Tensor) -> Tensor:
    """A vector is one row."""
    return tensor if tensor.ndim > 1 else tensor[None]


def _sum(value: Tensor | dict[str, Any]) -> str:
    """16 hex digits of the values of a tensor, or of JSON types."""
    data = value.numpy() if isinstance(value, Tensor) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


class TensorFile:
    """A safetensors file read by position: only the rows that are asked for, nothing mapped into memory.

    The file may be replaced by a longer one meanwhile (experts that are trained for longer): its header is then read
    again. Rows are checked as they are read, unless the file is of version 0.1, which has no checksums.

    Raises:
        ValueError: The file is no safetensors file, shorter or longer than its header says, or not what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._read_header(file)

    def _read_header(self, file: BinaryIO) -> None:
        path, size = self.path, os.fstat(file.fileno()).st_size
        self._version = _version(file)
        self._start = 8 + int.from_bytes(file.read(8), "little")
        if self._start > min(size, 8 + HEADER_BYTES):
            raise ValueError(f"{path} is truncated or no safetensors file; fetch or train it again")
        try:
            header = json.loads(file.read(self._start - 8))
            self.metadata: dict[str, Any] = json.loads(header.pop("__metadata__", {}).get(METADATA, "{}"))
            end = 0
            for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
                begin, stop = entry["data_offsets"]
                numbers = (begin, stop, *entry["shape"])
                length = math.prod(entry["shape"]) * ITEM_BYTES[entry["dtype"]]
                if not all(is_whole(number, least=0) for number in numbers) or begin != end or stop - begin != length:
                    raise ValueError("its tensors do not lie one after another")
                end = stop
            if not isinstance(self.metadata, dict):
                raise ValueError("its metadata is no JSON object")
            own = self.metadata.pop(SUM, None)
            if own not in (None, _sum(self.metadata)):
                raise ValueError("its metadata has another checksum")
            self._sums: dict[str, list[str]] = self.metadata.pop(ROW_SUMS, {})
            if not isinstance(self._sums, dict) or not all(isinstance(sums, list) for sums in self._sums.values()):
                raise ValueError("its checksums are no lists by tensor")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} has a damaged header; fetch or train it again") from error
        self._tensors = header
        expected = self._start + end
        if size != expected:
            raise ValueError(f"{path} is truncated: {size} bytes, and its header says {expected}; fetch it again")

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._tensors:
            raise ValueError(f"{self.path} holds no tensor {name!r}; it was not written by train_experts")
        return tuple(self._tensors[name]["shape"])

    def read(self, name: str, row: int | None = None) -> Tensor:
        """The tensor `name`, or only its row number `row`, as a fresh CPU tensor of the stored dtype."""
        # Unbuffered: a buffered file reads whole blocks around each row.
        with self.path.open("rb", buffering=0) as file:
            if _version(file) != self._version:
                self._read_header(file)
            shape = self.shape(name) if row is None else self.shape(name)[1:]
            dtype = DTYPES.get(self._tensors[name]["dtype"])
            if dtype is None:
                raise ValueError(
                    f"{self.path} has {name} as {self._tensors[name]['dtype']}; expected one of {', '.join(DTYPES)}"
                )
            buffer = bytearray(math.prod(shape) * dtype.itemsize)
            file.seek(self._start + self._tensors[name]["data_offsets"][0] + (row or 0) * len(buffer))
            if file.readinto(buffer) != len(buffer):
                raise ValueError(f"{self.path} became shorter while it was in use; fetch or train it again")
        tensor = torch.frombuffer(buffer, dtype=dtype).view(shape)
        if name in self._sums:
            read = _rows(tensor) if row is None else [tensor]
            if list(map(_sum, read)) != (self._sums[name] if row is None else self._sums[name][row : row + 1]):
                raise ValueError(f"{self.path} is damaged: {name} has another checksum; fetch or train it again")
        return tensor


def _version(file: BinaryIO) -> tuple[int, int, int]:
    """Inode, size and time, which tell a file from the one that takes its name."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


class ExpertTrajectories(HubFolder):
    """Trained experts, read lazily: a segment costs two rows of one file, and a file is fetched when it is first used.

        experts = ExpertTrajectories.from_pretrained("outputs/experts")
        theta_start, theta_target = experts.segment(expert=0, start=3, length=2)
        logits = experts.flat_model()(theta_target, images)

    Example:
        >>> net = hd.ExpertConfig(student="convnet_d1", student_width=4, num_experts=1, dsa_strategy="none")
        >>> experts = hd.train_experts(train, net, "experts", epochs=2, disable_tqdm=True)
        >>> start, target = experts.segment(0, 0, 2)
        >>> experts.num_epochs, start.shape == target.shape == (experts.num_params,)
        (2, True)

    Attributes:
        folder: Where the files are, or come to be.
        config: The content of `expert_config.json`.
        spec: The architecture; a row is its parameters, flattened in the order of `named_parameters()`.
        class_names: Names of the logits, in order.
        num_experts: Trajectories.
        num_epochs: Epochs of each; row 0 is the initialisation, row `num_epochs` the last.
        num_params: P, the length of a row.
    """

    repo_type = "model"
    config_name = INDEX
    owned = ("README.md", SUMS, MAKING, INDEX, ZCA_FILE, EVAL_RESULTS, "expert-[0-9]*.safetensors")
    fetched = (INDEX,)
    # Files of experts have checksums of their own, for they may get longer.
    unsummed = ("README.md", MAKING, EVAL_RESULTS, "expert-[0-9]*.safetensors")
    loader = "ExpertTrajectories.from_pretrained"

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.release = folder, config.get("release")
        self.config = {key: value for key, value in config.items() if key != "release"}
        self._limits = ""
        self._files: dict[int, TensorFile] = {}
        try:
            self.spec = StudentSpec.from_dict(config["student"])
            self.class_names: list[str] = config["class_names"]
            self.num_experts: int = config["num_experts"]
            self.num_epochs: int = config["num_epochs"]
            self.num_params: int = config["num_params"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / INDEX} lacks {error}; it was not written by train_experts") from error

    @classmethod
    def _read(cls, folder: Path) -> Self:
        path = folder / INDEX
        config = load_json(path)
        check_format_version(path, config, FORMAT_VERSION)
        check_values(path, config, INDEX_RULES)
        if None in config["results"]["epoch_loss"][0] and config.get("imported_from") is None:
            raise ValueError(f"{path} has no losses, and no imported_from that says why; train or import it again")
        try:
            experts = cls(folder, config)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); fetch it or train the experts again") from error
        if experts.spec.num_classes != len(experts.class_names):
            raise ValueError(
                f"{path} speaks of {len(experts.class_names)} classes and of a network for {experts.spec.num_classes}"
            )
        return experts

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if path.is_file():
            return path
        if self.origin is None:
            raise ValueError(f"{self.folder} lacks {name}, which its {INDEX} names; train it again or copy it there")
        return self.origin.fetch(name)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the images that the experts saw."""
        config = self.config["preprocessing"]
        path = self._path(ZCA_FILE) if config.get("zca") else self.folder / INDEX
        check_sum(path, self.sums.get(path.name))
        try:
            return read_preprocessing(config, path)
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is damaged ({reason}); fetch it or train the experts again") from error

    def _file(self, expert: int) -> TensorFile:
        if not 0 <= expert < self.num_experts:
            raise ValueError(f"expert {expert} of {self.folder}; expected 0 to {self.num_experts - 1}")
        if expert not in self._files:
            file = TensorFile(self._path(EXPERT_FILE.format(expert)))
            blocks = [file.shape(name) for name in (("anchors", "deltas") if "anchors" in file else ("params",))]
            if any(len(block) != 2 or block[1] != blocks[0][1] for block in blocks):
                raise ValueError(f"{file.path} holds tensors of shape {blocks}; expected matrices with a row per epoch")
            stored = sum(block[0] for block in blocks), blocks[0][1]
            if "anchors" in file:
                anchors = (stored[0] - 1) // ANCHOR_EVERY + 1
                if blocks[0][0] != anchors or file.shape("scales") != blocks[1][:1]:
                    raise ValueError(
                        f"{file.path} holds {blocks[0][0]} anchors and scales {file.shape('scales')} for {stored[0]} "
                        f"rows; expected {anchors} anchors and a scale for each other row"
                    )
            if stored[0] <= self.num_epochs or stored[1] != self.num_params:
                raise ValueError(
                    f"{file.path} holds {stored[0]} rows of {stored[1]} parameters, and {INDEX} speaks of "
                    f"{self.num_epochs + 1} rows of {self.num_params}; the folder mixes two trainings"
                )
            self._files[expert] = file
        return self._files[expert]

    def _rows(self, expert: int, epochs: Sequence[int]) -> list[Tensor]:
        file = self._file(expert)
        for epoch in epochs:
            if not 0 <= epoch <= self.num_epochs:
                raise ValueError(f"epoch {epoch} of expert {expert} is not stored; expected 0 to {self.num_epochs}")
        if "params" in file:
            return [file.read("params", epoch) for epoch in epochs]
        anchors = {number: file.read("anchors", number) for number in {epoch // ANCHOR_EVERY for epoch in epochs}}
        rows = []
        for epoch in epochs:
            number, beyond = divmod(epoch, ANCHOR_EVERY)
            row = anchors[number].clone()
            if beyond:
                delta = epoch - number - 1
                row += file.read("deltas", delta).float() * file.read("scales", delta)
            rows.append(row)
        return rows

    def row(self, expert: int, epoch: int) -> Tensor:
        """Parameters (P,) float32 of `expert` after `epoch` epochs, on the CPU, in fresh memory.

        Raises:
            ValueError: There is no such expert or epoch, or its file is missing or damaged.
        """
        return self._rows(expert, [epoch])[0]

    def __repr__(self) -> str:
        return f"ExpertTrajectories({self.num_experts} experts of {self.num_epochs} epochs, {self.spec.name})"

    def segment(self, expert: int, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Parameters (P,) of `expert` after `start` and after `start + length` epochs: two rows are read.

        Raises:
            ValueError: As `row`, or `length` is below 1.
        """
        if length < 1:
            raise ValueError(f"a segment of {length} epochs; expected at least 1")
        theta_start, theta_target = self._rows(expert, [start, start + length])
        return theta_start, theta_target

    def limited(self, num_experts: int, num_epochs: int) -> Self:
        """The first `num_experts` experts up to epoch `num_epochs`: a view, without accuracies of later epochs.

        An expert may hold more epochs than all of them do.

        Raises:
            ValueError: There are fewer experts or epochs.
        """
        if not (1 <= num_experts <= self.num_experts and num_epochs >= 1):
            raise ValueError(
                f"{num_experts} experts x {num_epochs} epochs of {self.folder}; expected 1 to {self.num_experts} "
                "experts and at least 1 epoch"
            )
        files = [TensorFile(self._path(EXPERT_FILE.format(expert))) for expert in range(num_experts)]
        for file in files:
            check_values(file.path, file.metadata, ABOUT)
        training = [file.metadata for file in files]
        stored = {len(metadata["loss"]) for metadata in training}
        if min(stored) < num_epochs:
            raise ValueError(
                f"the experts in {self.folder} hold {min(stored)} epochs, and {num_epochs} were asked for; "
                "ask for fewer, or train them for longer"
            )
        results: dict[str, Any] = {}
        for split in ("train", "test"):
            accuracies = [metadata[f"{split}_accuracy"] for metadata in training]
            results[f"{split}_accuracy"] = accuracies if stored == {num_epochs} and None not in accuracies else None
        for name in ("loss", "accuracy"):
            results[f"epoch_{name}"] = [metadata[name][:num_epochs] for metadata in training]
        results["experts_at_once"] = [metadata.get("experts_at_once") for metadata in training]
        size = sum(file.path.stat().st_size for file in files)
        changes = {"num_experts": num_experts, "num_epochs": num_epochs, "results": results, "bytes": size}
        view = type(self)(self.folder, {**self.config, **changes})
        view.origin, view.sums = self.origin, self.sums
        own = [f"expert {number}" for number in range(num_experts)]
        view.making = {name: self.making[name] for name in own if name in self.making}
        if (num_experts, num_epochs) != (self.num_experts, self.num_epochs):
            view._limits = f".limited({num_experts}, {num_epochs})"
        return view

    @property
    def load_call(self) -> str:
        """The one call that gives these experts."""
        where = Home(str(self.folder)) if self.origin is None else Home(self.origin.repo_id, self.origin.revision)
        return f"{self.loader}({where.arguments()}){self._limits}"

    def summary(self) -> str:
        """One line: how many experts of which network, and how accurate they are where that is known."""
        accuracies = [
            f"{split} accuracy {_percent(values)} %"
            for split, values in known_accuracies(self.config["results"]).items()
        ]
        what = f"{self.num_experts} experts x {self.num_epochs} epochs of {self.spec.name}"
        what += f" ({self.config['num_params']:,} parameters)"
        return f"{what}: {', '.join(accuracies)}" if accuracies else what

    def flat_model(self) -> FlatModel:
        """The network that a row holds the parameters of.

        Raises:
            ValueError: The network that this version of timm builds has another number of parameters.
        """
        expected = self.spec.num_params()  # first, for an index can claim any size
        if expected != self.num_params:
            raise ValueError(
                f"the experts in {self.folder} have {self.num_params} parameters, and {self.spec} has "
                f"{expected}; use the versions named in their {INDEX}"
            )
        return FlatModel.from_spec(self.spec)

    def check_matches(self, real: Outline | RealImages, spec: StudentSpec | None = None) -> None:
        """Raise one `ValueError` that says what differs, unless these experts are for `real` (and for `spec`).

        Of an outline the preprocessing is not known yet.
        """
        pairs = [
            ("classes", len(self.class_names), real.num_classes),
            *[("class", *names) for names in zip(self.class_names, real.class_names, strict=False)],
            ("images (channels, height, width)", (self.spec.in_chans, *self.spec.img_size), tuple(real.shape)),
            ("network", self.spec, spec or self.spec),
        ]
        if isinstance(real, RealImages):
            pairs.append(("preprocessing", self.config["preprocessing"], real.preprocessing.to_config()))
        for what, theirs, ours in pairs:
            if theirs != ours:
                raise ValueError(
                    f"the experts in {self.folder} are for {what} {theirs}, and this run has {ours}; "
                    "use other experts, or the data and student they were trained for"
                )

    def _write(self, folder: Path, home: Home) -> None:
        for expert in range(self.num_experts):
            path = self._path(EXPERT_FILE.format(expert)).resolve()  # a cache holds links
            entry = folder / EXPERT_FILE.format(expert)
            try:
                # What is only to be read and uploaded may lie anywhere.
                os.symlink(path, entry) if home.on_hub else os.link(path, entry)
            except OSError:  # another file system, or one without links
                shutil.copy2(path, entry)
        self._write_about(folder, self.preprocessing, home)

    def _card(self, home: Home) -> str:
        source, results = self.config["source"], self.config["results"]
        by_split = known_accuracies(results)
        scores = self._by_split({split: statistics.fmean(accuracies) for split, accuracies in by_split.items()})
        tags = ("expert-trajectories", "image-classification")
        lines = []
        if results["train_accuracy"]:
            lines = ["| split | accuracy in %, mean ± standard deviation | experts |", "| --- | ---: | ---: |"]
        for split, accuracies in by_split.items():
            lines.append(f"| {split} | {_percent(accuracies)} | {len(accuracies)} |")
        lines.append("")
        if None in results["epoch_loss"][0]:  # imported
            files = self.config["imported_from"]["files"]
            lines.append(
                f"Imported from {len(files):,} file(s); the losses and the machine of their training are unknown."
            )
        else:
            losses = [statistics.fmean(each) for each in zip(*results["epoch_loss"], strict=True)]
            lines += [
                f"Mean augmented training loss: {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last.",
                f"Trained and measured on: {escaped(self.config['device'])}.",
            ]
        return render_card(
            "experts.md",
            metadata=card_metadata(source, scores, home, library="hf_distill", tags=tags),
            call=home.arguments(),
            config=self.config,
            bytes=self.config["bytes"],
            results="\n".join(lines),
            **source_context(source),
        )

    def _by_split(self, scores: dict[str, float]) -> dict[str, float]:
        """Scores of "train" and "test" by the names that these splits have in the source."""
        names = {"train": self.config["source"].get("split"), "test": self.config.get("test_split")}
        return {names[split] or split: score for split, score in scores.items()}

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write the experts into `directory`; see `HubFolder.save_pretrained`.

        Raises:
            ValueError: Also where `directory` holds other experts: their files have the same names, and a folder in
                which some are replaced cannot be told from a whole one.
        """
        index = Path(directory) / INDEX
        if index.is_file():
            there = load_json(index)
            mixed = [key for key in TRAINED if there.get(key) != self.config.get(key)]
            if mixed:
                raise ValueError(f"{directory} holds experts of another {mixed[0]}; give another folder")
        return super().save_pretrained(directory)

    def _write_about(self, folder: Path, preprocessing: Preprocessing, home: Home) -> None:
        write_whitening(folder, preprocessing)
        atomic_write(folder / "README.md", self._card(home))
        save_json(folder / INDEX, {**self.config, **home.to_config()})


def _percent(accuracies: Sequence[float]) -> str:
    """`61.2 ± 3.1`: mean and standard deviation in percent; no deviation for a single expert."""
    spread = f" ± {100 * statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    return f"{100 * statistics.fmean(accuracies):.1f}{spread}"
