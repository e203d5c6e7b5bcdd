"""Print the stub of `thinrow._native`, generated from the built module."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

from nanobind.stubgen import StubGen

ARRAY = re.compile(r"Annotated\[(NDArray(?:\[[\w.]+\])?), dict\([^()]*(?:\([^()]*\))?[^()]*\)\]")
"""An array's annotation with its shape, order and device, which no checker uses."""


def main() -> None:
    """Generate the stub, simplify and format it."""
    generator = StubGen(module=importlib.import_module("thinrow._native"))
    generator.put(generator.module)
    text = ARRAY.sub(lambda match: match[1], generator.get())
    for formatting in (["check", "--fix-only", "--select=I,F401"], ["format"]):
        command = [Path(sys.executable).with_name("ruff"), *formatting, "--quiet", "-"]
        command += ["--stdin-filename", "client/thinrow/_native.pyi"]
        text = subprocess.run(
            command, input=text, capture_output=True, text=True, check=True
        ).stdout
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
