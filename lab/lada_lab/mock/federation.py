"""A whole mock run: checks, weights, data, identities, processes, report."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from lada_lab.machine import machine
from lada_lab.mock.comparison import compare
from lada_lab.mock.layout import RunLayout
from lada_lab.mock.preparation import check_out, free_port, write_run
from lada_lab.mock.presets import Preset
from lada_lab.mock.report import Report, Run, SiteFacts, Study, build_report
from lada_lab.mock.runner import Outcome, open_screen, read_allocations, run_parties
from lada_lab.mock.supervisor import Supervisor
from lada_lab.mock.weights import missing_models, prepare_missing
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.sites import FederationData
from lada_secure.errors import LadaError
from lada_secure.storage.whole_files import write_atomically


class RunFailed(LadaError):
    """A party of a mock run failed; the report and the logs are in the run's folder."""

    code: ClassVar[str] = "run_failed"


def run_federation(
    preset: Preset, *, sites: int, out: Path, port: int, cache_dir: Path, console: Console
) -> tuple[RunLayout, Report]:
    """Run a federation and write its report.

    Nothing is written to `out` before all checks have passed and the data is there.

    Args: port: of loopback, for the coordinator; 0 for any free one.
    Returns: where everything lies, and the report; its outcome says whether the run failed.
    Raises: ParameterError: the request cannot be met. TransportError: a disk or a port refuses.
    """
    check_out(out)
    port = free_port(port)
    cache_dir = cache_dir.absolute()
    started = datetime.now(UTC)
    with Supervisor() as supervisor:
        if missing_models(preset, cache_dir):
            _say(console, "preparing model weights (once)")
        prepare_missing(preset, supervisor, cache_dir=cache_dir)
        _say(console, "building data")
        data = build_federation(preset.data, sites=sites, seed=preset.seed)
        layout = RunLayout(root=out.absolute(), site_ids=tuple(data.sites))
        _say(console, "issuing certificates")
        write_run(layout, preset, data, port=port, cache_dir=cache_dir)
        title = f"LaDa, preset {preset.name}, {len(data.sites)} sites"
        with open_screen(console, title=title, rounds=preset.rounds) as screen:
            outcome = run_parties(layout, supervisor, screen=screen)
    report = _report(preset, data, layout, outcome, started=started)
    write_report(layout, report)
    return layout, report


def run_against(
    others: Sequence[Preset],
    report: Report,
    *,
    layout: RunLayout,
    cache_dir: Path,
    console: Console,
) -> Report:
    """Run the study of a finished run by other strategies, and write how they differ from it.

    Each has a folder of its own in the run's, `against-STRATEGY`.

    Args: others: see `rivals_of`. report: of the run in `layout`.
    Returns: the report with the differences.
    Raises: RunFailed: one of the others failed.
    """
    found = []
    for other in others:
        name = other.allocation.strategy
        _say(console, f"the same study by strategy {name}")
        _, rival = run_federation(
            other,
            sites=len(layout.site_ids),
            out=layout.root / f"against-{name}",
            port=0,
            cache_dir=cache_dir,
            console=console,
        )
        if rival.run.outcome == "failed":
            raise RunFailed(f"by strategy {name}: {rival.run.failure}")
        found.append(rival)
    ours = report.study.strategy
    told = [one for one in compare([report, *found]).differences if one.strategy == ours]
    report = report.model_copy(update={"against": tuple(told)})
    write_report(layout, report)
    return report


def write_report(layout: RunLayout, report: Report) -> None:
    """Write `report.json` and `report.html`."""
    # Imported here: a run that is refused should not wait for what draws.
    from lada_lab.mock.page import report_page

    write_atomically(layout.report_json, f"{report.model_dump_json(indent=2)}\n".encode())
    write_atomically(layout.report_html, report_page(report).encode())


def _report(
    preset: Preset, data: FederationData, layout: RunLayout, outcome: Outcome, *, started: datetime
) -> Report:
    cpus, platform, python = machine()
    privacy, allocation = preset.privacy, preset.allocation
    return build_report(
        run=Run(
            preset=preset.name,
            seed=preset.seed,
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
        ),
        study=Study(
            **preset.model_dump(include={"study_id", "title", "llm", "embedder"}),
            slm=", ".join(dict.fromkeys(preset.slm_of(site) for site in data.sites)),
            **privacy.model_dump(include={"unit", "target_delta", "epsilon_cap"}),
            **allocation.model_dump(include={"clusters", "difficulty_bins", "quota", "strategy"}),
            pool_size=len(data.pool),
            pool_gradients=preset.training.pool_gradients,
        ),
        facts=[
            SiteFacts(
                party=site_id,
                records=len(site.train),
                units=len({record.unit for record in site.train}),
                held_out=len(site.held_out),
            )
            for site_id, site in data.sites.items()
        ],
        roles={party: folder.role for party, folder in layout.parties.items()},
        events=outcome.events,
        allocations=read_allocations(layout, rounds=preset.rounds),
        started_s=started.timestamp(),
        uplink_scale=1 if preset.uplink is None else preset.uplink.integer_scale,
    )


def _say(console: Console, text: str) -> None:
    console.print(f"{text} ...", style="dim", highlight=False)
