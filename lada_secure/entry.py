"""Where the `lada` command begins: Ctrl-C ends it in one line, also while packages are loaded."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Entry point of the console script. Exit status: see `lada_secure.cli.main`."""
    try:
        # Takes half a second, in which somebody may think again.
        from lada_secure.cli import main as run

        run()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
