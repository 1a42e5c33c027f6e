"""A study's report as files: a self-contained page without scripts, and a document for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from markupsafe import Markup

from lada_clients.reports import charts
from lada_clients.reports.web_page import render
from lada_clients.site.results.report import StudyReport
from lada_secure.storage.whole_files import write_atomically

PAGE_FILE: Final = "study-report.html"
DOCUMENT_FILE: Final = "study-report.json"


def write_report(report: StudyReport, out: Path) -> tuple[Path, Path]:
    """Write page and document, for their owner's eyes.

    Returns: their paths. Raises: TransportError: cannot be written.
    """
    page, document = out / PAGE_FILE, out / DOCUMENT_FILE
    content = (report.model_dump_json(indent=1) + "\n").encode("utf-8")
    write_atomically(document, content, mode=0o600)
    write_atomically(page, study_page(report).encode("utf-8"), mode=0o600)
    return page, document


def study_page(report: StudyReport) -> str:
    """The whole page as text."""
    return render(
        __name__,
        "study_report.html.j2",
        report=report,
        examples={one.topic: one.example for one in report.topics},
        curve=_curve,
        figure=lambda value: "-" if value is None else f"{value:.3f}",
        size=_size,
    )


def _curve(report: StudyReport, *, width: float) -> Markup:
    """Public loss over the steps of each round."""
    series = [
        charts.Series(
            name=f"round {one.round}",
            points=tuple(
                (
                    float(at.step),
                    at.public_loss,
                    f"round {one.round}, step {at.step}: {at.public_loss:.3f}",
                )
                for at in one.losses
            ),
        )
        for one in report.rounds
        if one.losses
    ]
    points = [point for line in series for point in line.points]
    return charts.line_plot(
        series,
        x=(1.0, max(2.0, *(step for step, _, _ in points))),
        y_high=1.05 * max(loss for _, loss, _ in points),
        x_label="training step of the round",
        y_label="loss on public texts, nats per token",
        title="Training",
        description="Loss on public texts over the steps of each round.",
        width=width,
    )


def _size(count: int) -> str:
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB")):
        if count < limit:
            return (
                f"{count / limit * 1e3:.0f} {unit}"
                if unit == "B"
                else (f"{count / limit * 1e3:.1f} {unit}")
            )
    return f"{count / 1e9:.1f} GB"
