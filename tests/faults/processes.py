"""The parties' processes: started by the operator's commands, killed, stopped, and counted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

from lada_lab.mock.supervisor import last_message

from .federation import Federation

MARK: Final = "LADA_FAULTS_RUN"
PARTY: Final = "LADA_FAULTS_PARTY"
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """Runs in the child: should the harness be killed, its parties go too."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Processes:
    """All processes of one run, known by a mark in their environment that children inherit."""

    def __init__(self, federation: Federation, extra: Mapping[str, str]) -> None:
        self._federation = federation
        self._extra = dict(extra)
        self._mark = secrets.token_hex(12)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.started_s: dict[str, float] = {}
        self.ended: dict[str, int] = {}

    def temporary(self, party: str) -> Path:
        """Where a party's temporary files go; nothing may be left there."""
        return self._federation.layout.root / "tmp" / party

    def start(self, party: str) -> None:
        """Start a party, or start it again, by the same command."""
        child = self._federation.child(party)
        folder = self.temporary(party)
        folder.mkdir(parents=True, exist_ok=True)
        own = {
            MARK: self._mark,
            PARTY: party,
            "TMPDIR": str(folder),
            "LADA_FAULTS_CLOCK": str(folder.parent / f"{party}.clock"),
        }
        self.ended.pop(party, None)
        with child.log.open("ab") as log:
            self._running[party] = subprocess.Popen(
                child.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**child.environment, **self._extra, **own},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.started_s[party] = time.time()

    def running(self, party: str) -> bool:
        """Whether the party's process lives; remembers the status of one that has ended."""
        process = self._running.get(party)
        if process is None:
            return False
        status = process.poll()
        if status is None:
            return True
        self.ended[party] = status
        del self._running[party]
        return False

    def kill(self, party: str) -> None:
        """kill -9 of the party's own process; its workers must notice by themselves."""
        process = self._running.pop(party)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self, party: str) -> None:
        """SIGSTOP to the whole group, as when a machine is suspended."""
        os.killpg(self._running[party].pid, signal.SIGSTOP)

    def go_on(self, party: str) -> None:
        """SIGCONT to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running[party].pid, signal.SIGCONT)

    def limit_file_size(self, party: str, size: int) -> None:
        """Let no file of the party's processes grow past `size`; -1 for any size."""
        for process_id in self.left(party):
            with contextlib.suppress(ProcessLookupError):
                hard = resource.prlimit(process_id, resource.RLIMIT_FSIZE)[1]
                resource.prlimit(process_id, resource.RLIMIT_FSIZE, (size, hard))

    def last_words(self, party: str) -> str:
        """The last error line of a party's log, or its last line."""
        return last_message(self._federation.layout.parties[party].log)

    def left(self, party: str | None = None) -> list[int]:
        """Process ids that carry this run's mark: of one party, or of all."""
        wanted = {MARK: self._mark} | ({} if party is None else {PARTY: party})
        return [
            one.pid
            for one in psutil.process_iter(["environ", "status"])
            if wanted.items() <= (one.info["environ"] or {}).items()
            and one.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def end_all(self) -> None:
        """Kill whatever carries the mark."""
        for process_id in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        for process in self._running.values():
            process.wait()
        self._running.clear()
