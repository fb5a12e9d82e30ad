"""Accuracies on real images: each part is a few calls of the public API, and leaves one JSON file.

    python benchmarks/figures.py split --dataset CIFAR10 --output outputs/cifar10
    python benchmarks/figures.py trajectory --dataset outputs/cifar10 --method TESLA --preset cifar10-ipc1 \\
        --set max_start_epoch=3 --set num_experts=3 --steps 50 100 200 400 --output outputs/figures/tesla-ipc1
    python benchmarks/figures.py distil --dataset DATA --method RDED --preset imagenette-ipc10 --output outputs/rded
    python benchmarks/figures.py labels --dataset DATA --students resnet18 --set ipc=10 --output outputs/hello

`split` puts the last 5,000 of CIFAR-10's training images among those to test on. `trajectory` goes on from one number
of iterations to the next in one folder, with students on each of the sets; `distil` does one run; `labels` is one of
HeLlO, with students of its images under each kind of labels. What is given by `--set name=value` (as in a preset's
file) is recorded. `PART.json` in the output folder holds the command, the commit, the rows with the accuracy of every
student, the differences to each baseline with a 95 % interval, and the wall time.
"""

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import concatenate_datasets, load_dataset
from machine import describe
from timm.data import ImageNetInfo

import hf_distill as hd
from hf_distill.evaluation.evaluate import BASELINES, protocol_for
from hf_distill.evaluation.label_comparison import compare_labels
from hf_distill.evaluation.protocols import TrainingProtocol
from hf_distill.hub.files import load_json, save_json
from hf_distill.hub.intervals import paired
from hf_distill.hub.results import EvalReport
from hf_distill.runs.processes import make_accelerator
from hf_distill.runs.settings import settings_of


@dataclass
class Arguments:
    """The command line of a part."""

    part: str
    dataset: str
    output: Path
    method: str = "TESLA"
    preset: str | None = None
    steps: list[int] = field(default_factory=list)
    students: list[str] = field(default_factory=list)
    seeds: int = 5
    epochs: int | None = None
    threads: int | None = None
    recognise: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def cut(self, protocol: TrainingProtocol) -> TrainingProtocol:
        """The protocol with `epochs`, where they are given, and a name that says so."""
        if self.epochs is None:
            return protocol
        return replace(protocol, name=f"{protocol.name} cut to {self.epochs} epochs", epochs=self.epochs)


