"""Private records and public pool samples, as frozen types, and their JSON Lines files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.errors import ParameterError

MAX_LINE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One private record of a site: a question, its answer, and perhaps the reasoning.

    `unit` is the privacy unit (a patient, a customer). `choices` is empty for open questions;
    otherwise `answer` is one of them. `rationale` is None where a site has answers only.
    """

    record_id: str
    unit: str
    question: str
    choices: tuple[str, ...]
    answer: str
    rationale: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSample:
    """One public question of the coordinator's pool; `answer` is its public gold answer."""

    sample_id: str
    question: str
    choices: tuple[str, ...]
    answer: str


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from error


def _parse_lines(
    raw: bytes, source: str, wanted: dict[str, type | tuple[type, ...]]
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for number, line in enumerate(raw.splitlines(), start=1):
        where = f"{source}:{number}"
        if len(line) > MAX_LINE_BYTES:
            raise ParameterError(f"{where}: line of {len(line)} bytes, at most {MAX_LINE_BYTES}")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ParameterError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict) or set(row) != set(wanted):
            got = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise ParameterError(f"{where}: expected the keys {sorted(wanted)}, got {got}")
        for key, kinds in wanted.items():
            if not isinstance(row[key], kinds):
                raise ParameterError(f"{where}: {key} has the wrong type {type(row[key]).__name__}")
        choices = row["choices"]
        if not all(isinstance(choice, str) for choice in choices):
            raise ParameterError(f"{where}: choices must be a list of strings")
        if choices and row["answer"] not in choices:
            raise ParameterError(f"{where}: the answer is not among the choices")
        row["choices"] = tuple(choices)
        rows.append(row)
    return rows


def read_records(path: Path) -> tuple[Record, ...]:
    """Read a site's private records from JSON Lines.

    Raises: ParameterError: unreadable, unknown or missing keys, empty unit, duplicate ids.
    """
    wanted: dict[str, type | tuple[type, ...]] = {
        "record_id": str,
        "unit": str,
        "question": str,
        "choices": list,
        "answer": str,
        "rationale": (str, type(None)),
    }
    records = tuple(Record(**row) for row in _parse_lines(_read_file(path), str(path), wanted))  # type: ignore[arg-type]
    seen: set[str] = set()
    for number, record in enumerate(records, start=1):
        if not record.unit.strip():
            raise ParameterError(f"{path}:{number}: unit is empty; every record needs its unit")
        if record.record_id in seen:
            raise ParameterError(f"{path}:{number}: record_id {record.record_id!r} appears twice")
        seen.add(record.record_id)
    return records


def read_pool(path: Path) -> tuple[PoolSample, ...]:
    """Read the public pool from a JSON Lines file; see `parse_pool`."""
    return parse_pool(_read_file(path), where=str(path))


def parse_pool(raw: bytes, *, where: str) -> tuple[PoolSample, ...]:
    """Read the public pool from JSON Lines.

    Args: where: the source's name, for messages.
    Raises: ParameterError: unknown or missing keys, duplicate ids, no sample.
    """
    wanted: dict[str, type | tuple[type, ...]] = {
        "sample_id": str,
        "question": str,
        "choices": list,
        "answer": str,
    }
    samples = tuple(PoolSample(**row) for row in _parse_lines(raw, where, wanted))  # type: ignore[arg-type]
    if not samples:
        raise ParameterError(f"{where}: the pool is empty")
    ids = [sample.sample_id for sample in samples]
    if len(set(ids)) != len(ids):
        twice = next(one for one, count in Counter(ids).items() if count > 1)
        raise ParameterError(f"{where}: sample_id {twice!r} appears twice")
    return samples


def pool_bytes(samples: Sequence[PoolSample]) -> bytes:
    """The pool as canonical JSON Lines, the form that is hashed and sent."""
    return b"".join(canonical_json(asdict(sample)) + b"\n" for sample in samples)


def write_json_lines(path: Path, rows: Iterable[Record | PoolSample]) -> None:
    """Write records or pool samples, one canonical JSON object a line."""
    path.write_bytes(b"".join(canonical_json(asdict(row)) + b"\n" for row in rows))


def pool_hash(samples: Sequence[PoolSample]) -> str:
    """SHA-256 over the pool in file order, the value that a study plan pins."""
    return sha256_hex(pool_bytes(samples))
