"""The gRPC server."""

from thinrow.serving.config import ServerConfig
from thinrow.serving.server import Server

__all__ = ["Server", "ServerConfig"]
