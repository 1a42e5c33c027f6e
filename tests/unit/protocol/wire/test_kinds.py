"""Kinds: who sends, who reads, how much; the table of SPEC.md, checked entry by entry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Audience, Kind, Role, may_read, parse_kind
from lada_protocol.wire.messages import BODIES
from lada_secure.errors import PeerError

SPEC = Path(__file__).parents[4] / "protocol" / "SPEC.md"
READERS = {"coordinator": Role.COORDINATOR, "auditor": Role.AUDITOR, "site-b": Role.SITE}


def test_every_kind_has_a_body() -> None:
    assert set(BODIES) == set(Kind)


def test_an_unknown_kind_is_refused_without_echoing_all_of_it() -> None:
    with pytest.raises(PeerError) as caught:
        parse_kind("x" * 10_000)
    assert caught.value.reason == "unknown_kind"
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("kind", list(Kind))
def test_sender_addressee_and_coordinator_read_every_kind(kind: Kind) -> None:
    for reader, role in (("site-a", Role.SITE), ("site-c", Role.SITE)):
        assert may_read(kind=kind, sender="site-a", to="site-c", reader=reader, role=role)
    assert may_read(kind=kind, sender="site-a", to="", reader="coordinator", role=Role.COORDINATOR)


@pytest.mark.parametrize("kind", list(Kind))
def test_others_read_what_the_audience_allows(kind: Kind) -> None:
    audience = kind.rules.audience
    seen = {
        reader
        for reader, role in READERS.items()
        if may_read(kind=kind, sender="site-a", to="site-c", reader=reader, role=role)
    }
    expected = {
        Audience.ALL: {"coordinator", "auditor", "site-b"},
        Audience.AUDITOR: {"coordinator", "auditor"},
        Audience.ADDRESSEE: {"coordinator"},
        Audience.ADDRESSEE_AND_AUDITOR: {"coordinator", "auditor"},
    }[audience]
    assert seen == expected


@pytest.mark.parametrize(
    "kind",
    [Kind.LEDGER, Kind.CONTRIBUTION, Kind.SUM, Kind.MATRIX, Kind.QUERY, Kind.SCORES],
)
def test_what_is_not_for_everybody_never_reaches_another_site(kind: Kind) -> None:
    assert not may_read(kind=kind, sender="site-a", to="", reader="site-b", role=Role.SITE)


def test_the_table_of_the_specification_says_what_the_code_enforces() -> None:
    rows = {
        cells[0].strip("` "): [one.strip() for one in cells[1:]]
        for line in SPEC.read_text("utf-8").splitlines()
        if (cells := line.strip().strip("|").split("|"))
        and re.fullmatch(r" `[a-z_]+` ", cells[0])
        and len(cells) == 7
    }
    assert set(rows) == {str(kind) for kind in Kind}
    names = {Role.COORDINATOR: "C", Role.AUDITOR: "A", Role.SITE: "S"}
    for kind, (senders, audience, _place, body, _payload, limit) in rows.items():
        rules = Kind(kind).rules
        assert senders == ", ".join(names[one] for one in Role if one in rules.senders), kind
        assert audience == rules.audience.value, kind
        assert limit == _size(rules.max_payload_bytes), kind
        assert body == (", ".join(f"`{one}`" for one in BODIES[Kind(kind)].model_fields) or "-"), (
            kind
        )


def _size(limit: int) -> str:
    if limit == 0:
        return "0"
    return f"{limit // 2**20} MiB" if limit >= 2**20 else f"{limit // 2**10} KiB"


def test_every_error_code_of_the_code_stands_in_the_specification() -> None:
    root = SPEC.parents[1]
    table = SPEC.read_text("utf-8").split("## 12.")[1].split("## 13.")[0]
    known = {
        code
        for line in table.splitlines()
        if line.startswith("| `")
        for code in re.findall(r"`([a-z_]+)`", line.split("|")[1])
    }
    folders = (
        "protocol/lada_protocol",
        "clients/lada_clients",
        "server/lada_server",
        "lada_secure/encryption",
    )
    used = {
        code
        for folder in folders
        for path in (root / folder).rglob("*.py")
        for code in re.findall(r'reason="([a-z_]+)"', path.read_text("utf-8"))
    }
    assert used - known == set()
    assert {"unpaid", "wrong_noise", "over_budget", "policy", "timeout"} <= known


def test_the_list_of_endings_is_that_of_the_specification() -> None:
    section = SPEC.read_text("utf-8").split("### 6.1 Endings")[1].split("\n## 7.")[0]
    told = re.findall(r"(?m)^\| `([a-z_]+)` \|", section)
    assert told == [code.value for code in FailureCode]
    # What each says to people is one line, and says what to do.
    assert all(code.meaning and code.mend for code in FailureCode)
