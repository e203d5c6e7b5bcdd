"""The gRPC server."""

from thinrow.materialization.config import ServerConfig
from thinrow.materialization.processes import Processes
from thinrow.materialization.server import Server

__all__ = ["Processes", "Server", "ServerConfig"]
