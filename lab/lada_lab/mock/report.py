"""The report of a run: its schema (version 1), and how it is built from what parties wrote.

The mock may read every party's folder because it plays every party. In a real federation the
accuracies and allocations below exist only at the site that they are about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lada_protocol.events import Accuracy, Epsilon, Event, LlmUpdate, StepFinished
from lada_secure.errors import ParameterError

SCHEMA_VERSION: Final = 1

NOTES = (
    "Accuracy is measured by each site on its own held-out private records and is written to that "
    "site's folder only; no other party of the federation ever receives it. This report can show "
    "it because a mock run plays all parties and reads all folders.",
    "The allocation is readable by its site only; the coordinator learns, per pool sample, how "
    "many sites want it.",
    "Epsilon is the value that the site's ledger holds after each reservation, at the target delta "
    "of the study. `lada audit verify` recomputes it from the exported files.",
    "Seconds are wall-clock time of work, without waiting, of parties that share one machine; "
    "bytes are the messages that a party itself sent and received, without TLS and HTTP/2 framing.",
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Part):
    """What was asked for, and how it went."""

    preset: str
    seed: Annotated[int, Field(description="data and initial weights only")]
    rounds: int
    outcome: Literal["finished", "failed"]
    failure: Annotated[str, Field(description="why a failed run ended, else empty")]
    started: Annotated[str, Field(description="ISO 8601, UTC")]
    wall_s: float
    peak_memory_bytes: Annotated[
        int | None,
        Field(description="largest sum over all processes (PSS); null where it is not measured"),
    ]
    cpus: int
    platform: str
    python: str
    software_version: str


class Study(_Part):
    """The terms of the study that a reader needs to judge the figures."""

    study_id: str
    title: str
    slm: Annotated[str, Field(description="models of the sites, each once")]
    llm: str
    embedder: str
    unit: str
    target_delta: float
    epsilon_cap: float
    pool_size: int
    pool_gradients: Literal["public", "private"]
    clusters: int
    difficulty_bins: int
    quota: Annotated[int, Field(description="most samples that a site picks in a round")]
    strategy: Annotated[str, Field(description="how samples are allocated")]


class AccuracyPoint(_Part):
    """`when` is `before` (the first round) or `after` (that round)."""

    round: int
    when: Literal["before", "after"]
    accuracy: Annotated[float, Field(ge=0, le=1)]
    n: int


class EpsilonPoint(_Part):
    """Spent after one reservation; `elapsed_s` counts from the start of the run."""

    elapsed_s: float
    round: int
    step: str
    epsilon: float


class Cell(BaseModel):
    """One cell of the pool: public cluster x difficulty bin."""

    # Sites may write more for their own operator; the report takes the fields it knows.
    model_config = ConfigDict(frozen=True, extra="ignore")

    cluster: int
    difficulty: int
    mass: float
    band: float
    exploitation: float
    exploration: float
    agreement: Annotated[
        float | None,
        Field(description="how sure it is that its paths agree with the records; null: not judged"),
    ] = None
    utility: float
    picked: Annotated[int, Field(ge=0, description="samples of this cell that the site picked")]
    trained: Annotated[int, Field(ge=0, description="of those, with a path that passed the screen")]
    reward: Annotated[
        float | None, Field(description="what training on it brought; null in the first round")
    ]


class Allocation(_Part):
    """What one site picked in one round."""

    round: int
    picked: int
    cells: tuple[Cell, ...]


class SiteFacts(_Part):
    """What the mock knows of a site before the run."""

    party: str
    records: int
    units: int
    held_out: int


class SiteReport(SiteFacts):
    """One site. `gain` is last minus first accuracy; null where fewer than two were measured."""

    accuracy: tuple[AccuracyPoint, ...]
    gain: float | None
    epsilon: tuple[EpsilonPoint, ...]
    epsilon_spent: float
    epsilon_cap: float
    allocation: tuple[Allocation, ...]


class UplinkRound(_Part):
    """What the sites taught the LLM in one round, as the coordinator published it.

    Right answers and certainty are of the public hold-out, which the LLM is never trained on.
    """

    round: int
    asked: Annotated[int, Field(description="samples on which sites know more than the LLM")]
    received: Annotated[int, Field(description="paths that sites sent")]
    used: Annotated[int, Field(description="different right paths that the LLM was trained on")]
    holdout: int
    right_before: int
    right_after: int
    certainty_before: Annotated[float, Field(description="mean certainty of the gold answers")]
    certainty_after: float
    accepted: bool
    llm: Annotated[str, Field(description="SHA-256 of the LLM's adapters from now on, or zeros")]


class StepCost(_Part):
    """One step of one party in one round."""

    party: str
    role: Literal["coordinator", "auditor", "site"]
    round: int
    step: str
    seconds: float
    bytes_up: int
    bytes_down: int


class PartyTotal(_Part):
    """Sums of a party's steps."""

    seconds: float
    bytes_up: int
    bytes_down: int


class Difference(_Part):
    """Accuracy after the last round, `strategy` less `other`, over the seeds that both ran."""

    strategy: str
    other: str
    site: str
    seeds: int
    difference: float
    standard_error: Annotated[float, Field(description="from the held-out records")]
    between_runs: Annotated[float | None, Field(description="from the runs' spread; null for one")]


