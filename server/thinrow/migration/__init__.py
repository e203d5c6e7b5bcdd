"""The way over from fat rows, and what it is worth."""

from thinrow.migration.slim import SlimConfig, SlimReport, slim

__all__ = ["SlimConfig", "SlimReport", "slim"]
