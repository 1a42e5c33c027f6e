"""`lada bench import`: rows a second and memory of an import, beside plain reading of the file.

Each kind of source holds the same made-up table. Every measurement runs in a process of its own,
which says how much processor time and resident memory it took at most. The plain reader reads cells
and keeps them; an import also makes, checks and writes records. It runs twice, into one folder: the
second one must leave the same bytes.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from lada_lab.machine import machine
from lada_lab.micro.import_files import KINDS
from lada_secure.canonical import sha256_hex
from lada_secure.data.importing.run import ImportRequest, run_import
from lada_secure.errors import ParameterError

_TIMEOUT_S: Final = 3600.0


def run_import_bench(
    *, rows: int, kinds: Sequence[str], near: bool, folder: Path | None = None
) -> dict[str, Any]:
    """Measure imports of the same table from each kind of source.

    Args: folder: for the files; a temporary one by default.
    Returns: JSON-ready: per kind, rows a second of processor time and peak memory in bytes, of the
        import and of the plain reader; and what it was measured on.
    Raises: ParameterError: an unknown kind, or no Linux /proc.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ParameterError(f"--kind: expected of {', '.join(KINDS)}, got {unknown[0]!r}")
    if not Path("/proc/self/status").exists():
        raise ParameterError("bench import: memory is read from Linux's /proc, which is not here")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        found = {kind: _measured(kind, rows, near, Path(place)) for kind in kinds}
    cores, system, python = machine()
    return {
        "kinds": found,
        "rows": rows,
        "near_duplicates": near,
        "machine": f"{cores} cores, {system}, Python {python}",
    }


def _measured(kind: str, rows: int, near: bool, place: Path) -> dict[str, Any]:
    known = KINDS[kind]
    file = place / f"cases-{kind}{known.suffix}"
    _apart(_write, kind, file, rows)
    mapping, out = place / f"{kind}.toml", place / f"{kind}-out"
    mapping.write_text(known.mapping(), "utf-8")
    ours = _apart(_import, known.source(file), mapping, out, near)
    made = _hashes(out)
    _apart(_import, known.source(file), mapping, out, near)
    plain = _apart(_read, kind, file)
    return {
        "import": _figures(ours, rows) | {"same_bytes_again": _hashes(out) == made},
        "plain": _figures(plain, rows) | {"reader": known.reader},
        "time_ratio": round(ours["cpu_s"] / max(plain["cpu_s"], 1e-9), 1),
    }


def _write(kind: str, file: Path, rows: int) -> None:
    KINDS[kind].write(file, rows)


def _read(kind: str, file: Path) -> int:
    return KINDS[kind].plain(file)


def _hashes(folder: Path) -> dict[str, str]:
    return {one.name: sha256_hex(one.read_bytes()) for one in sorted(folder.iterdir())}


def _figures(measured: dict[str, Any], rows: int) -> dict[str, Any]:
    return {
        "rows_per_cpu_s": round(rows / max(measured["cpu_s"], 1e-9)),
        "cpu_s": round(measured["cpu_s"], 2),
        "peak_bytes": measured["peak_bytes"],
    }


def _apart(work: Callable[..., Any], *words: Any) -> dict[str, Any]:
    """Do work in a process of its own; its time and its peak are of the work and its imports."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_answer, args=(theirs, work, words), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(_TIMEOUT_S):
            raise ParameterError(f"bench import: no answer within {_TIMEOUT_S:.0f} s")
        found: dict[str, Any] = ours.recv()
    except EOFError as error:
        raise ParameterError("bench import: its process died; was memory short?") from error
    finally:
        child.kill()
        child.join()
    if "error" in found:
        raise ParameterError(f"bench import: {found['error']}")
    return found


def _answer(pipe: Connection, work: Callable[..., Any], words: tuple[Any, ...]) -> None:
    try:
        before = time.process_time()
        answer = work(*words)
        pipe.send(
            {"answer": answer, "cpu_s": time.process_time() - before, "peak_bytes": _peak_bytes()}
        )
    # The parent tells it; nothing here is worth a traceback of a process that nobody sees.
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _import(source: str, mapping: Path, out: Path, near: bool) -> int:
    request = ImportRequest(source=source, mapping=mapping, out=out, near=near)
    told = run_import(request, progress=lambda *_: None)
    return int(told["records"]) + int(told["held_out"])
