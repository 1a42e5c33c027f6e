"""The report for a data-protection officer: verified figures, plain words, faults on top."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from federation_world import SITE, Federation, granted
from protocol_world import NOW, make_cast, make_plan, statistics_spec
from pydantic import BaseModel
from simulated_parties import make_world
from typer.testing import CliRunner

from lada_clients.audit.commands import app
from lada_clients.auditor.runner import write_export
from lada_clients.reports.audit.report import build_report
from lada_clients.reports.audit.report_document import PrivacyReport
from lada_clients.reports.audit.report_page import DOCUMENT_FILE, PAGE_FILE, privacy_page
from lada_protocol.evidence.export import PLAN_FILE
from lada_secure.errors import ParameterError, TransportError
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.ledger.entries import ReserveEntry, parse_ledger_lines

SITES = ("site-a", "site-b", "site-c")
ROOT = Path(__file__).parents[4]
EARLIER = "earlier"
STATEMENT = "What leaves: <script>alert('x')</script> & more"

Files = dict[str, bytes]


def read(folder: Path) -> Files:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a finished study; site-a's ledger holds an earlier study as well."""
    base = tmp_path_factory.mktemp("study")
    cast_ = make_cast(SITES)
    world = make_world(base, cast_=cast_, plan=make_plan(rounds=1))
    book = world.sites["site-a"].book
    for decision, statement in (("approve", STATEMENT), ("withdraw", "")):
        book.decide(
            decision,
            study_id=EARLIER,
            plan_hash="e" * 64,
            expires=NOW + timedelta(days=1),
            decided_by="dr.weber",
            statement=statement,
        )
        if decision == "approve":
            for round_id in (0, 1):
                spec = statistics_spec(world.plan, round_id, study_id=EARLIER, plan_hash="e" * 64)
                reservation = book.reserve(spec)
                if round_id == 0:
                    book.commit(reservation, b"noised")
    world.run()
    identity = base / "identity"
    identity.mkdir()
    (identity / "ca.crt").write_bytes(cast_.ca_pem)
    out = base / "export"
    write_export(out, world.auditor.participant, world.auditor.ledgers, identity=identity)
    return out


@pytest.fixture(scope="module")
def report(folder: Path) -> PrivacyReport:
    return build_report(read(folder))


def test_the_report_says_what_the_ledgers_say(folder: Path, report: PrivacyReport) -> None:
    assert report.good
    assert report.faults == ()
    assert [one.site for one in report.sites] == list(SITES)
    for site in report.sites:
        entries = parse_ledger_lines(read(folder)[f"ledgers/{site.site}.jsonl"])
        reserves = [one for one in entries if isinstance(one, ReserveEntry)]
        assert site.verified
        assert site.entries == len(entries)
        assert site.epsilon == reserves[-1].epsilon_after
        assert site.total_cap is not None
        assert site.left == pytest.approx(site.total_cap - reserves[-1].epsilon_after)
        assert [one.index for one in site.releases] == [one.index for one in reserves]
        assert site.releases[0].epsilon_before == 0.0
        for earlier, later in zip(site.releases, site.releases[1:], strict=False):
            assert later.epsilon_before == earlier.epsilon_after < later.epsilon_after
        assert sum(one.cost for one in site.releases) == pytest.approx(site.epsilon)


def test_a_ledger_over_several_studies_is_told_apart_by_study_and_purpose(
    report: PrivacyReport,
) -> None:
    first, second = report.sites[0], report.sites[1]
    assert report.study is not None
    assert [one.study_id for one in first.studies] == [EARLIER, report.study.study_id]
    assert [one.study_id for one in second.studies] == [report.study.study_id]
    earlier, present = first.studies
    assert (earlier.decision, present.decision) == ("withdraw", "approve")
    assert [(one.purpose, one.releases, one.uncommitted) for one in earlier.purposes] == [
        ("statistics", 2, 1)
    ]
    assert [one.purpose for one in present.purposes] == ["statistics", "training"]
    assert earlier.epsilon is not None
    assert present.epsilon is not None
    assert first.epsilon is not None
    assert max(earlier.epsilon, present.epsilon) < first.epsilon < earlier.epsilon + present.epsilon
    assert present.epsilon == second.epsilon
    costs = [one.cost for study in first.studies for one in study.purposes]
    assert sum(costs) == pytest.approx(first.epsilon)
    own = [one for one in first.releases if one.study_id == EARLIER]
    assert [one.output_commitment is None for one in own] == [False, True]
    assert own[0].study_epsilon_before == 0.0
    assert own[1].study_epsilon_before == own[0].study_epsilon_after


