"""Reports are built from the files that parties write, and from nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lada_lab.mock.page import report_page
from lada_lab.mock.report import (
    Allocation,
    Report,
    Run,
    SiteFacts,
    Study,
    build_report,
    parse_allocation,
)
from lada_lab.mock.runner import EventTail
from lada_protocol.events import (
    Accuracy,
    Epsilon,
    EventLog,
    Finished,
    Progress,
    StepFinished,
    StepStarted,
    Waiting,
    parse_event,
)
from lada_secure.errors import ParameterError

START_S = 1_000.0
SITES = ("hospital-a", "hospital-b", "bank-a")


def write_events(path: Path, party: str, *, site: bool) -> None:
    """Write a two-round event file with the writer that the parties use."""
    times = iter(range(1_001, 9_000))
    with path.open("ab") as file:
        log = EventLog(party=party, sink=file.write, clock=lambda: float(next(times)))
        if site:
            log.write(
                Accuracy,
                round_id=0,
                step="evaluation",
                when="before",
                accuracy=0.25,
                n=40,
                seconds=0.5,
            )
        for number in range(2):
            log.write(StepStarted, round_id=number, step="statistics")
            log.write(
                Waiting,
                round_id=number,
                step="statistics",
                awaited=("auditor",),
                waited_s=0.0,
                because="opening",
            )
            log.write(
                StepFinished,
                round_id=number,
                step="statistics",
                seconds=1.5,
                bytes_up=90_000,
                bytes_down=1_000,
            )
            if site:
                spent = 1.0 + 2.0 * number
                log.write(Epsilon, round_id=number, step="statistics", epsilon=spent, cap=8.0)
                log.write(Progress, round_id=number, step="distillation", done=5, total=10)
                for _ in range(5):
                    log.write(
                        Epsilon, round_id=number, step="distillation", epsilon=spent + 1, cap=8.0
                    )
            log.write(
                StepFinished,
                round_id=number,
                step="distillation",
                seconds=4.0,
                bytes_up=0,
                bytes_down=20,
            )
            if site:
                value = 0.35 + 0.2 * number
                log.write(
                    Accuracy,
                    round_id=number,
                    step="evaluation",
                    when="after",
                    accuracy=value,
                    n=40,
                    seconds=0.5,
                )
        log.write(Finished, round_id=1, step="close")


def allocation_bytes(number: int) -> bytes:
    """One round's file, as a site writes it."""
    cells = [
        {
            "cluster": cluster,
            "difficulty": difficulty,
            "mass": 0.25,
            "band": 0.5,
            "exploitation": 0.1,
            "exploration": 0.01,
            "utility": 0.11,
            "picked": 3 * cluster + difficulty,
            "trained": 2 * cluster,
            "reward": None if number == 0 else 0.2,
        }
        for cluster in range(4)
        for difficulty in range(3)
    ]
    return json.dumps({"round": number, "cells": cells, "strategy": "band"}).encode()


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """A report of two rounds with three sites, from real files."""
    roles = {"coordinator": "coordinator", "auditor": "auditor"} | dict.fromkeys(SITES, "site")
    events = {}
    for party, role in roles.items():
        path = tmp_path / f"{party}.jsonl"
        write_events(path, party, site=role == "site")
        events[party] = EventTail(path=path).read_new()
    return build_report(
        run=Run(
            preset="tiny",
            seed=0,
            rounds=2,
            outcome="finished",
            failure="",
            started="2026-01-31T12:00:00Z",
            wall_s=34.5,
            peak_memory_bytes=1_500_000_000,
            cpus=2,
            platform="Linux",
            python="3.11.7",
            software_version="0.1.0",
        ),
        study=Study(
            study_id="mock-tiny-0",
            title="Arithmetic <small>",
            slm="tiny-slm-3-0",
            llm="tiny-llm-3-0",
            embedder="hashed-ngrams",
            unit="customer",
            target_delta=1e-5,
            epsilon_cap=8.0,
            pool_size=192,
            pool_gradients="public",
            clusters=4,
            difficulty_bins=3,
            quota=40,
            strategy="lada",
        ),
        facts=[SiteFacts(party=one, records=360, units=200, held_out=40) for one in SITES],
        roles=roles,
        events=events,
        allocations={
            one: [parse_allocation(allocation_bytes(k), where="file") for k in range(2)]
            for one in SITES
        },
        started_s=START_S,
    )


def test_accuracy_is_listed_before_the_first_and_after_every_round(report: Report) -> None:
    points = [(point.when, point.round, point.accuracy) for point in report.sites[0].accuracy]
    assert points == [
        ("before", 0, 0.25),
        ("after", 0, 0.35),
        ("after", 1, pytest.approx(0.55)),
    ]
    assert report.sites[0].gain == pytest.approx(0.30)


def test_epsilon_is_what_the_last_reservation_left(report: Report) -> None:
    site = report.sites[1]
    assert [point.epsilon for point in site.epsilon] == [1.0, 2.0, 3.0, 4.0]
    assert site.epsilon_spent == 4.0
    assert site.epsilon_cap == 8.0
    assert site.epsilon[0].elapsed_s > 0


def test_totals_are_the_sums_of_the_steps(report: Report) -> None:
    for party, total in report.totals.items():
        mine = [step for step in report.steps if step.party == party]
        assert total.bytes_up == sum(step.bytes_up for step in mine) == 180_000
        assert total.seconds == pytest.approx(11.0)


