"""The worker may crash, hang, fill its memory or talk nonsense; its parent stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from lada_secure.encryption.workers import process
from lada_secure.encryption.workers.frames import numbers, read_numbers
from lada_secure.encryption.workers.process import BLIND_WORKER, WorkerProcess
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError, TransportError

# Known crashers of TenSEAL 0.3: what happens to a process that hands foreign bytes to it.
HOSTILE_WORKER = """
import ctypes, os, sys, time
import tenseal
from lada_secure.encryption.workers.loop import run

def context():
    return tenseal.context(tenseal.SCHEME_TYPE.BFV, 4096, plain_modulus=1032193)

def vector():
    made = context()
    return made, tenseal.bfv_vector(made, [1, 2, 3]).serialize()

def empty_bytes(*parts):
    made = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 60])
    return [repr(tenseal.ckks_tensor_from(made, b"").decrypt()).encode()]

def sizes(varint):
    made, raw = vector()
    # Field 1, packed, holds one varint: the 3.
    assert raw[:3] == bytes((0x0A, 1, 3))
    raw = bytes((0x0A, len(varint), *varint)) + raw[3:]
    return [repr(tenseal.bfv_vector_from(made, raw).decrypt()[-2:]).encode()]

def sizes_too_large(*parts):
    return sizes((0xC0, 0x9A, 0x0C))  # 200,000 of 4,096 slots: reads behind the heap block

def sizes_huge(*parts):
    return sizes((0x80, 0x80, 0x80, 0x80, 0x08))  # 2^31

def sizes_missing(*parts):
    made, raw = vector()
    return [repr(tenseal.bfv_vector_from(made, raw[3:]).decrypt()[:2]).encode()]

