"""`lada check`: one command for all roles, because a settings file says whose it is.

Whoever has a settings file in hand need not know the command of its role, and a program checks
every party by the same call. Each role brings its own list by the entry point group `lada.checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Final

import typer

from lada_secure.check.findings import Finding, report_of
from lada_secure.check.running import Request, RoleChecks, run_checks
from lada_secure.check.screen import CheckScreen
from lada_secure.errors import ParameterError
from lada_secure.storage.toml_tables import parse_table
from lada_secure.storage.whole_files import read_file

GROUP: Final = "lada.checks"
# About a minute on two cores with a model of 135 million parameters; see docs/check.md.
QUESTIONS: Final = 60

app = typer.Typer(
    # `lada` collects groups; this one is a single command, and its options may follow FILE.
    subcommand_metavar="",
    invoke_without_command=True,
    context_settings={"allow_interspersed_args": True},
)


@app.callback(
    invoke_without_command=True,
    context_settings={"allow_interspersed_args": True},
    epilog="Example:  lada check hospital-a/site.toml --pool pool.jsonl",
)
def check(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Settings file of a site, coordinator or auditor."),
    ],
    role: Annotated[
        str | None, typer.Option(help="site, coordinator or auditor; by default the file says it.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="A study plan to compare with; by default the one on disk, if any."),
    ] = None,
    pool: Annotated[
        Path | None,
        typer.Option(
            help="Public questions to ask the model, as a coordinator's pool; by default built-in "
            "ones at a site, and the coordinator's own pool there."
        ),
    ] = None,
    questions: Annotated[
        int, typer.Option(min=1, help="How many public questions the model answers.")
    ] = QUESTIONS,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what answers questions.")] = (
        False
    ),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check a party's settings, files and model before anything is sent or spent.

    One line per check: ok, warning or fault, with what to do. Exit status 0 where all is well, 1
    with warnings, 2 with faults. Nothing is written, so a check can be stopped at any time. An LLM
    behind a server is asked public questions; nobody else is spoken to.
    """
    screen = CheckScreen(as_json=as_json)
    request = Request(plan=plan, pool=pool, questions=questions, progress=screen.progress)
    findings: list[Finding] = []
    chosen = ""
    with screen.shown():
        try:
            found = role_of(file, role, known_roles())
            chosen, checks = found.role, found.checks(file, request)
        except ParameterError as error:
            findings.append(Finding(check="settings", level="fault", message=str(error)))
            screen.found(findings[0])
            checks = ()
        for one in run_checks(checks, quick=quick, begun=screen.begun):
            findings.append(one)
            screen.found(one)
    report = report_of(tuple(findings), role=chosen, file=str(file))
    screen.finished(report)
    raise typer.Exit(report.exit_status)


def known_roles() -> Mapping[str, RoleChecks]:
    """The checks of every role that is installed here, by the role's name."""
    roles: list[RoleChecks] = [one.load() for one in entry_points(group=GROUP)]
    return {one.role: one for one in sorted(roles, key=lambda one: one.role)}


def role_of(file: Path, named: str | None, roles: Mapping[str, RoleChecks]) -> RoleChecks:
    """Whose settings file it is, by the keys that one role alone has.

    Args: named: what the caller says; the file must not say otherwise.
    Raises: ParameterError: unreadable, of no role, of several, or of another than was named.
    """
    if named is not None and named not in roles:
        raise ParameterError(f"--role: expected one of {', '.join(roles)}, got {named!r}")
    if file.is_dir():
        within = sorted(one.name for one in file.glob("*.toml"))
        told = f"it holds {', '.join(within)}" if within else "there is no settings file in it"
        raise ParameterError(f"{file}: is a folder; name a settings file, {told}")
    keys = set(parse_table(read_file(file), where=str(file)))
    shown = {name: sorted(one.marks & keys) for name, one in roles.items() if one.marks & keys}
    if named is not None and (named in shown or not shown):
        return roles[named]
    if named is None and len(shown) == 1:
        return roles[next(iter(shown))]
    told = "; ".join(f"{', '.join(marks)} of a {name}" for name, marks in shown.items())
    if named is not None:
        raise ParameterError(f"{file}: has the keys {told}, and --role says {named}")
    if shown:
        raise ParameterError(f"{file}: has the keys {told}; name one with --role")
    every = "; ".join(f"{name} ({', '.join(sorted(one.marks))})" for name, one in roles.items())
    raise ParameterError(
        f"{file}: has the keys of no role's settings file: {every}. Name a site's, the "
        "coordinator's or the auditor's, or say --role"
    )
