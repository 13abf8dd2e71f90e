"""Print figures about the structure of the code.

    python -m experiments.structure [FOLDER]        FOLDER: a checkout; default: this one

The figures are the lengths of files, classes and function bodies, and the numbers of import circles, docstrings, type
ignores and imports per strategy.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGES = ("fl", "strategies", "clients", "partitions")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def quantiles(lengths: Sequence[tuple[int, str]]) -> str:
    """Describe lengths: median, 90th percentile, and the longest with its name.

    >>> quantiles([(1, "a"), (2, "b"), (9, "c")])
    'p50 2, p90 2, max 9 (c)'
    """
    ordered = sorted(lengths)
    at = [ordered[int(share * (len(ordered) - 1))][0] for share in (0.5, 0.9)]
    return f"p50 {at[0]}, p90 {at[1]}, max {ordered[-1][0]} ({ordered[-1][1]})"


def body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function, without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the modules that a file imports anywhere, without imports for type checkers only."""
    skipped = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.dump(test.test)
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def circles(edges: dict[str, set[str]]) -> int:
    """Return the number of groups of modules that import each other, directly or not.

    >>> circles({"a": {"b"}, "b": {"a"}, "c": {"a"}})
    1
    """
    reach: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        todo = list(edges[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += edges.get(module, ())
        reach[start] = seen
    in_circle = {m for m in edges if m in reach[m]}
    return len({frozenset({m, *(n for n in in_circle if n in reach[m] and m in reach[n])}) for m in in_circle})


def import_edges(root: Path, trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Return a dict: module of `fl` -> modules of `fl` that it imports."""
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in trees}
    known = {name for name in names.values() if name.startswith("fl.")}

    def home(name: str) -> str:
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name

    return {
        name: {home(module) for module in imports(trees[path])} - {"", name}
        for path, name in names.items()
        if name in known
    }


def public(tree: ast.Module) -> Iterator[Definition]:
    """Yield public classes and functions of a module, and public methods of its classes."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"))


def main(root: Path) -> None:
    """Print the figures of a checkout."""
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    texts = {path: path.read_text() for path in paths}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    nodes = [(path.relative_to(root), node) for path in paths for node in ast.walk(trees[path])]
    functions = [(p, n) for p, n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    classes = [(p, n) for p, n in nodes if isinstance(n, ast.ClassDef)]
    print(f"files ({len(paths)}):", quantiles([(t.count("\n"), str(p.relative_to(root))) for p, t in texts.items()]))
    print(f"function bodies ({len(functions)}):", quantiles([(body_length(n), f"{p}:{n.name}") for p, n in functions]))
    lengths = [((n.end_lineno or 0) - n.lineno + 1, f"{p}:{n.name}") for p, n in classes]
    print(f"classes ({len(classes)}):", quantiles(lengths))
    print("classes above 200 lines:", [name for length, name in lengths if length > 200])
    print("import circles between modules of fl:", circles(import_edges(root, trees)))
    names = [node for tree in trees.values() for node in public(tree)]
    documented = sum(ast.get_docstring(node) is not None for node in names)
    print(f"public names with a docstring: {documented} of {len(names)} (most others override a documented method)")
    print("type ignores:", sum(text.count("# type: ignore") for text in texts.values()))
    statements = [
        sum(isinstance(node, ast.Import | ast.ImportFrom) for node in trees[path].body)
        for path in paths
        if path.parent == root / "strategies" and path.stem != "__init__"
    ]
    print(f"import statements per strategy file: {sum(statements) / len(statements):.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)