def apart(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """The mean difference of pairs of students in points, and half of its 95 % interval, where they have one."""
    difference = paired(ours, theirs)
    half = None if difference.interval is None else 50 * (difference.interval[1] - difference.interval[0])
    return {"points": 100 * difference.mean, "half_of_95_percent": half, "verdict": difference.verdict}


def differences(rows: list[dict[str, Any]], baselines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each distilled row to the baselines with the same labels and student."""
    alike = ("labels", "student")
    return [
        {"to": other["set"], **{key: row[key] for key in alike}, **apart(row["accuracies"], other["accuracies"])}
        for row in rows
        for other in baselines
        if row["set"] == "distilled" and all(row[key] == other[key] for key in alike)
    ]


def split(args: Arguments) -> None:
    """Write CIFAR-10 with its last 5,000 training images among those to test on, as a folder for `load_dataset`."""
    data = load_dataset(args.dataset)
    train = data["train"]
    (args.output / "data").mkdir(parents=True, exist_ok=True)
    last = train.select(range(45_000, 50_000))
    test = concatenate_datasets([data["test"].cast(train.features), last])
    train.select(range(45_000)).to_parquet(args.output / "data" / "train-00000-of-00001.parquet")
    test.to_parquet(args.output / "data" / "test-00000-of-00001.parquet")


def images(args: Arguments) -> tuple[hd.RealImages, hd.RealImages]:
    """The images to distil, and those to test on."""
    train, test = hd.RealImages.train_and_test(hd.DataArguments(dataset_name=args.dataset, **args.data))
    if test is None:
        raise SystemExit(f"error: {args.dataset} has no images to test on")
    return train, test


def first_expert(folder: str) -> hd.Teacher:
    """What herding and k-center compare images by, where there are experts."""
    return hd.Teacher.from_expert(hd.ExpertTrajectories.from_pretrained(folder), 0)


def recognised(distilled: hd.DistilledSet, teachers: str) -> list[dict[str, Any]]:
    """The class that a teacher sees in each image among all that it has, and how sure it is of the right one."""
    teacher = hd.Teacher.from_pretrained(teachers)
    names = teacher.narrowed(distilled.class_names).config["narrowed"]["rows"]
    with torch.no_grad():
        logits = teacher.logits(teacher.preprocessing(distilled.images_uint8()))
    sure, words = logits.softmax(1), ImageNetInfo().label_descriptions()
    return [
        {
            "class": distilled.class_names[label],
            "seen": words[int(row.argmax())].split(",")[0],
            "right": int(row.argmax()) == names[label],
            "probability": row[names[label]].item(),
        }
        for label, row in zip(distilled.labels.tolist(), sure, strict=True)
    ]


def student(text: str, distilled: hd.DistilledSet) -> str | hd.StudentSpec:
    """The student that `NAME` or `NAME option=value ...` describes, for images of the set."""
    name, *options = text.split()
    if not options:
        return name
    kwargs = {key: yaml.safe_load(value) for key, _, value in (option.partition("=") for option in options)}
    channels, height, width = distilled.pixel_values.shape[1:]
    return hd.StudentSpec(name, distilled.num_classes, channels, (height, width), kwargs)


def measure(args: Arguments, train: hd.RealImages, test: hd.RealImages, steps: int | None, **options: Any) -> Any:
    """Distil, or go on to `steps` iterations, train students on the result, and write down what they reach."""
    accelerator = make_accelerator(cpu_threads=args.threads)
    folder = args.output / "run"
    settings = {**args.settings, "output_dir": str(folder), **({} if steps is None else {"max_steps": steps})}
    if folder.is_dir():
        kept = folder / f"checkpoint-{steps}"
        settings["resume_from_checkpoint"] = str(kept) if kept.is_dir() else "latest"
    method = getattr(hd, args.method)
    began = time.monotonic()
    distilled = method.distill(train, test, preset=args.preset, accelerator=accelerator, **settings)
    distilling = time.monotonic() - began
    report = EvalReport()
    if args.seeds:
        guide = None if "experts" not in args.settings else first_expert(args.settings["experts"])
        protocol = args.cut(protocol_for(distilled, None))
        students = [student(text, distilled) for text in args.students] or None
        options |= {"protocol": protocol, "num_seeds": args.seeds, "students": students, "guide": guide}
        report = hd.evaluate(distilled, train, test, accelerator=accelerator, **options)
        print(report.table(), flush=True)
    distilled.save_pretrained(args.output / f"set-{steps or 'final'}")
    return {
        "steps": steps,
        "learned_lr": None if distilled.lr is None else distilled.lr.item(),
        "seconds_distilling": distilling,
        "seconds_evaluating": time.monotonic() - began - distilling,
        "selected_step": distilled.config.get("selected_step"),
        **report.to_json(),
        **({"recognised": recognised(distilled, args.recognise)} if args.recognise else {}),
    }


def labels(args: Arguments, train: hd.RealImages, test: hd.RealImages) -> dict[str, Any]:
    """Distil with HeLlO, and train students of its images with the labels of each source."""
    accelerator, began = make_accelerator(cpu_threads=args.threads), time.monotonic()
    kinds = (hd.DataArguments, *hd.HeLlO.learns_from, hd.HeLlO.config_class)
    settings = {**args.settings, "output_dir": str(args.output / "run")}
    (data, *networks, config), _ = settings_of("hello", kinds, args.preset, settings)
    rest, held_out = train.split(data.validation_fraction, seed=0)
    hello = hd.HeLlO.prepare(rest, test, config=config, networks=networks, held_out=held_out, accelerator=accelerator)
    hello.protocol = args.cut(hello.protocol)
    distilled, named = hello.run(), args.students[0] if args.students else None
    distilling = time.monotonic() - began
    report = EvalReport()
    report.labels = compare_labels(
        distilled,
        hello.sources(),
        test,
        held_out=held_out,
        protocol=hello.protocol,
        student=None if named is None else student(named, distilled),
        num_seeds=args.seeds,
        accelerator=accelerator,
    )
    print(report.labels_table(), flush=True)
    return {
        "steps": None,
        "seconds_distilling": distilling,
        "seconds_evaluating": time.monotonic() - began - distilling,
        "projector": hello.projector.summary(),
        **report.to_json(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["split", "trajectory", "distil", "labels"])
    parser.add_argument("--dataset", required=True, help="name or folder, for load_dataset")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--method", default="TESLA", choices=[method.__name__ for method in hd.METHODS])
    parser.add_argument("--preset")
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="numbers of iterations to look at")
    parser.add_argument("--students", nargs="*", default=[], help="such as resnet18, or 'convnet_d3 width=64'")
    parser.add_argument("--seeds", type=int, default=5, help="students of each row; 0 trains none")
    parser.add_argument("--recognise", help="a teacher of all ImageNet-1K classes, which is to name the images")
    parser.add_argument("--epochs", type=int, help="of students, in place of the protocol's")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the method")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=VALUE", help="a setting of the data")
    given = vars(parser.parse_args())
    given["settings"], given["data"] = (
        {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in given.pop(key))}
        for key in ("set", "data")
    )
    args = Arguments(**given)
    if args.part == "split":
        split(args)
        return
    path = args.output / f"{args.part}.json"
    result = load_json(path) if path.is_file() else {"results": []}
    train, test = images(args)
    done = {each["steps"] for each in result["results"]}
    about = describe(args, make_accelerator(cpu_threads=args.threads).device)
    about["arguments"]["output"] = args.output.name
    for number in args.steps or [None]:
        if number in done:
            continue
        # The baselines are the same beside each of the sets: one time is enough.
        once = [row for each in result["results"] for row in each["rows"] if row["set"] in BASELINES]
        if args.part == "labels":
            each = labels(args, train, test)
        else:
            each = measure(args, train, test, number, **({"baselines": [], "full_data": False} if once else {}))
            each["differences"] = differences(
                each["rows"], once or [row for row in each["rows"] if row["set"] in BASELINES]
            )
        result["results"].append({**about, **each})
        save_json(path, json.loads(json.dumps(result, default=str)))


if __name__ == "__main__":
    main()
