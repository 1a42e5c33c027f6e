"""What is asked of a run after its end: complete, exact, paid, and nothing left behind."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from lada_lab.mock.preparation import lada_command
from lada_protocol.kinds import Kind
from lada_protocol.wire.messages import ContributionBody, parse_body
from lada_secure.errors import LedgerError

from .drive import Driven
from .evaluation import Record, evaluated_again, sums_are_exact
from .federation import Federation
from .processes import Processes
from .sight import ledger_lines

PROCESSES_GONE_S: Final = 8.0
# A killed writer's part files, journals, sockets and locks that nobody holds any more.
_LEFTOVERS: Final = (".part", ".tmp", "-wal", "-shm", "-journal")
_USED_KEYS: Final = ("mask-", "scores-")


def faults_of(
    federation: Federation, processes: Processes, driven: Driven, scratch: Path
) -> Iterator[str]:
    """Everything that is wrong with a run that has ended; nothing where it survived."""
    yield from driven.faults
    deadline = time.monotonic() + PROCESSES_GONE_S
    while processes.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    if processes.left():
        yield f"{len(processes.left())} processes are left"
    for party in federation.parties:
        if processes.ended.get(party) != 0:
            yield f"{party} did not end well: {processes.ended.get(party)}"
    yield from board_opened_once(federation, driven)
    yield from left_behind(federation.layout.root)
    yield from audited(federation)
    record = Record(federation)
    try:
        yield from sums_are_exact(record)
        yield from ledgers_are_exact(record, driven)
        yield from evaluated_again(record, scratch)
    except LookupError as error:
        yield f"the run is not complete: {error}"


def board_opened_once(federation: Federation, driven: Driven) -> Iterator[str]:
    """Let the operator look at a board that was closed while its disk was full.

    SQLite cannot fold its log into the file then, so that it keeps the log, with all that is in it,
    until the board is opened the next time.
    """
    struck = [one for one in driven.struck if one.case.party == "coordinator"]
    # Where nothing was said after the disk had room again, the process had ended before.
    if not struck or struck[-1].case.strike != "disk full":
        return
    if struck[-1].recovered_s > struck[-1].left_s:
        return
    done = subprocess.run(
        lada_command(
            "server", "status", "--settings", federation.layout.coordinator.settings, "--json"
        ),
        env=federation.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        words = done.stderr.strip()[-300:]
        yield f"lada server status ended with status {done.returncode}: {words}"


def left_behind(root: Path) -> Iterator[str]:
    """Files that no finished party needs: parts, journals, sockets, uploads, used-up keys."""
    for path in sorted(root.rglob("*")):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        name = path.relative_to(root)
        if stat.S_ISDIR(mode):
            continue
        if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
            yield f"left behind: {name} (a socket or pipe)"
        elif path.name.startswith(".") or path.name.endswith(_LEFTOVERS):
            yield f"left behind: {name}"
        elif {"incoming", "uploads"} & set(name.parts[:-1]):
            yield f"left behind: {name} (an upload that never ended)"
        elif path.parent.name == "secrets" and path.name.startswith(_USED_KEYS):
            yield f"left behind: {name} (a key that is used up)"
        elif name.parts[0] == "tmp" and path.suffix != ".clock":
            yield f"left behind: {name} (a temporary file)"
        elif path.name == "presence.json":
            yield f"left behind: {name} (of a process that is gone)"


def audited(federation: Federation) -> Iterator[str]:
    """What `lada audit verify` finds in the auditor's export."""
    done = subprocess.run(
        lada_command("audit", "verify", federation.layout.export, "--json"),
        env=federation.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        try:
            found = "; ".join(json.loads(done.stdout)["faults"])
        except (ValueError, KeyError):
            found = done.stderr.strip()[-300:]
        yield f"lada audit verify ended with status {done.returncode}: {found}"


def ledgers_are_exact(record: Record, driven: Driven) -> Iterator[str]:
    """Where a ledger does not say exactly what was released.

    One reservation and one commit per release, however often a process was interrupted; what was
    sent is what was committed; the auditor's copy is the same ledger.
    """
    for site in record.federation.sites:
        entries = ledger_lines(record.state(site))
        commits = [one for one in entries if one["kind"] == "commit"]
        reserved = {one["entry_hash"]: one for one in _hashed(entries) if one["kind"] == "reserve"}
        keys = [(one["round_id"], one["purpose"], one["chunk"]) for one in commits]
        if len(set(keys)) != len(keys):
            yield f"{site}: a release was committed twice"
        paid = {one["reserve_hash"] for one in commits}
        asked = [(one["round_id"], one["purpose"], one["chunk"]) for one in reserved.values()]
        if len(set(asked)) != len(asked):
            yield f"{site}: a release was paid for twice"
        unused, resumes = len(reserved) - len(paid), sum(one["kind"] == "resume" for one in entries)
        if max(unused, resumes) > interruptions(driven, site):
            yield (
                f"{site}: {unused} reservations were never committed and {resumes} tries taken up "
                f"again, but it was interrupted {interruptions(driven, site)} times only"
            )
        for commit in commits:
            try:
                record.released(site, commit["round_id"], commit["purpose"], commit["chunk"])
            except LedgerError:
                yield f"{site}: a stored release is not the one that was committed"
        for message in record.index:
            if (message.kind, message.header.sender) == (Kind.CONTRIBUTION, site):
                paid_by = parse_body(message, ContributionBody).paid_by
                if paid_by not in paid:
                    yield f"{site}: a contribution names a reservation without commit"
        yield from _copy_agrees(record, site)


def interruptions(driven: Driven, site: str) -> int:
    """How often a site's process ended before its work was done."""
    hit = sum(
        one.case.party == site and one.case.strike in ("kill", "disk full", "clock")
        for one in driven.struck
    )
    return hit + driven.restarts.get(site, 0)


def _hashed(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    from lada_secure.canonical import canonical_json

    for one in entries:
        yield {**one, "entry_hash": hashlib.sha256(canonical_json(one)).hexdigest()}


def _copy_agrees(record: Record, site: str) -> Iterator[str]:
    from lada_secure.canonical import canonical_json

    copy = record.federation.layout.export / "ledgers" / f"{site}.jsonl"
    own = [canonical_json(one) for one in ledger_lines(record.state(site))]
    kept = copy.read_bytes().splitlines() if copy.exists() else []
    if kept != own[: len(kept)]:
        yield f"{site}: the auditor's copy of the ledger is another ledger"
    if len(kept) != len(own):
        yield f"{site}: the auditor has {len(kept)} of {len(own)} ledger entries"
