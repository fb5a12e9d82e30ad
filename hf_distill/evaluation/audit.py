"""`audit`: is a distilled set a copy of what it was made from, what do its students tell, and how much does it cover?

Three questions, each answered beside what real images give: copies (`copies`), membership (`membership`), coverage and
diversity (`spread`). The answers are JSON types; `hub.audit` puts them into words.
"""

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..data.feed import TEST_BATCH, Pool, upload
from ..data.images import RealImages
from ..data.preprocessing import Preprocessing
from ..distilled.arranging import changes_classes
from ..distilled.distilled_set import DistilledSet
from ..distilled.tables import png
from ..hub.checks import is_number
from ..hub.results import EvalReport
from ..networks.architectures import StudentSpec
from ..networks.batches import images_at_once
from ..networks.projector import LabelProjector
from ..networks.teachers import Teacher
from ..rng import generator
from .audit_picture import audit_picture
from .copies import KEPT, LEVEL, Copies, find_copies
from .coresets import random_rows
from .evaluate import (
    _distilled_cases,
    _guide,
    check_data,
    protocol_for,
    real_pool,
    student_specs,
    tiles_of,
    trainer_for,
)
from .membership import are_confidences, auc, confidence, excess
from .nearest import working
from .protocols import TrainingProtocol
from .spread import coverage, vendi_score
from .students import check_protocol, student_name
from .trainer import Case, Question, Trainer

__all__ = ["audit", "made_of_any"]

LEAST_HELD_OUT = 20
MOST_HELD_OUT, MOST_MEMBERS = 500, 1000  # images that distances, and students, are measured by
MOST_SPREAD = 1000  # images of a set that are compared with each other
DRAWS = 10  # random subsets for coverage and diversity
MOST_SHOWN = 100  # images in results.json with their nearest
SHARES = (0.0, 0.05, 0.25, 0.5)  # of the distances that the table shows

MIDDLE = 127.5  # of a pixel


def audit(
    distilled: DistilledSet,
    train: RealImages,
    test: RealImages,
    *,
    held_out: RealImages | None = None,
    protocol: str | TrainingProtocol | None = None,
    student: str | StudentSpec | None = None,
    num_seeds: int = 5,
    seed: int = 0,
    factor: int | None = None,
    accelerator: Accelerator | None = None,
    guide: Teacher | None = None,
    output_dir: str | Path | None = None,
    disable_tqdm: bool = False,
) -> EvalReport:
    """Look for copies of training images in a set, attack its students, and measure its spread; all processes call it.

    What is found is evidence of copies; finding nothing shows no privacy: see the section that the card gets.

    Example:
        >>> import torch, hf_distill as hd
        >>> train, test = hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=200, max_test_samples=100))
        >>> rows = torch.cat([train.class_rows(label)[:1] for label in range(10)])
        >>> copied = hd.DistilledSet(train.uint8(rows), train.labels[rows], train.class_names, train.preprocessing)
        >>> short = hd.EvalProtocol("short", epochs=3, full_data_epochs=1)
        >>> options = {"student": "convnet_d1", "num_seeds": 2, "disable_tqdm": True}
        >>> len(hd.audit(copied, train, test, protocol=short, **options).audit["copies"]["copies"])
        10

    Args:
        distilled: The set; it keeps what is found for its card.
        train: All that the distillation may have seen.
        test: Real images that it has not seen. With `held_out` they say how near real images are to others.
        held_out: Part of train that is not in `train`; learning rates are chosen on it. Split off `train` as at the
            distillation if not given, where the set says how. None where the set is `made_of_any` training images.
        protocol: How students are trained, as `protocol_for` takes it.
        student: The network of the students, a timm name or a spec; the one that the set was made for if not given.
        num_seeds: Students of the set, and of random subsets, each of which is another draw; two at least.
        seed: The one seed.
        factor: Tiles along a side of each image; if not given as at the distillation, else 1: whole images, whose
            quarters are looked for too.
        accelerator: Processes and device.
        guide: A network whose features are compared too; if not given what labels the set, where anything does.
        output_dir: Keeps what students answered, as for `evaluate`.
        disable_tqdm: No progress bars.

    Returns:
        A report whose `audit` has the answers, "copies", "membership" and "spread", and a picture of the images beside
        their nearest training images, but no rows.

    Raises:
        ValueError: The data are not those of the set, or there are too few images to measure by.
    """
    fraction = ((distilled.config.get("source") or {}).get("arguments") or {}).get("validation_fraction")
    any_of_train = made_of_any(distilled)
    if held_out is None and not any_of_train and is_number(fraction) and 0 < fraction < 1:
        train, held_out = train.split(fraction, seed=0)
    accelerator = accelerator or Accelerator()
    check_audit(distilled, train, test, held_out, num_seeds)
    protocol = protocol_for(distilled, protocol, factor)
    spec = student_specs(distilled, None if student is None else [student])[0]
    check_protocol([spec], protocol)
    factor = tiles_of(distilled, factor)
    trainer = trainer_for(distilled, test, held_out, seed, accelerator, disable_tqdm, output_dir)
    unseen = [part for part in (held_out, test) if part is not None and len(part)]
    strangers = _Strangers(unseen, MOST_MEMBERS, seed)

    network = _guide(distilled, guide, None, accelerator.device)
    look = _Look(network, real_pool(distilled, train, accelerator, keep="nothing"), distilled.preprocessing)
    copies = _copies(distilled, train, strangers.pixels[:MOST_HELD_OUT], look, factor, seed)
    found = {
        "seed": seed,
        "copies": {
            **_summary(copies, distilled, train, factor),
            "held_out": min(len(strangers), MOST_HELD_OUT),
            "any_of_train": any_of_train,
        },
        "membership": {
            "student": student_name(spec),
            "protocol": protocol.title,
            "students": num_seeds,
            "rows": _membership(distilled, train, strangers, spec, protocol, num_seeds, trainer),
        },
        "spread": {
            "compared_by": look.name,
            "held_out": len(strangers),
            "rows": _spread(distilled, train, strangers.pixels, look, seed),
        },
    }
    report = EvalReport(audit=found, audit_picture=png(audit_picture(distilled, train, copies)))
    distilled.report = (distilled.report or EvalReport()).merge(report)
    return report


