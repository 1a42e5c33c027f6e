"""What a process logs of itself, to standard error: text for people or JSON for machines.

Messages hold ids, counts, sizes and error codes; never tensors, records, keys or shares.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

PACKAGES: Final = ("lada_secure", "lada_protocol", "lada_clients", "lada_server")
# Attributes of every record; whatever else a record has was given as `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogSettings(BaseModel):
    """The table `[log]` of a settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "warning"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and the fields of `extra`.

    Of an exception only the type is shown: its text is in the message where we wrote it, and a
    traceback of foreign code may quote values.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a line feed."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info is not None and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
        for name, value in vars(record).items():
            if name not in _STANDARD and isinstance(value, str | int | float | bool):
                line[name] = value
        return json.dumps(line, sort_keys=False)


def configure_logs(settings: LogSettings) -> None:
    """Log our own packages to standard error as the settings say; a second call replaces it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if settings.format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(settings.level.upper())
        logger.propagate = False
