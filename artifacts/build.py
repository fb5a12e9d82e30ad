"""Build and push what a list of artifacts names: sets, and the experts, teachers and projectors they are made with.

    python artifacts/build.py --org me --plan                 # what would be done, and what is there
    python artifacts/build.py --org me --only "digits-*"      # make artifacts ORG=me ONLY="digits-*"
    python artifacts/build.py --org me --launch "accelerate launch --mixed_precision bf16"

A repository that has the tag of the list is passed over. A run that was interrupted goes on, one that fails is named at
the end, and the others go on without it, but for those that need it. Each run writes to `<output_dir>/<name>.log`.
"""

import argparse
import difflib
import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError

import hf_distill
from hf_distill.__main__ import recipes
from hf_distill.hub.board import BoardRow, read_sets
from hf_distill.hub.repository import Repository

LIST = Path(__file__).parent / "project.yaml"
NETWORKS = ("experts", "teacher")  # recipes that leave a model repository; all others leave a dataset
INDEX = "artifacts.json"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
NOTE = 500  # characters that a collection takes of one

Run = Callable[[list[str], Path], int]


@dataclass(frozen=True)
class Artifact:
    """A repository to be.

    Attributes:
        name: Of the repository, without its owner.
        recipe: That makes it.
        flags: Of the recipe, where {name} and {tag} are still to be filled in.
        needs: Names of the artifacts that the flags speak of.
    """

    name: str
    recipe: str
    flags: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def repo_type(self) -> str:
        return "model" if self.recipe in NETWORKS else "dataset"

    def filled(self, org: str, tag: str) -> list[str]:
        """The recipe's flags."""
        places = {"{tag}": tag, **{f"{{{name}}}": f"{org}/{name}" for name in self.needs}}
        return [re.sub(r"\{.*?\}", lambda found: places[found[0]], flag) for flag in self.flags]


@dataclass(frozen=True)
class Listed:
    """A list of artifacts."""

    title: str
    description: str
    page: str
    tag: str
    artifacts: tuple[Artifact, ...]


def read_list(path: Path) -> Listed:
    """The list in a YAML file.

    Raises:
        ValueError: It cannot be read, or names a recipe or an artifact that there is not.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--list {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"--list {path} is not valid YAML: {' '.join(str(error).split())}") from error
    wanted = ("title", "description", "page", "tag", "artifacts")
    if (
        not isinstance(content, dict)
        or set(content) != set(wanted)
        or not isinstance(content["artifacts"], dict | None)
    ):
        raise ValueError(f"--list {path} is no list of artifacts; expected the keys {', '.join(wanted)}")
    if not content["artifacts"]:
        raise ValueError(f"--list {path} lists no artifact; expected a name and a recipe with its flags on each line")
    artifacts: list[Artifact] = []
    for name, command in content["artifacts"].items():
        artifacts.append(_artifact(f"{path}: {name}", str(name), command, [each.name for each in artifacts]))
    about = [str(content[key]) for key in wanted[:-1]]
    return Listed(*about, tuple(artifacts))


def _artifact(where: str, name: str, command: Any, before: Sequence[str]) -> Artifact:
    words = _split(where, command) if isinstance(command, str) else []
    if not words or not NAME.fullmatch(name):
        raise ValueError(f"{where}: {command!r} is no recipe with flags, or the name is none of a repository")
    recipe, *flags = words
    if recipe not in recipes():
        raise ValueError(f"{where}: {recipe!r} is no recipe; {_nearest(recipe, list(recipes()))}")
    needs = [need for flag in flags for need in re.findall(r"\{(.*?)\}", flag) if need != "tag"]
    for need in needs:
        if need not in before:
            raise ValueError(f"{where}: {{{need}}} is no artifact that stands before it; {_nearest(need, before)}")
    return Artifact(name, recipe, tuple(flags), tuple(dict.fromkeys(needs)))


def _split(where: str, command: str) -> list[str]:
    """The words of a command line; a `ValueError` that says where it stands if a quote has no end."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ValueError(f"{where}: {command!r} is no command line: {str(error).lower()}") from error


def launcher(command: str) -> list[str]:
    """The words that start recipes; a `ValueError` unless the first is a program."""
    words = _split("--launch", command)
    if not words or shutil.which(words[0]) is None:
        raise ValueError(f"--launch is {command!r}; expected a program, and its flags, such as 'accelerate launch'")
    return words


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known) or 'none, for it is the first'}"


def choose(listed: Listed, patterns: Sequence[str]) -> list[Artifact]:
    """The artifacts of the list whose names fit one of the patterns; a `ValueError` for one that fits none."""
    names = [each.name for each in listed.artifacts]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"--only {pattern} is none of the list; {_nearest(pattern, names)}")
    return [each for each in listed.artifacts if any(fnmatch.fnmatch(each.name, pattern) for pattern in patterns)]


