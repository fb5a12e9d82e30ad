"""What people write into a card on the Hub, and how the next version keeps it.

A card consists of parts, each from a heading to the next, and each between two marks: comments, which no page shows.
They are written anew by every version. What stands outside of them is a person's, and stays behind the part that it
followed; so do sections that a person wrote into a part.

A card says what its version wrote in the metadata. A key that it did not write is a person's, and so is a value that is
another one now, and items of lists that came or went; all this stays. What is as it was written follows the new
version, with what it wrote before and does not any more. Configs of ours and results are always those of the version.

Cards of version 0.1 have no marks and do not say what was written: there a section is a person's where its heading is
none of ours, and the keys that 0.1 knew follow the new version.
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence

import yaml

from ..shipped import shipped

__all__ = ["marked", "with_edits"]

logger = logging.getLogger(__name__)

MARK = "<!-- hf_distill: {} -->"
END = MARK.format("end")
NOTE = MARK.format(
    "the next version writes each part anew, from its mark to its end; what stands outside of them stays"
)
WROTE = "wrote "
FRONT = re.compile(r"\A\s*^---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
NULL = "tag:yaml.org,2002:null"
ANY_MARK = re.compile(r"^<!-- hf_distill: (.*) -->[ \t]*(?:\n|\Z)", re.MULTILINE)
PART = re.compile(
    r"^<!-- hf_distill: (?P<name>(?!end )[a-z0-9-]+) -->[ \t]*\n"
    r"(?P<text>(?:(?!<!-- hf_distill: ).*\n)*)"
    r"<!-- hf_distill: end -->[ \t]*(?:\n|\Z)",
    re.MULTILINE,
)
FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
FIRST_TAG_OF_0_1 = "dataset-distillation"  # followed by the method, where there is one, and the number of images
# The keys of the metadata that version 0.1 wrote. Of `tags` and `configs` it wrote some items.
KEYS_OF_0_1 = (
    *("license", "extra_gated_prompt", "pretty_name", "task_categories", "size_categories", "source_datasets"),
    *("library_name", "datasets", "model-index", "base_model", "base_model_relation", "pipeline_tag"),
)
CONFIGS_OF_0_1 = ["default", "tensor"]

Pieces = Sequence[tuple[str | None, str]]
# What a version wrote: keys of its metadata, with their values where these are texts, and items where they are lists.
Wrote = dict[str, str | list[str]]


def marked(card: str) -> str:
    """A card that was just rendered, with a mark at both ends of each part, and with what it wrote in the metadata."""
    front, body = _split(card)
    return _composed(front, _sections(body), {}, _written(front))


def with_edits(card: str, there: str, *, ours: bool) -> str:
    """A card, as `marked` gives it, with what people wrote into the one in whose place it comes.

    Args:
        card: The new one.
        there: The old one.
        ours: Whether an older version wrote it; else all of it is a person's, but for what has marks.
    """
    there = there.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    (front, body), (front_there, body_there) = _split(card), _split(there)
    parts = [(name, text) for name, text in _pieces(body) if name is not None]
    if not parts:
        return card
    known = [name for name, _ in parts]
    wrote = next((_read_wrote(mark) for mark in ANY_MARK.findall(body_there) if mark.startswith(WROTE)), None)
    pieces = _pieces(body_there)
    if all(name is None for name, _ in pieces):
        body_there = ANY_MARK.sub("", body_there)
        pieces = _pieces_of_0_1(body_there) if ours else [(known[-1], ""), (None, body_there)]
    if wrote is None:
        wrote = _wrote_by_0_1(front_there) if ours else {}
    kept: dict[str | None, list[str]] = {}
    behind = None
    for name, text in pieces:
        if name is None:
            kept.setdefault(behind, []).append(text.strip("\n"))
        elif name in known:
            behind = name
    written = _written(front)
    return _composed(_metadata(front, front_there, wrote), parts, kept, written)


def _composed(front: str, parts: Pieces, kept: dict[str | None, list[str]], wrote: Wrote) -> str:
    texts = [NOTE, *kept.get(None, [])]
    for name, text in parts:
        texts += [f"{MARK.format(name)}\n{text.strip(chr(10))}\n{END}", *kept.get(name, [])]
    # An end of a comment in a comment would be its end.
    about = json.dumps(wrote, ensure_ascii=False).replace("--", "-\\u002d")
    texts.append(MARK.format(f"{WROTE}{about}"))
    return f"---\n{front}---\n\n" * bool(front) + "\n\n".join(text for text in texts if text.strip()) + "\n"


# The body


def _split(card: str) -> tuple[str, str]:
    """The lines of the metadata, or none, and the body."""
    found = FRONT.match(card)
    return (found[1], card[found.end() :]) if found else ("", card)


def _pieces(body: str) -> Pieces:
    """The parts of a body by name, and with the name None the texts of people around and in them."""
    pieces: list[tuple[str | None, str]] = []
    end = 0
    for part in PART.finditer(body):
        pieces.append((None, ANY_MARK.sub("", body[end : part.start()])))
        sections = _sections(part["text"])
        own = next((index for index, (name, _) in enumerate(sections) if name == part["name"]), None)
        pieces += [(name if index == own else None, text) for index, (name, text) in enumerate(sections)]
        if own is None:  # without its heading; what follows it still does
            pieces.insert(len(pieces) - len(sections), (part["name"], ""))
        end = part.end()
    pieces.append((None, ANY_MARK.sub("", body[end:])))
    return pieces


def _pieces_of_0_1(body: str) -> Pieces:
    """As `_pieces`, of a body without marks: a section is a person's where no template has its heading."""
    texts = (path.read_text(encoding="utf-8") for path in shipped("model_cards").glob("*.md"))
    known = {_slug(line) for text in texts for line in text.split("\n") if line.startswith("## ")} | {"title"}
    sections = _sections(body)
    return [(name if name in known else None, text) for name, text in sections]


