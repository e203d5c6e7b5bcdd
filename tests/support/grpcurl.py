"""The grpcurl command."""

from __future__ import annotations

import sys
from pathlib import Path

GRPCURL = (str(Path(sys.executable).with_name("grpcurl")), "-plaintext")
