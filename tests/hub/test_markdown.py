"""Text from outside is shown on a card and changes nothing else of it, by another program's reading of Markdown."""

import ast
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from hf_distill.distilled.card import set_card
from hf_distill.hub.cards import render_card, source_context
from hf_distill.hub.folder import Home
from hf_distill.hub.markdown import code, escaped, fenced, literal, plain
from hf_distill.hub.results import EvalReport, EvalRow, LabelRow
from tests.helpers import ROOT
from tests.helpers.sets import make

HARMLESS = "some words"
HOSTILE = [
    "# A title\n\n## Load\n\ntext",
    "Title\n===",
    "![picture](http://evil/p.png) [link](javascript:alert(1)) [a][b]\n\n[b]: http://evil",
    "<script>alert(1)</script><img src=x onerror=alert(1)><!-- <details>",
    "</details> <http://evil> &lt;b&gt; &amp; &#35;",
    "a ` b `` c ``` d",
    "`",
    "```\n## x\n```\n~~~\ny",
    "| a | b |\n| --- | --- |\n\\| c",
    "**bold** *it* _it_ __it__ ~~gone~~ ~sub~ a*b*c",
    "<!-- hf_distill: end -->\n\n## Mine\n\n<!-- hf_distill: load -->\n<!-- hf_distill: wrote {} -->",
    "{{ 7 * 7 }} {% raw %} {# gone #}",
    "---\nlicense: mit\n---\n",
    "- item",
    "1. item",
    "12) item",
    "+ item\n* item",
    "> quote",
    "    code\n\tcode",
    "\\[x^2\\] \\(y\\) $$z$$ \\",
    "\u202eevil\u2066 \x00\x1b[31mred\x07 \ufeff\x85\u2028x",
    "half \ud800 of a pair",
    "'\"); import os; os.system('touch evil') #",
    '"""\n{folder}\n"""',
    "x: [y\n- &a *a !!python/object:os.system",
    "C:\\new\\table",
    "pets|dogs & cats <3, snake_case __init__ a_ _b",
]


def distilled(text: str) -> str:
    about = {"student": text, "protocol": text, "device": text, "split": text, "images": 12, "accuracies": [0.5]}
    config = {
        "method": text,
        "hyperparameters": {text: text, "lrs": [text, 0.1]},
        "versions": {text: text},
        "source": {"name": f"x{text}", "split": text, "revision": text, "license": [text], "gated": "auto"},
        "seed": 7,
        "student": {"name": text},
        "paper": {"title": text, "authors": text, "year": text, "arxiv_id": text, "bibtex": text},
        "experts": {text: text, "training": {text: text}},
        "imported_from": {"files": [{"file": text, "sha256": text}], "factor": 2, "images_stored": text},
    }
    report = EvalReport(
        [EvalRow("distilled", "hard", **about), EvalRow("random", "hard", **about)],
        {"x": {"coresets_compare": text}},
        [LabelRow(labels=text, num_bytes=1, **about)],
    )
    return set_card(make(1, names=[text, "cat"], config=config, report=report), Home(text), "01234567", 9)


def common(text: str, *, on_hub: bool = True) -> dict[str, Any]:
    source = {"name": f"x{text}", "split": text, "revision": text, "license": text, "gated": "auto"}
    config = {
        "source": source,
        "class_names": [text, "cat"],
        "training": {text: text},
        "versions": {text: text},
        "device": text,
        "imported_from": {"files": [{"file": text, "sha256": text}]},
    }
    return {"metadata": "license: other", "call": Home(text, text, on_hub).arguments(), "config": config} | (
        source_context(source)
    )


def experts(text: str) -> str:
    about = common(text)
    about["config"] |= {"num_experts": 2, "num_epochs": 3, "student": {"name": text, "img_size": [8, 8]}}
    return render_card("experts.md", bytes=9, results="", **about)


def labels(text: str) -> str:
    about = common(text)
    about["config"] |= {"images": 3, "epochs": 2, "classes": 10, "bytes": 9, "images_sha256": text}
    about["config"] |= {"views": {"kind": text, "mix": text, text: text}, "teacher": {text: text}}
    about["config"] |= {"mixed_precision": text, "imported_from": {text: text}}
    return render_card("labels.md", per_label="All.", **about)


def teacher(text: str) -> str:
    about = common(text)
    about["config"] |= {"weights": {text: text}, "narrowed": {"num_classes": 9, "digest": text, "repo_id": text}}
    about["config"]["narrowed"]["revision"] = text
    about["config"]["training"] |= {"pretrained_weights": text, "pretrained_revision": text}
    spec = SimpleNamespace(name=text, img_size=(8, 8), num_classes=2)
    of_network = {"preprocessing": SimpleNamespace(zca=None, mean=(0.5,), std=(0.5,)), "spec": spec, "digest": text}
    of_network |= {"timm_name": f"local-dir:{text}", "needs_import": True, "class_names": [text, "cat"], "bytes": 9}
    return render_card("teacher.md", scores={text: 0.5}, **of_network, **about)


