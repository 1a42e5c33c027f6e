# ruff: noqa: E501
"""Mistakes that operators make, the command that finds each, and what it says; docs/mistakes.md.

A mistake spoils a study that was set up by `lada init`; see `mistaken_study`. What is about models,
plans and the network is in `mistakes_of_models` and `mistakes_of_places`.
"""

from __future__ import annotations

import codecs
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from mistaken_study import PLAN, Study

from lada_protocol.identity.credentials import Passphrase, private_key_pem
from lada_protocol.kinds import Role

Spoil = Callable[[Study], object]

OF_SITE = "lada check hospital-a/site.toml"
OF_SITE_WITH_PLAN = f"{OF_SITE} --plan {PLAN}"
OF_HUB = "lada check hub/server.toml"
OF_DRAFT = "lada server propose --settings hub/server.toml --dry-run"
OF_AUDITOR = "lada check auditor/auditor.toml"
OF_AUDITOR_WITH_PLAN = f"{OF_AUDITOR} --plan {PLAN}"

SITE, POLICY = "hospital-a/site.toml", "hospital-a/policy.toml"
SERVER, STUDY, AUDITOR = "hub/server.toml", "hub/study.toml", "auditor/auditor.toml"
IDENTITY = "hospital-a/identity"
RECORDS, HELD_OUT = "hospital-a.jsonl", "hospital-a-held-out.jsonl"
PASSPHRASE = "correct horse battery staple"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One row. name: what is wrong. command: finds it; `--quick` is added to `lada check`.

    check: whose finding it is, empty where a command refuses without a list. says: the telling part
    of the message. level: of the finding; "works" where it is no mistake any more.
    """

    name: str
    command: str
    says: str
    spoil: Spoil = lambda _study: None
    check: str = ""
    level: Literal["fault", "warning", "works"] = "fault"
    slow: bool = False

    @property
    def row(self) -> str:
        """Its line in the page's tables."""
        by = f"`{self.command}`" + (f": `{self.check}`" if self.check else "")
        said = self.says.replace("|", "\\|")
        shown = {"fault": "", "warning": " (a warning)", "works": " (it works)"}[self.level]
        return f"| {self.name} | {by} | {said}{shown} | 0 |"


def keys(name: str, **changes: Any) -> Spoil:
    """Sets keys of a settings file."""
    return lambda study: study.toml(name, **changes)