def check_audit(
    distilled: DistilledSet, train: RealImages, test: RealImages, held_out: RealImages | None, num_seeds: int
) -> None:
    """Raise a one-line `ValueError` for what `audit` cannot measure by."""
    if num_seeds < 2:
        raise ValueError(
            f"--num_seeds is {num_seeds} and students of random subsets are compared with each other in an audit; "
            "expected at least 2"
        )
    for real in (train, test):
        check_data(distilled, real)
    if distilled.num_classes < 2:
        raise ValueError("the set has one class, of which students tell nothing; expected at least 2 for an audit")
    if len(train) <= KEPT:
        raise ValueError(
            f"there are {len(train)} training images to look for copies of; expected more than {KEPT} for an audit"
        )
    if made_of_any(distilled):
        if held_out is not None and len(held_out):
            raise ValueError(
                "held_out is given, and the set, which was imported or has its classes changed, may be made of these "
                "images too; expected all training images as train, and no held_out"
            )
        if test.is_part_of_train:
            raise ValueError(
                "the dataset has no test split, and the set, which was imported or has its classes changed, may be "
                "made of any of its images; give --dataset_test_split"
            )
    unseen = len(test) + (0 if held_out is None else len(held_out))
    if unseen < LEAST_HELD_OUT:
        raise ValueError(
            f"there are {unseen} real images that the set was not made from, and an audit measures by "
            f"{LEAST_HELD_OUT} at least; give --dataset_test_split, or hold out more with --validation_fraction"
        )


def made_of_any(distilled: DistilledSet) -> bool:
    """True where no training image is known to be held out: of imported sets, and of those with changed classes.

    What is held out is drawn class after class, so it is another part for classes in another order.
    """
    return bool(distilled.config.get("imported_from")) or changes_classes(distilled.config.get("changes"))


class _Strangers:
    """Real images that the set was not made from, in an order of chance.

    Attributes:
        pixels: (n, C, H, W) uint8.
        labels: (n,).
    """

    def __init__(self, parts: list[RealImages], most: int, seed: int) -> None:
        ends = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
        drawn = torch.randperm(int(ends[-1]), generator=generator(seed, "audit", "held out"))[:most]
        number = torch.searchsorted(ends, drawn, right=True) - 1
        order = number.argsort(stable=True).argsort()
        each = [drawn[number == index] - ends[index] for index in range(len(parts))]
        self.pixels = torch.cat([part.uint8(rows) for part, rows in zip(parts, each, strict=True)])[order]
        self.labels = torch.cat([part.labels[rows] for part, rows in zip(parts, each, strict=True)])[order]

    def __len__(self) -> int:
        return len(self.labels)


# Copies


