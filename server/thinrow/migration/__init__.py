"""The way over from fat rows, and what it is worth."""

from thinrow.migration.layout import FatLayout
from thinrow.migration.slim import SlimConfig, SlimReport, slim

__all__ = ["FatLayout", "SlimConfig", "SlimReport", "slim"]
