"""`lada audit empirical`: attack a site's training and compare with its ledger's epsilon."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lada_secure.errors import ParameterError

if TYPE_CHECKING:
    from lada_clients.audit.empirical import AuditedSite, SiteAudit

_PROGRESS_EVERY_S = 2.0


def empirical(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A finished mock run; needs --site.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Which site of the mock run.")] = None,
    plan: Annotated[Path | None, typer.Option(help="The study's plan.json.")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="The site's settings file, as for `lada site run`.")
    ] = None,
    pool: Annotated[
        Path | None, typer.Option(help="The study's public pool; without it none is trained on.")
    ] = None,
    attack: Annotated[
        Literal["updates", "adapters"],
        typer.Option(help="updates: sees every noised sum (strong); adapters: the last ones."),
    ] = "updates",
    records: Annotated[
        Literal["site", "public"],
        typer.Option(help="site: its own records; public: the pool's samples instead."),
    ] = "site",
    canaries: Annotated[
        int | None, typer.Option(help="How many coins are thrown.", show_default="as needed")
    ] = None,
    guesses: Annotated[
        int | None, typer.Option(help="How many of them are guessed.", show_default="as needed")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            help="How many rounds to train.", show_default="all, or as many as an audit can refute"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Attack a site's actual training settings; exit status 1 if they leak more than they claim.

    Example: lada audit empirical runs/first --site site-a

    Example: lada audit empirical --plan plan.json --settings hospital-a/site.toml

    Trains as the site would, with canaries among its units, and guesses which of them joined.
    Spends nothing of the site's budget, sends nothing and keeps no model. The result is computed
    from private records without noise: it stays at the site, unless --records public.
    """
    from lada_clients.audit.empirical import audit_site

    started = time.monotonic()
    result = audit_site(
        _read(folder, site, plan, settings, pool),
        attack=attack,
        records=records,
        canaries=canaries,
        guesses=guesses,
        rounds=rounds,
        say=lambda line: typer.echo(line, err=True),
        progress=_Progress(),
    )
    if as_json:
        typer.echo(json.dumps(result.to_json(), sort_keys=True))
    else:
        for line in describe(result, seconds=time.monotonic() - started):
            typer.echo(line)
    if result.audit.flagged:
        raise typer.Exit(1)


def _read(
    folder: Path | None,
    site: str | None,
    plan: Path | None,
    settings: Path | None,
    pool: Path | None,
) -> AuditedSite:
    from lada_clients.audit.empirical import read_mock_site, read_site

    if folder is not None:
        if plan is not None or settings is not None or pool is not None:
            raise ParameterError(
                "either DIR and --site, or --plan and --settings (and --pool), not both"
            )
        return read_mock_site(folder, site)
    if plan is None or settings is None or site is not None:
        raise ParameterError("expected DIR and --site, or --plan and --settings")
    return read_site(plan=plan, settings=settings, pool=pool)


class _Progress:
    """Steps on stderr, a line every few seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now >= self._next:
            self._next = now + _PROGRESS_EVERY_S
            typer.echo(f"step {done} of {total}", err=True)


def describe(result: SiteAudit, *, seconds: float) -> tuple[str, ...]:
    """The result for people."""
    audit = result.audit
    counts, steps = audit.counts, audit.steps
    lines = [
        f"site {result.site}, study {result.study_id}: {result.units} units "
        f"({'its own' if result.records == 'site' else 'public samples'}), {steps.rounds} rounds "
        f"of {steps.privacy.steps} steps, engine {audit.engine} on {audit.device}",
        f"attack {audit.attack}: {counts.correct} of {counts.guesses} guesses right about "
        f"{counts.canaries} canaries ({seconds:.0f} s)",
        f"epsilon at least {audit.bound:.3f} by the attack, at {steps.confidence:.0%} confidence "
        f"(all right would be {audit.reach:.3f})",
        f"epsilon at most  {audit.epsilon:.3f} by the ledger, delta {steps.delta:g}",
    ]
    if audit.noise_seen is not None:
        lines.append(
            f"noise multiplier {steps.privacy.noise_multiplier:g} claimed, "
            f"{audit.noise_seen:.3g} seen (real gradients included)"
        )
    lines.append(f"coins sealed as {audit.commitment}; opening with --json")
    lines.append(
        "LEAKS MORE THAN CLAIMED: do not train with this software and these settings"
        if audit.flagged
        else "no contradiction: the attack shows less than the ledger allows"
    )
    lines.append(
        "This result stays at the site: it was computed from private records without noise."
        if result.records == "site"
        else "Computed from public samples alone: this result may be shown to anybody."
    )
    return tuple(lines)