def _copies(
    distilled: DistilledSet, train: RealImages, held_out: Tensor, look: "_Look", factor: int, seed: int
) -> Copies:
    pixels, features = distilled.images_uint8(), None
    if look.network is not None:
        own, others = (torch.stack([look(each), look(each.flip(-1))]) for each in (pixels, held_out))
        features = (own, others, look.blocks())
    return find_copies(pixels, held_out, train.uint8, len(train), factor, seed, look.device, features)


class _Look:
    """Features of images: those of a network, or else pixels around their middle.

    Args:
        network: Gives features of preprocessed images.
        pool: All training images.
        preprocessing: Of the set.
    """

    def __init__(self, network: Teacher | LabelProjector | None, pool: Pool, preprocessing: Preprocessing) -> None:
        self.network, self.pool, self.device = network, pool, pool.device
        self.preprocessing = preprocessing.to(pool.device)
        self.size = TEST_BATCH if network is None else images_at_once(network.features, pool)

    @property
    def name(self) -> str:
        """What images are compared by."""
        return "pixels" if self.network is None else f"features of {self.network.name} ({self.network.digest})"

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """The features (n, D) of pixels (n, C, H, W) uint8."""
        parts = [upload(part, self.device) for part in pixels.split(self.size)]
        if self.network is None:
            return torch.cat([working(part).flatten(1) - MIDDLE for part in parts])
        return torch.cat([self.network.features(self.preprocessing(part)).flatten(1).float() for part in parts])

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (n,) and features (n, D) of all training images, part by part."""
        for rows in torch.arange(len(self.pool)).split(self.size):
            yield rows, self(self.pool.pixels(rows))


def _summary(copies: Copies, distilled: DistilledSet, train: RealImages, factor: int) -> dict[str, Any]:
    """What `Copies` say, as JSON types."""
    shares = torch.tensor(SHARES, dtype=torch.float64)
    kinds = {}
    for name, found in copies.found.items():
        pieces = copies.pieces(name)
        distances = {"distilled": found.distances[..., 0], "held out": found.held_out_distances}
        kinds[name] = {
            "images": int(pieces.any(1).sum()),
            "pieces": int(pieces.sum()),
            "of_pieces": pieces.numel(),
            "distances": {
                whose: [round(value, 6) for value in each.amin(1).double().quantile(shares).tolist()]
                for whose, each in distances.items()
            },
        }
    shown = []
    for image in copies.p_values.argsort(stable=True)[:MOST_SHOWN].tolist():
        kind, piece = copies.rarest(image)
        found = copies.found[kind]
        shown.append(
            {
                "image": image,
                "class": distilled.class_names[distilled.labels[image]],
                "p_value": float(copies.p_values[image]),
                "by": kind,
                "distance": round(float(found.distances[image, piece, 0]), 6),
                "beside_next": round(float(found.nearness[image, piece]), 6),
                "train_row": int(train.rows[found.rows[image, piece, 0]]),
                "mirrored": bool(found.mirrored[image, piece, 0]),
            }
        )
    return {
        "images": len(distilled),
        "copies": copies.images,
        "p_value": min(1.0, len(distilled) * float(copies.p_values.min())),
        "level": LEVEL,
        "factor": factor,
        "compared_with": len(train),
        "shares": list(SHARES),
        "kinds": kinds,
        "nearest": shown,
    }


# Membership


def _membership(
    distilled: DistilledSet,
    train: RealImages,
    strangers: _Strangers,
    spec: StudentSpec,
    protocol: TrainingProtocol,
    num_seeds: int,
    trainer: Trainer,
) -> list[dict[str, Any]]:
    """How well students of the set, and of random subsets, tell what was held in from what was held out."""
    device, seed = trainer.accelerator.device, trainer.seed
    sizes = distilled.labels.bincount(minlength=distilled.num_classes).tolist()
    counts = [min(size, len(train.class_rows(label)) // 2) for label, size in enumerate(sizes)]
    draws = torch.stack([random_rows(train, counts, seed, "audit", number) for number in range(num_seeds)])  # (R, n)
    drawn = draws.unique()
    at_large = torch.randperm(len(train), generator=generator(seed, "audit", "held in"))[:MOST_MEMBERS]
    some = drawn[torch.randperm(len(drawn), generator=generator(seed, "audit", "drawn"))[:MOST_MEMBERS]]
    asked = torch.cat([at_large, some]).unique()
    inside = Pool(train.uint8(asked), train.labels[asked], preprocessing=distilled.preprocessing, device=device)
    outside = Pool(strangers.pixels, strangers.labels, preprocessing=distilled.preprocessing, device=device)

    own = _distilled_cases(distilled, [spec], protocol, num_seeds, device)[0]
    subset = real_pool(distilled, train.subset(drawn), trainer.accelerator)
    soft = own.labels == "soft" and distilled.teacher is not None
    targets = distilled.teacher if soft and distilled.teacher is not None else subset.labels
    rows, like = torch.searchsorted(drawn, draws), protocol.for_real_images()
    random = Case(
        "random", "soft" if soft else "hard", spec, subset, targets, rows, rows[0], protocol.lrs, like.epochs, like
    )
    cases = [own, random]
    answers = trainer.train(cases, trainer.choose(cases), [_confidences(inside, outside, trainer)] * 2)
    mine, references = (torch.tensor(each, dtype=torch.float64) for each in answers)  # (E, n + m), (R, n + m)
    seen = torch.zeros(references.shape, dtype=torch.bool)
    seen[:, : len(asked)] = torch.stack([torch.isin(asked, each) for each in draws])

    is_in = torch.zeros(references.shape[1], dtype=torch.bool)
    is_in[: len(asked)] = torch.isin(asked, at_large)
    is_out = torch.arange(references.shape[1]) >= len(asked)
    scores = excess(mine.mean(0), references, seen)
    results = [("distilled", "training images", scores, is_in)]
    # Of a random subset, each image is asked about with one student, in turn, and the others are its references.
    turn = torch.arange(references.shape[1]) % num_seeds
    in_turn = torch.stack(
        [excess(references[j], references, seen | (torch.arange(num_seeds) == j)[:, None]) for j in range(num_seeds)]
    )
    of_turn = in_turn.gather(0, turn[None])[0]
    results.append(("random", "training images", of_turn, is_in))
    first = seen.int().argmax(0)
    of_owner = torch.where(seen.any(0), in_turn.gather(0, first[None])[0], of_turn)
    results.append(("random", "its own images", of_owner, seen.any(0)))
    return [{"set": name, "held_in": what, **_told(found, members, is_out)} for name, what, found, members in results]


def _told(scores: Tensor, members: Tensor, others: Tensor) -> dict[str, Any]:
    """The area under the curve of scores, without those of images that no reference is without."""
    inside, outside = (scores[each & ~scores.isnan()] for each in (members, others))
    about: dict[str, Any] = {"images": len(inside), "held_out": len(outside), "auc": None}
    if len(inside):
        found = auc(inside, outside)
        about |= {"auc": round(found.value, 6), "low": round(found.low, 6), "high": round(found.high, 6)}
    return about


def _confidences(inside: Pool, outside: Pool, trainer: Trainer) -> Question:
    """How sure a student is of each image's class."""
    kept, count = trainer.kept, len(inside) + len(outside)

    @torch.no_grad()
    def ask(number: int, model: nn.Module) -> list[float]:
        parts = []
        for pool in (inside, outside):
            size = images_at_once(model, pool)
            parts += [
                confidence(model(images).double(), pool.labels[rows.to(pool.device)])
                for rows, images in pool.batches(size)
            ]
        return torch.cat(parts).tolist()

    about = {} if kept is None else {"confidences": [kept.images(pool) for pool in (inside, outside)]}
    return Question(about, ask, lambda number, answer: are_confidences(answer, count))