def test_the_cost_of_a_purpose_alone_is_recomputed_from_its_events(
    folder: Path, report: PrivacyReport
) -> None:
    entries = parse_ledger_lines(read(folder)["ledgers/site-b.jsonl"])
    for purpose in report.sites[1].studies[0].purposes:
        events = [
            one.event
            for one in entries
            if isinstance(one, ReserveEntry) and one.purpose == purpose.purpose
        ]
        delta = report.sites[1].target_delta
        assert delta is not None
        assert purpose.epsilon_alone == epsilon(events, target_delta=delta)


def test_noise_unit_and_decisions_stand_in_the_report(report: PrivacyReport) -> None:
    assert report.study is not None
    statistics, training = report.sites[1].releases
    assert (statistics.mechanism, statistics.noise) == ("discrete_gaussian", "discrete_gaussian")
    assert (training.mechanism, training.noise) == ("dp_sgd", "discrete_gaussian")
    assert statistics.sampling_probability is None
    assert training.steps is not None
    assert {one.unit for one in report.sites[1].releases} == {report.study.unit}
    assert {one.adjacency for one in report.sites[1].releases} == {"add_or_remove_one_unit"}
    decided = [(one.decision, one.decided_by) for one in report.sites[0].decisions]
    assert decided == [
        ("approve", "dr.weber"),
        ("withdraw", "dr.weber"),
        ("approve", "policy"),
    ]


def test_openings_come_with_their_cohorts(report: PrivacyReport) -> None:
    found = [(one.round, one.purpose, one.cohort, one.sites) for one in report.openings]
    assert found == [(0, "statistics", 3, SITES), (0, "demand", 3, SITES)]


