"""`Method`: what every method is, whatever makes its images: a paper, a config, what it learns from, an evaluation.

hd.TESLA.distill(train, ipc=10)                 from Python: find or train what the method needs, then run it
TESLA.prepare(train, test, config=...).run()    what a recipe does, and `distill` too
"""

import dataclasses
import json
import logging
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import nn
from typing_extensions import Self

from ..config import ALL, DataArguments, DistillConfig, OptimizedConfig, check_choice
from ..data.images import Outline, RealImages
from ..data.outlines import Outlines, outlines_of
from ..distilled.distilled_set import DistilledSet
from ..evaluation.evaluate import LOGITS, evaluate
from ..evaluation.protocols import PROTOCOLS, ProbeProtocol, TrainingProtocol
from ..hub.cards import Paper
from ..hub.files import load_json, package_versions
from ..hub.making import Making, Work, add_up
from ..hub.results import EvalReport
from ..networks.architectures import StudentSpec
from ..networks.teachers import Teacher
from ..networks.trajectories import ExpertTrajectories
from ..runs.callbacks import Callback, Callbacks, ProgressBar, Trackers
from ..runs.checkpoints import ARTIFACT_FILE
from ..runs.finish import DistillationDiverged
from ..runs.folder import describe_images
from ..runs.frames import Frames
from ..runs.held_out import say_held_out, say_learned_from
from ..runs.processes import make_accelerator, on_main
from ..runs.rehearsal import Elsewhere, Ledger, Stage, unseen
from ..runs.settings import nearest_preset, other_images, settings_of
from ..runs.start import start_run
from ..training.teachers import TeacherConfig, rehearse_teacher, untrained_teachers
from .foreseeing import foresee
from .plan import Machine, Plan

__all__ = ["FREE_TO_CHANGE", "DistillationDiverged", "Method", "Preparation"]

logger = logging.getLogger(__name__)

# What may differ between a run and its continuation without a word: it changes no update.
FREE_TO_CHANGE = {
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "save_frames",
    "report_to",
    "disable_tqdm",
    "eval_also",
    "cpu_threads",
    "cudnn_deterministic",
    "max_steps",
}


def _check_images(train: RealImages, test: RealImages | None, held_out: RealImages | None) -> None:
    """Raise a one-line `ValueError` unless these are images, of the same size and classes."""
    if not isinstance(train, RealImages):
        raise ValueError(f"train is a {type(train).__name__}; expected such as RealImages.from_dataset(...)")
    for name, images in (("test", test), ("held_out", held_out)):
        if images is not None:
            train.check_alike(images, name)


def _cuts_crops(settings: Any) -> bool:
    return getattr(settings, "teacher_augment", None) == "rrc"


def warn_of_keeping(train: RealImages, used: bool) -> None:
    """Warn where images are kept at their own shapes, unless random crops are cut out of them."""
    if train.keep_side is not None and not used:
        logger.warning(
            "nothing here cuts random crops out of images, so keep_side=%s changes nothing; it is for RDED, HeLlO, "
            "FADRM and --teacher_augment rrc",
            train.keep_side,
        )


def _warn_of_frame(teacher: Teacher, train: RealImages) -> None:
    """Warn where test images are framed in another way than those of the teacher, as far as it says."""
    frame, here = teacher.test_frame, train.test_frame
    smallest = min(train.shape[1:])
    same = (frame.side or smallest, frame.interpolation) == (here.side or smallest, here.interpolation)
    if teacher.config.get("test_frame") and train.resized and not same:
        logger.warning(
            "test images of the teacher %s (%s) had a shorter side of %s pixels (%s) before the crop, and here "
            "they have %s (%s); its figures are of resize=%s, interpolation=%r",
            *(teacher.name, teacher.digest, frame.side or smallest, frame.interpolation),
            *(here.side or smallest, here.interpolation, frame.side, frame.interpolation),
        )


