"""Reasons in words: why a cell was allocated, and what it brought."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from lada_clients.site.explain.folder import ExplainedCell, ExplainedRound

# A share of the data this many times an equal share is worth a word.
_MUCH_MASS = 1.5
_WIDE_BAND = 0.75
_NARROW_BAND = 0.25
_SMALL_REWARD = 0.005


def facts_of(told: ExplainedRound) -> dict[str, Any]:
    """One round for machines, the words included."""
    cells = [
        {**cell.model_dump(), "why": why, "brought": brought} for cell, why, brought in _told(told)
    ]
    return {"round": told.round, "cells": cells}


def table_of(site: str, told: ExplainedRound) -> Table:
    """One round for people."""
    cells = told.allocated()
    picked = sum(cell.picked for cell in cells)
    title = f"{site}, round {told.round}: {picked} samples from {len(cells)} of "
    table = Table(title=f"{title}{len(told.cells)} cells", show_lines=True)
    for name in ("topic", "difficulty", "samples", "trained"):
        table.add_column(name, justify="right")
    table.add_column("why")
    table.add_column("brought")
    for cell, *words in _told(told):
        numbers = (cell.cluster, cell.difficulty, cell.picked, cell.trained)
        table.add_row(*(str(number) for number in numbers), *words)
    return table


def _told(told: ExplainedRound) -> Iterator[tuple[ExplainedCell, str, str]]:
    clusters = len({cell.cluster for cell in told.cells}) or 1
    for cell in told.allocated():
        why = _reasons(cell, clusters=clusters, first_round=told.round == 0)
        yield cell, why, _outcome(cell)


def _reasons(cell: ExplainedCell, *, clusters: int, first_round: bool) -> str:
    """Why samples of this cell were wanted, strongest reason first.

    Args: clusters: how many the study has. first_round: its quotas follow masses alone.
    """
    told: list[str] = []
    if cell.mass * clusters >= _MUCH_MASS:
        told.append(f"{cell.mass:.0%} of the site's data lies in this topic")
    elif cell.mass > 0:
        told.append(f"some of the site's data ({cell.mass:.0%}) lies in this topic")
    else:
        told.append("none of the site's data lies in this topic")
    if first_round:
        told.append("first round: quotas by topic")
    if cell.agreement is not None and cell.agreement >= _WIDE_BAND:
        told.append(f"its paths agree with the site's records ({cell.agreement:.0%} sure)")
    elif cell.agreement is not None and cell.agreement <= _NARROW_BAND:
        told.append(f"its paths contradict the site's records ({1 - cell.agreement:.0%} sure)")
    if cell.band >= _WIDE_BAND:
        told.append(f"within reach (p {cell.probability:.2f})")
    elif cell.band <= _NARROW_BAND:
        side = "almost known" if cell.probability > 0.5 else "far out of reach"
        told.append(f"{side} (p {cell.probability:.2f})")
    if not first_round:
        told.append(_forecast(cell))
    return "; ".join(told)


def _forecast(cell: ExplainedCell) -> str:
    promise = f"the filter expects {cell.exploitation:+.3f}"
    if abs(cell.exploration) < _SMALL_REWARD:
        return promise
    if cell.exploration > 0:
        return f"{promise} and would explore, it may be {cell.exploration:.3f} better"
    return f"{promise}, or {-cell.exploration:.3f} less"


def _outcome(cell: ExplainedCell) -> str:
    """What training on the cell brought."""
    if cell.reward is None:
        return "nothing trained: no path passed the screen" if cell.picked else "nothing trained"
    if abs(cell.reward) < _SMALL_REWARD:
        return f"no change ({cell.reward:+.3f})"
    return f"p {'rose' if cell.reward > 0 else 'fell'} by {abs(cell.reward):.3f}"
