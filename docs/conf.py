"""Settings of the documentation site, which `make docs` builds from the Markdown pages as they are.

The root of the sources is that of the repository, so links between pages lead where they lead on
GitHub. README.md is the first page. docs/README.md, the list of all pages, becomes the navigation.
Sections of docs/reference/python.md that are named after a module show its docstrings.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]

project = "ThinRow"
author = "ThinRow's authors"
html_title = "ThinRow"
html_theme = "furo"
html_show_copyright = False
root_doc = "README"
include_patterns = ["*.md", "docs/**", "examples/*/README.md"]
exclude_patterns = [".*", "**/node_modules"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_heading_anchors = 4
# Docstrings name code in single backticks.
default_role = "code"
autodoc_default_options = {"members": True, "imported-members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

PROJECT_PAGES = ("docs/README", "examples/node/README", "CONTRIBUTING", "SECURITY", "CHANGELOG")


def navigation() -> str:
    """Returns a table of contents for each part of docs/README.md, in its order."""
    trees = []
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for part, cells in re.findall(r"^\| \*\*(\w+)\*\* \| (.*) \|$", index, re.MULTILINE):
        pages = [f"docs/{page}" for page in re.findall(r"\]\(([\w/.-]+)\.md\)", cells)]
        trees.append(tree(part, pages))
    return "\n".join([*trees, tree("Project", PROJECT_PAGES)])


def tree(caption: str, pages: list[str] | tuple[str, ...]) -> str:
    """Returns a hidden table of contents."""
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def with_docstrings(page: str) -> str:
    """Returns a page with the docstrings of each module that has a section in it, each once."""
    shown: list[object] = []

    def section(found: re.Match[str]) -> str:
        module = import_module(found[1])
        public = {name: getattr(module, name) for name in module.__all__}
        again = [name for name, each in public.items() if any(each is other for other in shown)]
        shown.extend(public.values())
        excluded = f"   :exclude-members: {', '.join(again)}\n" if again else ""
        return f"{found[0]}\n```{{eval-rst}}\n.. automodule:: {found[1]}\n{excluded}```\n"

    return re.sub(r"^## `([\w.]+)`\n\n(?:.+\n)*", section, page, flags=re.MULTILINE)


def read_source(_: Sphinx, name: str, source: list[str]) -> None:
    """Adds what only the site has to a page that was read."""
    if name == root_doc:
        source[0] += "\n" + navigation()
    elif name == "docs/reference/python":
        source[0] = with_docstrings(source[0])


def without_type(_: Sphinx, what: str, *others: object) -> None:
    """Gives the docstring of an attribute an empty type: its text may have a colon of its own."""
    lines = others[-1]
    if what in ("attribute", "property") and isinstance(lines, list):
        lines[0] = f": {lines[0]}"


def setup(app: Sphinx) -> None:
    """Connects the pages and docstrings as they are read."""
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", without_type, priority=400)  # before napoleon
