"""`lada bench`: measured beside the baselines, in the same run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, cast

import typer

from lada_lab.arms.analyse_command import analyse
from lada_lab.arms.command import allocation
from lada_lab.cache_folder import CacheDir

app = typer.Typer(
    help="Measure cost against the usual way of doing it, in the same run.", no_args_is_help=True
)

app.command(
    epilog="Example:  lada bench allocation --preset tiny --seeds 2 "
    "--conditions random,lada-secure --json"
)(allocation)
app.command(
    epilog="Example:  lada bench analyse runs.csv --ours lada-secure --rivals random,no-pool --json"
)(analyse)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]


@app.command(epilog="Example:  lada bench opening --entries 100000 --sites 10 --json")
def opening(
    entries: Annotated[int, typer.Option(help="Length of each site's vector.")] = 100_000,
    sites: Annotated[int, typer.Option(help="Sites whose vectors are added.")] = 10,
    repetitions: Annotated[int, typer.Option(help="Interleaved repetitions; medians.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Masked encrypted sum against CKKS under one key that every client holds.

    Ratios are ours over the baseline's, CPU time; below 1 is better.
    """
    from lada_lab.micro.aggregation import run_aggregation

    _show(
        run_aggregation(entries=entries, sites=sites, repetitions=repetitions),
        title=f"Opening: {entries} entries, {sites} sites",
        as_json=as_json,
    )


