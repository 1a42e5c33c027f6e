"""Child processes that never outlive us: one process group each, and a keeper for the worst case.

Every party runs in a process group of its own, so that ending a party ends its workers too. The
keeper is a separate process that holds the read end of a pipe: should this process be killed
without a chance to clean up, the pipe closes and the keeper ends every group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

from lada_secure.errors import TransportError

TICK_S = 0.2
STOPPING_TICK_S = 0.05
MAX_MESSAGE_CHARACTERS = 600

# Runs with the standard library alone (-S -E) and starts in milliseconds.
_KEEPER = """
import os, signal, sys, time
for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(name, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    sign, _, number = line.strip().partition(" ")
    groups.add(int(number)) if sign == "+" else groups.discard(int(number))
for name, pause in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 0.0)):
    for group in groups:
        try:
            os.killpg(group, name)
        except OSError:
            pass
    if groups:
        time.sleep(pause)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """What to start: a name for messages, the command line, its log file and environment."""

    name: str
    arguments: tuple[str, ...]
    log: Path
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A child that is gone. `status` is negative for a signal, as in `subprocess`."""

    name: str
    status: int
    message: str
    log: Path


class ChildFailed(TransportError):
    """A child ended badly; names it and says its last line."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(failure_text(ended))
        self.ended = ended


class Interrupted(Exception):
    """SIGTERM or SIGHUP arrived. `signal_number` gives the exit status 128 + n."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise `Interrupted`, so that `finally` blocks run."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {name: signal.signal(name, stop) for name in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


class Supervisor:
    """Starts children, notices their end, and ends them all when the block is left.

    Args: grace_s: between SIGTERM and SIGKILL when children are stopped.
    Guarantees: after `stop`, and after this process is gone for whatever reason, no process of
    any child's group is left (grace_s later at most; a child that leaves its group is its own).
    """

    def __init__(self, *, grace_s: float = 5.0) -> None:
        self._grace_s = grace_s
        self._running: dict[str, tuple[Child, subprocess.Popen[bytes]]] = {}
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._keeper = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _KEEPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        keeper, self._keeper = self._keeper, None
        if keeper is not None and keeper.stdin is not None:
            with contextlib.suppress(OSError):
                keeper.stdin.close()
            keeper.wait()

    @property
    def running(self) -> tuple[str, ...]:
        """Names of the children that have not ended, in the order they were started."""
        return tuple(self._running)

    @property
    def groups(self) -> dict[str, int]:
        """Process group id of every running child."""
        return {name: process.pid for name, (_, process) in self._running.items()}

    def start(self, child: Child) -> None:
        """Start one child with output to its log and no standard input.

        Raises: TransportError: the program or the log cannot be opened.
        """
        try:
            with child.log.open("ab") as log:
                process = subprocess.Popen(
                    child.arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(child.environment),
                    start_new_session=True,
                )
        except OSError as error:
            raise TransportError(f"cannot start {child.name}: {error}") from error
        self._running[child.name] = (child, process)
        self._tell_keeper("+", process.pid)

    def poll(self) -> tuple[Ended, ...]:
        """Children that have ended since the last call; what they left running is ended too."""
        ended = []
        for name, (child, process) in list(self._running.items()):
            if not _has_exited(process.pid):
                continue
            # Still a zombie, so its group id cannot belong to anybody else yet.
            _signal_group(process.pid, signal.SIGKILL)
            status = process.wait()
            self._forget(name)
            ended.append(
                Ended(name=name, status=status, message=last_message(child.log), log=child.log)
            )
        return tuple(ended)

    def run_all(self, children: Sequence[Child], look: Callable[[], None] = lambda: None) -> None:
        """Run children side by side until all have ended well; `look` a few times a second.

        Raises: ChildFailed: one failed. All are stopped: a party that lost a peer can only wait.
        """
        for child in children:
            self.start(child)
        failed = None
        while self._running and failed is None:
            time.sleep(TICK_S)
            failed = next((ended for ended in self.poll() if ended.status != 0), None)
            look()
        self.stop()
        look()
        if failed is not None:
            raise ChildFailed(failed)

    def stop(self) -> None:
        """End every child and everything in its group. Signals that arrive meanwhile wait."""
        held = signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        )
        try:
            for group in self.groups.values():
                _signal_group(group, signal.SIGTERM)
            deadline = time.monotonic() + self._grace_s
            while self._running and time.monotonic() < deadline:
                self.poll()
                time.sleep(STOPPING_TICK_S)
            for name, (_, process) in list(self._running.items()):
                _signal_group(process.pid, signal.SIGKILL)
                process.wait()
                self._forget(name)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def _forget(self, name: str) -> None:
        _, process = self._running.pop(name)
        self._tell_keeper("-", process.pid)

    def _tell_keeper(self, sign: str, group: int) -> None:
        if self._keeper is not None and self._keeper.stdin is not None:
            with contextlib.suppress(OSError):
                self._keeper.stdin.write(f"{sign} {group}\n".encode("ascii"))
                self._keeper.stdin.flush()


def failure_text(ended: Ended, *, with_log: bool = True) -> str:
    """One sentence on a child that failed: who, how, its own last words, and where the log is."""
    how = (
        f"was killed by {signal.Signals(-ended.status).name}"
        if ended.status < 0
        else f"ended with status {ended.status}"
    )
    log = f" (log: {ended.log})" if with_log else ""
    return f"{ended.name} {how}: {ended.message or 'it said nothing'}{log}"


def last_message(log: Path) -> str:
    """The last error line of a log, or its last line that is not empty; "" where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64 * 1024))
            tail = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error (")]
    return (errors or lines or [""])[-1][:MAX_MESSAGE_CHARACTERS]


def _has_exited(process_id: int) -> bool:
    # WNOWAIT leaves the zombie in place; `poll` reaps it after its group was ended.
    found = os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found is not None


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
