"""A whole mock run: checks, weights, data, identities, processes, report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from lada_lab.machine import machine
from lada_lab.mock.layout import RunLayout
from lada_lab.mock.page import report_page
from lada_lab.mock.preparation import (
    check_out,
    child_environment,
    free_port,
    make_identities,
    party_children,
    study_id_of,
    write_data,
    write_settings,
)
from lada_lab.mock.presets import Preset, preset_for
from lada_lab.mock.report import Report, Run, SiteFacts, Study, build_report
from lada_lab.mock.runner import Outcome, open_screen, read_allocations, run_parties
from lada_lab.mock.supervisor import Supervisor
from lada_lab.mock.weights import missing_models, prepare_missing
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.sites import FederationData
from lada_secure.errors import LadaError, TransportError


class RunFailed(LadaError):
    """A party of a mock run failed; the report and the logs are in the run's folder."""

    code: ClassVar[str] = "run_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the caller asked for. `seed` reaches data and initial weights only.

    strategy: how samples are allocated; None for the preset's own.
    """

    preset: str
    sites: int
    rounds: int | None
    seed: int
    out: Path
    port: int
    cache_dir: Path
    strategy: str | None = None


def run_federation(request: Request, *, console: Console) -> tuple[RunLayout, Report]:
    """Run a federation and write its report.

    Nothing is written to `request.out` before all checks have passed and the data is there.

    Returns: where everything lies, and the report; its outcome says whether the run failed.
    Raises: ParameterError: the request cannot be met. TransportError: a disk or a port refuses.
    """
    preset = preset_for(
        request.preset,
        sites=request.sites,
        rounds=request.rounds,
        seed=request.seed,
        strategy=request.strategy,
    )
    check_out(request.out)
    port = free_port(request.port)
    environment = child_environment(os.environ)
    cache_dir = request.cache_dir.absolute()
    started = datetime.now(UTC)
    with Supervisor() as supervisor:
        if missing_models(preset, cache_dir):
            _say(console, "preparing model weights (once)")
        prepare_missing(preset, supervisor, cache_dir=cache_dir, environment=environment)
        _say(console, "building data")
        data = build_federation(preset.data, sites=request.sites, seed=request.seed)
        layout = RunLayout(root=request.out.absolute(), site_ids=tuple(data.sites))
        write_data(layout, data)
        _say(console, "issuing certificates")
        roster_sha256 = make_identities(layout, supervisor, environment=environment)
        write_settings(
            layout,
            preset,
            port=port,
            roster_sha256=roster_sha256,
            cache_dir=cache_dir,
            seed=request.seed,
        )
        title = f"LaDa, preset {preset.name}, {len(data.sites)} sites"
        with open_screen(console, title=title, rounds=preset.rounds) as screen:
            outcome = run_parties(
                layout, party_children(layout, environment=environment), supervisor, screen=screen
            )
    report = _report(request, preset, data, layout, outcome, started=started)
    _write_report(layout, report)
    return layout, report


def _report(
    request: Request,
    preset: Preset,
    data: FederationData,
    layout: RunLayout,
    outcome: Outcome,
    *,
    started: datetime,
) -> Report:
    cpus, platform, python = machine()
    run = Run(
        preset=preset.name,
        seed=request.seed,
        rounds=preset.rounds,
        outcome="failed" if outcome.failure else "finished",
        failure=outcome.failure,
        started=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        wall_s=round((datetime.now(UTC) - started).total_seconds(), 3),
        peak_memory_bytes=outcome.peak_memory_bytes,
        cpus=cpus,
        platform=platform,
        python=python,
        software_version=version("lada-secure"),
    )
    study = Study(
        study_id=study_id_of(preset, seed=request.seed),
        title=preset.title,
        slm=preset.slm,
        llm=preset.llm,
        embedder=preset.embedder,
        unit=preset.privacy.unit,
        target_delta=preset.privacy.target_delta,
        epsilon_cap=preset.privacy.epsilon_cap,
        pool_size=len(data.pool),
        pool_gradients=preset.training.pool_gradients,
        clusters=preset.allocation.clusters,
        difficulty_bins=preset.allocation.difficulty_bins,
        quota=preset.allocation.quota,
        strategy=preset.allocation.strategy,
    )
    facts = [
        SiteFacts(
            party=site_id,
            records=len(site.train),
            units=len({record.unit for record in site.train}),
            held_out=len(site.held_out),
        )
        for site_id, site in data.sites.items()
    ]
    return build_report(
        run=run,
        study=study,
        facts=facts,
        roles={party: layout.role(party) for party in layout.parties},
        events=outcome.events,
        allocations=read_allocations(layout, rounds=preset.rounds),
        started_s=started.timestamp(),
        uplink_scale=1 if preset.uplink is None else preset.uplink.integer_scale,
    )


def _write_report(layout: RunLayout, report: Report) -> None:
    files: Mapping[Path, str] = {
        layout.report_json: report.model_dump_json(indent=2) + "\n",
        layout.report_html: report_page(report),
    }
    try:
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TransportError(f"cannot write {error.filename}: {error.strerror}") from error


def _say(console: Console, text: str) -> None:
    console.print(f"{text} ...", style="dim", highlight=False)
