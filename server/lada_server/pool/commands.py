"""`lada pool`: import the public questions of a study, and see what they are like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lada_secure.cli import JsonFlag, answer
from lada_secure.data.commands import SourceArgument

app = typer.Typer(
    help="Make the public pool of a study of tables, and look at what is in it.",
    no_args_is_help=True,
)


@app.command(
    "import",
    epilog="Example:  lada pool import questions.csv --mapping pool.toml --out pool",
)
def import_(
    source: SourceArgument,
    mapping: Annotated[
        Path, typer.Option(help="Mapping file, as for `lada data import`, without a unit.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for pool.jsonl and what was found in it.")],
    most_rejects: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest share of rows that may be rejected.")
    ] = 0.01,
    near: Annotated[
        bool, typer.Option("--near/--no-near", help="Look for near duplicates.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Import rows as samples of the public pool, by a mapping.

    Writes pool.jsonl, pool-rejects.csv, and pool-alike.csv with samples that say the same or
    contradict each other, by their ids; all of them or, where the import fails, no pool. A mapping
    with a unit is refused: its rows are about somebody, and a pool is public. Reasons and splits
    are not read. Exit status as of `lada data import`.
    """
    from lada_secure.data.importing.pool_run import PoolRequest, pool_sentences, run_pool_import
    from lada_secure.data.importing.progress import shown_rows
    from lada_secure.data.importing.run import ImportRefused

    request = PoolRequest(
        source=source, mapping=mapping, out=out, most_rejects=most_rejects, near=near
    )
    try:
        with shown_rows() as progress:
            told = run_pool_import(request, progress=progress)
    except ImportRefused as error:
        answer(error.told, pool_sentences(error.told), as_json=as_json)
        raise
    answer(told, (*pool_sentences(told), f"written to {out}"), as_json=as_json)


@app.command(epilog="Example:  lada pool report --settings hub/server.toml --llm")
def report(
    pool: Annotated[
        Path | None,
        typer.Argument(metavar="POOL", help="Pool file; that of the settings by default."),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(help="The coordinator's settings file: topics, form and LLM of its study."),
    ] = None,
    llm: Annotated[
        bool, typer.Option("--llm", help="Have the settings' LLM answer every sample.")
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A model's folder, to count its tokens without settings.")
    ] = None,
    clusters: Annotated[
        int | None, typer.Option(min=1, max=256, help="Topics without settings; 8 by default.")
    ] = None,
    near: Annotated[
        bool, typer.Option("--near/--no-near", help="Look for near duplicates.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Say what a pool is like: lengths, answers, licences, repetitions, topics, difficulty.

    Nothing is written, and all of it is about public questions. Exit status 0, or 2 where something
    given is wrong.
    """
    from lada_secure.check.screen import CheckScreen
    from lada_server.pool.report import ReportRequest, build_report

    wanted = ReportRequest(
        pool=pool,
        settings=settings,
        ask_llm=llm,
        tokenizer=tokenizer,
        clusters=clusters,
        near=near,
    )
    screen = CheckScreen(as_json=as_json)
    with screen.shown():
        found = build_report(wanted, screen)
    answer(found.model_dump(mode="json"), found.sentences(), as_json=as_json)