def _sections(text: str) -> list[tuple[str, str]]:
    """A text from heading to heading, by what they are called; without what is blank before the first."""
    sections = [("", "")]
    for line, is_code in _lines(text):
        if not is_code and re.match("##? ", line):
            sections.append((_slug(line), ""))
        name, before = sections[-1]
        sections[-1] = (name, f"{before}{line}\n")
    return [(name, section) for name, section in sections if section.strip()]


def _slug(heading: str) -> str:
    """What a section is called: the words of its heading, or "title" for that of a card, which are never the same."""
    return "title" if heading.startswith("# ") else re.sub("[^a-z0-9]+", "-", heading.lower()).strip("-")


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of a Markdown text, and whether they are of a fenced block of code."""
    fence = ""
    for line in text.split("\n"):
        found = FENCE.match(line)
        is_end = bool(fence and found and found[1].startswith(fence) and found[1] == line.strip())
        yield line, bool(fence or found)
        fence = "" if is_end else fence or (found[1] if found else "")


# The metadata


def _metadata(front: str, there: str, wrote: Wrote) -> str:
    """The lines of the new metadata with the keys, values and items of the old one that are a person's."""
    try:
        new, old = yaml.compose(front), yaml.compose(there)
    except (yaml.YAMLError, RecursionError):
        logger.warning("the metadata of the card that is there cannot be read, and nothing of it is kept")
        return front
    if not isinstance(new, yaml.MappingNode) or not isinstance(old, yaml.MappingNode):
        return front
    places = {key.value: place for place, (key, _) in enumerate(new.value)}
    kept = False
    for key, value in old.value:
        if not isinstance(key, yaml.ScalarNode) or (key.value in places and value.tag == NULL):
            continue
        written, place = wrote.get(key.value), places.get(key.value)
        mine = None if place is None else new.value[place][1]
        before = [written] if isinstance(written, str) else written or []
        if isinstance(mine, yaml.SequenceNode):
            known = (None, *_items(mine), *before)
            more = [item for item in _nodes(value) if _item(item) not in known]
            gone = {*before} - {*_items(value)}
            left = [item for item in mine.value if not (isinstance(item, yaml.ScalarNode) and item.value in gone)]
            kept |= bool(more) or len(left) < len(mine.value)
            mine.value = left + more
        elif mine is None and written is None:
            new.value.append((key, value))
            kept = True
        elif isinstance(mine, yaml.ScalarNode) and wrote and (written is None or (before and _items(value) != before)):
            new.value[place] = (key, value)
            kept = True
    # Nodes keep how a person wrote a value: `no` and 1.10 stay what they are.
    return yaml.serialize(new, Dumper=yaml.SafeDumper, allow_unicode=True, width=10**6) if kept else front


def _nodes(value: yaml.Node) -> list[yaml.Node]:
    return value.value if isinstance(value, yaml.SequenceNode) else [value]


def _item(node: yaml.Node) -> str | None:
    """By which an item of a list is known: a text itself, a config by its name; others are none that people add."""
    if isinstance(node, yaml.MappingNode):
        names = [value.value for key, value in node.value if key.value == "config_name"]
        return names[0] if names and isinstance(names[0], str) else None
    return node.value if isinstance(node, yaml.ScalarNode) else None


def _items(value: yaml.Node) -> list[str]:
    return [item for item in map(_item, _nodes(value)) if item is not None]


def _written(front: str) -> Wrote:
    """The keys of metadata, with their values where these are texts, and items where they are lists."""
    root = yaml.compose(front)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    texts = {str(key.value): value.value for key, value in pairs if isinstance(value, yaml.ScalarNode)}
    return {**{str(key.value): _items(value) for key, value in pairs}, **texts}


def _read_wrote(mark: str) -> Wrote | None:
    try:
        wrote = json.loads(mark.removeprefix(WROTE))
    except (ValueError, RecursionError):
        return None
    if not isinstance(wrote, dict):
        return None
    texts = (text for value in wrote.values() for text in (value if isinstance(value, list) else [value]))
    return wrote if all(isinstance(text, str) for text in texts) else None


def _wrote_by_0_1(front: str) -> Wrote:
    """What a version wrote in the metadata of a card that does not say it, as far as can be told."""
    try:
        wrote = _written(front)
    except (yaml.YAMLError, RecursionError):
        return {}
    tags = list(wrote.get("tags", []))
    numbers = [place for place, tag in enumerate(tags) if re.fullmatch(r"ipc-\d+", tag)]
    methods = [place - 1 for place in numbers if place > 1 and tags[place - 2] == FIRST_TAG_OF_0_1]
    tags = [tags[place] for place in (*numbers, *methods)]
    return {**{key: wrote.get(key, []) for key in KEYS_OF_0_1}, "tags": tags, "configs": CONFIGS_OF_0_1}
