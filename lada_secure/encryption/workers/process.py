"""The process that runs native code on foreign bytes, seen from its parent.

Adversary: a peer whose bytes pass every check of `parsing` and still make the native library
crash, hang or eat memory. Property: the worker dies alone. It holds no socket, ledger or model,
has a bound on its address space and a time limit per request, and is started afresh on the next
request. The parent never loads the native library.

A worker is stateless but for caches, so nothing is lost with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import lada_secure
from lada_secure.encryption.workers.frames import FrameError, Part, decode, encode
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError, TransportError

DEFAULT_MEMORY_BYTES: Final = 512 << 20
DEFAULT_TIME_LIMIT_S: Final = 120.0
START_TIME_LIMIT_S: Final = 120.0

# Runs what a coordinator needs: encryption under a public key, products of ciphertexts.
# The worker that can decrypt is named only by the two modules that hold keys.
BLIND_WORKER: Final = "lada_secure.encryption.blind_worker"

_WRITE_BYTES: Final = 1 << 20
_PIPE_BYTES: Final = 1 << 20


class WorkerProcess:
    """A child process behind two pipes, restarted after a death.

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
        self._lock = threading.RLock()
        self._child: _Child | None = None
        self.generation = 0

    def call(
        self, operation: str, parts: Sequence[Part] = (), *, foreign: str | None = None
    ) -> list[memoryview]:
        """Run one operation in the worker and return its reply.

        Args:
            operation: name of an operation of the entry module.
            parts: its arguments as byte strings.
            foreign: what the request holds of another party, for the message; None if nothing.
        Raises: PeerError (native_failure): with foreign bytes in it the worker died, ran out of
            time or memory, or the native library refused. Without foreign bytes the same is a
            TransportError (died, time) or LocalProtocolError (refused).
        """
        with self._lock:
            deadline = time.monotonic() + self._time_limit_s
            child = self._started()
            try:
                child.send([operation.encode("ascii"), *parts], deadline)
                reply = child.receive(deadline)
            except (OSError, EOFError, FrameError, TimeoutError) as error:
                how = self._bury(child, error)
                message = f"worker for {operation} {how}; it is started afresh on the next request"
                if foreign is None:
                    raise TransportError(message) from error
                raise PeerError(f"{foreign}: {message}", reason="native_failure") from error
            except BaseException:
                # Interrupted in the middle of a frame: the pipe cannot be used again.
                self._child = None
                child.end()
                raise
        if bytes(reply[0]) == b"ok":
            return reply[1:]
        text = bytes(reply[-1]).decode("utf-8", "replace")[:500]
        if foreign is not None:
            raise PeerError(f"{foreign}: native library refused: {text}", reason="native_failure")
        raise LocalProtocolError(f"worker for {operation} refused: {text}")

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other threads out for several requests that belong together."""
        with self._lock:
            yield

    def cpu_seconds(self) -> float:
        """CPU time of the current worker process since its start, for benchmarks."""
        (raw,) = self.call("cpu")
        return int.from_bytes(raw, "little") / 1e9

    def close(self) -> None:
        """End the worker; a later call starts a new one."""
        with self._lock:
            if self._child is not None:
                self._child.end()
                self._child = None

    @property
    def pid(self) -> int | None:
        """Process id of the running worker, None if none runs."""
        return None if self._child is None else self._child.pid

    def _started(self) -> _Child:
        child = self._child
        if child is not None and child.usable():
            return child
        if child is not None:
            child.end()
        self._child = child = _Child(self._module, self._memory_bytes)
        self.generation += 1
        try:
            child.receive(time.monotonic() + START_TIME_LIMIT_S)
        except (OSError, EOFError, FrameError, TimeoutError) as error:
            how = self._bury(child, error)
            raise TransportError(
                f"worker {self._module} {how} at its start; check that tenseal and zstandard can "
                "be imported and that the machine has memory left"
            ) from error
        return child

    def _bury(self, child: _Child, error: Exception) -> str:
        self._child = None
        status = child.end()
        if isinstance(error, TimeoutError):
            return f"ran longer than {self._time_limit_s:g} s and was killed"
        return f"died ({_describe(status)})"


class _Child:
    """One child process; sockets' rules for pipes: non-blocking, with a deadline."""

    def __init__(self, module: str, memory_bytes: int) -> None:
        environment = dict(os.environ)
        root = str(Path(lada_secure.__file__).resolve().parent.parent)
        inherited = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = root if not inherited else os.pathsep.join((root, inherited))
        # Thread pools would reserve address space that the limit then counts.
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = "1"
        try:
            # -P: a file named like one of our imports in the working directory is not run.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            raise TransportError(f"worker {module} cannot be started: {error}") from error
        if self._process.stdin is None or self._process.stdout is None:
            raise LocalProtocolError("worker started without pipes")
        self._to = self._process.stdin.fileno()
        self._from = self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        for pipe in (self._to, self._from):
            # Fewer wake-ups for the same bytes. A system may allow less; then it stays as it is.
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._owner = os.getpid()
        # Ends the child when its handle is collected or this process exits normally; if this
        # process is killed, the child reads the end of its input and leaves by itself.
        self._finalizer = weakref.finalize(self, _end, self._process, self._owner)

    @property
    def pid(self) -> int:
        return self._process.pid

    def usable(self) -> bool:
        return self._owner == os.getpid() and self._process.poll() is None

    def send(self, parts: Sequence[Part], deadline: float) -> None:
        poller = select.poll()
        poller.register(self._to, select.POLLOUT)
        for part in encode(parts):
            view = memoryview(part).cast("B")
            while view.nbytes:
                _wait(poller, deadline)
                # A pipe that filled up in between is simply waited for again.
                with contextlib.suppress(BlockingIOError):
                    view = view[os.write(self._to, view[:_WRITE_BYTES]) :]

    def receive(self, deadline: float) -> list[memoryview]:
        poller = select.poll()
        poller.register(self._from, select.POLLIN)

        def read_exactly(size: int) -> memoryview:
            buffer = memoryview(bytearray(size))
            view = buffer
            while view.nbytes:
                _wait(poller, deadline)
                with contextlib.suppress(BlockingIOError):
                    got = os.readv(self._from, [view])
                    if got == 0:
                        raise EOFError("worker closed its output")
                    view = view[got:]
            return buffer

        return decode(read_exactly)

    def end(self) -> int | None:
        self._finalizer()
        return self._process.returncode


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.kill()
    process.wait()


def _wait(poller: select.poll, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0 or not poller.poll(left * 1000):
        raise TimeoutError


def _describe(status: int | None) -> str:
    if status is None:
        return "status unknown"
    return f"signal {-status}" if status < 0 else f"exit status {status}"


@cache
def shared_worker(module: str = BLIND_WORKER) -> WorkerProcess:
    """The worker that this process shares for one entry module; started on first use."""
    return WorkerProcess(module)
