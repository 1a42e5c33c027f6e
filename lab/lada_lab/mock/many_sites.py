"""Many sites on few cores: libraries are loaded once, then every site is a process of its own.

Run as `python -m lada_lab.mock.many_sites SITE.TOML ...`. Each site does what `lada site run`
does with its settings file; only the seconds and megabytes that loading torch takes are shared.
Ends with status 0 where all sites did, otherwise with 1, and the other sites are stopped.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# What a site imports in the course of a study. None of them starts a thread when it is loaded.
_LIBRARIES: Final = (
    "lada_clients.site.service",
    "lada_clients.site.training_display",
    "lada_secure.models.loading",
    "lada_secure.dpsgd.trainer",
    "lada_secure.encryption.scoring_key",
    "lada_secure.privacy.accounting.accountant",
    "peft",
    "transformers.models.llama.modeling_llama",
)


def run_sites(settings: Sequence[Path]) -> int:
    """Run all sites side by side; the exit status."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    running = {_start(path): path for path in settings}
    failed = False
    while running:
        process, status = os.wait()
        path = running.pop(process, None)
        if path is not None and status != 0 and not failed:
            failed = True
            code = os.waitstatus_to_exitcode(status)
            print(f"error (run_failed): {path.parent.name} ended with status {code}", flush=True)
            for other in running:
                os.kill(other, signal.SIGTERM)
    return 1 if failed else 0


def _start(settings: Path) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        log = os.open(settings.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["lada", "site", "run", "--settings", str(settings)]
        from lada_secure.cli import main

        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        # The parent's own clean-up is not this process's to run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(run_sites([Path(one) for one in sys.argv[1:]]))
