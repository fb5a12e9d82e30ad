"""Flips one bit at a time in what runs and pushes leave, and reads it back.

    python -m tests.faults.flips --count 200 --seed 1

Runs recipes on image files, publishes what they make on a Hub of this machine and fetches it. Then file, byte and bit
are drawn: of artifacts, checkpoints, blocks, caches, and of the files of the Hub and of its cache. Whoever reads the
file must refuse it in one line, or come to the very same result; anything else is silent, and printed so.
"""

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import short
from tests.faults.kills import contents
from tests.helpers.hub_server import Hub

IMAGES = "--dataset_name ../digits --resolution 8 --validation_fraction 0.2 --disable_tqdm=true"
RUNS = ("tesla", "apm", "cda", "hello", "experts", "teacher", "projector", "relabel")
PUSHED = {"tesla": "org/set", "hello": "org/pictures", "experts": "org/experts", "teacher": "org/teacher"}
PUSHED |= {"projector": "org/projected", "relabel": "org/labels"}
UNREAD = (".lock", ".gitattributes")


def make(home: Path) -> None:
    """Image files, and what recipes make of them, in folders by the names of the recipes."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:260], digits.target[:260], strict=True)):
        path = home / "digits" / ("train" if index < 210 else "test") / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((15 * pixels).astype("uint8")).resize((16, 16)).save(path)
    short.inputs(home)
    for recipe in RUNS:
        (home / recipe).mkdir()
        push = ["--push_to_hub=true", "--hub_model_id", PUSHED[recipe]] if recipe in PUSHED else []
        done = run(recipe, home / recipe, *push)
        if done.returncode:
            raise SystemExit(f"{recipe}: {done.stderr}")


def run(recipe: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A recipe in its folder, on image files where it reads real images."""
    flags = short.FLAGS[recipe].replace(short.DATA, IMAGES).split()
    words = [sys.executable, "-m", "tests.faults.short", recipe, *flags, *more]
    return subprocess.run(words, cwd=folder, env=short.ENVIRONMENT, capture_output=True, text=True)


# Reading


def load(place: str | Path) -> Any:
    """The artifact in a folder or repository, of whichever kind it is."""
    import hf_distill as hd

    kinds = (hd.DistilledSet, hd.EpochLabels, hd.ExpertTrajectories, hd.LabelProjector, hd.Teacher)
    for kind in kinds:
        try:
            return kind.from_pretrained(place)
        except ValueError as error:
            others = f"has no {kind.config_name}", f"no {kind.repo_type} repository", "is not in the local cache"
            if kind is kinds[-1] or not any(words in str(error) for words in others):
                raise
    raise AssertionError


def state(place: str | Path) -> dict[str, str]:
    """The checksums of the files that an artifact makes when it is saved anew, once all of it was read."""
    import torch

    import hf_distill as hd

    artifact = load(place)
    if isinstance(artifact, hd.ExpertTrajectories):
        for expert in range(artifact.num_experts):
            for epoch in range(artifact.num_epochs + 1):
                artifact.row(expert, epoch)
    if isinstance(artifact, hd.EpochLabels):
        rows = torch.arange(artifact.num_images)
        for epoch in range(artifact.num_epochs):
            artifact(torch.empty(len(rows), 0), rows, rows, epoch)
    with tempfile.TemporaryDirectory() as folder:
        return contents(artifact.save_pretrained(Path(folder, "again")))


def root(path: Path, home: Path) -> Path:
    """The folder of the artifact that a file is of: the one above it that has checksums."""
    return next(folder for folder in path.parents if folder.is_relative_to(home) and (folder / "SHA256SUMS").exists())


class Readers:
    """Read what was flipped as a user would."""

    def __init__(self, home: Path, hub: Any) -> None:
        self.home, self.hub = home, hub

    def reading(self, path: Path) -> tuple[str, Callable[[], Any]]:
        """A name for what reads a file, the same for files that are read together, and the reading itself."""
        kind, *rest = path.relative_to(self.home).parts
        if kind == "hub":
            repo = next(repo for repo in self.hub.repos() if path.is_relative_to(repo.folder))
            return f"download of {repo.id}", lambda: self._downloaded(repo.id)
        if kind == "cache" and rest[0] == "hub":
            place = rest[1].split("--", 1)[1].replace("--", "/")
            return f"cached {place}", lambda: self._downloaded(place, cached=True)
        if kind == "cache":
            return "cached images", lambda: self._again("teacher", ["run", "outputs"])
        if any(part.startswith("checkpoint-") for part in rest):
            folder = next(parent for parent in path.parents if parent.name.startswith("checkpoint-"))
            return f"checkpoint {folder.relative_to(self.home)}", lambda: self._checkpoint(folder)
        if "blocks" in rest:
            return f"blocks of {kind}", lambda: self._again(kind, [], ["--resume_from_checkpoint", "latest"])
        if rest[0] == "outputs":
            return f"networks of {kind}", lambda: self._again(kind, ["run", "labelled"])
        folder = root(path, self.home)
        return f"artifact {folder.relative_to(self.home)}", lambda: state(folder)

    def _downloaded(self, place: str, cached: bool = False) -> dict[str, str]:
        from huggingface_hub import constants

        if cached:
            constants.HF_HUB_OFFLINE = True
            return state(place)
        with tempfile.TemporaryDirectory() as folder:
            constants.HF_HUB_CACHE = folder
            return state(place)

    def _checkpoint(self, folder: Path) -> Any:
        from hf_distill.runs.checkpoints import find_checkpoint, load_checkpoint

        found = find_checkpoint(folder.parent, str(folder))
        tensors, state = load_checkpoint(found)
        return [{name: value.numpy().tobytes().hex() for name, value in tensors.items()}, state]

    def _again(self, recipe: str, without: list[str], more: list[str] | None = None) -> dict[str, str]:
        """What a recipe leaves in a copy of its folder, where some folders are not, by the same command."""
        folder = Path(tempfile.mkdtemp(prefix="again-", dir=self.home))
        try:
            shutil.copytree(self.home / recipe, folder, dirs_exist_ok=True)
            for name in without:
                shutil.rmtree(folder / name, ignore_errors=True)
            os.chdir(folder)
            flags = short.FLAGS[recipe].replace(short.DATA, IMAGES).split()
            sys.argv = ["short", recipe, *flags, *(more or [])]
            short.main()
            left = contents(folder / "run")  # beside the claim of this process, which has not ended
            return {name: digest for name, digest in left.items() if "blocks/" not in name and name != ".claim"}
        finally:
            shutil.rmtree(folder)