def check_owner(api: HfApi, org: str) -> None:
    """Raise a `ValueError` unless somebody is logged in who belongs to that account."""
    if get_token() is None:
        raise ValueError("nobody is logged in; run `hf auth login`, or set HF_TOKEN")
    known = api.whoami()
    names = [known["name"], *(each["name"] for each in known.get("orgs", []))]
    if org not in names:
        raise ValueError(f"--org is {org!r}, and the token is of {names[0]}; expected one of {', '.join(names)}")


def is_there(api: HfApi, org: str, artifact: Artifact, tag: str) -> bool:
    """True where the repository has the tag."""
    try:
        refs = api.list_repo_refs(f"{org}/{artifact.name}", repo_type=artifact.repo_type)
    except RepositoryNotFoundError:
        return False
    return tag in [each.name for each in refs.tags]


def command(artifact: Artifact, org: str, tag: str, output_dir: Path) -> list[str]:
    """The recipe with all its flags: to go on where it stopped, and to push what it leaves."""
    goes_on = [] if artifact.recipe == "experts" else ["--resume_from_checkpoint", "latest"]  # these always do
    return [
        *(artifact.recipe, *artifact.filled(org, tag), "--output_dir", str(output_dir / artifact.name), *goes_on),
        *("--disable_tqdm", "true", "--push_to_hub", "--hub_model_id", f"{org}/{artifact.name}", "--hub_tag", tag),
    ]


def build(
    api: HfApi, org: str, listed: Listed, chosen: Sequence[Artifact], output_dir: Path, run: Run
) -> dict[str, str]:
    """Build and push what lacks; the reason for each that is still not there, by its name."""
    failed: dict[str, str] = {}
    for number, artifact in enumerate(chosen, start=1):
        place = f"[{number}/{len(chosen)}] {artifact.name}"
        if is_there(api, org, artifact, listed.tag):
            print(f"{place}: there already", flush=True)
            continue
        needed = {each.name: each for each in listed.artifacts if each.name in artifact.needs}
        lacking = [name for name, each in needed.items() if not is_there(api, org, each, listed.tag)]
        if lacking:
            failed[artifact.name] = f"needs {', '.join(lacking)}, not there"
        else:
            words = command(artifact, org, listed.tag, output_dir)
            log = output_dir / f"{artifact.name}.log"
            print(f"{place}: hf-distill {shlex.join(words)}", flush=True)
            if run(words, log):
                failed[artifact.name] = _reason(log)
            elif not is_there(api, org, artifact, listed.tag):
                failed[artifact.name] = f"ended well and left no {listed.tag}; see {log}"
        if artifact.name in failed:
            print(f"{place}: failed: {failed[artifact.name]}", flush=True)
    return failed


def _reason(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    told = [line.removeprefix("error: ") for line in lines if line.startswith(("error: ", "interrupted"))]
    return f"{told[-1] if told else 'it ended without a word'} (all of it: {log})"


def runs(launch: Sequence[str]) -> Run:
    """Starts recipes with the words of a launcher before `-m hf_distill`."""

    def run(words: list[str], log: Path) -> int:
        with log.open("wb") as stream:
            start = [*launch, "-m", "hf_distill", *words]
            return subprocess.run(start, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode

    return run


# What people find them by


def results(repo_id: str) -> list[tuple[str, str, str]]:
    """Of a set on the Hub: regime of the labels, accuracy, and that of random images, as text; none without results."""
    try:
        (found,) = read_sets([repo_id])
    except ValueError:
        return []
    own = [row for row in found.rows if row.set == "distilled"]
    first = own[0].schedule if own else None

    def percent(row: BoardRow | None) -> str:
        if row is None:
            return ""
        return f"{100 * row.mean:.1f}" + (f" ± {100 * row.std:.1f}" if row.std is not None else "")

    def random(row: BoardRow) -> BoardRow | None:
        return next((each for each in found.rows if each.set == "random" and each.group == row.group), None)

    return [(row.regime, percent(row), percent(random(row))) for row in own if row.schedule == first]


def page(org: str, listed: Listed, there: Sequence[Artifact], told: dict[str, list[tuple[str, str, str]]]) -> str:
    """The README that lists all artifacts that are there."""

    def linked(name: str, kind: str) -> str:
        return f"[{name}]({constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{org}/{name})"

    sets = [(linked(name, "dataset"), *row) for name, rows in told.items() for row in rows or [("", "", "")]]
    others = [(linked(each.name, "model"), each.recipe) for each in there if each.repo_type == "model"]
    others += [(linked(f"{each.name}-projector", "model"), "projector") for each in there if each.recipe == "hello"]
    call = f'load_dataset("{org}/{next(iter(told), "")}", revision="{listed.tag}", split="train")'
    about = "Students on the set, and on as many random real images under the same protocol, which the card names."
    metadata = {"pretty_name": listed.title, "tags": ["dataset-distillation", "hf_distill"], "viewer": False}
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {listed.title}",
        listed.description,
        *([_table("## Sets", ("set", "labels", "accuracy in %", "random images"), sets), about] if sets else []),
        *([f"```python\nfrom datasets import load_dataset\n\nimages = {call}\n```"] if sets else []),
        *([_table("## Networks", ("repository", "what"), others)] if others else []),
        "The card of each repository says what it was made of, how, and which call loads it.",
        f"Made by `make artifacts` of hf_distill {hf_distill.__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines)])


def publish_page(api: HfApi, org: str, listed: Listed, there: Sequence[Artifact]) -> Iterator[str]:
    """Put the page on the Hub, and all artifacts into a collection; a line for each."""
    told = {each.name: results(f"{org}/{each.name}") for each in there if each.repo_type == "dataset"}
    place = Repository(f"{org}/{listed.page}", "dataset")
    owned = ("README.md", INDEX)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, name) for name in owned}
        files["README.md"].write_text(page(org, listed, there, told), encoding="utf-8")
        index = {each.name: {"type": each.repo_type, "tag": listed.tag, "recipe": each.recipe} for each in there}
        files[INDEX].write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        place.prepare(owned, INDEX)
        yield f"the list: {place.publish(files, owned, INDEX, message=f'List {listed.tag}').commit_url}"
    try:
        yield f"the collection: {collect(api, org, listed, there, told)}"
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).splitlines()[0]
        yield f"no collection, which this server refuses ({reason}); the list has all of them"


