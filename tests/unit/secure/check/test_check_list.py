"""The list of checks: what a fault stops and what not, and how a report ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from lada_secure.check.commands import role_of
from lada_secure.check.findings import CheckReport, Finding, report_of
from lada_secure.check.running import (
    ASKS,
    Check,
    Found,
    RoleChecks,
    fault,
    fine,
    run_checks,
    unneeded,
    warn,
)
from lada_secure.errors import LocalProtocolError, ParameterError

FILE = "site.toml"


def told(*checks: Check, quick: bool = False) -> list[tuple[str, str, str]]:
    return [(one.check, one.level, one.message) for one in run_checks(checks, quick=quick)]


def saying(name: str, *found: Found, needs: tuple[str, ...] = (), asks: bool = False) -> Check:
    return Check(name=name, run=lambda: found, needs=needs, asks=asks)


def test_what_rests_on_a_fault_is_skipped_and_everything_else_is_looked_at() -> None:
    assert told(
        saying("a", fault("broken")),
        saying("b", fine("well"), needs=("a",)),
        saying("c", fine("well"), needs=("b",)),
        saying("d", fine("well")),
        saying("e", warn("odd"), needs=("d",)),
        saying("f", fine("well"), needs=("e",)),
    ) == [
        ("a", "fault", "broken"),
        ("b", "skipped", "waits for a; mend that first"),
        ("c", "skipped", "waits for a; mend that first"),
        ("d", "ok", "well"),
        ("e", "warning", "odd"),
        ("f", "ok", "well"),
    ]


def test_what_needs_nothing_here_stops_nothing() -> None:
    assert told(saying("a", unneeded("none")), saying("b", fine("well"), needs=("a",)))[1] == (
        "b",
        "ok",
        "well",
    )


def test_a_check_that_needs_one_behind_it_is_a_defect() -> None:
    with pytest.raises(LocalProtocolError, match="check a needs"):
        told(saying("a", fine("well"), needs=("b",)), saying("b", fine("well")))


def test_an_error_of_ours_is_a_fault_behind_what_was_found_before() -> None:
    def run() -> Iterator[Found]:
        yield fine("half")
        raise ParameterError("the other half")

    assert told(Check(name="a", run=run)) == [("a", "ok", "half"), ("a", "fault", "the other half")]


def test_a_defect_is_no_finding() -> None:
    def run() -> Iterator[Found]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        told(Check(name="a", run=run))


def test_what_our_code_warns_of_is_a_warning_and_stays_off_the_screen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("lada_clients.somewhere")
    before = logging.getLogger("lada_clients").propagate

    def run() -> Iterator[Found]:
        logger.info("not heard")
        logger.warning("%d records are odd", 3)
        logging.getLogger("foreign").warning("not ours")
        yield fine("well")

    assert told(Check(name="a", run=run)) == [
        ("a", "ok", "well"),
        ("a", "warning", "3 records are odd"),
    ]
    assert "records are odd" not in capsys.readouterr().err
    assert logging.getLogger("lada_clients").propagate == before


def test_quick_leaves_out_what_answers_questions_and_what_needs_it_runs() -> None:
    asks = saying("a", fine("answered"), asks=True)
    after = saying("b", fine("well"), needs=("a",))
    assert told(asks, after, quick=True) == [("a", "skipped", ASKS), ("b", "ok", "well")]
    assert told(asks, quick=False) == [("a", "ok", "answered")]


@pytest.mark.parametrize(
    ("levels", "worst", "status"),
    [
        (("ok", "skipped"), "ok", 0),
        (("ok", "warning"), "warning", 1),
        (("warning", "fault", "ok"), "fault", 2),
        ((), "ok", 0),
    ],
)
def test_the_worst_finding_decides_the_exit_status(
    levels: tuple[str, ...], worst: str, status: int
) -> None:
    findings = tuple(
        Finding.model_validate({"check": "a", "level": one, "message": ""}) for one in levels
    )
    report = report_of(findings, role="site", file=FILE)
    assert (report.level, report.exit_status) == (worst, status)


def test_a_report_is_read_back_and_another_format_is_not() -> None:
    one = Finding(check="a", level="ok", message="well", facts={"count": 3, "names": ["x"]})
    report = report_of((one,), role="site", file=FILE)
    assert CheckReport.model_validate_json(report.model_dump_json()) == report
    assert report.summary() == "1 ok, 0 warning(s), 0 fault(s), 0 skipped"
    with pytest.raises(ValidationError):
        CheckReport.model_validate(report.model_dump() | {"format": "lada-check/2"})


ROLES = {
    name: RoleChecks(role=name, marks=frozenset(marks), checks=lambda _file, _request: ())
    for name, marks in (("auditor", ("export_dir",)), ("site", ("policy", "records")))
}


def role(folder: Path, text: str, named: str | None = None) -> str:
    file = folder / FILE
    file.write_text(text)
    return role_of(file, named, ROLES).role


def test_the_file_says_whose_it_is(tmp_path: Path) -> None:
    assert role(tmp_path, 'party = "a"\nrecords = "r.jsonl"\n') == "site"
    assert role(tmp_path, 'export_dir = "out"\n') == "auditor"
    assert role(tmp_path, 'export_dir = "out"\n', "auditor") == "auditor"
    assert role(tmp_path, 'party = "a"\n', "site") == "site"
    assert role(tmp_path, 'export_dir = "out"\npolicy = "p"\n', "site") == "site"


@pytest.mark.parametrize(
    ("text", "named", "said"),
    [
        ('party = "a"', None, "keys of no role's settings file: auditor (export_dir); site ("),
        ('export_dir = "o"\npolicy = "p"', None, "export_dir of a auditor; policy of a site"),
        ('policy = "p"', "auditor", "has the keys policy of a site, and --role says auditor"),
        ('policy = "p"', "referee", "--role: expected one of auditor, site, got 'referee'"),
        ("policy = ", None, "not TOML"),
        ("\ufeffpolicy = 1", None, "byte-order mark"),
    ],
)
def test_a_file_of_no_role_or_of_another_is_refused(
    tmp_path: Path, text: str, named: str | None, said: str
) -> None:
    with pytest.raises(ParameterError) as refused:
        role(tmp_path, text, named)
    assert said in str(refused.value)
