"""The gRPC server."""

from thinrow.serving.config import ServerConfig
from thinrow.serving.processes import Processes
from thinrow.serving.server import Server

__all__ = ["Processes", "Server", "ServerConfig"]