def test_a_site_that_was_measured_once_has_no_gain(report: Report) -> None:
    site = report.sites[0]
    roles = {"hospital-a": "site"}
    event = parse_event(
        b'{"accuracy":0.5,"event":"accuracy","n":4,"party":"hospital-a","round":0,'
        b'"seconds":0.5,"step":"evaluation","time_s":1001.0,"when":"before"}'
    )
    short = build_report(
        run=report.run,
        study=report.study,
        facts=[
            SiteFacts(
                party=site.party, records=site.records, units=site.units, held_out=site.held_out
            )
        ],
        roles=roles,
        events={"hospital-a": [event]},
        allocations={},
        started_s=START_S,
    )
    assert short.sites[0].gain is None
    assert short.sites[0].epsilon_spent == 0.0
    assert report_page(short)


def test_the_report_reads_back_to_itself(report: Report) -> None:
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_the_schema_document_is_the_models_own_schema() -> None:
    document = Path(__file__).parents[4] / "docs" / "report.schema.json"
    assert json.loads(document.read_text(encoding="utf-8")) == Report.model_json_schema()


def test_an_allocation_file_of_another_form_is_refused_with_its_field_named() -> None:
    raw = allocation_bytes(0).replace(b'"picked": 0', b'"picked": -1')
    with pytest.raises(ParameterError, match=r"round-0.json: cells.0.picked"):
        parse_allocation(raw, where="round-0.json")


def test_an_allocation_counts_its_picks() -> None:
    one: Allocation = parse_allocation(allocation_bytes(1), where="file")
    assert one.picked == sum(3 * c + d for c in range(4) for d in range(3))


class _Page(HTMLParser):
    """Collects what a page would load, and checks that tags close."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.stack: list[str] = []
        self.titles = 0
        self.drawings = 0
        self.maps: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [
            f"{tag} {name}" for name, _ in attrs if name in {"src", "href", "xlink:href", "srcset"}
        ]
        if tag in {"script", "link", "iframe", "img"}:
            self.loads.append(tag)
        if tag == "svg":
            self.drawings += 1
        if ("class", "map") in attrs:
            self.maps.append(dict(attrs)["aria-label"])
        if tag == "title" and self.stack and self.stack[-1] == "svg":
            self.titles += 1
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Tags that close themselves hold nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_the_page_is_self_contained_and_well_formed(report: Report) -> None:
    text = report_page(report)
    page = _Page()
    page.feed(text)
    assert page.stack == []
    assert page.loads == []
    assert re.search(r"url\(|@import|https?://", text) is None
    # Accuracy, epsilon, seconds, bytes.
    assert page.drawings == page.titles == 4
    assert page.maps == [
        f"{site}, round {number}: samples picked per cell" for site in SITES for number in (1, 2)
    ]


def test_the_page_shows_every_figure_with_its_name(report: Report) -> None:
    text = report_page(report)
    for site in SITES:
        assert f"<title>{site}, start: 25.0% of 40 held-out records</title>" in text
        assert f"<title>{site}, after round 2: 55.0% of 40 held-out records</title>" in text
        assert f"<title>{site}, round 1, statistics: 1.000 spent</title>" in text
        assert f"<title>{site}, distillation: 8.0 s</title>" in text
        assert f"<title>{site}, statistics: 180.0 kB</title>" in text
    assert ">cap 8</text>" in text
    assert text.count('title="cluster 3, difficulty 2: 11 picked, 6 trained on; utility') == 6
    assert ", no reward yet" in text
    assert ", reward 0.200" in text


def test_the_page_escapes_what_it_did_not_write(report: Report) -> None:
    text = report_page(report)
    assert "Arithmetic &lt;small&gt;" in text
    assert "<small>" not in text


def test_a_failed_run_says_so_on_the_page(report: Report) -> None:
    run = report.run.model_copy(update={"outcome": "failed", "failure": "bank-a ended: no disk"})
    text = report_page(report.model_copy(update={"run": run}))
    assert "The run failed." in text
    assert "bank-a ended: no disk" in text


def test_a_tail_gives_every_event_once_and_leaves_half_a_line_for_later(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path=path)
    assert tail.read_new() == ()
    write_events(path, "hospital-a", site=True)
    raw = path.read_bytes()
    path.write_bytes(raw[:-20])
    first = tail.read_new()
    path.write_bytes(raw)
    second = tail.read_new()
    assert len(first) + len(second) == len(EventTail(path=path).read_new())
    assert len(second) == 1
    assert tail.read_new() == ()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b'{"event":"epsilon","party":"a","round":0,"step":"","time_s":1}',
        b'{"event":"progress","party":"a","round":"x","step":"","time_s":1,"done":1,"total":1}',
        b'{"event":"news","party":"a","round":0,"step":"","time_s":1}',
        b'{"event":"finished","party":"a","round":0,"step":"","time_s":1,"more":1}',
        b"\xff\xfe",
    ],
    ids=[
        "empty",
        "a list",
        "no fields",
        "epsilon without its value",
        "round is text",
        "unknown kind",
        "unknown field",
        "no UTF-8",
    ],
)
def test_a_line_that_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(ParameterError):
        parse_event(line)
