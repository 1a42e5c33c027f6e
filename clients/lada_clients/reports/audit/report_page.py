"""`privacy-report.html`: one self-contained page made from a `PrivacyReport`, in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape

from lada_clients.reports import charts
from lada_clients.reports.audit.report_document import (
    PrivacyReport,
    Release,
    SiteReport,
    StudyTerms,
)
from lada_clients.reports.audit.report_words import (
    CANNOT_TELL,
    DECISIONS,
    MECHANISMS,
    NOISES,
    TERMS,
    certainty,
    what_left,
)
from lada_clients.reports.web_page import html_page, plain_number, table, tiles
from lada_secure.privacy.accounting.fields import parse_time

_SPANS = ((180.0, 1.0, "seconds"), (10_800.0, 60.0, "minutes"), (259_200.0, 3600.0, "hours"))


def privacy_page(report: PrivacyReport) -> str:
    """The whole page as text. No script, no outside resource."""
    title = report.study.title if report.study else "unreadable export"
    sections = [_head(report), _verdict(report)]
    if report.study is not None:
        sections += [
            _tiles(report),
            _summary(report, report.study),
            _left(report),
            *(_site(one) for one in report.sites),
            _aggregates(report, report.study),
        ]
    sections += [_words(), _limits(report)]
    return html_page(f"Privacy report: {title}", sections)


def _head(report: PrivacyReport) -> str:
    study = report.study
    if study is None:
        return "<h1>Privacy report</h1>"
    return (
        f"<h1>Privacy report: {escape(study.title)}</h1>"
        f'<p class="lead">Study {escape(study.study_id)}, {len(report.sites)} sites, '
        f"{study.rounds_closed} of {study.rounds} rounds closed, coordinator "
        f"{escape(study.coordinator)}. Made from the auditor's exported files alone.</p>"
    )


def _verdict(report: PrivacyReport) -> str:
    if report.good:
        return (
            '<p class="verified"><strong>Everything was verified.</strong> Every signature, every '
            "ledger entry and its place in the chain, the cost of every release (recomputed twice, "
            "by two methods), every opened sum and every transcript.</p>"
        )
    faults = "".join(f"<li>{escape(one)}</li>" for one in report.faults)
    count = len(report.faults)
    rest = (
        "The export could not be read, so there is nothing more to show."
        if report.study is None
        else "What follows comes from those ledgers that are whole."
    )
    return (
        f'<div class="failed"><strong>Verification failed: {count} '
        f"{'fault' if count == 1 else 'faults'}.</strong> Do not rely on this report before each "
        f"is explained. {rest}<ul>{faults}</ul>"
        "</div>"
    )


def _tiles(report: PrivacyReport) -> str:
    spent = [one for one in report.sites if one.epsilon is not None]
    highest = max(spent, key=lambda one: one.epsilon or 0.0, default=None)
    releases = [release for site in report.sites for release in site.releases]
    cohorts = [one.cohort for one in report.openings]
    named = []
    if highest is not None:
        named.append(
            (
                f"Most spent, by {highest.site}",
                f"epsilon {highest.epsilon or 0.0:.2f} of {highest.total_cap:g}",
            )
        )
        named.append(("Counted at delta", plain_number(highest.target_delta or 0.0)))
    named.append(("Payments in the ledgers", str(len(releases))))
    named.append(
        ("Paid, but nothing left", str(sum(one.output_commitment is None for one in releases)))
    )
    named.append(("Sums opened", str(len(report.openings))))
    if cohorts:
        named.append(("Fewest sites in a sum", str(min(cohorts))))
    return tiles(named)


def _summary(report: PrivacyReport, study: StudyTerms) -> str:
    times = [release.time for site in report.sites for release in site.releases]
    highest = max((site.epsilon or 0.0 for site in report.sites), default=0.0)
    when = f"Between {_moment(min(times))} and {_moment(max(times))} UTC" if times else "So far"
    paid = "every release was paid for" if times else "nothing was released"
    return (
        "<h2>In short</h2>"
        f"<p>{when} {paid} out of each site's own privacy budget, before any record was read. "
        f"Protected is every single {escape(study.unit)}: the guarantee compares the site's data "
        f"with and without all records of that one {escape(study.unit)} (at most "
        f"{study.max_records_per_unit} of them count).</p>"
        f"<p>The most that any site has spent is epsilon {_figure(highest)}, over all studies on "
        f"the same people. In words: somebody who sees everything that left the site, and who "
        f"knows everything about everybody else, and who held it for an even chance that one "
        f"{escape(study.unit)} is in the data, could become at most {certainty(highest)} sure of "
        f"it, but for a probability of about {plain_number(study.target_delta)}. That is the worst "
        "case that the mathematics allows, not an estimate of what anybody can do.</p>"
    )


def _left(report: PrivacyReport) -> str:
    rows: list[list[str]] = []
    for site in report.sites:
        if site.epsilon is not None:
            rows.append(
                [
                    f"{site.site}, all studies",
                    _figure(site.epsilon),
                    _figure(site.total_cap),
                    _figure(site.left),
                ]
            )
        for study in site.studies:
            rows.append(
                [
                    f"{site.site}, {study.study_id}",
                    _figure(study.epsilon),
                    _figure(study.cap),
                    _figure(study.left),
                ]
            )
    return (
        "<h2>What is left of every budget</h2>"
        '<p class="note">Epsilon. Caps are the site\'s own, as its ledger recorded them at the '
        "newest payment. A release that would pass one is refused before a record is read.</p>"
        + table(["budget", "spent", "cap", "left"], rows)
    )


def _site(site: SiteReport) -> str:
    head = f"<h2>{escape(site.site)}</h2>"
    fault = ""
    if not site.verified:
        fault = '<p class="failed"><strong>This ledger is not verified.</strong> ' + (
            "See the faults above.</p>" if site.entries else "None of it is shown.</p>"
        )
    if not site.entries:
        return head + (fault or '<p class="note">Its ledger is not in the export.</p>')
    note = (
        f'<p class="note">Population {escape(site.population)}, {site.entries} ledger entries, '
        f"the last one with hash <code>{site.head_sha256[:16]}</code>.</p>"
    )
    history = " ".join(escape(one) for one in site.history)
    loud = ' class="failed"' if site.new_to_auditor or site.restart else ""
    note += f"<p{loud}>{history}</p>"
    return head + fault + note + _chart(site) + _decisions(site) + _releases(site)


def _chart(site: SiteReport) -> str:
    if not site.releases:
        return "<p>Nothing was released.</p>"
    start = parse_time(site.decisions[0].time if site.decisions else site.releases[0].time)
    span = _seconds(start, site.releases[-1].time)
    divisor, unit = next(
        ((by, name) for limit, by, name in _SPANS if span <= limit), (86_400.0, "days")
    )
    studies = list(dict.fromkeys(one.study_id for one in site.releases))
    series = [
        _staircase(
            study,
            [(one, one.study_epsilon_after) for one in site.releases if one.study_id == study],
            next(one for one in site.releases if one.study_id == study).study_epsilon_before,
            start,
            divisor,
        )
        for study in studies
    ]
    if len(studies) > 1:
        everything = [(one, one.epsilon_after) for one in site.releases]
        before = site.releases[0].epsilon_before
        series.insert(0, _staircase("all studies", everything, before, start, divisor))
    limits = _caps(site)
    top = max([*limits, *(one.epsilon_after for one in site.releases)])
    drawings = [
        charts.line_plot(
            series,
            x=charts.axis(
                max(span / divisor, 1.0),
                label=f"{unit} since {start:%Y-%m-%d %H:%M} UTC",
                text=lambda value: f"{value:g}",
            ),
            y=charts.axis(top * 1.05, label="epsilon", text=lambda value: f"{value:g}"),
            title=f"{site.site}: epsilon spent over time",
            description="One staircase a study; dashed lines are caps that no release can pass.",
            stairs=True,
            limits=[
                charts.Limit(value=cap, label=f"{name}: {cap:g}") for cap, name in limits.items()
            ],
            width=width,
        )
        for width in (charts.WIDE, charts.NARROW)
    ]
    return f'<div class="wide">{drawings[0]}</div><div class="narrow">{drawings[1]}</div>'


def _caps(site: SiteReport) -> dict[float, str]:
    """Every cap with its name; equal caps are drawn once."""
    names: dict[float, list[str]] = {site.total_cap or 0.0: ["all studies"]}
    for study in site.studies:
        if study.cap is not None:
            names.setdefault(study.cap, []).append(study.study_id)
    caps: dict[float, str] = {}
    for cap, of in names.items():
        caps[cap] = f"cap of {of[0]}" if len(of) == 1 else "cap of each study"
        if len(of) > 1 and of[0] == "all studies":
            caps[cap] = "cap of each study and of all"
    return caps


def _staircase(
    name: str,
    values: Sequence[tuple[Release, float]],
    before: float,
    start: datetime,
    divisor: float,
) -> charts.Series:
    carried = f"{before:.3f} carried over" if before else "nothing spent yet"
    points = [(_seconds(start, values[0][0].time) / divisor, before, f"{name}: {carried}")]
    points += [
        (
            _seconds(start, one.time) / divisor,
            value,
            f"{name}, round {one.round + 1}, {one.purpose}: {value:.3f} spent at "
            f"{_moment(one.time)}",
        )
        for one, value in values
    ]
    return charts.Series(name=name, points=tuple(points))


def _decisions(site: SiteReport) -> str:
    rows = [
        [
            _moment(one.time),
            one.study_id,
            DECISIONS.get(one.decision, one.decision),
            one.decided_by,
            _moment(one.expires),
        ]
        for one in site.decisions
    ]
    statements = "".join(
        f"<dt>{escape(_moment(one.time))}, {escape(one.decision)}</dt>"
        f"<dd>{escape(one.statement)}</dd>"
        for one in site.decisions
        if one.statement
    )
    told = (
        "<details><summary>What was decided about, in the words shown then</summary>"
        f'<dl class="words">{statements}</dl></details>'
        if statements
        else ""
    )
    header = ["when (UTC)", "study", "decision", "by", "valid until (UTC)"]
    return f"<h3>Who decided</h3>{table(header, rows, words=range(5))}{told}"


def _releases(site: SiteReport) -> str:
    groups: dict[tuple[str, str], list[Release]] = {}
    for one in site.releases:
        groups.setdefault((one.study_id, one.purpose), []).append(one)
    told = "".join(
        f"<h4>{escape(study_id)}: {escape(purpose)}</h4><p>{escape(what_left(purpose))}</p>"
        f'<p class="note">{escape(_how(own))}</p>'
        for (study_id, purpose), own in groups.items()
    )
    return f"<h3>What was released</h3>{_by_purpose(site)}{told}{_payments(site)}"


def _by_purpose(site: SiteReport) -> str:
    rows = [
        [
            study.study_id,
            one.purpose,
            str(one.releases),
            _moment(one.first),
            _moment(one.last),
            _figure(one.cost),
            _figure(one.epsilon_alone),
        ]
        for study in site.studies
        for one in study.purposes
    ]
    header = ["study", "purpose", "payments", "first (UTC)", "last (UTC)"]
    header += ["raised epsilon by", "alone"]
    return table(header, rows, words=(0, 1, 3, 4))


def _how(releases: Sequence[Release]) -> str:
    """Mechanism, noise and unit of one purpose's releases, in a few sentences."""
    first = releases[0]
    noises = " and ".join(NOISES.get(one, one) for one in sorted({one.noise for one in releases}))
    multipliers = _span(one.noise_multiplier for one in releases)
    sentences = [
        f"{MECHANISMS.get(first.mechanism, first.mechanism)}: {noises}, of {multipliers} times "
        "what one unit can change."
    ]
    steps = sum(one.steps or 0 for one in releases)
    if steps:
        chance = _span(one.sampling_probability or 0.0 for one in releases)
        sentences.append(
            f"{steps} steps; every {first.unit} took part in each with probability {chance}."
        )
    sentences.append(f"Unit: one {first.unit}, added or removed with all its records.")
    lost = sum(one.output_commitment is None for one in releases)
    if lost:
        sentences.append(f"{lost} of the payments led to no output; they count as spent.")
    return " ".join(sentences)


