"""Build the documentation site: `make docs`, or `python docs/site.py`.

build/site-pages    pages: docs/ and the files outside docs/ that they link to, with rewritten links
build/site          the HTML. It loads nothing from other hosts
llms.txt            the pages with one line each, for coding agents (llmstxt.org); also in build/site

Pages of docs/ link to files outside docs/ as GitHub needs it: `../experiments/headline.md`, or a folder, whose README
is meant. This script copies these files beside the pages and rewrites the links. A link to nothing, and a page that has
no place in the navigation of mkdocs.yml, are errors.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BUILD = ROOT / "build"
LINK = re.compile(r"(\]\()([^)\s#]+)?(#[^)\s]*)?(?=[)\s])")
SUFFIXES = (".md", ".ipynb")


def read_config() -> dict[str, Any]:
    """Return mkdocs.yml as a mapping. Its tags for Python objects are ignored."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    return config | {"nav": [expanded(entry) for entry in config["nav"]]}


def expanded(entry: Any) -> Any:
    """Return an entry of the navigation in which a folder is the list of its pages, README.md first."""
    if isinstance(entry, dict):
        return {title: expanded(value) for title, value in entry.items()}
    if isinstance(entry, list):
        return [expanded(each) for each in entry]
    if not entry.endswith("/"):
        return entry
    pages = sorted((DOCS / entry).glob("*.md"), key=lambda page: (page.name != "README.md", page.name))
    return [f"{entry}{page.name}" for page in pages]


def navigation(nav: list[Any], section: str = "") -> Iterator[tuple[str, str, Path]]:
    """Yield (section, title, file) for each page of the navigation, in order. Sub-sections count to their section."""
    for entry in nav:
        title, value = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
        if isinstance(value, list):
            yield from navigation(value, section or title)
        else:
            yield section, title, (DOCS / value).resolve()


def place(file: Path) -> Path:
    """Return where a file of the repository stands in the site, relative to the site's root."""
    inside = file.relative_to(DOCS) if file.is_relative_to(DOCS) else file.relative_to(ROOT)
    if inside.name == "README.md":
        inside = inside.with_name("index.md" if inside.parent.name else "readme.md")
    return inside.with_suffix(".md") if inside.suffix == ".ipynb" else inside


def text_of(file: Path) -> str:
    """Return a page as Markdown. Cells of a notebook become text and blocks of code."""
    if file.suffix != ".ipynb":
        return file.read_text()
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(file.read_text())["cells"]]
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells)


def outside_code(text: str) -> Iterator[tuple[bool, str]]:
    """Yield (is prose, line) for each line; lines of fenced blocks are no prose."""
    fence = False
    for line in text.splitlines(keepends=True):
        border = line.lstrip().startswith("```")
        yield not (fence or border), line
        fence = fence != border