def truncated_zstd(*parts):
    made, raw = vector()
    assert raw[3] == 0x12
    at = raw.index(bytes.fromhex("5ea110"))
    kept = raw[at + 16 : at + 16 + (len(raw) - at) // 2]
    # The SEAL header and the protobuf agree on the shorter length; only the stream is cut.
    blob = raw[at : at + 8] + (16 + len(kept)).to_bytes(8, "little") + kept
    length = bytes((len(blob) & 0x7F | 0x80, len(blob) >> 7 & 0x7F | 0x80, len(blob) >> 14))
    cut = raw[:4] + length + blob
    return [repr(tenseal.bfv_vector_from(made, cut).decrypt()[:2]).encode()]

def crash(*parts):
    ctypes.string_at(0)

def leave(*parts):
    os._exit(7)

def hang(*parts):
    time.sleep(600)

def eat(*parts):
    kept = []
    while True:
        kept.append(bytearray(1 << 24))

def eat_native(*parts):
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    grown = 0
    while libc.malloc(1 << 24):
        grown += 1
    return [str(grown).encode()]

def talk(*parts):
    print("warning " * 10000, flush=True)
    return [b"fine"]

def nonsense(*parts):
    os.write(int(sys.argv[-1]), b"\\xff" * 64)
    time.sleep(600)

def refuse(*parts):
    raise ValueError("no such thing")

def echo(*parts):
    return parts[1:]

if __name__ == "__main__":
    run({name: value for name, value in list(globals().items()) if callable(value)})
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile_worker.py").write_text(HOSTILE_WORKER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        worker = WorkerProcess("hostile_worker", memory_bytes=256 << 20, time_limit_s=30)
        yield worker
        worker.close()


@pytest.mark.parametrize(
    "operation",
    ["empty_bytes", "sizes_too_large", "sizes_huge", "sizes_missing", "truncated_zstd"],
)
def test_what_the_native_library_does_with_known_crashers_stays_in_the_worker(
    hostile: WorkerProcess, operation: str
) -> None:
    """It may refuse, die, or return what it read beyond its buffer; the parent goes on."""
    outcome = "returned"
    try:
        hostile.call(operation, (), foreign="test bytes")
    except PeerError as error:
        outcome = error.reason
    assert outcome in {"returned", "native_failure"}
    assert hostile.call("echo", (), b"still here") == [b"still here"]


@pytest.mark.parametrize("operation", ["crash", "leave", "eat"])
def test_a_worker_that_dies_takes_nobody_along(hostile: WorkerProcess, operation: str) -> None:
    with pytest.raises(PeerError, match="died") as caught:
        hostile.call(operation, (), foreign="test bytes")
    assert caught.value.reason == "native_failure"
    assert hostile.call("echo", (), b"a", b"", b"c") == [b"a", b"", b"c"]


def test_native_memory_is_bounded(hostile: WorkerProcess) -> None:
    (grown,) = hostile.call("eat_native", ())
    assert int(bytes(grown)) * 16 <= 256
    hostile.close()


def test_a_worker_that_hangs_is_killed(hostile: WorkerProcess) -> None:
    hostile._time_limit_s = 1.0
    started = time.monotonic()
    try:
        hostile.call("echo", ())
        with pytest.raises(PeerError, match="longer than 1 s"):
            hostile.call("hang", (), foreign="test bytes")
        with pytest.raises(TransportError, match="longer than 1 s"):
            hostile.call("hang", ())
    finally:
        hostile._time_limit_s = 30.0
    assert time.monotonic() - started < 25
    assert hostile.call("echo", (), b"x") == [b"x"]


def test_a_worker_killed_just_after_its_answer_is_held_against_nobody(
    hostile: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time may be up between the answer and the end of the watch over it."""
    read = process.read_frame

    def late(pipe: Connection) -> list[bytes]:
        found = read(pipe)
        child = hostile._child
        assert child is not None
        # As the watch says it.
        child._late = True
        return found

    hostile.call("echo", ())
    before = hostile.pid
    monkeypatch.setattr(process, "read_frame", late)
    assert hostile.call("echo", (), b"x") == [b"x"]
    monkeypatch.undo()
    assert hostile.pid is None
    assert hostile.call("echo", (), b"y", foreign="another party's bytes") == [b"y"]
    assert hostile.pid != before


def test_a_worker_that_hangs_with_bytes_on_their_way_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To close a pipe that nobody reads would wait for ever, for instance after Ctrl-C."""
    (tmp_path / "deaf_worker.py").write_text(HOSTILE_WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = WorkerProcess("deaf_worker", memory_bytes=256 << 20)
    worker.call("echo", ())
    child = worker._child
    assert child is not None
    os.kill(child.process.pid, signal.SIGSTOP)
    os.set_blocking(child.pipe.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        while os.write(child.pipe.fileno(), bytes(1 << 16)):
            pass
    os.set_blocking(child.pipe.fileno(), True)
    ended = threading.Thread(target=worker.close, daemon=True)
    ended.start()
    ended.join(timeout=20)
    assert not ended.is_alive()


def test_a_worker_that_talks_nonsense_is_dropped(hostile: WorkerProcess) -> None:
    hostile.call("echo", ())
    with pytest.raises(PeerError):
        hostile.call("nonsense", (), foreign="test bytes")
    assert hostile.call("echo", (), b"x") == [b"x"]


def test_what_a_library_prints_does_not_reach_the_pipe(hostile: WorkerProcess) -> None:
    assert hostile.call("talk", ()) == [b"fine"]
    assert hostile.call("echo", (), b"x") == [b"x"]


def test_a_refusal_is_the_peers_fault_only_with_foreign_bytes(hostile: WorkerProcess) -> None:
    with pytest.raises(PeerError, match="no such thing"):
        hostile.call("refuse", (), foreign="test bytes")
    with pytest.raises(LocalProtocolError, match="no such thing"):
        hostile.call("refuse", ())


def test_an_unknown_operation_is_our_own_mistake(hostile: WorkerProcess) -> None:
    with pytest.raises(TransportError):
        hostile.call("no-such-operation", ())
    assert hostile.call("echo", (), b"x") == [b"x"]


def test_large_frames_pass_both_ways(hostile: WorkerProcess) -> None:
    block = np.arange(3_000_000, dtype="<u8").tobytes()
    (back,) = hostile.call("echo", (), block)
    assert back == block


def test_threads_share_a_worker(hostile: WorkerProcess) -> None:
    answers: dict[int, bool] = {}

    def ask(index: int) -> None:
        sent = numbers([index, index + 1])
        answers[index] = all(hostile.call("echo", (), sent) == [sent] for _ in range(20))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == dict.fromkeys(range(6), True)


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal
        from lada_secure.encryption.workers.process import WorkerProcess
        worker = WorkerProcess({BLIND_WORKER!r})
        worker.cpu_seconds()
        print(worker.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(200):
        status = Path(f"/proc/{pid}/stat")
        # An ended process may stay listed until its new parent collects it.
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")


def test_a_module_that_does_not_start_is_reported() -> None:
    with pytest.raises(TransportError, match="at its start"):
        WorkerProcess("lada_secure.encryption.no_such_worker").call("cpu", ())


@pytest.mark.parametrize(("memory", "seconds"), [(0, 1.0), (1 << 30, 0.0)])
def test_limits_that_limit_nothing_are_refused(memory: int, seconds: float) -> None:
    with pytest.raises(ParameterError, match="limits"):
        WorkerProcess(BLIND_WORKER, memory_bytes=memory, time_limit_s=seconds)


def test_numbers_come_back() -> None:
    assert read_numbers(numbers([0, 1, 2**63])) == [0, 1, 2**63]


def test_the_coordinators_modules_load_neither_native_code_nor_a_key() -> None:
    script = textwrap.dedent(
        """
        import sys
        import lada_secure.encryption.sealing, lada_secure.encryption.blind_scores
        import lada_secure.encryption.workers.process, lada_secure.encryption.masks
        for name in ("tenseal", "torch", "lada_secure.encryption.aggregate_key",
                     "lada_secure.encryption.scoring_key",
                     "lada_secure.encryption.decrypting_worker"):
            assert name not in sys.modules, name
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_blind_worker_cannot_decrypt() -> None:
    script = textwrap.dedent(
        """
        import sys
        import lada_secure.encryption.blind_worker as module
        assert "lada_secure.encryption.aggregate_key" not in sys.modules
        assert "lada_secure.encryption.decrypting_worker" not in sys.modules
        text = open(module.__file__).read() + open(sys.modules[
            "lada_secure.encryption.native"].__file__).read()
        assert "Decryptor" not in text and "decrypt(" not in text
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True)