# Coverage and diversity


def _spread(
    distilled: DistilledSet, train: RealImages, held_out: Tensor, look: _Look, seed: int
) -> list[dict[str, Any]]:
    """Coverage of the held-out images and diversity, of the set and of random subsets as large."""
    real = look(held_out)

    def measured(rows: Tensor, images: Callable[[Tensor], Tensor], draw: int) -> tuple[float, float]:
        order = torch.randperm(len(rows), generator=generator(seed, "audit", "spread", draw))
        features = look(images(rows[order[:MOST_SPREAD]]))
        return coverage(real, features), vendi_score(features)

    sizes = distilled.labels.bincount(minlength=distilled.num_classes).tolist()
    counts = [min(size, len(train.class_rows(label))) for label, size in enumerate(sizes)]
    subsets = [random_rows(train, counts, seed, "audit", "spread", draw) for draw in range(DRAWS)]
    draws = {
        "distilled": [measured(torch.arange(len(distilled)), distilled.images_uint8, 0)],
        "random": [measured(rows, train.uint8, draw) for draw, rows in enumerate(subsets)],
    }
    table = []
    for name, values in draws.items():
        row = {"set": name, "images": min(len(distilled), MOST_SPREAD), "draws": len(values)}
        for key, each in zip(("coverage", "vendi"), zip(*values, strict=True), strict=True):
            deviation = statistics.stdev(each) if len(each) > 1 else 0.0
            row[key] = [round(statistics.fmean(each), 6), round(deviation, 6)]
        table.append(row)
    return table
