"""`lada site export`, `evaluate`, `ask` and `report`: what a site does with what it has trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lada_secure.cli import JsonFlag, answer
from lada_secure.errors import ParameterError

commands = typer.Typer()
MAX_QUESTION_BYTES = 400_000

SettingsFile = Annotated[
    Path, typer.Option("--settings", help="The site's settings file, site.toml.")
]
StudyId = Annotated[
    str | None, typer.Option("--study", help="Which study; needed where there are several.")
]
RoundId = Annotated[
    int | None, typer.Option("--round", min=0, help="Which round, from 0; the last by default.")
]
AgainstRound = Annotated[
    list[int] | None, typer.Option("--against-round", min=0, help="Another round beside it.")
]
AgainstStudy = Annotated[
    list[str] | None, typer.Option("--against-study", help="Another study's last round beside it.")
]
Against = Annotated[
    list[Path] | None,
    typer.Option(help="A folder of adapters in PEFT's format, or of a full model, beside it."),
]


@commands.command()
def export(
    settings: SettingsFile,
    out: Annotated[Path, typer.Option(help="New folder.")],
    study: StudyId = None,
    round_id: RoundId = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="A full model, instead of adapters in PEFT's format.")
    ] = False,
    with_figures: Annotated[
        bool,
        typer.Option(
            "--with-figures",
            help="Accuracies of held-out records into the card: private figures, without noise.",
        ),
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option(help="The base model's name where the export is used; its folder's here."),
    ] = None,
    data_period: Annotated[str, typer.Option(help="When the records are from, for the card.")] = "",
    intended_use: Annotated[str, typer.Option(help="For the card, in your own words.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Write a round's model into a folder that PEFT, transformers and vLLM load.

    Example: lada site export --settings hospital-a/site.toml --out exported

    Only what the site's ledger has released may leave: any other round is refused. The folder is
    there as a whole or not at all, and nothing is ever overwritten.
    """
    from lada_clients.site.results.export import ExportSettings
    from lada_clients.site.results.export import export as write
    from lada_clients.site.results.study import open_study

    wanted = ExportSettings(
        merge=merge,
        figures=with_figures,
        base_model=base_model,
        data_period=data_period,
        intended_use=intended_use,
    )
    done = write(open_study(settings, study), round_id, out, wanted)
    answer(done.to_json(), done.sentences(), as_json=as_json)


@commands.command()
def evaluate(
    settings: SettingsFile,
    study: StudyId = None,
    round_id: RoundId = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Held-out records; those of the settings by default.")
    ] = None,
    against: Against = None,
    against_round: AgainstRound = None,
    against_study: AgainstStudy = None,
    general: Annotated[
        Path | None,
        typer.Option(help="Public questions, as a pool file; general knowledge by default."),
    ] = None,
    no_general: Annotated[
        bool, typer.Option("--no-general", help="Ask no public questions.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the intervals' draws.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Draws per interval.")] = 2000,
    as_json: JsonFlag = False,
) -> None:
    """Measure the model before and after a study on held-out records, for this site alone.

    Example: lada site evaluate --settings hospital-a/site.toml

    Accuracy with 95% intervals by unit, by topic, calibration, the paired difference, which records
    were lost, and general knowledge, so that forgetting is seen. The figures are private and stay
    in the study's folder here. Exit status 2 where nothing could be measured.
    """
    from lada_clients.site.results.candidates import Others
    from lada_clients.site.results.evaluation import PRIVATE
    from lada_clients.site.results.measuring import EvaluationRequest
    from lada_clients.site.results.measuring import evaluate as measure
    from lada_clients.site.results.study import open_study
    from lada_secure.check.screen import CheckScreen

    if no_general and general is not None:
        raise ParameterError("--general and --no-general contradict each other; name one")
    wanted = EvaluationRequest(
        round_id=round_id,
        held_out=held_out,
        others=Others(
            rounds=tuple(against_round or ()),
            studies=tuple(against_study or ()),
            folders=tuple(against or ()),
        ),
        general=general,
        ask_general=not no_general,
        seed=seed,
        resamples=resamples,
    )
    screen = CheckScreen(as_json=as_json)
    with screen.shown():
        found = measure(open_study(settings, study), wanted, screen)
    for warning in found.warnings():
        typer.echo(f"warning: {warning}", err=True)
    told = (*found.sentences(), *found.details(), PRIVATE)
    answer(found.model_dump(mode="json"), told, as_json=as_json)


@commands.command()
def ask(
    settings: SettingsFile,
    question: Annotated[
        str | None, typer.Argument(help="The question; from standard input where it is left out.")
    ] = None,
    choice: Annotated[list[str] | None, typer.Option(help="An option, once for each.")] = None,
    study: StudyId = None,
    round_id: RoundId = None,
    against: Against = None,
    against_round: AgainstRound = None,
    against_study: AgainstStudy = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Most that is written.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Put one question to the model before and after a study, side by side.

    Example: lada site ask "Is iron low?" --choice yes --choice no --settings hospital-a/site.toml

    Nothing leaves this machine. An answer may be wrong in a confident tone; check what matters.
    """
    from rich.console import Console

    from lada_clients.site.results.asking import ask as put
    from lada_clients.site.results.asking import checked_question, table_of
    from lada_clients.site.results.candidates import Others
    from lada_clients.site.results.study import open_study

    text = _from_standard_input() if question is None else question
    sample = checked_question(text.rstrip("\n"), tuple(choice or ()))
    others = Others(
        rounds=tuple(against_round or ()),
        studies=tuple(against_study or ()),
        folders=tuple(against or ()),
    )
    opened = open_study(settings, study)
    replies = put(opened, sample, round_id=round_id, others=others, max_new_tokens=max_new_tokens)
    if as_json:
        facts = {
            "study_id": opened.plan.study_id,
            "question": sample.question,
            "choices": list(sample.choices),
            "replies": [one.to_json() for one in replies],
        }
        answer(facts, (), as_json=True)
        return
    Console(markup=False, highlight=False).print(table_of(replies))


def _from_standard_input() -> str:
    if sys.stdin is None:
        raise ParameterError("question: standard input is closed; name the question as an argument")
    try:
        return typer.get_binary_stream("stdin").read(MAX_QUESTION_BYTES + 1).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ParameterError(
            f"question: expected UTF-8 on standard input, got another byte at {error.start}"
        ) from error


@commands.command()
def report(
    settings: SettingsFile,
    out: Annotated[Path, typer.Option(help="Folder for study-report.html and .json.")],
    study: StudyId = None,
    as_json: JsonFlag = False,
) -> None:
    """One page about a study at this site, without scripts, and the same as JSON.

    Example: lada site report --settings hospital-a/site.toml --out report

    Epsilon by purpose, accuracies with intervals where they were evaluated, which topics were asked
    for and why, training, time, traffic, models and hashes. It holds private figures: keep it here.
    """
    from lada_clients.site.results.report import build_report, check_out, report_facts
    from lada_clients.site.results.report_page import write_report
    from lada_clients.site.results.study import open_study

    check_out(out)
    found = build_report(open_study(settings, study))
    page, document = write_report(found, out)
    kept = "Both hold private figures: keep them here."
    told = (f"page     {page}", f"figures  {document}", kept)
    answer(report_facts(found), told, as_json=as_json)