class Report(_Part):
    """`report.json`. Fields are only ever added; a change of meaning raises `schema_version`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run: Run
    study: Study
    sites: tuple[SiteReport, ...]
    uplink: tuple[UplinkRound, ...] = ()
    steps: tuple[StepCost, ...]
    totals: dict[str, PartyTotal]
    notes: tuple[str, ...]
    against: Annotated[
        tuple[Difference, ...],
        Field(description="this run less others of the same data and models, by other strategies"),
    ] = ()


def build_report(
    *,
    run: Run,
    study: Study,
    facts: Sequence[SiteFacts],
    roles: Mapping[str, Literal["coordinator", "auditor", "site"]],
    events: Mapping[str, Sequence[Event]],
    allocations: Mapping[str, Sequence[Allocation]],
    started_s: float,
    uplink_scale: int = 1,
) -> Report:
    """Put a report together.

    Args: roles: of every party, in the order in which they are shown. events: by party, in the
      order written. allocations: by site. started_s: Unix time of the run's start. uplink_scale:
      steps per unit of certainty, from the plan.
    """
    return Report(
        run=run,
        study=study,
        sites=tuple(
            _site(
                site,
                events=events.get(site.party, ()),
                allocations=allocations.get(site.party, ()),
                cap=study.epsilon_cap,
                started_s=started_s,
            )
            for site in facts
        ),
        uplink=tuple(_llm_transfer(events, scale=uplink_scale)),
        steps=tuple(_steps(roles, events)),
        totals={party: _total(events.get(party, ())) for party in roles},
        notes=NOTES,
    )


def parse_allocation(raw: bytes, *, where: str) -> Allocation:
    """Read a site's `allocation-round-K.json`.

    Raises: ParameterError: another form.
    """
    try:
        file = _AllocationFile.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ParameterError(f"{where}: {path}: {first['msg']}") from error
    return Allocation(
        round=file.round, picked=sum(cell.picked for cell in file.cells), cells=file.cells
    )


class _AllocationFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    round: int
    cells: tuple[Cell, ...]


def _site(
    facts: SiteFacts,
    *,
    events: Sequence[Event],
    allocations: Sequence[Allocation],
    cap: float,
    started_s: float,
) -> SiteReport:
    accuracy = tuple(_accuracy_points(events))
    epsilon = tuple(_epsilon_points(events, started_s=started_s))
    return SiteReport(
        **facts.model_dump(),
        accuracy=accuracy,
        gain=accuracy[-1].accuracy - accuracy[0].accuracy if len(accuracy) > 1 else None,
        epsilon=epsilon,
        epsilon_spent=max((point.epsilon for point in epsilon), default=0.0),
        epsilon_cap=cap,
        allocation=tuple(sorted(allocations, key=lambda allocation: allocation.round)),
    )


def _accuracy_points(events: Sequence[Event]) -> list[AccuracyPoint]:
    # A resumed site measures a round again: the later value counts.
    points = {
        (event.round_id, event.when): AccuracyPoint(
            round=event.round_id, when=event.when, accuracy=event.accuracy, n=event.n
        )
        for event in events
        if isinstance(event, Accuracy)
    }
    return sorted(points.values(), key=lambda point: (point.when == "after", point.round))


def _epsilon_points(events: Sequence[Event], *, started_s: float) -> list[EpsilonPoint]:
    # Sites repeat the value with every step of training; a point is a change of it.
    told = (event for event in events if isinstance(event, Epsilon))
    return [
        EpsilonPoint(
            elapsed_s=round(first.time_s - started_s, 3),
            round=first.round_id,
            step=first.step,
            epsilon=spent,
        )
        for spent, same in groupby(told, key=lambda event: event.epsilon)
        for first in (next(same),)
    ]


def _llm_transfer(events: Mapping[str, Sequence[Event]], *, scale: int) -> list[UplinkRound]:
    # A coordinator that resumes may decide a round again; its board holds the last decision.
    decided = {
        event.round_id: event
        for told in events.values()
        for event in told
        if isinstance(event, LlmUpdate)
    }
    return [
        UplinkRound(
            round=update.round_id,
            asked=update.asked,
            received=update.received,
            used=update.used,
            holdout=update.holdout,
            right_before=update.right_before,
            right_after=update.right_after,
            certainty_before=round(update.certainty_before / scale / update.holdout, 4),
            certainty_after=round(update.certainty_after / scale / update.holdout, 4),
            accepted=update.accepted,
            llm=update.llm_after,
        )
        for _, update in sorted(decided.items())
    ]


def _steps(
    roles: Mapping[str, Literal["coordinator", "auditor", "site"]],
    events: Mapping[str, Sequence[Event]],
) -> list[StepCost]:
    return [
        StepCost(
            party=party,
            role=role,
            round=event.round_id,
            step=event.step,
            seconds=round(event.seconds, 4),
            bytes_up=event.bytes_up,
            bytes_down=event.bytes_down,
        )
        for party, role in roles.items()
        for event in events.get(party, ())
        if isinstance(event, StepFinished)
    ]


def _total(events: Sequence[Event]) -> PartyTotal:
    steps = [event for event in events if isinstance(event, StepFinished)]
    return PartyTotal(
        seconds=round(sum(step.seconds for step in steps), 4),
        bytes_up=sum(step.bytes_up for step in steps),
        bytes_down=sum(step.bytes_down for step in steps),
    )