def projector(text: str, *, shared: bool) -> str:
    about = common(text)
    base = {"repo_id": text if shared else None, "revision": text, "library": text}
    lora = {"num_params": 9, "r": text, "alpha": text, "target_modules": text, "head_r": text, "head_alpha": text}
    about["config"] |= {"lora": lora, "templates": text if shared else [text], "logit_scale": 1.0, "image_size": [8, 8]}
    about["config"]["results"] = {"kl": 0.1}
    of_network = {"preprocessing": SimpleNamespace(zca=None, mean=(0.5,), std=(0.5,)), "digest": text, "base": base}
    of_network |= {"prior_digest": text, "sizes": {"adapter": 1, "head": 2, "prior": 3}}
    return render_card("projector.md", folder=text, on_hub=shared, **of_network, **about)


CARDS: dict[str, Callable[[str], str]] = {
    "distilled": distilled,
    "experts": experts,
    "labels": labels,
    "teacher": teacher,
    "projector": lambda text: projector(text, shared=True),
    "projector inside": lambda text: projector(text, shared=False),
}


def parsed(text: str) -> list[Any]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def shape(card: str) -> tuple[list[str], list[Any]]:
    """The keys of the metadata, and all of the body but its text: blocks, spans, HTML, where links lead, code."""
    front, body = re.fullmatch("---\n(.*?)^---\n(.*)", card, re.DOTALL | re.MULTILINE).groups()
    found: list[Any] = []
    for token in parsed(body):
        html = token.content if token.type == "html_block" and "hf_distill: wrote" not in token.content else ""
        spans = [
            (span.type, span.content if span.type == "html_inline" else str(span.attrs.get("href", ""))[:23])
            for span in token.children or ()
            if span.type not in ("text", "softbreak")
        ]
        calls = [type(node) for node in ast.walk(ast.parse(token.content))] if token.info == "python" else []
        found.append((token.type, token.tag, token.level, token.info, html, spans, calls))
    return list(yaml.safe_load(front)), found


@pytest.mark.parametrize("name", CARDS)
def test_text_from_outside_changes_no_more_of_a_card_than_the_text(name):
    expected = shape(CARDS[name](HARMLESS))
    for text in HOSTILE:
        card = CARDS[name](text)
        assert shape(card) == expected, text
        card.encode()  # a file can hold it


@pytest.mark.parametrize("text", HOSTILE)
def test_an_escaped_text_is_read_as_that_text(text):
    shown = plain(text).strip()
    for markdown in (escaped(text), f"words {escaped(text)}", f"# {escaped(text)}", f"[{escaped(text)}](x)"):
        inline = next(token for token in parsed(markdown) if token.type == "inline")
        read = "".join(span.content for span in inline.children if span.type == "text")
        assert read.removeprefix("words ").strip() == shown
    (span,) = next(token for token in parsed(code(text)) if token.type == "inline").children
    assert (span.type, span.content) == ("code_inline", shown)
    (block,) = parsed(fenced(text, "bibtex"))
    assert block.type == "fence"
    assert ast.literal_eval(literal(text)) == text


@pytest.mark.parametrize(
    "name", ["snake_case", "ResNet-18 (timm)", "2.8.0+cu126", "-1", "a/b", "61.2 ± 3.1", "犬", "C#"]
)
def test_ordinary_text_stays_as_it_is(name):
    assert escaped(name) == name


@pytest.mark.parametrize(
    ("homepage", "link"),
    [
        ("https://pets.org/a_b?c=d&e#f", "[pets](https://pets.org/a_b?c=d&e#f)"),
        ("https://pets.org/`x", "[pets](https://pets.org/%60x)"),
        ("https://pets.org/\\x", "[pets](https://pets.org/%5Cx)"),
        ("javascript:alert(1)", "pets"),
        ("https://pets.org) ![x](https://evil", "pets"),
    ],
)
def test_a_homepage_is_a_link_or_nothing(homepage, link):
    assert source_context({"name": "pets", "homepage": homepage})["source_link"] == link


def test_what_templates_call_safe_is_made_of_escaped_text_by_the_code():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "model_cards").glob("*.md"))
    assert set(re.findall(r"{{ ([\w.]+) \| safe }}", text)) == {
        *("metadata", "call", "call_tensor", "source_link", "results", "compared", "labels_results", "first_results"),
        *("per_label", "licence_note", "gated_note", "costs", "making", "audit"),
        *("set.picture", "set.beside", "set.animation", "set.table"),
    }
    assert text.count("| safe") == len(re.findall(r"{{ [\w.]+ \| safe }}", text))
