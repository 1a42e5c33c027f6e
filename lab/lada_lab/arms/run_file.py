"""The file of a benchmark's runs: whole after every run, and gone on with after an interruption.

Beside `runs.csv` lie `runs.csv.json`, which says what is being run, and, while a draw of noise is
not complete, `runs.csv.releases` with what its arms share.
"""

from __future__ import annotations

import base64
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

from lada_lab.arms.ledgers import SharedRelease, SharedReleases
from lada_lab.arms.runs import Run, RunKey, csv_text, parse_runs
from lada_secure.canonical import Json, canonical_json, sha256_hex
from lada_secure.errors import ParameterError
from lada_secure.storage.whole_files import read_file, read_if_there, write_atomically

# By site, what the arms of one draw share.
Releases: TypeAlias = Mapping[str, SharedReleases]

# Of a description, what may be another one when a file is gone on with.
_NOT_COMPARED = "started"
_SHOWN = 4


@dataclass(slots=True, kw_only=True)
class Runs:
    """Runs so far, in memory alone."""

    known: dict[RunKey, Run] = field(default_factory=dict)

    def keep(self, run: Run, releases: Releases | None) -> None:
        """Add a run. releases: of its draw, None where that is complete."""
        del releases
        self.known[run.key] = run

    def releases(self, run: RunKey) -> dict[str, SharedReleases]:
        """What the arms of a run's draw shared before an interruption; empty for nothing."""
        del run
        return {}

    def arrange(self, order: Callable[[Run], Any]) -> None:
        """Put the runs in an order."""
        self.known = {run.key: run for run in sorted(self.known.values(), key=order)}


@dataclass(slots=True, kw_only=True)
class RunFile(Runs):
    """Runs in a CSV, written whole whenever one ends."""

    path: Path
    factors: tuple[str, ...]

    def keep(self, run: Run, releases: Releases | None) -> None:
        """As ever, and on disk: releases first, so that a run never lacks what it was made of.

        Raises: TransportError: the disk refuses; the file has the runs that it had.
        """
        place = self._releases_of(run.key)
        if releases is not None:
            place.parent.mkdir(exist_ok=True)
            write_atomically(place, releases_bytes(releases))
        self.known[run.key] = run
        self._write()
        if releases is None:
            place.unlink(missing_ok=True)
            with suppress(OSError):
                place.parent.rmdir()

    def releases(self, run: RunKey) -> dict[str, SharedReleases]:
        """As ever. Raises: ParameterError: a file that cannot be read."""
        place = self._releases_of(run)
        raw = read_if_there(place)
        return {} if raw is None else parse_releases(raw, where=str(place))

    def arrange(self, order: Callable[[Run], Any]) -> None:
        """As ever, and on disk."""
        self.known = {run.key: run for run in sorted(self.known.values(), key=order)}
        self._write()

    def _write(self) -> None:
        text = csv_text(self.known.values(), self.factors)
        write_atomically(self.path, text.encode("utf-8"))

    def _releases_of(self, run: RunKey) -> Path:
        draw: Json = [dict(run.point), run.epsilon, run.seed, run.draw]
        return _beside(self.path, "releases") / f"{sha256_hex(canonical_json(draw))[:20]}.json"


@contextmanager
def held_run_file(
    path: Path, description: Mapping[str, Any], *, factors: Sequence[str]
) -> Iterator[RunFile]:
    """A file to write runs to, or to go on with; one process at a time.

    Args: path: its folder must exist. description: all that decides what runs there will be, as
        JSON; what it has under "started" may differ from session to session.
    Raises: ParameterError: another process writes it, what is there was not written by this command
        or belongs to another description. Nothing has been changed then.
    """
    with _locked(_beside(path, "json")) as sidecar:
        there = read_if_there(path)
        told = _told(sidecar)
        if there is None:
            shutil.rmtree(_beside(path, "releases"), ignore_errors=True)
            sidecar.truncate(0)
            sidecar.write(json.dumps(description, indent=2, sort_keys=True).encode() + b"\n")
            sidecar.flush()
        elif told is None:
            raise ParameterError(
                f"{path} is there already, without a readable {_beside(path, 'json').name} that "
                "says what it holds; name another file, or move this one away"
            )
        elif differences := _differences(told, json.loads(json.dumps(description))):
            raise ParameterError(
                f"{path} holds runs of something else: {'; '.join(differences)}. Nothing was "
                "changed. Use the options and the program that it was started with (both are in "
                f"{_beside(path, 'json').name}) to go on with it, or name another file"
            )
        known = [] if there is None else parse_runs(there.decode("utf-8"), where=str(path))
        yield RunFile(path=path, factors=tuple(factors), known={run.key: run for run in known})


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs of several files.

    Raises: ParameterError: a file cannot be read, they vary different settings, or have the same
        run twice.
    """
    runs: dict[RunKey, Run] = {}
    for path in paths:
        for run in parse_runs(read_file(path).decode("utf-8"), where=str(path)):
            if run.key in runs:
                raise ParameterError(
                    f"{path}: {run.key.condition} at seed {run.key.seed}, epsilon "
                    f"{run.key.epsilon:g}, draw {run.key.draw} is in another file as well"
                )
            runs[run.key] = run
    if len({tuple(name for name, _ in key.point) for key in runs}) > 1:
        raise ParameterError("these files vary different settings; analyse each by itself")
    return list(runs.values())


def releases_bytes(releases: Releases) -> bytes:
    """As JSON: by site, one list per release."""
    document = {
        site: [
            [*key, found.cpu_s, base64.b64encode(found.output).decode()]
            for key, found in shared.outputs.items()
        ]
        for site, shared in releases.items()
    }
    return json.dumps(document).encode()


def parse_releases(raw: bytes, *, where: str) -> dict[str, SharedReleases]:
    """Read `releases_bytes`. Raises: ParameterError: anything else."""
    try:
        return {
            site: SharedReleases(
                outputs={
                    (str(group), int(round_id), str(purpose), int(chunk)): SharedRelease(
                        output=base64.b64decode(text, validate=True), cpu_s=float(cpu_s)
                    )
                    for group, round_id, purpose, chunk, cpu_s, text in found
                }
            )
            for site, found in json.loads(raw).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ParameterError(
            f"{where}: cannot be read; delete it, and the arms that are left of this draw get "
            "noise of their own"
        ) from error


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """Hold a file open for one process alone; it is made where it is not there."""
    made = not path.exists()
    try:
        file = path.open("a+b")
    except OSError as error:
        raise ParameterError(f"cannot write {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ParameterError(
                f"{path}: another process writes these runs; wait for it, or name another file"
            ) from error
        try:
            yield file
        except ParameterError:
            # A refusal leaves nothing behind that was not there.
            if made and not path.stat().st_size:
                path.unlink()
            raise


def _told(sidecar: IO[bytes]) -> dict[str, Any] | None:
    sidecar.seek(0)
    try:
        found = json.loads(sidecar.read())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs, by dotted name, the first few."""
    old, new = _flat(there), _flat(here)
    names = [
        name
        for name in {**old, **new}
        if old.get(name) != new.get(name) and name.partition(".")[0] != _NOT_COMPARED
    ]
    told = [
        f"{name} is {_short(old.get(name, 'not set'))} there and "
        f"{_short(new.get(name, 'not set'))} here"
        for name in names[:_SHOWN]
    ]
    return told + ([f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            found |= _flat(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = inner
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
