"""A privacy report as files: a self-contained page in plain words, and a document for programs.

The words, for readers of contracts rather than of code, stand in `report_page.html.j2`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from markupsafe import Markup

from lada_clients.reports import charts
from lada_clients.reports.audit.report_document import PrivacyReport, Release, SiteReport
from lada_clients.reports.web_page import render
from lada_secure.errors import ParameterError
from lada_secure.privacy.ledger.times import parse_time
from lada_secure.storage.whole_files import write_atomically

PAGE_FILE: Final = "privacy-report.html"
DOCUMENT_FILE: Final = "privacy-report.json"
_SPANS = ((180.0, 1.0, "seconds"), (10_800.0, 60.0, "minutes"), (259_200.0, 3600.0, "hours"))


def check_out(out: Path, root: Path) -> None:
    """Refuse a place for the report that would spoil the evidence, before anything is computed.

    Args: root: the export folder. Raises: ParameterError: `out` is a file or inside the export.
    """
    if out.exists() and not out.is_dir():
        raise ParameterError(f"--out: expected a folder, {out} is a file")
    if out.resolve().is_relative_to(root.resolve()):
        raise ParameterError(
            f"--out: {out} is inside the exported evidence, where every file must be one that "
            "signed messages speak of; choose another folder"
        )


def write_report(report: PrivacyReport, out: Path) -> tuple[Path, Path]:
    """Write page and document. Returns: their paths. Raises: TransportError: cannot be written."""
    page, document = out / PAGE_FILE, out / DOCUMENT_FILE
    write_atomically(document, (report.model_dump_json(indent=1) + "\n").encode("utf-8"))
    write_atomically(page, privacy_page(report).encode("utf-8"))
    return page, document


def privacy_page(report: PrivacyReport) -> str:
    """The whole page as text. No script, no outside resource."""
    return render(
        __name__,
        "report_page.html.j2",
        report=report,
        certainty=_certainty,
        chart=_chart,
        figure=_figure,
        moment=_moment,
        spread=_spread,
    )


def _chart(site: SiteReport, *, width: float) -> Markup:
    start = parse_time(site.decisions[0].time if site.decisions else site.releases[0].time)
    span = _seconds(start, site.releases[-1].time)
    divisor, unit = next(
        ((by, name) for limit, by, name in _SPANS if span <= limit), (86_400.0, "days")
    )
    own: dict[str, list[Release]] = {}
    for release in site.releases:
        own.setdefault(release.study_id, []).append(release)

    def staircase(name: str, releases: Sequence[Release], of: str) -> charts.Series:
        """Args: of: prefix of the fields that hold epsilon before and after a release."""
        before = getattr(releases[0], f"{of}epsilon_before")
        carried = f"{before:.3f} carried over" if before else "nothing spent yet"
        first = _seconds(start, releases[0].time) / divisor
        points = [(first, before, f"{name}: {carried}")]
        for release in releases:
            spent = getattr(release, f"{of}epsilon_after")
            tip = (
                f"{name}, round {release.round + 1}, {release.purpose}: {spent:.3f} spent at "
                f"{_moment(release.time)}"
            )
            points.append((_seconds(start, release.time) / divisor, spent, tip))
        return charts.Series(name=name, points=tuple(points))

    series = [staircase(study, releases, "study_") for study, releases in own.items()]
    if len(own) > 1:
        series.insert(0, staircase("all studies", site.releases, ""))
    limits = _caps(site)
    return charts.line_plot(
        series,
        x=(0.0, max(span / divisor, 1.0)),
        y_high=1.05 * max([*limits, *(release.epsilon_after for release in site.releases)]),
        x_label=f"{unit} since {start:%Y-%m-%d %H:%M} UTC",
        y_label="epsilon",
        title=f"{site.site}: epsilon spent over time",
        description="One staircase a study; dashed lines are caps that no release can pass.",
        stairs=True,
        limits={cap: f"{name}: {cap:g}" for cap, name in limits.items()},
        width=width,
    )


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


def _certainty(epsilon: float) -> str:
    """How sure somebody can become who held it for an even chance: exp(eps) / (1 + exp(eps))."""
    share = 1.0 / (1.0 + math.exp(-epsilon))
    return "over 99.9%" if share > 0.999 else f"{100.0 * share:.1f}%"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _spread(values: Iterable[float | None]) -> str:
    found = sorted({value or 0.0 for value in values})
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def _moment(time: str) -> str:
    return f"{time[:10]} {time[11:19]}"


def _seconds(start: datetime, time: str) -> float:
    return (parse_time(time) - start).total_seconds()
