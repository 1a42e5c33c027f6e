# ruff: noqa: E501
"""Mistakes that operators make, the command that finds each, and what it says; docs/mistakes.md.

A mistake spoils a study that was set up by `lada init`; see `mistaken_study`. Those of
records, models and places are in modules of their own.
"""

from __future__ import annotations

import codecs
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from mistaken_study import PLAN, Study, invoke

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


def _renewed_for_days(study: Study) -> None:
    for words in (
        "ca renew hub/ca --id hospital-a --out renewed --days 3",
        f"ca install renewed --identity {IDENTITY}",
    ):
        assert invoke(*words.split()).exit_code == 0


def _revoked(study: Study) -> None:
    assert invoke(*["ca", "revoke", "hub/ca", "--id", "hospital-a"]).exit_code == 0
    shutil.copy(study.path("hub/ca/ca.crl"), study.path(f"{IDENTITY}/ca.crl"))


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
        says="wait_s: Input should be a valid number, got 'an hour'",
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
        says="unknown key 'epsilon_cap'; known keys are approval,",
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
        name="a certificate that ends this week",
        command=OF_SITE,
        check="identity",
        says="renew them before a study, with `lada ca renew`",
        level="warning",
        spoil=_renewed_for_days,
    ),
    Mistake(
        name="a certificate that the CA has revoked",
        command=OF_SITE,
        check="identity",
        says="was revoked by the study CA",
        spoil=_revoked,
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