def _payments(site: SiteReport) -> str:
    rows = [
        [
            str(one.index),
            _moment(one.time),
            one.study_id,
            f"{one.round + 1}",
            f"{one.purpose}{f', part {one.chunk + 1}' if one.chunk else ''}",
            f"{one.noise_multiplier:g}",
            _figure(one.epsilon_before),
            _figure(one.epsilon_after),
            _figure(one.cost),
            plain_number(one.target_delta),
            "none" if one.output_commitment is None else one.output_commitment[:12],
        ]
        for one in site.releases
    ]
    header = ["entry", "when (UTC)", "study", "round", "purpose", "noise", "before", "after"]
    header += ["cost", "delta", "output"]
    listed = table(header, rows, words=(0, 1, 2, 4))
    return f"<details><summary>Every payment ({len(rows)})</summary>{listed}</details>"


def _aggregates(report: PrivacyReport, study: StudyTerms) -> str:
    rows = [
        [f"{one.round + 1}", one.purpose, str(one.cohort), ", ".join(one.sites), str(one.values)]
        for one in report.openings
    ]
    body = (
        table(["round", "what", "sites", "which", "numbers"], rows, words=(0, 1, 3))
        if rows
        else "<p>Nothing was opened.</p>"
    )
    return (
        "<h2>Sums that were opened</h2>"
        '<p class="note">Nobody but the auditor can open, only sums, each round and purpose once, '
        f"and only over at least {study.min_cohort} sites.</p>{body}"
    )


def _words() -> str:
    body = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in TERMS)
    return f'<h2>What the words mean</h2><dl class="words">{body}</dl>'


def _limits(report: PrivacyReport) -> str:
    points = "".join(f"<li>{escape(one)}</li>" for one in CANNOT_TELL)
    hashes = ""
    if report.study is not None:
        hashes = (
            f'<p class="note">Plan <code class="hash">{report.study.plan_sha256}</code><br>'
            f'Roster <code class="hash">{report.study.roster_sha256}</code></p>'
        )
    return f"<h2>What this report cannot tell</h2><ul>{points}</ul>{hashes}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _span(values: Iterable[float]) -> str:
    found = sorted(set(values))
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def _moment(time: str) -> str:
    return f"{time[:10]} {time[11:19]}"


def _seconds(start: datetime, time: str) -> float:
    return (parse_time(time) - start).total_seconds()
