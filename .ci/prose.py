"""Check the English of names, comments, docstrings, messages and pages (CONTRIBUTING, English).

Usage: prose.py [--list] [PATH...]. Without paths, the whole repository is checked. With --list,
findings are also counted by file and the exit status is 0.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Finding", "findings", "main"]

WORDS = {
    "tell|tells|told|telling": "report, state, show; distinguish",
    "ask|asks|asked|asking": "request, query, call; `requested`",
    "lately": "recently",
    "so many": "N, that many, too many",
    "whoever": "name the component or the person",
    "nobody|everybody": "no caller, every client: name them",
    "let go|lets go|lets? [a-z ]{1,20} go|letting go": "release, drop, free",
    "mend|mends|mended": "fix, repair, correct",
    "hand out|hands out|handed out|handing out": "return, deliver, assign",
    "for good": "permanently",
    "anew": "again",
    "the like": "similar",
    "shall": "must, should, may",
    "affair|affairs": "responsibility",
    "one behind the other|one behind another": "consecutive, back to back",
    "he|him|his": "they, them, their",
}
"""Banned words (alternatives of a regular expression), and what to write instead."""

OPENINGS = (
    "What|Who|Whom|Whose|Whether|Which|How|Where|When|Why|That|So|As|Its|"
    "Of|By|From|With|On|At|To|In|For whom|For those|For who"
)
"""Words that open neither a noun phrase nor a sentence with an imperative verb."""

COMMENT_OPENINGS = "What|Who|Whom|Whose|Whether|Which|How|That|Of"
"""The openings that are also banned in comments of C++ and protobuf."""

WORD = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
OPENING = re.compile(rf"\s*({OPENINGS})\b")
COMMENT_OPENING = re.compile(rf"\s*({COMMENT_OPENINGS})\b")
CODE = re.compile(r"``[^`]*``|`[^`]*`|\]\([^)]*\)|https?://\S+")
WORDS_OF_NAME = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")

GENERATED = ("protos/thinrow/v1/", "docs/reference/test-vectors.json", "deploy/requirements/")
TEXT_SUFFIXES = {".md", ".yaml", ".yml", ".toml", ".json", ".svg", ".env", ".html"}
HASH_COMMENT_NAMES = {
    "Makefile",
    "Dockerfile",
    "run",
    "pin-images",
    "thinrow-health",
    "CMakeLists.txt",
}
EXAMPLES = (".ci/prose.py", "tests/unit/test_prose.py")
"""Files that spell out what is banned."""
PRODUCT = ("client/", "server/", "protos/")
"""Folders in which every module needs `__all__`."""


class Finding(NamedTuple):
    """A place that breaks a rule, and the advice."""

    path: str
    line: int
    message: str


def findings(path: str, text: str) -> list[Finding]:
    """Return what breaks the rules in one file."""
    if path.endswith(".py"):
        found = _python(path, text)
    elif path.endswith((".cpp", ".h", ".proto")):
        found = _slashes(text)
    elif Path(path).suffix in TEXT_SUFFIXES:
        found = _pages(path, text)
    elif Path(path).name in HASH_COMMENT_NAMES:
        found = _hashes(text)
    else:
        found = iter(())
    return sorted({Finding(path, line, message) for line, message in found})


def _words(line: int, text: str) -> Iterator[tuple[int, str]]:
    prose = CODE.sub(lambda code: re.sub(r"[^\n]", "x", code[0]), text)
    for match in WORD.finditer(prose):
        at = line + prose.count("\n", 0, match.start())
        yield at, f"'{match[0]}': {_advice(match[0])}"


def _advice(word: str) -> str:
    return next(a for words, a in WORDS.items() if re.fullmatch(words, word, re.IGNORECASE))


def _opening(pattern: re.Pattern[str], line: int, text: str) -> Iterator[tuple[int, str]]:
    if match := pattern.match(text):
        yield line, f"opens with '{match[1]}': use an imperative verb or a noun phrase"


def _python(path: str, text: str) -> Iterator[tuple[int, str]]:
    tree = ast.parse(text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield from _words(token.start[0], token.string)
    for node in ast.walk(tree):
        yield from _names(node)
        match node:
            case ast.Constant(str(value)) if " " in value:
                yield from _words(node.lineno, value)
            case ast.Expr(ast.Constant(str(value))) | ast.keyword("help", ast.Constant(str(value))):
                yield from _opening(OPENING, node.lineno, value)
    if path.startswith(PRODUCT) and not _has_all(tree):
        yield 1, "has no `__all__`"


def _names(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Find banned words in the names that a node defines."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            pass
        case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
            pass
        case _:
            return
    words = " ".join(WORDS_OF_NAME.findall(name.replace("_", " "))).lower()
    for _, advice in _words(0, words):
        yield node.lineno, f"name `{name}`: {advice}"


def _has_all(tree: ast.Module) -> bool:
    defines = [n for n in tree.body if not isinstance(n, ast.Expr)]  # a bare docstring needs none
    names = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    return not defines or "__all__" in names


def _slashes(text: str) -> Iterator[tuple[int, str]]:
    was_comment = False
    for line, content in enumerate(text.splitlines(), 1):
        code, slashes, comment = content.partition("//")
        for literal in re.findall(r'"((?:[^"\\]|\\.)*)"', code):
            yield from _words(line, literal)
        if slashes:
            yield from _words(line, comment)
        is_comment = bool(slashes) and not code.strip()
        if is_comment and not was_comment:
            yield from _opening(COMMENT_OPENING, line, comment)
        was_comment = is_comment


def _pages(path: str, text: str) -> Iterator[tuple[int, str]]:
    is_fenced = False
    for line, content in enumerate(text.splitlines(), 1):
        if path.endswith(".md") and content.lstrip().startswith("```"):
            is_fenced = not is_fenced
        elif not is_fenced:
            yield from _words(line, content)
        elif "#" in content:
            yield from _words(line, content.partition("#")[2])


def _hashes(text: str) -> Iterator[tuple[int, str]]:
    for line, content in enumerate(text.splitlines(), 1):
        if "#" in content:
            yield from _words(line, content.partition("#")[2])


def main(arguments: list[str]) -> int:
    """Print the findings; return the exit status."""
    is_list = "--list" in arguments
    paths = [argument for argument in arguments if argument != "--list"]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths],
        check=True,
        capture_output=True,
        text=True,
    )
    found: list[Finding] = []
    for path in listed.stdout.splitlines():
        if path.startswith(GENERATED) and not path.endswith(".proto"):
            continue
        if path not in EXAMPLES and Path(path).is_file():
            try:
                found += findings(path, Path(path).read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                continue  # an image or another binary file
    for finding in found:
        print(f"{finding.path}:{finding.line}: {finding.message}")
    if is_list:
        for folder, count in Counter("/".join(f.path.split("/")[:3]) for f in found).most_common():
            print(f"{count:6} {folder}")
        return 0
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
