"""Pages of docs/reference/ about the configuration and the parts, as Markdown for GitHub and for MkDocs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from fl.kinds import KINDS
from fl.reference import parts, tree
from fl.reference.nouns import NOUNS
from fl.reference.parts import Entry
from fl.reference.source import Definition
from fl.reference.tree import Key

GENERATED = "<!-- made by `python -m experiments.reference` from the source; edit the docstrings -->"
MANY = 3  # parts that share the arguments of a base, which are then told once in a page
CONFIGURATION = """A configuration is a YAML file with these keys. [The guide](../configuration.md) tells how files,
overrides and parts are written. In a shell: `fl show config`, or `fl show config evaluation.every`.

Editors complete and check the keys with a JSON Schema:

```sh
fl show config --json > fl.schema.json
```

and this first line of the YAML file: `# yaml-language-server: $schema=fl.schema.json`"""
HEADER = "| key | values | default | meaning |\n|---|---|---|---|"
_CODE = re.compile(r"`[^`]+`")


def configuration_page() -> str:
    """All sections and keys of a configuration."""
    keys = tree.configuration()
    lines = ["# Configuration: all keys", GENERATED]
    lines.append(CONFIGURATION)
    top = _table(keys)
    for key in keys:
        top = top.replace(f"`{key.path}` | mapping with the keys below", f"`{key.path}` | [mapping](#{key.path})")
    lines += ["## Top-level keys", top]
    for key in keys:
        if key.below:
            lines += [f"## {key.path}", fenced(key.text), _table(tree.flat(key.below))]
            if key.kind:
                lines.append(f"Beside these stand the keys of the part: [{NOUNS[key.kind][1]}]({key.kind}.md).")
    return "\n\n".join(lines) + "\n"


def kind_page(kind: str) -> str:
    """All parts of a kind, with their arguments."""
    one, several, what = NOUNS[kind]
    entries = parts.names(kind)
    lines = [f"# {several[0].upper()}{several[1:]}", GENERATED, f"{what} Key of a configuration: `{KINDS[kind].key}`."]
    if not entries:
        lines.append(f"There is no registered {one}; write your own: `path/to/file.py:Name`.")
    else:
        rows = [f"| [`{name}`](#{name}) | {cell(entry.summary)} |" for name, entry in entries.items()]
        lines.append("\n".join(["| name | what it is |", "|---|---|", *rows]))
    shared = _shared(entries)
    registered = {entry.definition: name for name, entry in entries.items()}
    for base, keys in shared.items():
        if base not in registered:
            title = _title(base)
            lines += [
                f"## {title}",
                "Several parts below have these arguments.",
                _table(tree.flat(keys), f"{_slug(title)}."),
            ]
    for name, entry in entries.items():
        lines += _part(kind, name, entry, shared, registered)
    return "\n\n".join(lines) + "\n"


def _part(
    kind: str,
    name: str,
    entry: Entry,
    shared: Mapping[Definition, tuple[Key, ...]],
    registered: Mapping[Definition, str],
) -> list[str]:
    """The section of a part.

    Args:
        kind: its kind.
        name: its name.
        entry: where it is defined.
        shared: the bases whose arguments are told once in the page.
        registered: the parts of the kind, with their names.
    """
    part = entry.definition
    told = (
        [part.text] if len({each.object for each in _beside(kind, entry)}) > 1 else [part.module.docstring, part.text]
    )
    lines = [f"## {name}", fenced("\n\n".join(dict.fromkeys(filter(None, told))))]
    if len(entry.names) > 1:
        lines.append("Also called " + ", ".join(f"`{each}`" for each in entry.names[1:]) + ".")
    if kind == "strategy":
        client = parts.client_of(part)
        link = f"[`{client}`](client.md#{client})" if client in parts.names("client") else f"`{client}`"
        lines.append(f"Client algorithm: {link}.")
    keys = tree.keys_of(part)
    elsewhere = {key.path: base for base, group in shared.items() if base != part for key in keys if _same(key, group)}
    own = [key for key in keys if key.path not in elsewhere]
    if own:
        lines.append(_table(tree.flat(tuple(own)), f"{name}."))
    for base in dict.fromkeys(elsewhere.values()):
        names = ", ".join(f"`{path}`" for path, where in elsewhere.items() if where is base)
        title = registered.get(base) or _title(base)
        lines.append(f"{'Also' if own else 'It has'} {names}: see [{title}](#{_slug(title)}).")
    if not keys:
        lines.append("It has no arguments.")
    return lines


def _beside(kind: str, entry: Entry) -> list[Entry]:
    """The parts of a kind that the same file registers."""
    return [each for each in parts.names(kind).values() if each.path == entry.path]


def _shared(entries: Mapping[str, Entry]) -> dict[Definition, tuple[Key, ...]]:
    """The bases whose arguments several parts have with the same meaning, with these arguments."""
    count = Counter((key.argument.node, key.meaning) for e in entries.values() for key in tree.keys_of(e.definition))
    bases = dict.fromkeys(base for entry in entries.values() for base in entry.definition.lineage if base.is_dataclass)
    found = {}
    for base in bases:
        own = [key for key in tree.keys_of(base) if key.argument.owner.node is base.node]
        found[base] = tuple(key for key in own if count[key.argument.node, key.meaning] >= MANY)
    return {base: keys for base, keys in found.items() if keys}


def _same(key: Key, group: Iterable[Key]) -> bool:
    """Whether a shared key says the same: its line in the source, and its meaning."""
    return any(key.argument.node is each.argument.node and key.meaning == each.meaning for each in group)


def _title(base: Definition) -> str:
    """`LocalTraining` as words.

    >>> from fl.reference.source import definition_of
    >>> _title(definition_of("fl.method.local_training:LocalTraining"))
    'Arguments of local training'
    """
    return "Arguments of " + re.sub(r"(?<=[a-z])(?=[A-Z])", " ", base.node.name.strip("_")).lower()


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")


# -- Markdown ---------------------------------------------------------------------------------------------------------
def _table(keys: Iterable[Key], prefix: str = "") -> str:
    """A table of keys; `prefix` makes the anchors of a page different."""
    rows = []
    for key in keys:
        plain = {"required": "**required**", "": "", **{text: text for text in tree.TAKEN_FROM.values()}}
        default = plain[key.default] if key.default in plain else cell(f"`{key.default}`")
        has_heading = not prefix and "." not in key.path and key.below
        anchor = "" if has_heading else f'<a id="{prefix}{key.path}"></a>'
        rows.append(f"| {anchor}`{key.path}` | {linked(cell(key.words))} | {default} | {cell(key.meaning)} |")
    return "\n".join([HEADER, *rows])


def linked(text: str) -> str:
    """Links in place of `fl show KIND`.

    >>> linked("codec (`fl show codec`)")
    '[codec](codec.md)'
    """
    return re.sub(r"([\w ]+?) \(`fl show (\w+)`\)", _link, text)


def _link(match: re.Match[str]) -> str:
    """The link for one match; words such as "list of" stay outside."""
    text, kind = match[1], match[2]
    noun = next((each for each in NOUNS[kind][:2] if text.endswith(each)), text)
    return f"{text.removesuffix(noun)}[{noun}]({kind}.md)"


def cell(text: str) -> str:
    """Text for a cell of a table: nothing in it is read as a table's edge, a tag or an emphasis.

    >>> print(cell("|x| < 1, `a|b`, 2 * y_i"))
    &#124;x&#124; &lt; 1, <code>a&#124;b</code>, 2 \\* y\\_i
    """
    pieces = []
    end = 0
    for match in _CODE.finditer(text):
        pieces += [_escaped(text[end : match.start()]), _code(match[0])]
        end = match.end()
    return "".join([*pieces, _escaped(text[end:])])


def _code(text: str) -> str:
    return text if "|" not in text else f"<code>{_entities(text[1:-1])}</code>"


def _entities(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")


def _escaped(text: str) -> str:
    return re.sub(r"([*_\\~])", r"\\\1", _entities(text)).replace("](", "]\\(")


def fenced(text: str) -> str:
    """Text as it stands, with its line breaks."""
    return f"```text\n{text}\n```" if text else ""