def collect(
    api: HfApi,
    org: str,
    listed: Listed,
    there: Sequence[Artifact],
    told: dict[str, list[tuple[str, str, str]]],
) -> str:
    """The address of the collection of that title, made if need be, with the list and all artifacts in it."""
    known = next((each for each in api.list_collections(owner=org) if each.title == listed.title), None)
    found = known or api.create_collection(listed.title, namespace=org, description=listed.description[:150])
    items = [(f"{org}/{listed.page}", "dataset", "All of them, with what they teach.")]
    for each in there:
        lines = [f"{regime}: {accuracy} % (random {other} %)" for regime, accuracy, other in told.get(each.name, [])]
        items.append((f"{org}/{each.name}", each.repo_type, "; ".join(lines) or each.recipe))
        if each.recipe == "hello":
            items.append((f"{org}/{each.name}-projector", "model", "label projector"))
    for repo_id, kind, note in items:
        api.add_collection_item(found.slug, repo_id, kind, note=note[:NOTE], exists_ok=True)
    return found.url


# The command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


def main(words: Sequence[str] | None = None, run: Run | None = None) -> int:
    """The exit status: 0 where all that was asked for is there."""
    parser = _Parser(allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--org", required=True, help="Your name on the Hub, or that of an organisation of yours.")
    parser.add_argument("--list", type=Path, default=LIST, metavar="FILE", help="The list (artifacts/project.yaml).")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help='Names or patterns: "digits-*".')
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/artifacts"), help="outputs/artifacts")
    parser.add_argument("--launch", default=shlex.quote(sys.executable), help="What starts recipes (this Python).")
    parser.add_argument("--plan", action="store_true", help="Only say what would be done.")
    args = parser.parse_args(words)
    try:
        launch = launcher(args.launch)
        listed = read_list(args.list)
        chosen = choose(listed, args.only)
        api = HfApi()
        check_owner(api, args.org)
        if args.plan:
            for each in chosen:
                state = "there" if is_there(api, args.org, each, listed.tag) else "lacks"
                flags = shlex.join(each.filled(args.org, listed.tag))
                print(f"{state}  {args.org}/{each.name} ({each.repo_type}): hf-distill {each.recipe} {flags}")
            return 0
        args.output_dir.mkdir(parents=True, exist_ok=True)
        failed = build(api, args.org, listed, chosen, args.output_dir, run or runs(launch))
        if failed:
            print(f"{len(failed)} of {len(chosen)} are not there; the same command tries them again:")
            print(*(f"  {name}: {reason}" for name, reason in failed.items()), sep="\n", flush=True)
        there = [each for each in listed.artifacts if is_there(api, args.org, each, listed.tag)]
        if there:
            print(*publish_page(api, args.org, listed, there), sep="\n")
    except (ValueError, OSError, HTTPError) as error:
        unheard = isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)
        where = f"the Hub at {constants.ENDPOINT} does not answer; try again: " if unheard else ""
        sys.stderr.write(f"error: {where}{' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the same command goes on\n")
        return 1
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