def apart(reading: Callable[[], Any], seconds: float = 300) -> tuple[str, str]:
    """ "read", "refused" or "crashed", and what was read or said, of a reading in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder, "answer"), Path(folder, "log")
        child = os.fork()
        if child == 0:
            signal.alarm(int(seconds))
            for number in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            try:
                kind, said = "read", json.dumps(reading(), sort_keys=True)
            except SystemExit as stop:
                kind, said = "refused", f"{log.read_text()}\n{stop.code if isinstance(stop.code, str) else ''}"
            except (ValueError, OSError) as error:
                kind, said = ("refused" if "\n" not in str(error) else "crashed"), str(error)
            except BaseException:
                kind, said = "crashed", traceback.format_exc()
            answer.write_text(json.dumps([kind, said]))
            os._exit(0)
        os.waitpid(child, 0)
        if not answer.exists():
            return "crashed", f"the process died: {log.read_text()}"
        kind, said = json.loads(answer.read_text())
        lines = said.strip().splitlines()
        if kind == "refused" and ("Traceback" in said or not lines):
            kind = "crashed"
        return kind, lines[-1] if kind == "refused" else said


def files(home: Path) -> list[Path]:
    """All files that can be flipped: not the inputs, nor what only the Hub's own bookkeeping is in."""
    every = sorted(path for path in home.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_size)
    kept = []
    for path in every:
        kind, *rest = path.relative_to(home).parts
        if kind in ("inputs", "digits") or path.name.startswith("log-") or path.name in UNREAD:
            continue
        if kind == "hub" and not {"blobs", "lfs"} & set(rest):
            continue
        if (kind, rest[0]) == ("cache", "hub") and "--" not in rest[1]:
            continue
        kept.append(path)
    return kept


def differing(said: str, whole: str) -> str:
    """The names of files that differ in two readings."""
    one, other = json.loads(said), json.loads(whole)
    if not isinstance(one, dict):
        return ""
    return ", ".join(sorted(name for name in one | other if one.get(name) != other.get(name)))


def flip(path: Path, place: int, bit: int) -> None:
    """Flip a bit of a file, whose size and times stay, as where a disk or a memory fails."""
    about = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="how many bits are flipped")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="what draws them")
    parser.add_argument("--output", type=Path, help="a file for one line of JSON per flip")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    rng, counts = random.Random(args.seed), Counter()
    whole: dict[str, tuple[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="hf_distill-flips-") as folder, Hub(Path(folder, "hub")) as hub:
        home, token = Path(folder), f"hf_{secrets.token_hex(17)}"
        hub.add_user("tester", token, orgs=["org"])
        os.environ.update({**short.ENVIRONMENT, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN": token})
        os.environ.update({"HF_HOME": str(home / "cache"), "HF_HUB_DISABLE_XET": "1"})
        short.ENVIRONMENT.update(os.environ)
        make(home)
        import hf_distill  # noqa: F401  # once, with this environment
        import tests.helpers.protocols  # noqa: F401

        for place in PUSHED.values():
            kind, said = apart(lambda place=place: state(place))  # into the cache
            if kind != "read":
                raise SystemExit(f"{place}: {said}")
        known, readers = files(home), Readers(home, hub)
        print(f"{len(known)} files", flush=True)
        for index in range(args.count):
            path = rng.choice(known)
            place, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
            name, reading = readers.reading(path)
            if name not in whole:
                whole[name] = apart(reading)
                if whole[name][0] != "read":
                    raise SystemExit(f"{name}, as it is: {whole[name]}")
            data = path.read_bytes()
            flip(path, place, bit)
            kind, said = apart(reading)
            outcome = ("same" if said == whole[name][1] else "SILENT") if kind == "read" else kind
            path.write_bytes(data)
            counts[outcome] += 1
            line = said if kind != "read" else differing(said, whole[name][1])
            print(index, path.relative_to(home), f"byte {place} bit {bit}", name, outcome, line[:500], flush=True)
            if args.output is not None:
                about = {"file": str(path.relative_to(home)), "byte": place, "bit": bit, "read_as": name}
                with args.output.open("a") as file:
                    print(json.dumps({**about, "outcome": outcome, "said": line}), file=file)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
