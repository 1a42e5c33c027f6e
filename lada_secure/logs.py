"""What a process logs of itself, to standard error: text for people or JSON for machines.

Messages hold ids, counts, sizes and error codes; never tensors, records, keys or shares.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

from lada_secure.errors import LadaError
from lada_secure.standard_error import take_over_standard_error
from lada_secure.storage.toml_tables import parse_table

if TYPE_CHECKING:
    from rich.console import Console

PACKAGES: Final = ("lada_secure", "lada_protocol", "lada_clients", "lada_server")
LOG: Final = logging.getLogger(__name__)
# Attributes of every record; whatever else a record has was given as `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogSettings(BaseModel):
    """The table `[log]` of a settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "warning"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and the fields of `extra`.

    Of an exception the type and the places are shown: its text is in the message where we wrote
    it, and a traceback of foreign code may quote values.
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
            line["traceback"] = _places(record.exc_info[2])
        for name, value in vars(record).items():
            if name not in _STANDARD and isinstance(value, str | int | float | bool):
                line[name] = value
        return json.dumps(line, sort_keys=False)


def _places(found: TracebackType | None) -> str:
    """File, line and function of every frame, the innermost last; no source and no values."""
    frames = traceback.extract_tb(found)
    return " > ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)


def begin_logs(settings_file: Path) -> None:
    """Log as the table `[log]` of a settings file says, before anything else of it is read.

    With `format = "json"` every line on standard error is JSON from here on, whoever writes it. A
    file that is wrong elsewhere is told of in its own format; one that is no TOML, or whose table
    is wrong, is told of as text by whoever reads the settings. Once it is JSON it stays so: a
    follower begins every study anew.
    """
    if _json_handler() is not None:
        return
    try:
        table = parse_table(settings_file.read_bytes(), where=str(settings_file)).get("log", {})
        settings = LogSettings.model_validate(table)
    except (OSError, LadaError, ValidationError):
        return
    if settings.format == "text":
        configure_logs(settings)
        return
    stream = take_over_standard_error()
    configure_logs(settings, stream)
    # Other people's packages, and what Python itself says.
    logging.getLogger().handlers = [_handler(settings, stream)]
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, found: _tell_defect(error)
    threading.excepthook = lambda seen: _tell_defect(seen.exc_value)
    sys.unraisablehook = lambda seen: _tell_defect(seen.exc_value)


def configure_logs(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Log our own packages as the settings say; a second call replaces it.

    Args: stream: where to; standard error by default.
    """
    handler = _handler(settings, stream or sys.stderr)
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(settings.level.upper())
        logger.propagate = False


def _handler(settings: LogSettings, stream: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        JsonFormatter()
        if settings.format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    return handler


def _json_handler() -> logging.Handler | None:
    """The handler of our own packages where it writes JSON."""
    handlers = logging.getLogger(__package__).handlers
    return next((one for one in handlers if isinstance(one.formatter, JsonFormatter)), None)


def tell_failure(error: LadaError) -> bool:
    """Log an error that ends this process, with its code; False where the log is no JSON."""
    if _json_handler() is None:
        return False
    LOG.error("%s", error, extra={"code": error.code, "exit_status": error.exit_status})
    return True


def _tell_defect(error: BaseException | None) -> None:
    """Log what nobody has caught: type and places, as `JsonFormatter` shows them."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        # Somebody's wish to end.
        return
    LOG.critical("not caught; this is a defect, please report it", exc_info=error)


def progress_console() -> Console:
    """Where a party shows how far it is, whatever the level of its log: standard error."""
    # Imported here: what only logs does not draw.
    from rich.console import Console

    handler = _json_handler()
    return Console(stderr=True) if handler is None else Console(file=_Progress(handler))


class _Progress(io.StringIO):
    """A file whose lines become log lines of level info, also where the log's level is higher."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler

    def flush(self) -> None:
        """Log the whole lines written so far; rich flushes after each."""
        *lines, rest = self.getvalue().split("\n")
        self.seek(0)
        self.truncate()
        self.write(rest)
        for line in filter(None, lines):
            told = logging.LogRecord(
                f"{__package__}.progress", logging.INFO, __file__, 0, line, None, None
            )
            self._handler.handle(told)
