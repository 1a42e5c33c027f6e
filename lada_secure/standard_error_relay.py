"""Run as a script by `standard_error`: text in, log lines out, until nobody writes any more."""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import UTC, datetime
from typing import Final

# A log line is written in one piece, also to a pipe that others write to (PIPE_BUF is 4,096), and
# a byte may take six characters of JSON.
_MAX_BYTES: Final = 600


def main() -> None:
    """Read until the last writer has ended."""
    # Whoever ends a whole group of processes ends the writers; their last lines come after that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while line := sys.stdin.buffer.readline(_MAX_BYTES):
        text = line.decode("utf-8", "backslashreplace").strip("\r\n")
        if text.strip():
            told = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "level": "warning",
                "logger": "stderr",
                "message": text,
            }
            os.write(1, json.dumps(told).encode("ascii") + b"\n")


if __name__ == "__main__":
    main()
