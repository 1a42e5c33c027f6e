"""The process that runs native code on foreign bytes, seen from its parent.

Adversary: a peer whose bytes pass every check of `parsing` and still make the native library
crash, hang or eat memory. Property: the worker dies alone. It holds a pipe to its parent and no
connection, ledger or model of ours, has a bound on its address space and a time limit per request,
and is started afresh on the next request. The parent never loads the native library.

A worker is stateless but for caches, so nothing is lost with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import lada_secure
from lada_secure.encryption.workers.frames import Part, numbers, read_frame, write_frame
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError, TransportError

DEFAULT_MEMORY_BYTES: Final = 512 << 20
DEFAULT_TIME_LIMIT_S: Final = 120.0
START_TIME_LIMIT_S: Final = 120.0

# Runs what a coordinator needs: encryption under a public key, products of ciphertexts.
# The worker that can decrypt is named only by the two modules that hold keys.
BLIND_WORKER: Final = "lada_secure.encryption.blind_worker"


class WorkerProcess:
    """A child process behind a pipe, restarted after a death.

    Safe to share between threads: one request runs at a time. A process forked from this one
    must not use the same object; it notices and starts a worker of its own.
    """

    def __init__(
        self,
        module: str,
        *,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    ) -> None:
        """Args:
        module: entry module, run as `python -m`.
        memory_bytes: address space beyond what the worker has after its imports.
        time_limit_s: per request; a worker that takes longer is killed.
        """
        if memory_bytes < 1 << 20 or time_limit_s <= 0:
            raise ParameterError(
                f"worker limits must be at least 1 MiB and above 0 s, got {memory_bytes} bytes "
                f"and {time_limit_s} s"
            )
        self._module = module
        self._memory_bytes = memory_bytes
        self._time_limit_s = time_limit_s
        self._child: _Child | None = None
        # Held by whoever sends several requests that belong together.
        self.lock = threading.RLock()

    def call(
        self, operation: str, which: Sequence[int], *parts: Part, foreign: str | None = None
    ) -> list[bytes]:
        """Run one operation in the worker and return its reply.

        Args:
            operation: name of an operation of the entry module.
            which: its arguments that are numbers. parts: those that are byte strings.
            foreign: what the request holds of another party, for the message; None if nothing.
        Raises: PeerError (native_failure): with foreign bytes in it the worker died, ran out of
            time or memory, or the native library refused. Without foreign bytes the same is a
            TransportError (died, time) or LocalProtocolError (refused).
        """
        with self.lock:
            child = self._started()
            request = [operation.encode("ascii"), numbers(which), *parts]
            try:
                reply = child.exchange(request, self._time_limit_s)
            except _Died as died:
                message = f"worker for {operation} {died}; it is started afresh on the next request"
                if foreign is None:
                    raise TransportError(message) from died
                raise PeerError(f"{foreign}: {message}", reason="native_failure") from died
        if reply[0] == b"ok":
            return reply[1:]
        text = reply[-1].decode("utf-8", "replace")[:500]
        if foreign is not None:
            raise PeerError(f"{foreign}: native library refused: {text}", reason="native_failure")
        raise LocalProtocolError(f"worker for {operation} refused: {text}")

    def cpu_seconds(self) -> float:
        """CPU time of the current worker process since its start, for benchmarks."""
        (raw,) = self.call("cpu", ())
        return int.from_bytes(raw, "little") / 1e9

    def close(self) -> None:
        """End the worker; a later call starts a new one."""
        with self.lock:
            if self._child is not None:
                self._child.end()
                self._child = None

    @property
    def pid(self) -> int | None:
        """Process id of the running worker, None if none runs."""
        child = self._child
        return child.process.pid if child is not None and child.usable() else None

    def _started(self) -> _Child:
        if self._child is not None and self._child.usable():
            return self._child
        self.close()
        self._child = child = _Child(self._module, self._memory_bytes)
        try:
            child.exchange((), START_TIME_LIMIT_S)
        except _Died as died:
            raise TransportError(
                f"worker {self._module} {died} at its start; check that tenseal and zstandard can "
                "be imported and that the machine has memory left"
            ) from died
        return child


class _Died(Exception):
    """How a worker ended, in words."""


class _Child:
    """One child process and the pipe to it."""

    def __init__(self, module: str, memory_bytes: int) -> None:
        root = str(Path(lada_secure.__file__).resolve().parent.parent)
        paths = filter(None, (root, os.environ.get("PYTHONPATH")))
        # Thread pools would reserve address space that the limit then counts.
        threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        own, other = Pipe()
        with other:
            try:
                # -P: a file named like one of our imports in the working directory is not run.
                # Whatever a library prints goes to the void.
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, str(memory_bytes), str(other.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[other.fileno()],
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join(paths),
                        **dict.fromkeys(threads, "1"),
                    },
                )
            except OSError as error:
                own.close()
                raise TransportError(f"worker {module} cannot be started: {error}") from error
        self.pipe = own
        self._owner, self._late = os.getpid(), False
        # Ends the child when its handle is collected or this process exits normally; if this
        # process is killed, the child reads the end of its input and leaves by itself.
        self._finalizer = weakref.finalize(self, _end, self.process, self.pipe, self._owner)

    def usable(self) -> bool:
        return self._owner == os.getpid() and not self._late and self.process.poll() is None

    def exchange(self, request: Sequence[Part], limit_s: float) -> list[bytes]:
        """Send a request, if there is one, and read a frame.

        Raises: _Died: it ended, talked nonsense or was killed when its time was up.
        """
        watch = threading.Timer(limit_s, self._end_late)
        watch.daemon = True
        watch.start()
        try:
            if request:
                write_frame(self.pipe, request)
            return read_frame(self.pipe)
        except (OSError, EOFError) as error:
            how = f"died ({self.end()})"
            if self._late:
                how = f"ran longer than {limit_s:g} s and was killed"
            raise _Died(how) from error
        except BaseException:
            # Interrupted in the middle of a frame: the pipe cannot be used again.
            self.end()
            raise
        finally:
            watch.cancel()
            # It may be killing the child this very moment: known before the child is used again,
            # or another party's bytes would be blamed for it.
            watch.join()

    def _end_late(self) -> None:
        self._late = True
        self.process.kill()

    def end(self) -> str:
        """End it, and say how it had ended."""
        self._finalizer()
        status = self.process.returncode
        if status is None:
            return "status unknown"
        return f"signal {-status}" if status < 0 else f"exit status {status}"


def _end(process: subprocess.Popen[bytes], pipe: Connection, owner: int) -> None:
    if os.getpid() != owner:
        return
    process.kill()
    pipe.close()
    process.wait()


@cache
def shared_worker(module: str = BLIND_WORKER) -> WorkerProcess:
    """The worker that this process shares for one entry module; started on first use."""
    return WorkerProcess(module)
