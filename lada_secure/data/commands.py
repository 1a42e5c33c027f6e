"""`lada data`: from somebody's own tables to records that a site can be given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lada_secure.cli import JsonFlag, answer

app = typer.Typer(
    help="Turn tables of your own into records, and look at what became of every row.",
    no_args_is_help=True,
)

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="CSV, TSV, Parquet, JSON, JSON Lines or Excel file, folder of save_to_disk, or a "
        "database as SQLAlchemy writes it; env:NAME reads it from the environment.",
    ),
]


@app.command(
    "import",
    epilog="Example:  lada data import cases.csv --mapping mapping.toml --out hospital-a",
)
def import_(
    source: SourceArgument,
    mapping: Annotated[
        Path, typer.Option(help="Mapping file; `lada data map` writes a first one.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for records, held-out records and rejects.")],
    most_rejects: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest share of rows that may be rejected.")
    ] = 0.01,
    pool: Annotated[
        Path | None, typer.Option(help="Public pool, to look for near duplicates in it.")
    ] = None,
    cap: Annotated[
        int | None,
        typer.Option(min=1, help="The plan's max_records_per_unit, to see what it would cut."),
    ] = None,
    round_to: Annotated[
        int, typer.Option(min=1, help="Counts in import-report.json are rounded up to it.")
    ] = 10,
    near: Annotated[
        bool, typer.Option("--near/--no-near", help="Look for near duplicates.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Import rows as records, by a mapping; a row that makes none is in rejects.csv.

    Writes records.jsonl, held-out.jsonl, rejects.csv, near-duplicates.csv and import-report.json,
    all of them or, where the import fails, no records. The same source, mapping and salt give the
    same bytes. Exit status: 0 imported, 1 too many rejects or a failing disk or database, 2 the
    mapping or the file is not as it must be, 128 and the signal's number where it was stopped.
    """
    from lada_secure.data.importing.progress import shown_rows
    from lada_secure.data.importing.reports import sentences
    from lada_secure.data.importing.run import ImportRefused, ImportRequest, run_import

    request = ImportRequest(
        source=source,
        mapping=mapping,
        out=out,
        most_rejects=most_rejects,
        pool=pool,
        cap=cap,
        step=round_to,
        near=near,
    )
    try:
        with shown_rows() as progress:
            told = run_import(request, progress=progress)
    except ImportRefused as error:
        told = error.told
        answer(told, sentences(told), as_json=as_json)
        _warn(told["warnings"])
        raise
    _warn(told["warnings"])
    if told["held_out_no_more"]:
        _warn(
            (
                f"{told['held_out_no_more']:,} people of the earlier {out}/held-out.jsonl are held "
                "out no more: another salt beside the mapping, or a smaller share. Whoever trains "
                "on them now and compares with models from before measures the wrong thing",
            )
        )
    answer(told, (*sentences(told), f"written to {out}"), as_json=as_json)


def _warn(warnings: Iterable[str]) -> None:
    console = Console(stderr=True, highlight=False)
    for one in warnings:
        console.print(f"warning: {one}", soft_wrap=True, markup=False)


@app.command("map", epilog="Example:  lada data map cases.csv --out mapping.toml")
def map_(
    source: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="What to look at, as for import.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Mapping file to write; by default it is shown.")
    ] = None,
    query: Annotated[
        str | None, typer.Option(help="Of a database: the query whose rows are imported.")
    ] = None,
    sheet: Annotated[
        str | None, typer.Option(help="Of a workbook: the sheet; of a saved dataset: the split.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A ready mapping instead, as medmcqa; no source is read.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Look at a source and write a first mapping, with what was guessed as comments.

    What cannot be told stays open and says so; read the file before you import by it. An existing
    file is not overwritten.
    """
    from lada_secure.data.importing.guessing import Guess, first_mapping, preset_mapping, write_new
    from lada_secure.errors import ParameterError

    if (source is None) == (preset is None):
        raise ParameterError("expected a SOURCE to look at or a --preset, one of the two")
    if preset is not None:
        guess = Guess(text=preset_mapping(preset), guessed=(), open=())
    else:
        guess = first_mapping(str(source), query=query, sheet=sheet)
    if out is None and not as_json:
        typer.echo(guess.text, nl=False)
        return
    if out is not None:
        write_new(out, guess.text)
    facts: dict[str, Any] = {
        "mapping": guess.text,
        "guessed": list(guess.guessed),
        "open": list(guess.open),
    }
    guessed = [f"guessed: {one}" for one in guess.guessed]
    lines = [*guessed, *(f"open: {one}" for one in guess.open)]
    answer(facts, (*lines, f"written to {out}; read it before you import"), as_json=as_json)