def content(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    """Changes the bytes of a file."""
    return lambda study: study.path(name).write_bytes(change(study.path(name).read_bytes()))


def replaced(name: str, raw: bytes) -> Spoil:
    """Writes a file."""
    return lambda study: study.path(name).write_bytes(raw)


def gone(name: str) -> Spoil:
    """Takes a file away."""
    return lambda study: study.path(name).unlink()


def record(**changes: Any) -> Spoil:
    """Changes the record of the fourth line."""
    return lambda study: study.lines(RECORDS, lambda rows: rows[3].update(changes))


def _of_another(party: str) -> Spoil:
    def spoil(study: Study) -> None:
        shutil.rmtree(study.path(IDENTITY))
        shutil.copytree(study.path(f"{party}/identity"), study.path(IDENTITY))

    return spoil


def _of_another_time(ago: int) -> Spoil:
    def spoil(study: Study) -> None:
        shutil.rmtree(study.path(IDENTITY))
        study.other_identity("hospital-a", Role.SITE, ago=ago).rename(study.path(IDENTITY))

    return spoil


def _mixed(study: Study) -> None:
    other = study.other_identity("hospital-a", Role.SITE)
    shutil.copy(other / "tls.crt", study.path(f"{IDENTITY}/tls.crt"))


def _encrypted(study: Study) -> None:
    for name in ("tls.key", "sign.key"):
        path = study.path(f"{IDENTITY}/{name}")
        key: Any = load_pem_private_key(path.read_bytes(), password=None)
        path.write_bytes(private_key_pem(key, Passphrase(PASSPHRASE.encode())))


def _passphrase(raw: bytes) -> Spoil:
    def spoil(study: Study) -> None:
        _encrypted(study)
        study.toml(SITE, passphrase_file="pass.txt")
        study.path("hospital-a/pass.txt").write_bytes(raw)

    return spoil


def _not_joined(study: Study) -> None:
    for name in ("ca.crt", "tls.crt", "sign.crt"):
        study.path(f"{IDENTITY}/{name}").unlink()


SETTINGS = (
    Mistake(
        name="the policy is checked in place of the settings",
        command="lada check hospital-a/policy.toml",
        check="settings",
        says="has the keys of no role's settings file",
    ),
    Mistake(
        name="a folder is checked in place of its settings file",
        command="lada check hospital-a",
        check="settings",
        says="is a folder; name a settings file, it holds policy.toml, site.toml",
    ),
    Mistake(
        name="a site is run with the auditor's settings",
        command="lada site run --settings auditor/auditor.toml",
        says="unknown keys 'roster_sha256', 'export_dir', 'epsilon_cap'; known keys are cache_dir, coordinator",
    ),
    Mistake(
        name="an editor has put a byte-order mark in front of site.toml",
        command=OF_SITE,
        check="settings",
        says="the file starts with a byte-order mark; save it as UTF-8 without one",
        spoil=content(SITE, lambda raw: codecs.BOM_UTF8 + raw),
    ),
    Mistake(
        name="site.toml was saved as UTF-16",
        command=OF_SITE,
        check="settings",
        says="the file is UTF-16; save it as UTF-8 without a mark",
        spoil=content(SITE, lambda raw: raw.decode().encode("utf-16")),
    ),
    Mistake(
        name="an umlaut in site.toml is cp1252",
        command=OF_SITE,
        check="settings",
        says="not TOML: line 1 is not UTF-8; save the file as UTF-8",
        spoil=content(SITE, lambda raw: "# Köln\n".encode("cp1252") + raw),
    ),
    Mistake(
        name="a text without quotes",
        command=OF_SITE,
        check="settings",
        says="(at line 1, column 9); a text stands in double quotes",
        spoil=replaced(SITE, b"party = hospital-a\n"),
    ),
    Mistake(
        name="a key is mistyped",
        command=OF_SITE,
        check="settings",
        says="unknown key 'recrods'; known keys are cache_dir",
        spoil=keys(SITE, recrods="records.jsonl"),
    ),
    Mistake(
        name="a key of a table is mistyped",
        command=OF_SITE,
        check="settings",
        says="did you mean model.max_tokens?",
        spoil=keys(SITE, model={"max_token": 512}),
    ),
    Mistake(
        name="a key is missing",
        command=OF_SITE,
        check="settings",
        says="the key 'records' is missing",
        spoil=keys(SITE, records=None),
    ),
    Mistake(
        name="a number out of its range",
        command=OF_SITE,
        check="settings",
        says="threads: Input should be greater than or equal to 1, got '0'",
        spoil=keys(SITE, threads=0),
    ),
    Mistake(
        name="a text where a number belongs",
        command=OF_SITE,
        check="settings",
        says="wait_s: Input should be a valid number, unable to parse string as a number, got 'an hour'",
        spoil=keys(SITE, wait_s="an hour"),
    ),
    Mistake(
        name="a state folder below $HOME",
        command=OF_SITE,
        check="settings",
        says="variables such as $HOME are not expanded here; write the whole path",
        spoil=keys(SITE, state_dir="$HOME/state"),
    ),
    Mistake(
        name="a path that is relative to somewhere else",
        command=OF_SITE,
        check="records",
        says="a relative path in the settings is taken from the folder of that file",
        spoil=keys(SITE, records=RECORDS),
    ),
    Mistake(
        name="the policy has a delta above 1",
        command=OF_SITE,
        check="policy",
        says="target_delta: Input should be less than 1, got '1.5'",
        spoil=keys(POLICY, target_delta=1.5),
    ),
    Mistake(
        name="the policy's delta is too large for so many people",
        command=OF_SITE,
        check="records",
        says="target_delta 0.01 is not far below 1/units",
        level="warning",
        spoil=keys(POLICY, target_delta=0.01),
    ),
    Mistake(
        name="the policy bounds epsilon by a key of the auditor's",
        command=OF_SITE,
        check="policy",
        says="unknown key 'epsilon_cap'; known keys are approval, epsilon_cap_per_study",
        spoil=keys(POLICY, epsilon_cap=4.0),
    ),
    Mistake(
        name="sums over two sites",
        command=OF_AUDITOR,
        check="settings",
        says="min_cohort: Input should be greater than or equal to 3, got '2'",
        spoil=keys(AUDITOR, min_cohort=2),
    ),
)

IDENTITIES = (
    Mistake(
        name="`lada init join` was not run yet",
        command=OF_SITE,
        check="identity",
        says="cannot be read (No such file or directory); `lada init join` puts certificates beside the keys",
        spoil=_not_joined,
    ),
    Mistake(
        name="no roster is there",
        command=OF_SITE,
        check="roster",
        says="there is no such file; `lada init join` puts it there",
        spoil=gone("hospital-a/roster.json"),
    ),
    Mistake(
        name="no roster is pinned",
        command=OF_SITE,
        check="roster",
        says="none is pinned yet, roster_sha256 is all zeros; run `lada init join`",
        spoil=keys(POLICY, roster_sha256="0" * 64),
    ),
    Mistake(
        name="another roster is pinned",
        command=OF_AUDITOR,
        check="roster",
        says="roster_sha256 pins 11111111",
        spoil=keys(AUDITOR, roster_sha256="1" * 64),
    ),
    Mistake(
        name="a certificate has expired",
        command=OF_SITE,
        check="identity",
        says="issue a new one or set this machine's clock",
        spoil=_of_another_time(40),
    ),
    Mistake(
        name="the clock is behind the certificates",
        command=OF_SITE,
        check="identity",
        says="tls.crt: certificate of lada:site:hospital-a is valid from",
        spoil=_of_another_time(-1),
    ),
    Mistake(
        name="a certificate that another CA has issued",
        command=OF_SITE,
        check="identity",
        says="was not issued by the study CA",
        spoil=_mixed,
    ),
    Mistake(
        name="all keys and certificates of another study",
        command=OF_SITE,
        check="identity",
        says="use the identity folder that the roster was made from",
        spoil=_of_another_time(0),
    ),
    Mistake(
        name="another site's identity",
        command=OF_SITE,
        check="identity",
        says="settings say party 'hospital-a', the certificates name lada:site:bank",
        spoil=_of_another("bank"),
    ),
    Mistake(
        name="the auditor's identity in a site's settings",
        command=OF_SITE,
        check="identity",
        says="its certificates name lada:auditor:auditor, and these are the settings of a site",
        spoil=lambda study: (_of_another("auditor")(study), study.toml(SITE, party="auditor")),
    ),
    Mistake(
        name="tls.crt and sign.crt are exchanged",
        command=OF_SITE,
        check="identity",
        says="is not a tls certificate; tls.crt and sign.crt are not interchangeable",
        spoil=lambda study: shutil.copy(
            study.path(f"{IDENTITY}/sign.crt"), study.path(f"{IDENTITY}/tls.crt")
        ),
    ),
    Mistake(
        name="a key that does not belong to the certificate",
        command=OF_SITE,
        check="identity",
        says="tls.key does not belong to the certificate beside it; put back the key",
        spoil=lambda study: shutil.copy(
            study.path("bank/identity/tls.key"), study.path(f"{IDENTITY}/tls.key")
        ),
    ),
    Mistake(
        name="a key that cannot be read",
        command=OF_SITE,
        check="identity",
        says="sign.key: expected a PEM private key, found something else",
        spoil=replaced(f"{IDENTITY}/sign.key", b"no key\n"),
    ),
    Mistake(
        name="encrypted keys and no passphrase",
        command=OF_SITE,
        check="identity",
        says="tls.key is encrypted and no passphrase was given; set LADA_KEY_PASSPHRASE",
        spoil=_encrypted,
    ),
    Mistake(
        name="a wrong passphrase",
        command=OF_SITE,
        check="identity",
        says="expected a PEM private key, found a key under another passphrase",
        spoil=_passphrase(b"incorrect horse battery staple"),
    ),
    Mistake(
        name="an empty passphrase file",
        command=OF_SITE,
        check="identity",
        says="expected 16 to 1024 bytes, got 0",
        spoil=_passphrase(b""),
    ),
    Mistake(
        name="a passphrase file with a byte-order mark",
        command=OF_SITE,
        check="identity",
        says="it starts with a byte-order mark, which would be taken for a part of it",
        spoil=_passphrase(codecs.BOM_UTF8 + PASSPHRASE.encode()),
    ),
    Mistake(
        name="ca.crl is something else",
        command=OF_SITE,
        check="identity",
        says="revocation list cannot be read",
        spoil=replaced(f"{IDENTITY}/ca.crl", b"no list\n"),
    ),
    Mistake(
        name="an invitation that was copied in part",
        command="lada init auditor second --invite lada-invitation-1.AAAA",
        says="invitation: a part of it is missing or mistyped",
    ),
    Mistake(
        name="half a folder of `lada init`",
        command="lada init join hospital-a hub/ca/bundle.json --fingerprint 00000",
        says="holds none of auditor.toml, server.toml, site.toml",
        spoil=gone(SITE),
    ),
    Mistake(
        name="`lada init` into a folder that is there",
        command="lada init site hospital-a --invite lada-invitation-1.AAAA",
        says="is there already; name a new folder",
    ),
    Mistake(
        name="another fingerprint was read out",
        command="lada init join hospital-a hub/ca/bundle.json --fingerprint 000000000000000000000000000000",
        says="differs",
    ),
)

RECORDS_ROWS = (
    Mistake(
        name="no file of records",
        command=OF_SITE,
        check="records",
        says="records: cannot read",
        spoil=gone(RECORDS),
    ),
    Mistake(
        name="an empty file of records",
        command=OF_SITE,
        check="records",
        says="holds no line; at least one is needed",
        spoil=replaced(RECORDS, b""),
    ),
    Mistake(
        name="records with a byte-order mark",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:1: begins with a byte-order mark; save the file as UTF-8 without one",
        spoil=content(RECORDS, lambda raw: codecs.BOM_UTF8 + raw),
    ),
    Mistake(
        name="records as UTF-16",
        command=OF_SITE,
        check="records",
        says="is UTF-16; save it as UTF-8",
        spoil=content(RECORDS, lambda raw: raw.decode().encode("utf-16")),
    ),
    Mistake(
        name="records as a table of commas",
        command=OF_SITE,
        check="records",
        says="has no line that begins an object; expected one JSON object a line, `lada data import` makes",
        spoil=replaced(RECORDS, b"record_id,unit,question\n1,p1,Is it flu?\n"),
    ),
    Mistake(
        name="records as one JSON list",
        command=OF_SITE,
        check="records",
        says="is one JSON list; expected one JSON object a line",
        spoil=content(RECORDS, lambda raw: b"[" + b",".join(raw.splitlines()) + b"]"),
    ),
    Mistake(
        name="a line is cut",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:1: is not JSON",
        spoil=content(RECORDS, lambda raw: raw.replace(b"}\n", b"\n", 1)),
    ),
    Mistake(
        name="a record id twice",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:5: repeats the record_id of line 3",
        spoil=lambda study: study.lines(
            RECORDS, lambda rows: rows[4].update(record_id=rows[2]["record_id"])
        ),
    ),
    Mistake(
        name="an answer that is none of the choices",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:4: the answer is not among the choices",
        spoil=record(choices=["yes", "no"], answer="maybe"),
    ),
    Mistake(
        name="a control character in a text",
        command=OF_SITE,
        check="records",
        says="1 record(s) hold control characters (lines 4)",
        level="warning",
        spoil=record(question="What\x00 is it?"),
    ),
    Mistake(
        name="no unit",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:4: lacks unit; expected the keys record_id, unit",
        spoil=lambda study: study.lines(RECORDS, lambda rows: rows[3].pop("unit")),
    ),
    Mistake(
        name="a unit that is a number",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:4: unit is a number, expected text",
        spoil=record(unit=17),
    ),
    Mistake(
        name="a unit that says N/A",
        command=OF_SITE,
        check="records",
        says="the unit looks like a missing value in 1 record(s), lines 4; name the person",
        spoil=record(unit="N/A"),
    ),
    Mistake(
        name="one person in two spellings",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:4: one unit in 2 spellings, lines 4, 5; spell it alike",
        spoil=lambda study: study.lines(
            RECORDS,
            lambda rows: (rows[3].update(unit="Weber, A."), rows[4].update(unit="weber,  a.")),
        ),
    ),
    Mistake(
        name="the hospital stands in the column of the person",
        command=OF_SITE,
        check="records",
        says="all 360 records are of one unit",
        level="warning",
        spoil=lambda study: study.lines(
            RECORDS, lambda rows: [row.update(unit="hospital-a") for row in rows]
        ),
    ),
    Mistake(
        name="the record stands in the column of the person",
        command=OF_SITE,
        check="records",
        says="the unit of every record is its record_id",
        level="warning",
        spoil=lambda study: study.lines(
            RECORDS, lambda rows: [row.update(unit=row["record_id"]) for row in rows]
        ),
    ),
    Mistake(
        name="records that are held out and trained on",
        command=OF_SITE,
        check="records",
        says="share a record_id with the training records",
        level="warning",
        spoil=lambda study: study.toml(SITE, held_out=str(study.path(RECORDS))),
    ),
    Mistake(
        name="a record that is too long for the model",
        command=OF_SITE,
        check="records.length",
        says="hospital-a.jsonl:4: too long for the model: needs 2412 tokens, at most 512",
        spoil=record(question="what is " * 600),
    ),
)