@app.command(epilog="Example:  lada bench scores --pool 10000 --cells 64 --json")
def scores(
    pool: Annotated[int, typer.Option(help="Pool samples, the matrix's rows.")] = 10_000,
    cells: Annotated[int, typer.Option(help="Cells, the matrix's columns.")] = 64,
    repetitions: Annotated[int, typer.Option(help="Interleaved repetitions; medians.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Blind scores against TenSEAL's encrypted vector times plain matrix.

    Ratios are ours over the baseline's, CPU time; below 1 is better.
    """
    from lada_lab.micro.scores import run_scores

    _show(
        run_scores(pool=pool, cells=cells, repetitions=repetitions),
        title=f"Blind scores: {pool} samples, {cells} cells",
        as_json=as_json,
    )


@app.command(
    epilog="Example:  lada bench dpsgd --sequence 128 --sequence 256 --batch 16 --batch 32 --json"
)
def dpsgd(
    cache_dir: CacheDir,
    sequence: Annotated[
        list[int] | None, typer.Option(help="Sequence length; repeat for several [128, 256].")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Batch size; repeat for several [16, 32].")
    ] = None,
    repetitions: Annotated[int, typer.Option(help="Interleaved repetitions; medians.")] = 5,
    model: Annotated[
        str | None,
        typer.Option(help="A real model, as smollm2-135m, instead of a small Llama by shape."),
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 8,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Only this way beside plain; repeat for several. Default: all five."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Of the frozen base: float32 or bfloat16.")
    ] = "float32",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute layers again on the way back.")
    ] = False,
    threads: Annotated[int, typer.Option(help="CPU threads of each way.")] = 1,
    as_json: AsJson = False,
) -> None:
    """DP-SGD on low-rank adapters against opacus and against training without privacy.

    Ratios are plain LoRA's time over the others', so above 1 is faster; memory is the others'
    over plain's, so below 1 is less.
    """
    from rich.console import Console

    from lada_lab.micro.dpsgd import run_dpsgd
    from lada_lab.micro.dpsgd_models import BenchModel, BenchPlace

    console = Console(stderr=True)
    _show(
        run_dpsgd(
            sequence_lengths=tuple(sequence or (128, 256)),
            batch_sizes=tuple(batch or (16, 32)),
            repetitions=repetitions,
            model=BenchModel(rank=rank, reference=model, cache_dir=cache_dir),
            variants=[cast(Any, one) for one in variant] if variant else None,
            place=BenchPlace(
                device=device,
                dtype=cast(Any, dtype),
                gradient_checkpointing=checkpointing,
                threads=threads,
            ),
            report_case=lambda case: console.print(f"measuring {case} ...", highlight=False),
        ),
        title="DP-SGD step",
        as_json=as_json,
    )


@app.command(epilog="Example:  lada bench forms --model smollm2-135m --samples 160 --json")
def forms(
    cache_dir: CacheDir,
    model: Annotated[str, typer.Option(help="Folder of a model, or its name in the cache.")],
    samples: Annotated[int, typer.Option(help="Questions of the demo's public pool.")] = 160,
    max_new_tokens: Annotated[int, typer.Option(help="Longest path, in tokens.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Which answer forms a model can do, on the demo's public questions."""
    from lada_lab.micro.forms import run_forms

    _show(
        run_forms(model=model, cache_dir=cache_dir, samples=samples, max_new_tokens=max_new_tokens),
        title=f"Answer forms: {model}",
        as_json=as_json,
    )


@app.command(
    epilog="Example:  lada bench memory --model smollm2-135m --work step --batch 8 --sequence 128"
)
def memory(
    cache_dir: CacheDir,
    model: Annotated[str, typer.Option(help="Folder of a model, or its name in the cache.")],
    work: Annotated[str, typer.Option(help="step (private), tuning, scores or writing.")] = "step",
    batch: Annotated[int, typer.Option(help="Rows at a time.")] = 8,
    sequence: Annotated[int, typer.Option(help="Tokens of each row.")] = 128,
    dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16, of the frozen base.")
    ] = "float32",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Gradient checkpointing.")
    ] = False,
    rank: Annotated[int, typer.Option(help="Rank of the adapters, on every layer.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Memory on the CPU as it was forecast before loading, and as it then was."""
    from lada_lab.micro.memory import MemoryCase, run_memory
    from lada_secure.models.loading import model_folder
    from lada_secure.models.placement import Placement

    case = MemoryCase(
        folder=model_folder(model, cache_dir=cache_dir),
        placement=Placement(
            device="cpu", dtype=cast(Any, dtype), gradient_checkpointing=checkpointing
        ),
        work=cast(Any, work),
        batch=batch,
        length=sequence,
        rank=rank,
    )
    _show(run_memory(case), title=f"Memory: {model}", as_json=as_json)


@app.command(
    "import", epilog="Example:  lada bench import --rows 100000 --kind csv --kind parquet --json"
)
def import_(
    rows: Annotated[int, typer.Option(min=3, help="Rows of the made-up table.")] = 100_000,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="csv, tsv, parquet, jsonl, json, excel, dataset, sql, omop, fhir-bundle or "
            "fhir-ndjson; repeat. Default: all."
        ),
    ] = None,
    near: Annotated[
        bool, typer.Option("--near/--no-near", help="With the search for near duplicates.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """An import of the same table from each kind of source, beside plain reading of the file.

    Ratios are the import's processor time over the plain reader's.
    """
    from lada_lab.micro.import_files import KINDS
    from lada_lab.micro.importing import run_import_bench

    _show(
        run_import_bench(rows=rows, kinds=tuple(kind or KINDS), near=near),
        title=f"Import: {rows} rows",
        as_json=as_json,
    )


@app.command(
    epilog="Example:  lada bench signal --seed 10001 --epsilon 1,8 "
    "--set 'distillation.adapter_core=\"seed\"' --set distillation.train_a=false"
)
def signal(
    cache_dir: CacheDir,
    preset: Annotated[
        str, typer.Option(help="Frozen settings by name: tiny, facts or coding.")
    ] = "tiny",
    seed: Annotated[
        int, typer.Option(min=0, help="The world; from 10000 on for choosing settings.")
    ] = 10_001,
    epsilon: Annotated[str, typer.Option(help="Budgets separated by commas.")] = "8",
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value of a study setting, NAME=JSON; repeat."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How long a private step's signal is beside its noise, for adapters of any form."""
    from lada_lab.arms.command import numbers
    from lada_lab.arms.presets import bench_settings
    from lada_lab.arms.signal import run_signal

    settings = bench_settings(preset, harmful=0.3, held_out=None, changes=setting or ())
    report = run_signal(settings, seed=seed, epsilons=numbers(epsilon), cache_dir=cache_dir)
    _show(report, title=f"A private step: {preset}, world {seed}", as_json=as_json)


def _show(report: Mapping[str, Any], *, title: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report, indent=2, sort_keys=True))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in _flat(report):
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    Console().print(table)


def _flat(report: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in report.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
