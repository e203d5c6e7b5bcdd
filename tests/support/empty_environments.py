"""Virtual environments that hold a wheel, what its metadata requires, and no compiler."""

from __future__ import annotations

import subprocess
import venv
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["EmptyEnvironment", "environment_with"]


@dataclass(frozen=True)
class EmptyEnvironment:
    """A virtual environment; what it runs finds no program on the PATH, so no compiler."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    @property
    def packages(self) -> Path:
        [folder] = self.folder.glob("lib/python*/site-packages")
        return folder

    def run(self, *command: str | Path) -> str:
        """Returns the standard output of a Python command; one that fails shows its errors."""
        done = subprocess.run(
            [self.python, *command],
            env={"PATH": str(self.folder / "nothing"), "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def environment_with(wheel: Path, extras: set[str], folder: Path) -> EmptyEnvironment:
    """Installs a wheel with pip, from its file only, beside links to what its metadata requires.

    A test reaches no index, so the dependencies are those of the running environment, file by file.
    """
    venv.create(folder, symlinks=True)
    environment = EmptyEnvironment(folder)
    pip = Path(str(distribution("pip").locate_file("pip")))
    options = ["--no-index", "--no-deps", "--only-binary=:all:", "--no-compile", "--quiet"]
    environment.run(pip, "install", *options, wheel)
    [metadata] = environment.packages.glob("thinrow-*.dist-info")
    required = Distribution.at(metadata).requires or []
    for found in closure(required, extras).values():
        link(found, environment.packages)
    return environment


def closure(required: list[str], extras: set[str]) -> dict[str, Distribution]:
    """Returns the installed distributions that requirements name, and those that these require."""
    found: dict[str, Distribution] = {}
    waiting = [(Requirement(text), extras) for text in required]
    while waiting:
        requirement, of = waiting.pop()
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in (*of, "")):
            continue
        if requirement.name in found and not requirement.extras:
            continue
        found[requirement.name] = distribution(requirement.name)
        more = found[requirement.name].requires or []
        waiting += [(Requirement(text), requirement.extras) for text in more]
    return found


def link(found: Distribution, packages: Path) -> None:
    """Links the files of a distribution, but for its programs, into a folder of packages."""
    for file in found.files or []:
        if ".." not in file.parts:
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(Path(str(found.locate_file(file))).resolve())
