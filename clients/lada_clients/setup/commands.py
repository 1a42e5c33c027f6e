"""`lada init`: a folder for each role from nothing, and taking the study's bundle in."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lada_clients.ca.commands import PassphraseFile
from lada_protocol.kinds import Role
from lada_secure.cli import JsonFlag, answer

if TYPE_CHECKING:
    from lada_clients.setup.joining import Joining
    from lada_clients.setup.questions import Questions
    from lada_protocol.identity.certificates import PartyName
    from lada_protocol.identity.enrolment import Invitation
    from lada_protocol.party_templates import Answer

app = typer.Typer(
    help="Set a study up: a folder for each party, and the bundle that makes them one study.",
    no_args_is_help=True,
)

NewFolder = Annotated[Path, typer.Argument(metavar="DIR", help="New folder of the party.")]
Invite = Annotated[
    str | None, typer.Option("--invite", help="The line that `lada ca invite` printed for you.")
]
CacheDir = Annotated[str | None, typer.Option(help="Where models lie that are named by a name.")]
Address = Annotated[
    str | None,
    typer.Option("--coordinator", help="host:port to dial; by default as in the invitation."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=256, help="Threads of computation; by default all cores.")
]


@app.command()
def site(
    folder: NewFolder,
    invite: Invite = None,
    records: Annotated[
        str | None, typer.Option(help="Private records, JSON Lines; they are not copied.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The site's own model: a folder, or its name in the cache.")
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Private test records of other people, JSON Lines.")
    ] = None,
    population: Annotated[
        str | None, typer.Option(help="Name of the people whose records these are.")
    ] = None,
    epsilon_per_study: Annotated[
        str | None, typer.Option(help="Largest epsilon of one study.", metavar="NUMBER")
    ] = None,
    epsilon_total: Annotated[
        str | None, typer.Option(help="Largest epsilon over all studies.", metavar="NUMBER")
    ] = None,
    approval: Annotated[
        Literal["policy", "person"],
        typer.Option(help="Who approves a study; person: somebody, by `lada site approve`."),
    ] = "policy",
    coordinator: Address = None,
    cache_dir: CacheDir = None,
    threads: Threads = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a site's folder: settings, policy, keys, and the request to send to the CA.

    Example: lada init site hospital-a --invite LINE --records records.jsonl --model models/slm

    In a terminal what is missing is asked for. Nothing is written before the last answer.
    """
    from lada_clients.setup import answers as of

    asked, invitation = _invited(folder, invite, Role.SITE, as_json)
    cache = of.cache_folder(cache_dir, os.environ)
    whose = "people" if invitation is None else f"{invitation.party.id}.people"
    answers: dict[str, Answer] = {
        "records": asked.ask(records, "--records", "Private records", of.existing_file),
        "held_out": asked.ask(
            held_out, "--held-out", "Private test records, or none", of.optional_file, default=""
        ),
        "slm": asked.ask(model, "--model", "Folder of this site's model", of.model_in(cache)),
        "population": asked.ask(
            population, "--population", "Name of these people", str, default=whose
        ),
        "epsilon_cap_per_study": (
            epsilon := asked.ask(
                epsilon_per_study,
                "--epsilon-per-study",
                "Largest epsilon of one study",
                of.epsilon_value,
                default=f"{of.EPSILON:g}",
            )
        ),
        "epsilon_cap_total": asked.ask(
            epsilon_total,
            "--epsilon-total",
            "Largest epsilon over all studies",
            of.epsilon_value,
            default=f"{of.STUDIES_IN_ALL * (epsilon or of.EPSILON):g}",
        ),
        "approval": approval,
        "cache_dir": cache,
        "threads": threads or of.cores(),
        **of.policy_answers(),
    }
    _begin(folder, asked, invitation, answers, coordinator, passphrase_file, as_json=as_json)


