"""Certificates of an authority made for a test."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


class Authority:
    """Makes real certificates, with the openssl command."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl command")
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._key = folder / "ca.key"
        openssl("req", "-x509", *self._made(self._key, self.ca, "authority"))

    def issue(self, name: str, host: str = "127.0.0.1") -> tuple[Path, Path]:
        """A certificate for a loopback address of this machine, and its key."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        openssl(
            *("req", "-x509", "-CA", self.ca, "-CAkey", self._key),
            *("-addext", f"subjectAltName=IP:{host},DNS:localhost"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *self._made(key, cert, name),
        )
        return cert, key

    @staticmethod
    def _made(key: Path, cert: Path, name: str) -> tuple[object, ...]:
        return (
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", cert, "-subj", f"/CN={name}", "-days", 2),
        )


def openssl(*arguments: object) -> None:
    command = ["openssl", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
