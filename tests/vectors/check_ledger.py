"""The checker's ledgers (section 9.1): chain, keys, times, commitment and restart."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from check_text import WrongVectorError, canonical, encode, need, sha
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def check_ledger(vectors: Any) -> None:
    """A ledger, and the one that begins in its place."""
    entries = _check_lines(vectors["ledger"])
    need([one["kind"] for one in entries][:1] == ["start"], "the first entry of a ledger")
    _check_outputs(entries, bytes.fromhex(vectors["output"]), bytes.fromhex(vectors["salt"]))
    (again,) = _check_lines(vectors["restarted"])
    need(again["kind"] == "restart", "the first entry of a restarted ledger")
    grant = again["grant"]
    last = len(entries) - 1
    known = (vectors["ledger"]["ledger_id"], last, vectors["ledger"]["entry_hashes"][last])
    named = (grant["previous_ledger_id"], grant["previous_index"], grant["previous_hash"])
    need(named == known, "the lost ledger that a grant names")
    need((grant["site"], grant["population"]) == (again["site"], again["population"]), "whose")
    need(grant["auditor_key"] == vectors["auditor_key"], "the auditor that granted")
    _verify(grant["auditor_key"], b"lada/ledger-restart/2/", grant, "signature", "the grant")
    spent = [one for one in entries if one["kind"] == "reserve"]
    carried = {"class_name": "ComposedDpEvent", "events": [one["event"] for one in spent]}
    need(grant["carried"] == carried, "what is carried")
    need(grant["studies"] == sorted({one["study_id"] for one in spent}), "who spent it")
    need(grant["carried_epsilon"] == spent[-1]["epsilon_after"], "what is carried costs")


def _verify(
    key: str, domain: bytes, content: Any, name: str, what: str, *, without: str = ""
) -> None:
    """Check the Ed25519 signature in the field `name` over all other fields."""
    rest = {one: value for one, value in content.items() if one not in (name, without)}
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(
            bytes.fromhex(content[name]), domain + encode(rest).encode("ascii")
        )
    except InvalidSignature as error:
        raise WrongVectorError(f"signature of {what}") from error


def _check_lines(ledger: Any) -> list[Any]:
    genesis = {
        "ledger_version": 2,
        "population": ledger["population"],
        "site": ledger["site"],
        "ledger_id": ledger["ledger_id"],
    }
    previous = sha(encode(genesis).encode("ascii"))
    need(previous == ledger["genesis_hash"], "genesis hash")
    need(len(ledger["lines"]) == len(ledger["entry_hashes"]), "one hash per line")
    key, newest = "", ""
    entries: list[Any] = []
    for index, line in enumerate(ledger["lines"]):
        entry = canonical(line)
        where = f"entry {index}"
        need(
            (entry["version"], entry["index"], entry["previous_hash"]) == (2, index, previous),
            where,
        )
        if index == 0:
            first = entry["grant"] if entry["kind"] == "restart" else entry
            need(first["ledger_id"] == ledger["ledger_id"], "the id of the ledger")
            key = first["public_key"]
        _verify(key, b"lada/ledger/2/", entry, "signature", where)
        if entry["kind"] == "key":
            new = entry["new_public_key"]
            _verify(new, b"lada/ledger-key/2/", entry, "new_signature", where, without="signature")
            key = new
        need(entry["time"].endswith(":00.000000Z"), f"time of {where}")
        if entry["kind"] != "commit":
            need(entry["time"] >= newest, f"time of {where}")
            newest = entry["time"]
        previous = sha(line.encode("ascii"))
        need(previous == ledger["entry_hashes"][index], f"hash of {where}")
        entries.append(entry)
    return entries


def _check_outputs(entries: list[Any], output: bytes, salt: bytes) -> None:
    """Each commit opens with its salt, and has the time of its reservation's newest try."""
    tries: dict[str, str] = {}
    resumes = 0
    for entry in entries:
        if entry["kind"] == "reserve":
            tries[sha(encode(entry).encode("ascii"))] = entry["time"]
        elif entry["kind"] == "resume":
            resumes += 1
            need(entry["attempt"] == resumes, "number of a resume")
            need(entry["reserve_hash"] in tries, "reservation of a resume")
            tries[entry["reserve_hash"]] = entry["time"]
        elif entry["kind"] == "commit":
            need(entry["time"] == tries[entry["reserve_hash"]], "time of a commit")
            message = b"lada/ledger-output/2/" + output
            opened = hmac.new(salt, message, hashlib.sha256).hexdigest()
            need(opened == entry["output_commitment"], "commitment to an output")
