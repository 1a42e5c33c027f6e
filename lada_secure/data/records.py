"""Private records and public pool samples, as frozen types, and their JSON Lines files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lada_secure.canonical import Json, canonical_json, sha256_hex
from lada_secure.data.record_faults import Fault, Wanted, parse_rows, refuse
from lada_secure.data.tasks import Task, task_json
from lada_secure.errors import ParameterError

_QUESTION: Final[Wanted] = {"question": (str,), "choices": (list,), "answer": (str,)}
_RECORD: Final[Wanted] = {
    "record_id": (str,),
    "unit": (str,),
    **_QUESTION,
    "rationale": (str, type(None)),
}
_SAMPLE: Final[Wanted] = {"sample_id": (str,), **_QUESTION}
# Left out where there is nothing to say, never null.
_RECORD_TOO: Final[Wanted] = {"task": (dict,)}
_SAMPLE_TOO: Final[Wanted] = {"licence": (str,), "source": (str,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One private record of a site: a question, its answer, and perhaps the reasoning.

    `unit` is the privacy unit (a patient, a customer). `choices` is empty for open questions;
    otherwise `answer` is one of them. `rationale` is None where a site has answers only. `task` is
    None where nobody said which kind it is; evaluations alone read it.
    """

    record_id: str
    unit: str
    question: str
    choices: tuple[str, ...]
    answer: str
    rationale: str | None
    task: Task | None = None

    def __repr__(self) -> str:
        """Without content: a representation ends up in messages and tracebacks."""
        return "Record(...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSample:
    """One public question of the coordinator's pool; `answer` is its public gold answer.

    licence, source: under which terms it may be used, and where it is from; None: nobody said.
    """

    sample_id: str
    question: str
    choices: tuple[str, ...]
    answer: str
    licence: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFile:
    """A file of records as it was read: `lines[i]` is where `records[i]` stands.

    `faults` has everything that is wrong with the file; only good lines are in `records`. Nothing
    of it leaves the site. Never printed.
    """

    name: str
    records: tuple[Record, ...]
    lines: tuple[int, ...]
    faults: tuple[Fault, ...]

    def __repr__(self) -> str:
        return f"RecordFile({self.name!r}, {len(self.records)} records)"


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from error


def inspect_records(path: Path) -> RecordFile:
    """Read a site's private records from JSON Lines, with all that is wrong with them.

    Raises: ParameterError: the file cannot be read at all.
    """
    return parse_records(_read_file(path), where=str(path))


def parse_records(raw: bytes, *, where: str) -> RecordFile:
    """Read private records from JSON Lines, with all that is wrong with them.

    Args: where: the source's name, for messages.
    """
    rows, faults = parse_rows(raw, _RECORD, _RECORD_TOO, id_is_public=False)
    return RecordFile(
        name=where,
        records=tuple(Record(**fields) for fields in rows.values()),  # type: ignore[arg-type]
        lines=tuple(rows),
        faults=faults,
    )


def read_pool(path: Path) -> tuple[PoolSample, ...]:
    """Read the public pool from a JSON Lines file; see `parse_pool`."""
    return parse_pool(_read_file(path), where=str(path))


def parse_pool(raw: bytes, *, where: str) -> tuple[PoolSample, ...]:
    """Read the public pool from JSON Lines; line i of the file holds sample i.

    Args: where: the source's name, for messages.
    Raises: ParameterError: all faults, by line: unknown or missing keys, empty texts, choices that
        make no question, repeated ids, no sample at all.
    """
    rows, faults = parse_rows(raw, _SAMPLE, _SAMPLE_TOO, id_is_public=True)
    refuse([(where, fault) for fault in faults])
    return tuple(PoolSample(**fields) for fields in rows.values())  # type: ignore[arg-type]


def record_line(record: Record) -> bytes:
    """A record as the line of a file, with its end; a record without a kind has the line that it
    had before there were kinds."""
    # By hand: `asdict` copies deeply, and that took a quarter of an import.
    fields: dict[str, Json] = {
        "record_id": record.record_id,
        "unit": record.unit,
        "question": record.question,
        "choices": list(record.choices),
        "answer": record.answer,
        "rationale": record.rationale,
    }
    if record.task is not None:
        fields["task"] = task_json(record.task)
    return canonical_json(fields) + b"\n"


def sample_line(sample: PoolSample) -> bytes:
    """A sample as the line of a pool, with its end; what nobody said is left out."""
    fields: dict[str, Json] = {
        "sample_id": sample.sample_id,
        "question": sample.question,
        "choices": list(sample.choices),
        "answer": sample.answer,
    }
    fields |= {
        name: said
        for name, said in (("licence", sample.licence), ("source", sample.source))
        if said is not None
    }
    return canonical_json(fields) + b"\n"


def pool_bytes(samples: Sequence[PoolSample]) -> bytes:
    """The pool as canonical JSON Lines, the form that is hashed and sent."""
    return b"".join(map(sample_line, samples))


def write_json_lines(path: Path, rows: Iterable[Record | PoolSample]) -> None:
    """Write records or pool samples, one canonical JSON object a line."""
    path.write_bytes(
        b"".join(record_line(row) if isinstance(row, Record) else sample_line(row) for row in rows)
    )


def pool_hash(samples: Sequence[PoolSample]) -> str:
    """SHA-256 over the pool in file order, the value that a study plan pins."""
    return sha256_hex(pool_bytes(samples))
