"""The serving side's logger: thin rows in at request time, labels later, joined rows out.

docs/guides/logging.md says how it is used and what it promises.
"""

from thinrow.errors import UsageError

try:
    import pyarrow  # noqa: F401, ICN001
except ImportError as error:
    raise UsageError("The logger needs pyarrow: pip install 'thinrow[logger]'.") from error

from thinrow.client.logger.config import FileOutput, KafkaOutput, LoggerConfig
from thinrow.client.logger.logger import Receipt, ThinRowLogger
from thinrow.client.logger.metrics import LoggerCounts
from thinrow.client.logger.schema import mutable_type
from thinrow.core.thin_row import ThinRow
from thinrow.errors import JournalError, LoggerFullError

__all__ = [
    "FileOutput",
    "JournalError",
    "KafkaOutput",
    "LoggerConfig",
    "LoggerCounts",
    "LoggerFullError",
    "Receipt",
    "ThinRow",
    "ThinRowLogger",
    "mutable_type",
]
