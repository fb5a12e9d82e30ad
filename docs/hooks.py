"""What `make docs` does beside mkdocs, and what it fails on.

Pages link to files of the repository by relative paths, as GitHub follows them. The site is whole without a network: it
has such files under `files/`, and CONTRIBUTING.md and its like as pages. Equations become MathML, which browsers draw
themselves. Fields that are flags are shown as a table of their help texts. The build fails on an exported name that is
not in the reference, or is not documented there, and on a page that asks another host for anything.
"""

import ast
import html
import os
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from math_core import LatexError, LatexToMathML
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGES = ("CONTRIBUTING.md", "AGENTS.md", "SECURITY.md", "CHANGELOG.md")
SHOWN = (".json", ".ipynb", ".png", ".jpg", ".html", ".txt")  # browsers fetch other files in place of showing them
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
ELSEWHERE = re.compile(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the repository's top, and what pages link to."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for page in files.documentation_pages():
        source = Path(str(page.abs_src_path))
        for link in LINK.findall(source.read_text(encoding="utf-8")):
            target = Path(os.path.normpath(source.parent / link))
            inside = target.rglob("*") if target.is_dir() else [target]
            for path in [target, *inside]:
                uri = _uri(path)
                if uri.startswith("files/") and path.exists() and uri not in files.src_uris:
                    content = {"content": _listing(path)} if path.is_dir() else {"abs_src_path": str(path)}
                    files.append(File.generated(config, uri, **content))
    return files


def _uri(target: Path) -> str:
    """Where the site has a file of the repository; as it is where it has not."""
    if target == ROOT / "README.md":
        return "index.md"
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    if target.parent == ROOT and target.name in PAGES:
        return target.name
    if not target.is_relative_to(ROOT) or any(part.startswith((".", "__")) for part in target.relative_to(ROOT).parts):
        return target.as_posix()
    uri = f"files/{target.relative_to(ROOT).as_posix()}"
    return f"{uri}/index.html" if target.is_dir() else uri if target.suffix in SHOWN else f"{uri}.txt"


def _listing(folder: Path) -> str:
    names = {path.name: posixpath.relpath(_uri(path), posixpath.dirname(_uri(folder))) for path in folder.iterdir()}
    rows = "".join(f"<li><a href='{names[name]}'>{name}</a></li>" for name in sorted(names) if name[0] not in "._")
    return f"<!doctype html><meta charset=utf-8><title>{folder.name}</title><h1>{folder.name}</h1><ul>{rows}</ul>"


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links to files of the repository into links to the site's."""
    source = Path(str(page.file.abs_src_path))

    def moved(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / link[1]))
        if not target.exists():
            return link[1]  # which mkdocs says, and fails
        return posixpath.relpath(_uri(target), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)


def on_page_content(text: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Write equations as MathML, and note which names the page documents."""

    def equation(found: re.Match[str]) -> str:
        try:
            return CONVERTER.convert_with_local_state(html.unescape(found[2]), displaystyle=found[1] == "div")
        except LatexError as error:
            raise PluginError(f"{page.file.src_uri}: the equation {found[2].strip()!r}: {error}") from error

    if page.file.src_uri.startswith("reference/"):
        documented.extend(re.findall(r'id="hf_distill\.(\w+)"', text))
    return EQUATION.sub(equation, text)


CONVERTER = LatexToMathML(fancy_error=False)
documented: list[str] = []


def on_pre_build(**_: Any) -> None:
    documented.clear()


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Fail on what the reference lacks, and on pages that are not whole without a network."""
    tree = ast.parse((ROOT / "hf_distill" / "__init__.py").read_text(encoding="utf-8"))
    (exported,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    lacking = [name for name in exported if documented.count(name) != 1]
    if lacking:
        raise PluginError(f"docs/reference/: expected each exported name once, with a docstring: {', '.join(lacking)}")
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        if asked := ELSEWHERE.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path.relative_to(config.site_dir)} asks another host: {asked[0][:200]}")


class Docstrings(griffe.Extension):
    """Shows examples as code, and the fields of a config that are flags, and those of its parents, as one table."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        exported = [_target(pkg.members[str(name)]) for name in pkg.exports or ()]
        made = [target for target in exported if isinstance(target, griffe.Class | griffe.Function)]
        if bare := [target.path for target in made if not target.docstring]:
            raise PluginError(f"exported names without a docstring: {', '.join(bare)}")
        shown = [target for target in made if isinstance(target, griffe.Class)]
        flags = [[flag for part in (config, *config.mro()) for flag in _flags(part)] for config in shown]
        for config, found in zip(shown, flags, strict=True):
            if found and config.docstring:
                config.docstring.parsed.append(griffe.DocstringSectionParameters(found, title="Flags:"))
            config.members = {name: member for name, member in config.members.items() if not _is_flag(member)}


def _target(member: griffe.Object | griffe.Alias) -> griffe.Object | None:
    """What an exported name stands for; None for what is of another package."""
    try:
        return member.final_target if isinstance(member, griffe.Alias) else member
    except griffe.AliasResolutionError:
        return None


def _is_flag(member: griffe.Object | griffe.Alias) -> bool:
    value = member.value if isinstance(member, griffe.Attribute) else None
    return isinstance(value, griffe.ExprCall) and str(value.function).endswith(("HfArg", "PathArg"))


def _flags(config: griffe.Class) -> list[griffe.DocstringParameter]:
    flags = []
    for member in filter(_is_flag, config.members.values()):
        given = {word.name: word.value for word in member.value.arguments}
        about = {"annotation": member.annotation, "value": given.get("default") or given["default_factory"]}
        text = _text(ast.parse(str(given["help"]), mode="eval").body)
        flags.append(griffe.DocstringParameter(member.name, description=text, **about))
    return flags


def _text(told: ast.expr) -> str:
    """A help text; what an f-string computes is shown as it is written."""
    parts = told.values if isinstance(told, ast.JoinedStr) else [told]
    return "".join(p.value if isinstance(p, ast.Constant) else f"`{ast.unparse(p)[2:-1]}`" for p in parts)
