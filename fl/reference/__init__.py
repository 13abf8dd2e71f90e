"""What users read about parts and keys, taken from the source text: nothing is imported or run.

source.py        a module, a class, its arguments        docstring.py   `Args:` sections
parts.py         the registered parts of a kind          limits.py      allowed ranges, from `__post_init__`
types.py         the type of a key, in words             defaults.py    the default of a key, as YAML
tree.py          all keys of a configuration             schema.py      a JSON Schema for editors
markdown.py      pages of docs/reference/                interface.py   the Python interface as a page
commands.py      the command line as a page
"""