@app.command()
def auditor(
    folder: NewFolder,
    invite: Invite = None,
    epsilon_cap: Annotated[
        str | None, typer.Option(help="Refuse plans above this epsilon.", metavar="NUMBER")
    ] = None,
    coordinator: Address = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Make the auditor's folder: settings, keys, and the request to send to the CA.

    Example: lada init auditor auditor --invite LINE

    In a terminal what is missing is asked for. Nothing is written before the last answer.
    """
    from lada_clients.setup import answers as of

    asked, invitation = _invited(folder, invite, Role.AUDITOR, as_json)
    cap = asked.ask(
        epsilon_cap,
        "--epsilon-cap",
        "Largest epsilon of a plan",
        of.epsilon_value,
        default=f"{of.EPSILON:g}",
    )
    answers: dict[str, Answer] = {"epsilon_cap": cap}
    _begin(folder, asked, invitation, answers, coordinator, passphrase_file, as_json=as_json)


@app.command()
def coordinator(
    folder: NewFolder,
    name: Annotated[str | None, typer.Option(help="The coordinator's id: a-z, 0-9, -.")] = None,
    address: Annotated[
        str | None, typer.Option(help="host:port that all other parties dial.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Public questions, JSON Lines.")] = None,
    llm: Annotated[
        str | None, typer.Option(help="The large model: a folder, or its name in the cache.")
    ] = None,
    auditor: Annotated[str | None, typer.Option(help="Id of the auditor to invite.")] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="Id of a site to invite; repeatable, three or more.")
    ] = None,
    invite: Invite = None,
    title: Annotated[str | None, typer.Option(help="Title of the study.")] = None,
    study_id: Annotated[str, typer.Option(help="Id of the study.")] = "study-1",
    unit: Annotated[str, typer.Option(help="Who is protected, in a word.")] = "person",
    people: Annotated[
        int, typer.Option(min=1, help="People at a typical site, roughly; public.")
    ] = 500,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds of the study.")] = 2,
    embedder: Annotated[
        Literal["minilm", "hashed-ngrams"], typer.Option(help="What topics are found by.")
    ] = "minilm",
    answer_form: Annotated[
        Literal["cloze", "listed", "reasoned"], typer.Option(help="How the models answer.")
    ] = "cloze",
    listen: Annotated[
        str | None, typer.Option(help="host:port to listen on; by default the address's port.")
    ] = None,
    days: Annotated[int, typer.Option(help="Days that invitations are good for.")] = 14,
    cache_dir: CacheDir = None,
    threads: Threads = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Make the coordinator's folder: settings, a study, keys, the study's CA, and invitations.

    Example: lada init coordinator hub --name hub --address hub.example.org:7443 --pool pool.jsonl
    --llm models/llm --auditor auditor --site hospital-a --site hospital-b --site bank

    With --invite somebody else runs the CA: none is made here, and name and address are those of
    the invitation. In a terminal what is missing is asked for.
    """
    from lada_clients.ca.invitations import check_address
    from lada_clients.setup import answers as of
    from lada_clients.setup.beginnings import found_study
    from lada_protocol.wire.limits import join_address, split_address

    if invite is None:
        asked, invitation = _questions(folder, as_json), None
        party = asked.ask(name, "--name", "Id of the coordinator", _ids(Role.COORDINATOR))
        dialled = asked.ask(address, "--address", "host:port that others dial", check_address)
        auditors = asked.ask(auditor, "--auditor", "Id of the auditor", _ids(Role.AUDITOR))
        words = " ".join(site) if site else None
        sites = asked.ask(words, "--site", "Ids of the sites, with spaces", _ids(Role.SITE))
    else:
        asked, invitation = _invited(folder, invite, Role.COORDINATOR, as_json)
        party = auditors = sites = ()
        dialled = None if invitation is None else invitation.coordinator
    cache = of.cache_folder(cache_dir, os.environ)
    answers: dict[str, Answer] = {
        "pool": asked.ask(pool, "--pool", "Public questions", of.existing_file),
        "llm": asked.ask(llm, "--llm", "Folder of the large model", of.model_in(cache)),
        "title": asked.ask(title, "--title", "Title of the study", str, default=study_id),
        "study_id": study_id,
        "unit": unit,
        "rounds": rounds,
        "embedder": embedder,
        "cache_dir": cache,
        "threads": threads or of.cores(),
        **of.study_answers(people=people, answer_form=answer_form),
    }
    asked.complete()
    every_network = "0.0.0.0"  # noqa: S104
    answers["listen"] = listen or join_address(every_network, split_address(dialled or "")[1])
    if invitation is not None:
        _begin(folder, asked, invitation, answers, None, passphrase_file, as_json=as_json)
        return
    facts, said = found_study(
        folder,
        party or (),
        (*(auditors or ()), *(sites or ())),
        answers,
        address=dialled or "",
        days=days,
        passphrase_file=passphrase_file,
    )
    answer(facts, said, as_json=as_json)


@app.command()
def join(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `lada init` made.")],
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="bundle.json from the CA.")],
    fingerprint: Annotated[
        str | None,
        typer.Option(help="The roster's fingerprint as another party has read it out."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Put certificates and roster in place, once the roster's fingerprint has been compared.

    Example: lada init join hospital-a bundle.json --fingerprint "46643 34748 74415 75499 15828
    84013"

    Speak to the other parties, not to whoever runs the CA alone: what they read out must be what
    is shown here. In a terminal it is shown and asked for.
    """
    from lada_clients.setup.joining import read_joining
    from lada_protocol.party_files import read_passphrase

    secret = read_passphrase(passphrase_file)
    found = read_joining(folder, bundle, passphrase=secret, now=datetime.now(UTC))
    _compare_fingerprints(found, fingerprint, as_json)
    found.carry_out()
    command = "server" if found.party.role is Role.COORDINATOR else found.party.role
    following = [
        f"lada check {found.settings}",
        f"lada {command} run --settings {found.settings}",
    ]
    facts = {
        "party": found.party.id,
        "role": str(found.party.role),
        "settings": str(found.settings),
        "parties": [one.id for one in found.roster.parties],
        "roster_sha256": found.roster.hash,
        "fingerprint": found.fingerprint,
        "next": following,
    }
    said = (
        f"{found.party.role} {found.party.id} is ready: certificates and roster of "
        f"{found.members} are in {folder}",
        *(f"next: {one}" for one in following),
    )
    answer(facts, said, as_json=as_json)


def _compare_fingerprints(found: Joining, read_out: str | None, as_json: bool) -> None:
    """With what another party has read out: as given, else as whoever sits here writes it down."""
    from lada_clients.setup.questions import Questions, has_terminal
    from lada_protocol.identity.enrolment import check_fingerprint
    from lada_secure.errors import ParameterError

    own, asked = found.fingerprint, has_terminal() and not as_json
    if read_out is None and not asked:
        raise ParameterError(
            f"--fingerprint: missing. Here the roster of {found.members} has the fingerprint "
            f"{own}; have another party read out what it has, and give that. Nothing was changed"
        )
    if read_out is None:
        typer.echo(f"The roster: {found.members}.", err=True)
        if found.replaces is not None:
            typer.echo(
                f"It takes the place of the roster {found.replaces[:16]}...; do that between two "
                "studies, because a study ends with the roster that it began with.",
                err=True,
            )
        typer.echo(f"Its fingerprint: {own}. Call the other parties and compare.", err=True)
    Questions(terminal=asked).ask(
        read_out,
        "--fingerprint",
        "The fingerprint, as another party reads it out",
        lambda text: check_fingerprint(own, text),
    )


def _questions(folder: Path, as_json: bool) -> Questions:
    from lada_clients.setup.party_folder import check_new
    from lada_clients.setup.questions import Questions, has_terminal

    check_new(folder)
    return Questions(terminal=has_terminal() and not as_json)


def _invited(
    folder: Path, text: str | None, role: Role, as_json: bool
) -> tuple[Questions, Invitation | None]:
    """The questions, the invitation first: where it is of no use nothing else is asked."""
    from lada_clients.setup.party_folder import usable_invitation

    asked = _questions(folder, as_json)
    invitation = asked.ask(
        text,
        "--invite",
        "Invitation, the whole line",
        lambda line: usable_invitation(line, role=role, now=datetime.now(UTC)),
    )
    return asked, invitation


def _ids(role: Role) -> Callable[[str], tuple[PartyName, ...]]:
    """Reads ids with spaces or commas between them to names of one role."""
    from lada_protocol.identity.certificates import PartyName

    return lambda text: tuple(
        PartyName(role=role, id=one) for one in text.replace(",", " ").split()
    )


def _begin(
    folder: Path,
    asked: Questions,
    invitation: Invitation | None,
    answers: dict[str, Answer],
    coordinator: str | None,
    passphrase_file: Path | None,
    *,
    as_json: bool,
) -> None:
    from lada_clients.setup.beginnings import begin_invited

    asked.complete()
    if invitation is not None:
        facts, said = begin_invited(
            folder, invitation, answers, coordinator=coordinator, passphrase_file=passphrase_file
        )
        answer(facts, said, as_json=as_json)