class _Structure(HTMLParser):
    """Open elements and everything that a page could load."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.loads += [name for name, _ in attrs if name in {"src", "href", "srcset", "data"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(report: PrivacyReport) -> None:
    page = privacy_page(report)
    parsed = _Structure()
    parsed.feed(page)
    assert parsed.open == []
    assert parsed.loads == []
    assert not {"script", "link", "img", "iframe", "object"} & parsed.elements
    assert "svg" in parsed.elements
    assert "://" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_shows_the_figures_and_escapes_what_people_wrote(report: PrivacyReport) -> None:
    page = privacy_page(report)
    assert "Everything was verified." in page
    assert "&lt;script&gt;alert(" in page
    for site in report.sites:
        assert f"<td>{site.left:.3f}</td>" in page
        for study in site.studies:
            assert f"{site.site}, {study.study_id}" in page
        for release in site.releases:
            assert f"<td>{release.epsilon_after:.3f}</td>" in page
    assert "1 of the payments led to no output" in page


def test_the_page_names_the_pool_and_other_studies_of_the_same_people(
    report: PrivacyReport,
) -> None:
    page = " ".join(privacy_page(report).split())
    assert report.study is not None
    assert (report.study.pool_size, report.study.embedder) == (9, "ngrams")
    assert report.study.pool_sha256 in page
    assert f"Other studies over these people in this ledger: {EARLIER}." in page
    # The two sites that were in no other one.
    assert page.count("No other study over these people is in this ledger.") == 2


def test_a_fault_stands_on_top_and_nothing_of_the_bad_ledger_is_shown(folder: Path) -> None:
    files = read(folder)
    name = "ledgers/site-b.jsonl"
    files[name] = files[name].replace(b'"round_id":0', b'"round_id":7', 1)
    report = build_report(files)
    assert not report.good
    bad = report.sites[1]
    assert (bad.verified, bad.entries, bad.releases, bad.epsilon) == (False, 0, (), None)
    assert [one.verified for one in report.sites] == [True, False, True]
    page = privacy_page(report)
    assert "Everything was verified" not in page
    assert page.index("Verification failed") < page.index("What is left of every budget")
    assert name in page
    assert "site-b, " not in page[page.index("What is left") : page.index("<h2>site-a")]


def test_an_export_that_cannot_be_read_still_gives_a_page(folder: Path) -> None:
    files = read(folder)
    files[PLAN_FILE] = b"{}"
    report = build_report(files)
    assert (report.good, report.study, report.sites) == (False, None, ())
    assert "Verification failed: 1 fault." in privacy_page(report)


def test_the_command_writes_both_files_and_exits_by_the_verdict(
    folder: Path, tmp_path: Path, report: PrivacyReport
) -> None:
    result = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads((tmp_path / DOCUMENT_FILE).read_text("utf-8"))
    assert PrivacyReport.model_validate_json((tmp_path / DOCUMENT_FILE).read_bytes()) == report
    assert (tmp_path / PAGE_FILE).read_text("utf-8") == privacy_page(report)
    assert json.loads(result.stdout)["schema_version"] == 2

    broken = tmp_path / "broken"
    for name, content in read(folder).items():
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_bytes(content.replace(b'"attempt":0', b'"attempt":1', 1))
    result = CliRunner().invoke(app, ["report", str(broken), "--out", str(tmp_path / "two")])
    assert result.exit_code == 1
    assert "WRONG  " in result.output
    assert "Verification failed" in (tmp_path / "two" / PAGE_FILE).read_text("utf-8")


def test_a_report_is_never_written_into_the_evidence(folder: Path, tmp_path: Path) -> None:
    before = read(folder)
    for out in (folder, folder / "report"):
        result = CliRunner().invoke(app, ["report", str(folder), "--out", str(out)])
        assert isinstance(result.exception, ParameterError)
        assert "inside the exported evidence" in str(result.exception)
    assert read(folder) == before
    file = tmp_path / "file"
    file.write_bytes(b"")
    result = CliRunner().invoke(app, ["report", str(folder), "--out", str(file)])
    assert isinstance(result.exception, ParameterError)
    assert "is a file" in str(result.exception)
    result = CliRunner().invoke(app, ["report", str(folder), "--out", str(file / "below")])
    assert isinstance(result.exception, ParameterError | TransportError)


def fields_of(model: type[BaseModel]) -> set[str]:
    schema = model.model_json_schema()
    parts = (schema, *schema.get("$defs", {}).values())
    return {name for part in parts for name in part.get("properties", {})}


def test_the_documentation_names_every_field_of_the_report() -> None:
    text = (ROOT / "docs" / "audit-a-run.md").read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    named = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`]+)`", text))))
    assert fields_of(PrivacyReport) - named == set()


def test_the_report_shows_new_ledgers_renewed_keys_and_restarts(tmp_path: Path) -> None:
    federation = Federation(folder=tmp_path)
    first = build_report(federation.export(federation.finished()))
    assert [one.new_to_auditor for one in first.sites] == [True] * 4
    assert "A NEW LEDGER: the auditor had seen no entry of it" in privacy_page(first)
    spent = federation.spent()

    grant, federation.books[SITE] = granted(federation, federation.study())
    other = federation.cast.keys["auditor"]
    for key in (other, federation.cast.keys["site-b"]):
        federation.books["site-b"].renew_key(key, decided_by="dr-meyer")
    report = build_report(federation.export(federation.finished()))

    assert report.good
    restarted, renewed = report.sites[:2]
    assert restarted.restart is not None
    assert restarted.restart.granted_by == "dr-weber"
    assert restarted.restart.carried_epsilon == pytest.approx(spent)
    assert restarted.ledger_id == grant.ledger_id
    assert restarted.releases[0].epsilon_before == pytest.approx(spent)
    assert restarted.new_to_auditor
    assert [one.decided_by for one in renewed.key_renewals] == ["dr-meyer", "dr-meyer"]
    assert not renewed.new_to_auditor
    page = privacy_page(report)
    assert "IT WAS RESTARTED in place of the lost ledger" in page
    assert "dr-weber of auditor granted it" in page
    assert f"Epsilon {spent:.4f} at delta 1e-05 is carried over" in page
    assert "Its signing key was renewed on 2026-02-01 by dr-meyer" in page
