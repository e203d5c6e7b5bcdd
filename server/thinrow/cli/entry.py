"""The command ``thinrow``."""

from __future__ import annotations

import os
import sys

__all__ = ["EXIT_USAGE", "main"]

EXIT_USAGE = 2


def main() -> None:
    """Runs the command line; a mistake ends in one sentence and exit status 2."""
    # gRPC's own complaints would stand beside our sentence; set the variable to see them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from thinrow.access.memory import loading

        with loading():
            from thinrow.cli.app import app
            from thinrow.core.files.permissions import private_umask
            from thinrow.errors import UsageError
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("thinrow"):
            raise
        needs = f"Error: the thinrow command needs {error.name}; pip install 'thinrow[server]'.\n"
        sys.stderr.write(needs)
        sys.exit(EXIT_USAGE)
    try:
        os.umask(private_umask())
    except UsageError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(EXIT_USAGE)
    app()


if __name__ == "__main__":
    main()