class Builder:
    """Copies pages and what they link to, and rewrites the links."""

    def __init__(self) -> None:
        self.copied: set[Path] = set()
        self.errors: list[str] = []

    def copy(self, file: Path) -> None:
        """Copy a file, and the files that a page links to."""
        if file in self.copied:
            return
        self.copied.add(file)
        target = BUILD / "site-pages" / place(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix not in SUFFIXES:
            shutil.copyfile(file, target)
            return
        lines = outside_code(text_of(file))
        target.write_text("".join(self.rewritten(line, file) if prose else line for prose, line in lines))

    def rewritten(self, line: str, file: Path) -> str:
        """Return a line of a page with the links of the site."""

        def replace(match: re.Match[str]) -> str:
            start, path, anchor = match[1], match[2], match[3] or ""
            if not path or "://" in path or path.startswith("mailto:"):
                return match[0]
            linked = (file.parent / path).resolve()
            linked = linked / "README.md" if linked.is_dir() else linked
            if not linked.is_file() or not linked.is_relative_to(ROOT):
                self.errors.append(f"{file.relative_to(ROOT)}: a link to {path}, which does not exist")
                return match[0]
            self.copy(linked)
            return f"{start}{os.path.relpath(place(linked), place(file).parent)}{anchor}"

        parts = re.split(r"(`+[^`]+`+)", line)  # code is no link
        return "".join(part if part.startswith("`") else LINK.sub(replace, part) for part in parts)


def stage() -> dict[str, Any]:
    """Write build/site-pages; return the configuration for its pages.

    Raises:
        SystemExit: a link, or an entry of the navigation, leads to nothing; or a page has no place in the navigation.
    """
    shutil.rmtree(BUILD / "site-pages", ignore_errors=True)
    config = read_config()
    builder = Builder()
    listed = [file for _, _, file in navigation(config["nav"])]
    for file in listed:
        if not file.is_file():
            builder.errors.append(f"mkdocs.yml: {os.path.relpath(file, DOCS)} in nav does not exist")
    pages = [
        file for file in sorted(DOCS.rglob("*")) if file.suffix in SUFFIXES and ".ipynb_checkpoints" not in str(file)
    ]
    for file in pages:
        if file not in listed:
            builder.errors.append(f"mkdocs.yml: nav has no line for {file.relative_to(DOCS)}")
    for file in (*filter(Path.is_file, listed), *pages, DOCS / "site.css"):
        builder.copy(file)
    if builder.errors:
        sys.exit("\n".join(builder.errors))
    return config | {"nav": staged_nav(config["nav"])}


def staged_nav(nav: list[Any]) -> list[Any]:
    """Return the navigation with the files of the site."""

    def staged(value: Any) -> Any:
        return staged_nav(value) if isinstance(value, list) else str(place((DOCS / value).resolve()))

    return [{k: staged(v) for k, v in e.items()} if isinstance(e, dict) else staged(e) for e in nav]


def heading(text: str) -> str:
    """Return the first heading of a page."""
    return next(line.removeprefix("# ").strip() for line in text.splitlines() if line.startswith("# "))


def first_sentence(text: str) -> str:
    """Return the first sentence of a page below its heading, without links and marks."""
    prose = "".join(line for is_prose, line in outside_code(text) if is_prose)
    paragraphs = (part.strip() for part in re.split(r"\n\s*\n", prose))
    paragraph = next(part for part in paragraphs if part and not part.startswith(("#", "|", "-", "*", "!", "<")))
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
    return re.split(r"(?<=[.?!])\s", plain)[0].rstrip(":")


def llms(prefix: str = "") -> str:
    """Return llms.txt: a link and a sentence for each page. `prefix` is the folder of the repository or of the site."""
    config = read_config()
    lines = [f"# {config['site_name']}", "", f"> {config['site_description']}"]
    last = ""
    for section, title, file in navigation(config["nav"]):
        if section != last:
            lines += ["", f"## {section}", ""]
            last = section
        text = text_of(file)
        path = file.relative_to(ROOT) if prefix == "" else place(file)
        lines.append(f"- [{title or heading(text)}]({path}): {first_sentence(text)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Build the site; exit code 1 if a link is broken."""
    config = stage()
    (ROOT / "llms.txt").write_text(llms())
    (BUILD / "site-pages/llms.txt").write_text(llms("site"))
    # the same file for the folder of the pages: the navigation may name only files inside it
    before, after = re.split(r"\nnav:\n.*?\n(?=theme:)", (ROOT / "mkdocs.yml").read_text(), maxsplit=1, flags=re.S)
    nav = yaml.safe_dump({"nav": config["nav"]}, sort_keys=False)
    settings = BUILD / "mkdocs.yml"
    settings.write_text(f"{before}\n{nav}{after}".replace("build/site", "site"))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(settings)]
    done = subprocess.run(command, cwd=BUILD, capture_output=True, text=True)
    if done.returncode:
        told = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
        sys.exit(told.split("\nTraceback", 1)[0])
    print(f"{len(list((BUILD / 'site').rglob('*.html')))} pages: {BUILD / 'site/index.html'}")


if __name__ == "__main__":
    main()
