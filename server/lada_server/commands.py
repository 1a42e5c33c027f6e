"""`lada server`: run the coordinator, and see where its study stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from lada_secure.cli import JsonFlag, answer, resumable
from lada_secure.errors import ParameterError

if TYPE_CHECKING:
    from lada_server.study.status import Status

app = typer.Typer(help="The coordinator: proposes a study and serves it.", no_args_is_help=True)

SettingsFile = Annotated[
    Path, typer.Option("--settings", help="The coordinator's settings file, server.toml.")
]


@app.command()
def run(settings: SettingsFile) -> None:
    """Propose the study of the settings file and serve it until it ends.

    Example: lada server run --settings coordinator/server.toml

    A run that was interrupted goes on where it was with the same command.
    """
    from lada_server.runner import run_server

    with resumable():
        run_server(settings)


@app.command()
def propose(
    settings: SettingsFile,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Try every value and say what sites would be asked."),
    ] = False,
    new: Annotated[
        bool,
        typer.Option("--new", help="Take the proposal back and propose the study as it is now."),
    ] = False,
    slm: Annotated[
        Path | None,
        typer.Option(help="With --dry-run: folder of a model that a site has, for its memory."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Propose the study of the settings file; `lada server run` serves it, and proposes as well.

    Example: lada server propose --settings coordinator/server.toml --dry-run

    With --dry-run exit status 0 where all is well, 1 with warnings, 2 with faults; nothing is
    written, loaded or sent. --new is refused once a site may have spent privacy budget.
    """
    if slm is not None and not dry_run:
        raise ParameterError("--slm: only with --dry-run; leave it out, or add --dry-run")
    if dry_run and new:
        raise ParameterError("--dry-run and --new: a dry run takes nothing back; leave one out")
    if dry_run:
        _tell_dry_run(settings, slm, as_json=as_json)
    from lada_server.runner import propose as propose_now

    old, plan = propose_now(settings, new=new)
    facts = {
        "format": "lada-proposed/1",
        "study_id": plan.study_id,
        "plan_hash": plan.hash,
        "withdrawn": None if old is None else old.study_id,
    }
    said = [f"study {plan.study_id} is proposed, plan {plan.hash[:16]}...; serve it with"]
    said.append(f"  lada server run --settings {settings}")
    if old is not None:
        said.insert(0, f"study {old.study_id} is taken back; whoever has seen it is told")
    answer(facts, said, as_json=as_json)


def _tell_dry_run(settings: Path, slm: Path | None, *, as_json: bool) -> NoReturn:
    from lada_secure.check.screen import CheckScreen
    from lada_server.check.outlook import DryRun

    screen = CheckScreen(as_json=as_json)
    with screen.shown():
        found = DryRun.of(settings, slm=slm).gone_through(begun=screen.begun, found=screen.found)
    report = found.report()
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        screen.finished(report)
        for sentence in found.sentences():
            typer.echo(sentence)
    raise typer.Exit(report.exit_status)


@app.command()
def status(
    settings: SettingsFile,
    as_json: JsonFlag = False,
) -> None:
    """Say where the study stands, who is connected, and who is waited for since when and why.

    Example: lada server status --settings coordinator/server.toml --json

    Reads what the coordinator keeps on disk, so it works while the coordinator runs or not.
    """
    from lada_server.runner import server_status

    found = server_status(settings)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _show(found)


@app.command()
def studies(settings: SettingsFile, as_json: JsonFlag = False) -> None:
    """Say which studies were proposed from here: state, rounds, when, and where they lie.

    Example: lada server studies --settings coordinator/server.toml

    Works while the coordinator runs or not, without its database.
    """
    from lada_protocol.studies import studies_json, studies_sentences
    from lada_server.runner import server_studies

    party, found = server_studies(settings)
    answer(studies_json(party, found), studies_sentences(found), as_json=as_json)


def _show(status: Status) -> None:
    from rich.console import Console
    from rich.table import Table

    running = f"running on {status.listen}" if status.running else "not running"
    typer.echo(f"coordinator {running}")
    if status.round is None:
        typer.echo(f"study {status.study_id or '-'}: {status.state}")
    else:
        place = f"round {status.round + 1} of {status.rounds or '?'}, {status.step}"
        typer.echo(f"study {status.study_id}: {status.state}, {place}, since {status.since}")
    if status.waiting is not None:
        parties = ", ".join(status.waiting.parties)
        typer.echo(
            f"waiting for {parties} since {status.waiting.since} because {status.waiting.because}"
        )
        if status.waiting.until is not None:
            typer.echo(f"people there may decide until {status.waiting.until}")
    if status.failure is not None:
        code = f" ({status.code})" if status.code else ""
        typer.echo(f"failed{code}: {status.failure}")
    if status.storage_failure is not None:
        typer.echo(f"storage: {status.storage_failure}")
    columns = ("party", "role", "state", "connected", "last call", "messages", "last message")
    table = Table(*columns, "refused", box=None)
    for one in status.parties:
        last = one.last_message
        table.add_row(
            one.id,
            one.role,
            one.state or "unknown",
            {True: "yes", False: "no", None: "unknown"}[one.connected],
            one.last_call or "-",
            "unknown" if one.messages is None else str(one.messages),
            "-" if last is None else f"{last.kind}, round {last.round + 1}, {last.at}",
            ", ".join(f"{reason} {count}" for reason, count in one.refusals.items()) or "-",
        )
    screen = Console()
    # A terminal wraps a long line; rich would cut the parties' names.
    screen.width = max(screen.width, screen.measure(table).maximum)
    screen.print(table)
    for one in status.parties:
        if one.code is not None or one.state == "awaited":
            why = "" if one.code is None else f" ({one.code}): {one.meaning}"
            typer.echo(f"{one.id}: {one.state}{why}. Next: {one.next}.")