def _images_learned_from(learned: dict[str, Any]) -> dict[str, int]:
    """How many images the experts and the teachers among `learned` were trained on, as far as they say."""
    networks = [each for value in learned.values() for each in (value if isinstance(value, list) else [value])]
    counts = {}
    for network in networks:
        if isinstance(network, ExpertTrajectories | Teacher):
            count = (network.config.get("training") or {}).get("num_images")
            if isinstance(count, int):
                counts["the experts" if isinstance(network, ExpertTrajectories) else "a teacher"] = count
    return counts


@dataclass(frozen=True)
class Preparation:
    """All that `Method.learn` has to find or train networks with.

    Example:
        >>> having = hd.Preparation(train, test, hd.TESLAConfig(seed=3), [hd.ExpertConfig()], accelerator=None)
        >>> having.options["seed"]
        3

    Attributes:
        train: The images to distil.
        test: Images to report the accuracy of networks on.
        config: The hyper-parameters of the method.
        networks: One instance of each class of the method's `learns_from`, in order.
        accelerator: Processes and device.
        callbacks: What looks on while networks are trained.
    """

    train: RealImages
    test: RealImages | None
    config: DistillConfig
    networks: Sequence[Any]
    accelerator: Accelerator
    callbacks: Sequence[Callback] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that all training takes."""
        return {
            "seed": self.config.seed,
            "accelerator": self.accelerator,
            "disable_tqdm": self.config.disable_tqdm,
            "callbacks": self.callbacks,
        }


class Method(ABC):
    """A way to make a small set out of a large one.

    A subclass names its `paper`, its `config_class` and, where it learns from other networks, the settings of their
    training in `learns_from`, and gives `learn`. What makes the images is the business of `Distiller` (a loop over the
    whole set) and of `BlockDistiller` (blocks that know nothing of each other); one that fits neither gives `run`.

    All methods are constructed alike: `Method(config, train, **learned, test=..., held_out=..., ...)`, where `learned`
    is what `learn` returns (nothing, experts, teachers, a prior). `prepare` does both, `distill` everything.

    Example:
        >>> for method in (hd.TESLA, hd.SRe2L, hd.DM):
        ...     print(method.__name__, method.paper.year, [kind.__name__ for kind in method.learns_from])
        TESLA 2023 ['ExpertConfig']
        SRe2L 2023 ['TeacherConfig']
        DM 2023 []

    Args:
        config: The hyper-parameters; `output_dir` must be given here (`prepare` makes sure).
        train: The images to distil.
        test: Images to report on, for what is trained along with the set; never to choose by.
        held_out: Part of train that nothing else sees, to select on.
        accelerator: Processes, device and trackers; `make_accelerator()` if not given.
        callbacks: What looks on, beside the progress bar and the trackers.

    Attributes:
        labelled_by: The place of the teacher that labels, or scores, among those that are named.
        cuts_crops: Random crops are cut out of images of `train`, which may be kept at their own shapes for that.
        takes_images: As many different images of a class are needed as are made; baselines always need them.
        uncompiled: What of making the images the launcher's --dynamo_backend does not reach, in words, if anything.
        probes: Its sets are for linear heads on a frozen backbone, and evaluated under protocols of these.
        learns_experts: It learns from trajectories, by which images can be scored.
        saving: Settings that are less memory where they are lower, and no other result, for plans.
        trading: Settings that are less memory where they are lower, and other images.
        experts: These, where it does.
        further_callbacks: Those that were given.
        distilled: The set: from `Distiller.setup` on, or once all blocks are there.
        protocol: How students are trained on the set.

    Raises:
        ValueError: As `check`.
    """

    paper: ClassVar[Paper]
    config_class: ClassVar[type[DistillConfig]]
    learns_from: ClassVar[tuple[type, ...]] = ()
    takes_images: ClassVar[bool] = True
    labelled_by: ClassVar[int] = 0
    cuts_crops: ClassVar[bool] = False
    uncompiled: ClassVar[str | None] = None
    probes: ClassVar[bool] = False
    learns_experts: ClassVar[bool] = False
    saving: ClassVar[tuple[str, ...]] = ()
    trading: ClassVar[tuple[str, ...]] = ()
    experts: ExpertTrajectories | None = None

    def __init__(
        self,
        config: DistillConfig,
        train: RealImages,
        *,
        test: RealImages | None = None,
        held_out: RealImages | None = None,
        accelerator: Accelerator | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if config.output_dir is None:
            raise ValueError(f"{type(self).__name__} needs a config with an output_dir, a folder for its checkpoints")
        self.accelerator = accelerator or make_accelerator()
        self.check(config, train.outline, self.accelerator)
        self.config = config
        self.train, self.test = train, test
        self.held_out = held_out if held_out is not None and len(held_out) else None
        self.protocol = self.protocol_of(config, train)
        self.output_dir = Path(config.output_dir)
        self.further_callbacks = list(callbacks)
        kept = isinstance(config, OptimizedConfig) and config.save_frames
        frames = [Frames(self.output_dir, max(train.shape[1:]))] if kept else []
        self.callbacks = Callbacks([ProgressBar(config.disable_tqdm), self._trackers(), *frames, *callbacks])
        self.distilled: DistilledSet

    @classmethod
    def protocol_of(cls, config: DistillConfig, train: RealImages) -> TrainingProtocol:
        """How students are trained on the set that is made of `train` with such hyper-parameters.

        A method whose images are of several tiles says so here to the protocols that follow the set.
        """
        return PROTOCOLS[config.eval_protocol].for_set(config.ipc, train.num_classes)

    @property
    def device(self) -> torch.device:
        """The device of the synthetic images."""
        return self.accelerator.device

    @property
    def name(self) -> str:
        """The method's name in lower case, as tags and folders have it."""
        return type(self).__name__.lower()

    # From the data to a set

    @classmethod
    def check(
        cls, config: DistillConfig, train: Outline, accelerator: Accelerator, networks: Sequence[Any] = ()
    ) -> None:
        """Raise a one-line `ValueError` for what is known to go wrong before an image is decoded.

        Args:
            config: The hyper-parameters.
            train: What is known of the images to distil.
            accelerator: Processes and device.
            networks: Settings of what the method learns from, where that is still to be found or trained.

        Raises:
            ValueError: A class has fewer images than `ipc`, or the protocol or a baseline is none.
        """
        check_choice("eval_protocol", config.eval_protocol, list(PROTOCOLS))
        for name in config.eval_also:
            check_choice("eval_also", name, list(PROTOCOLS))
        named = {"eval_protocol": [config.eval_protocol], "eval_also": config.eval_also}
        for flag, name in ((flag, name) for flag, names in named.items() for name in names):
            if isinstance(PROTOCOLS[name], ProbeProtocol) != cls.probes:
                kind = ("whole networks", "heads of frozen backbones")
                raise ValueError(
                    f"--{flag} {name} trains {kind[not cls.probes]}, and sets of {cls.__name__} are for "
                    f"{kind[cls.probes]}; expected another protocol"
                )
        cls._check_method(config)
        cls._check_baselines(config, experts=cls.learns_experts, network=bool(cls.learns_from) and not cls.probes)
        if cls.takes_images or config.eval_baselines:
            needed = [config.ipc] * train.num_classes
            train.require(needed, f"--ipc is {config.ipc}", "lower --ipc, or choose --classes")

    @classmethod
    def _check_baselines(cls, config: DistillConfig, *, experts: bool, network: bool) -> None:
        """Raise a `ValueError` for a baseline that nothing can choose.

        Args:
            config: The hyper-parameters.
            experts: There are some that know an image alone.
            network: So does a network that is there without full data.
        """
        if ALL in config.eval_baselines:  # that can be made
            return
        lost = "experts with BatchNorm lack its statistics" if cls.learns_experts else None
        if "forgetting" in config.eval_baselines and not experts:
            raise ValueError(
                "--eval_baselines has forgetting, which needs the epochs of experts, and "
                f"{lost or f'{cls.__name__} learns from none'}; leave it out, or give all"
            )
        for name in config.eval_baselines:
            if name in LOGITS and not (network or config.eval_full_data):
                raise ValueError(
                    f"--eval_baselines has {name}, which needs a network that knows such images, and without "
                    f"--eval_full_data {lost or f'{cls.__name__} has none'}; give --eval_full_data true, or leave "
                    f"{name} out"
                )

    @classmethod
    def _check_method(cls, config: DistillConfig) -> None:
        """Raise a `ValueError` where the folder of a run that is to go on holds the set of another method."""
        if config.resume_from_checkpoint and config.output_dir is not None:
            index = Path(config.output_dir) / ARTIFACT_FILE
            was, name = load_json(index).get("method") if index.is_file() else None, cls.__name__.lower()
            if was not in (None, name):
                raise ValueError(
                    f"--output_dir {config.output_dir} is of another run: its method is {was} and here it is {name}; "
                    "use another folder"
                )

    @classmethod
    def chosen_by_held_out(cls, config: DistillConfig) -> list[str]:
        """What a run chooses by held-out images, in words that follow "to"; nothing, where all is settled."""
        several = len(PROTOCOLS[config.eval_protocol].lrs) > 1
        return ["choose the learning rates of the final table"] if several else []

    @classmethod
    def learn(cls, having: Preparation) -> dict[str, Any]:
        """The keyword arguments that the constructor has for what the method learns from, found or trained.

        All processes call it. A method that learns from the images alone gives none.
        """
        return {}

    @classmethod
    def prepare(
        cls,
        train: RealImages,
        test: RealImages | None = None,
        *,
        config: DistillConfig,
        networks: Sequence[Any] = (),
        held_out: RealImages | None = None,
        accelerator: Accelerator | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Self:
        """The method, ready to `run`: finds or trains what it learns from. All processes call it.

        Args:
            train: The images to distil, without those that are held out.
            test: Images to report on.
            config: The hyper-parameters.
            networks: Settings of what it learns from: instances of classes in `learns_from`; defaults for those absent.
            held_out: Part of train to select on.
            accelerator: Processes, device and trackers.
            callbacks: What looks on.

        Raises:
            ValueError: As `check`; or what the method learns from is absent, or of other images.
            OSError: It cannot be fetched or written.
        """
        accelerator = accelerator or make_accelerator()
        _check_images(train, test, held_out)
        if not isinstance(config, cls.config_class):
            raise ValueError(f"config is a {type(config).__name__}; {cls.__name__} takes a {cls.config_class.__name__}")
        for settings in networks:
            if not isinstance(settings, cls.learns_from):
                kinds = ", ".join(kind.__name__ for kind in cls.learns_from) or "none"
                raise ValueError(f"networks has a {type(settings).__name__}; {cls.__name__} learns from {kinds}")
        given = {type(settings): settings for settings in networks}
        complete = [given[kind] if kind in given else kind() for kind in cls.learns_from]
        cls.check(config, train.outline, accelerator, complete)
        say_held_out(train, held_out, cls.chosen_by_held_out(config))
        warn_of_keeping(train, cls.cuts_crops or any(map(_cuts_crops, complete)))
        learned = cls.learn(Preparation(train, test, config, complete, accelerator, callbacks))
        for what, count in _images_learned_from(learned).items():
            say_learned_from(what, count, train, held_out)
        if learned.get("teachers"):
            _warn_of_frame(learned["teachers"][cls.labelled_by], train)
        return cls(config, train, **learned, test=test, held_out=held_out, accelerator=accelerator, callbacks=callbacks)

    @classmethod
    def distill(
        cls,
        train: RealImages,
        test: RealImages | None = None,
        *,
        preset: str | None = None,
        callbacks: Sequence[Callback] = (),
        accelerator: Accelerator | None = None,
        **settings: Any,
    ) -> DistilledSet:
        """Distil images: everything from experts or teachers to the folder of the finished set. All processes call it.

            train = hd.RealImages.from_dataset(load_dataset("uoft-cs/cifar10", split="train"))
            distilled = hd.TESLA.distill(train, preset="cifar10-ipc10", output_dir="outputs/mine")

        The held-out part of `train` that the best step is selected on is split off here (`validation_fraction`).

        Args:
            train: The images to distil.
            test: Images to report the accuracy of experts or teachers on.
            preset: Name of a YAML file of this method, such as "cifar10-ipc10", or the path of one. Its settings of
                data were for `RealImages`; what differs from the images at hand is logged.
            callbacks: What looks on, also while experts or teachers are trained.
            accelerator: Processes, device and trackers.
            **settings: The flags of the method's recipe, without the dashes: hyper-parameters of the method and of
                what it learns from, `validation_fraction`, `seed`, `output_dir` (a temporary folder if not given),
                `overwrite_output_dir`, `resume_from_checkpoint`.

        Returns:
            The set, which is saved in the folder of the run.

        Raises:
            ValueError: A setting or a preset that there is not, an output folder of another run, or as `prepare`.
            DistillationDiverged: As `run`.
        """
        name = cls.__name__.lower()
        _check_images(train, test, None)
        if isinstance(callbacks, Callback) or not all(isinstance(each, Callback) for each in callbacks):
            raise ValueError("callbacks is no list of callbacks; expected such as [MyCallback()], of hd.Callback")
        if not isinstance(accelerator, Accelerator | None):
            raise ValueError(
                f"accelerator is a {type(accelerator).__name__}; expected accelerate.Accelerator() or none"
            )
        (data, *networks, config), origin = settings_of(
            name, (DataArguments, *cls.learns_from, cls.config_class), preset, settings
        )
        processes = accelerator or make_accelerator(**config.for_processes)
        rest, held_out = train.split(data.validation_fraction, seed=0)
        cls.check(config, rest.outline, processes, networks)  # before a folder is made, or one is emptied
        if config.output_dir is None and config.resume_from_checkpoint is not None:
            raise ValueError("resume_from_checkpoint needs the folder of the run that is to go on; give output_dir")
        if config.output_dir is None:
            folder = on_main(processes, lambda: tempfile.mkdtemp(prefix=f"hf_distill-{name}-"))
            config = dataclasses.replace(config, output_dir=folder)
        with ExitStack() as held:
            config, accelerator = start_run(config, accelerator=accelerator, held=held)
            logger.info("%s %s; its folder is %s", cls.__name__, origin, config.output_dir)
            cls._say_what_is_silent(config, preset, train, other_images(data, train))
            method = cls.prepare(
                rest,
                test,
                config=config,
                networks=networks,
                held_out=held_out,
                accelerator=accelerator,
                callbacks=callbacks,
            )
            distilled = method.run()
            source = distilled.config["source"]
            how = {**source.get("arguments", {}), "validation_fraction": data.validation_fraction}
            distilled.config["source"] = {**source, "arguments": how}  # as a recipe records it: evaluations split alike
            if accelerator.is_main_process:
                distilled.keep_results(method.output_dir)
                distilled.save_pretrained(method.output_dir)
            accelerator.wait_for_everyone()
            return distilled

    @classmethod
    def _say_what_is_silent(
        cls, config: DistillConfig, preset: str | None, train: RealImages, differing: Sequence[str]
    ) -> None:
        """Log what a call does not say: how long students train, and which preset there is, or is for other images."""
        protocol = cls.protocol_of(config, train)
        logger.info("students train for %s epochs (protocol %s)", f"{protocol.epochs:,}", protocol.title)
        if preset is None:
            nearest = nearest_preset(cls.__name__.lower(), train, config.ipc)
            if nearest is not None:
                logger.info("the nearest preset is %s: preset=%r", nearest, nearest)
        elif differing:
            logger.warning("the preset %s is for other images than these: %s", preset, "; ".join(differing))

    # What is known before it begins

    @classmethod
    def fetched(cls, config: DistillConfig, networks: Sequence[Any]) -> list[str]:
        """The networks that are named in place of being trained here: folders and repositories."""
        settings = (config, *networks)
        lists = [vars(each).get("teachers") for each in settings]
        given = [vars(each).get(name) for each in settings for name in ("experts", "backbone", "model_name_or_path")]
        return [*(name for names in lists for name in names or []), *(name for name in given if name is not None)]

    @classmethod
    def decodes(cls, config: Any) -> bool:
        """True where all training images are decoded and kept on the disk, and not a few of them when they are asked
        for."""
        return True

    @classmethod
    def untrained(cls, having: Preparation) -> dict[str, Any]:
        """As `learn`, with networks that nobody has trained, on the meta device."""
        settings = next((each for each in having.networks if isinstance(each, TeacherConfig)), None)
        if settings is None:
            return {}
        return {"teachers": untrained_teachers(vars(having.config).get("teachers"), settings, having.train)}

    @classmethod
    def rehearse_learning(cls, having: Preparation, ledger: Ledger) -> tuple[list[Stage], dict[str, int]]:
        """What the trainings of `learn` hold and compute, and the bytes of what they leave on the disk.

        Here that of a teacher, where none is named.
        """
        settings = next((each for each in having.networks if isinstance(each, TeacherConfig)), None)
        if settings is None or cls.fetched(having.config, ()):
            return [], {}
        return rehearse_teacher(having.train, settings, having.config.seed, having.accelerator, ledger)

    @classmethod
    def shortened(cls, config: Any, train: Outline) -> tuple[Any, float]:
        """Settings whose rehearsal takes as much memory as the run, and how many times the FLOP of it that takes."""
        return config, 1.0

    def rehearse(self, ledger: Ledger, held_out: RealImages, tested: RealImages) -> list[Stage]:
        """Take a few steps on the meta device, where networks and images have no values; `distilled` is there after.

        Returns:
            What they held, and what the whole run computes.

        Raises:
            ValueError: The method has a `run` of its own, and nothing that could be rehearsed.
        """
        raise ValueError(f"{type(self).__name__} has a run of its own, which cannot be planned; expected a `rehearse`")

    def rehearse_comparison(self, ledger: Ledger, held_out: RealImages, tested: RealImages) -> list[Stage]:
        """After `rehearse`, what `evaluate` takes beside the final table."""
        return []

    def foreseen_files(self) -> dict[str, int]:
        """After `rehearse`, the bytes of what the run has on the disk beside the set, by what they are."""
        return {}

    @classmethod
    def plan(
        cls,
        train: RealImages | Outlines | None = None,
        *,
        preset: str | None = None,
        accelerator: Accelerator | None = None,
        machine: Machine | None = None,
        **settings: Any,
    ) -> Plan:
        """Memory, disk, FLOP and hours of `distill` with these settings, before anything is trained or decoded.

            print(hd.TESLA.plan(preset="imagenet1k-64-ipc50"))
            hd.DM.plan(train, ipc=10).peak

        Args:
            train: The images, or their outlines. Without them those that the preset names, as far as they are known
                without being fetched.
            preset: As for `distill`.
            accelerator: Processes and device.
            machine: What there is of memory and disk, and how fast it is; the device at hand, measured, if not given.
            **settings: As for `distill`.

        Raises:
            ValueError: As `distill` before it begins; or nobody knows the images.
        """
        (data, *networks, config), _ = settings_of(
            cls.__name__.lower(), (DataArguments, *cls.learns_from, cls.config_class), preset, settings
        )
        if train is None:
            outlines = outlines_of(data)
        elif isinstance(train, RealImages):
            _check_images(train, None, None)
            outlines = Outlines.of(train, data.validation_fraction)
        else:
            outlines = train
        return cls.foresee(data, config, networks, outlines, accelerator or make_accelerator(), machine)

    @classmethod
    def foresee(
        cls,
        data: DataArguments,
        config: DistillConfig,
        networks: Sequence[Any],
        outlines: Outlines,
        accelerator: Accelerator,
        machine: Machine | None = None,
    ) -> Plan:
        """As `plan`, of settings that are parsed already: what a recipe calls."""
        given = {type(settings): settings for settings in networks}
        complete = [given[kind] if kind in given else kind() for kind in cls.learns_from]
        quiet = {"output_dir": config.output_dir or "outputs", "report_to": "none", "disable_tqdm": True}
        config = dataclasses.replace(config, **quiet)
        having = Preparation(unseen(outlines.train), None, config, complete, Elsewhere(accelerator))
        return foresee(cls, data, having, outlines, accelerator, machine)

    @abstractmethod
    def run(self) -> DistilledSet:
        """The distilled set, from the beginning or from where the run stopped. All processes call it.

        Raises:
            DistillationDiverged: Numbers left what training can use; the message says what is kept, and what to lower.
            ValueError: The folder holds another run, or the checkpoint to resume from is absent or broken.
        """

    def learned_from(self) -> Sequence[ExpertTrajectories | Teacher]:
        """What was found or trained to make the set with, whose making is part of the set's: nothing, for some."""
        return []

    def _making(self, distillation: Work | None) -> Making:
        """What it took to make the set, with what it was made with; of teachers along one training, the last one."""
        trainings: dict[str, Work | None] = {}
        for network in self.learned_from():
            work = add_up(list(network.making.values()))
            training = json.dumps([network.config.get("training"), None if work is None else work.device])
            known = trainings.get(training)
            if known is None or (work is not None and work.steps > known.steps):
                trainings[training] = work
        kind = "experts" if any(isinstance(each, ExpertTrajectories) for each in self.learned_from()) else "teacher"
        names = [kind, *(f"{kind} {number}" for number in range(2, len(trainings) + 1))]
        return {"distillation": distillation, **dict(zip(names, trainings.values(), strict=False))}

    def modules(self) -> dict[str, nn.Module]:
        """Networks that are learned beside the set, by name: none, for most methods.

        A `Distiller` averages their gradients as it does those of the set, keeps their parameters and buffers in
        checkpoints and with the best step, and restores them. They must be on `device` once `setup` is done.
        """
        return {}

    def students(self) -> Sequence[StudentSpec] | None:
        """The students that evaluations of the set train; None for what its configuration says."""
        return None

    def guide(self) -> Teacher | None:
        """The network that coresets compare images by without full data; None for what labels the set."""
        return None

    def evaluate(self, test: RealImages) -> EvalReport:
        """The accuracies on `test` of students of the set and of the baselines. All processes call it."""
        config = self.config
        # It may have to be fetched first.
        guided = not config.eval_full_data and any(name != "random" for name in config.eval_baselines)
        report = evaluate(
            self.distilled,
            self.train,
            test,
            held_out=self.held_out or self.train.subset([]),
            protocol=[self.protocol, *(name for name in config.eval_also if name != config.eval_protocol)],
            students=self.students(),
            num_seeds=config.eval_seeds,
            baselines=config.eval_baselines,
            full_data=config.eval_full_data,
            guide=self.guide() if guided else None,
            experts=self.experts,
            unaugmented=config.eval_unaugmented,
            seed=config.seed,
            accelerator=self.accelerator,
            output_dir=self.output_dir,
            disable_tqdm=config.disable_tqdm,
        )
        self.distilled.report = report
        return report

    # What subclasses share

    def _trackers(self) -> Trackers:
        return Trackers(self.accelerator, self.config)

    def identity(self) -> dict[str, Any]:
        """All that must stay the same in a continued run, beside the config; subclasses add what they learn from."""
        source = self.train.provenance
        about = {"method": self.name, "config": source.get("config"), "split": source.get("split")}
        return {**about, **describe_images(self.train)}

    def _identity(self) -> dict[str, Any]:
        """The identity as a file keeps it."""
        return json.loads(json.dumps(self.identity()))

    def _provenance(self) -> dict[str, Any]:
        """The part of `distill_config.json` that the set does not know by itself."""
        kept = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in FREE_TO_CHANGE or k == "max_steps"}
        return {
            "method": self.name,
            "hyperparameters": kept,
            "versions": package_versions(),
            "source": self.train.provenance,
            "seed": self.config.seed,
            "processes": self.accelerator.num_processes,
            "paper": dataclasses.asdict(self.paper),
        }
