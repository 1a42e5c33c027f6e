"""`lada site report`: one study at this site, from its own files, private figures included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

from lada_clients.reports.audit.report import ledger_releases, ledger_studies
from lada_clients.reports.audit.report_document import DecisionTaken, Slm, StudySpending
from lada_clients.reports.ledger_history import DocumentPart, filled, history_sentences
from lada_clients.site.explain.allocation import facts_of, read_rounds
from lada_clients.site.ledger.budget import read_budget
from lada_clients.site.results.evaluation import PRIVATE, Evaluation, Topic, read_evaluation
from lada_clients.site.results.study import SiteStudy
from lada_clients.site.results.topics import read_topics
from lada_protocol.events import (
    EVENTS_FILE,
    Accuracy,
    Event,
    Joined,
    Progress,
    StepFinished,
    Traffic,
    parse_event,
)
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.studies import STUDIES
from lada_secure.errors import ParameterError
from lada_secure.privacy.ledger.entries import DecisionEntry

SCHEMA_VERSION: Final = 1
_TRAINING_STEP: Final = "distillation"


class Terms(DocumentPart):
    """What was agreed, from the plan."""

    study_id: str
    title: str
    coordinator: str
    expires: str
    rounds: int
    unit: str
    adjacency: str
    max_records_per_unit: int
    target_delta: float
    epsilon_cap: float
    min_cohort: int
    plan_sha256: str
    pool_sha256: str
    pool_size: int
    clusters_sha256: str
    clusters: int
    embedder: str
    strategy: str
    answer_form: str


class MeasuredInRun(DocumentPart):
    """What the run itself measured on held-out records: a bare share, without an interval."""

    round: int
    when: str
    accuracy: float
    n: int


class LossAt(DocumentPart):
    """Loss on public texts, nats per token, of the newest committed steps."""

    step: int
    public_loss: float


class RoundReport(DocumentPart):
    """One round. topics: what `lada explain` says; null where the round has said nothing."""

    round: int
    adapters_sha256: str | None
    losses: tuple[LossAt, ...]
    evaluation: Evaluation | None
    topics: dict[str, Any] | None


class Work(DocumentPart):
    """What a kind of step took over all rounds. Bytes are without TLS and framing."""

    step: str
    times: int
    seconds: float
    bytes_up: int
    bytes_down: int


class StudyReport(DocumentPart):
    """`study-report.json`.

    others: every other study over the same population that its ledger has. notes: what is not known
    here, and why.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    note: str = PRIVATE
    site: str
    population: str
    study: Terms
    slm: Slm
    target_delta: float
    epsilon: float
    epsilon_cap_total: float
    epsilon_left: float
    ledger_head: str
    ledger_history: tuple[str, ...]
    spending: StudySpending | None
    decisions: tuple[DecisionTaken, ...]
    others: tuple[StudySpending, ...]
    topics: tuple[Topic, ...]
    rounds: tuple[RoundReport, ...]
    measured_in_run: tuple[MeasuredInRun, ...]
    work: tuple[Work, ...]
    messages_up: int | None
    messages_down: int | None
    notes: tuple[str, ...]


def check_out(out: Path) -> None:
    """Before anything is computed. Raises: ParameterError: it is a file."""
    if out.exists() and not out.is_dir():
        raise ParameterError(f"--out: expected a folder, {out} is a file")


def report_facts(report: StudyReport) -> dict[str, Any]:
    """For machines."""
    return report.model_dump(mode="json")


def build_report(study: SiteStudy) -> StudyReport:
    """Everything that this site knows of a study.

    Raises: LedgerError: the ledger is damaged. ParameterError: a file of the study is.
    """
    plan, budget = study.plan, read_budget(study.settings_path)
    summary, notes = budget.summary, []
    studies = ledger_studies(summary.entries, ledger_releases(summary.entries))
    topics = read_topics(study.folder, plan)
    if topics is None:
        notes.append("The pool's questions were not kept here: topics have numbers alone.")
    events = list(study_events(study))
    if not events:
        notes.append("The log of events does not tell which are this study's: no times, no losses.")
    notes.append("When the records are from is in no file of a study: say so beside this report.")
    traffic = [one for one in events if isinstance(one, Traffic)]
    return StudyReport(
        site=study.settings.party,
        population=summary.identity.population,
        study=filled(
            Terms,
            plan,
            plan.privacy,
            plan_sha256=plan.hash,
            clusters=plan.allocation.clusters,
            strategy=plan.allocation.strategy,
        ),
        slm=filled(Slm, study.slm),
        target_delta=budget.target_delta,
        epsilon=summary.epsilon,
        epsilon_cap_total=budget.policy.epsilon_cap_total,
        epsilon_left=budget.left,
        ledger_head=summary.entries[-1].entry_hash,
        ledger_history=history_sentences(summary),
        spending=next((one for one in studies if one.study_id == plan.study_id), None),
        decisions=tuple(
            filled(DecisionTaken, one)
            for one in summary.entries
            if isinstance(one, DecisionEntry) and one.study_id == plan.study_id
        ),
        others=tuple(one for one in studies if one.study_id != plan.study_id),
        topics=() if topics is None else topics.names,
        rounds=tuple(_rounds(study, events)),
        measured_in_run=tuple(
            filled(MeasuredInRun, one, round=one.round_id)
            for one in events
            if isinstance(one, Accuracy)
        ),
        work=_work(events),
        messages_up=traffic[-1].messages_up if traffic else None,
        messages_down=traffic[-1].messages_down if traffic else None,
        notes=tuple(notes),
    )


def study_events(study: SiteStudy) -> Iterator[Event]:
    """The events of a study, of all its runs; none where the log does not tell whose they are.

    They lie in the study's folder. Of a study that began under an earlier version they are in the
    site's own log of all studies, each behind a `Joined`; what stands before the first one was
    written by a version that did not say so.
    """
    if (study.folder / EVENTS_FILE).exists():
        yield from _parsed(study.folder / EVENTS_FILE)
        return
    state = study.settings.state_dir
    alone = len(list((state / STUDIES).glob(f"*/{PLAN_FILE}"))) == 1
    ours = alone
    for event in _parsed(state / EVENTS_FILE):
        if isinstance(event, Joined):
            ours = event.plan_hash == study.plan.hash
        elif ours:
            yield event


def _parsed(path: Path) -> Iterator[Event]:
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    yield parse_event(line)
                except ParameterError:
                    # Cut by a full disk or a crash, or of other software.
                    continue
    except FileNotFoundError:
        return
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from error


def _rounds(study: SiteStudy, events: Iterable[Event]) -> Iterator[RoundReport]:
    losses: dict[int, dict[int, float]] = {}
    for one in events:
        if isinstance(one, Progress) and one.step == _TRAINING_STEP and one.public_loss is not None:
            # A step that is taken again after a crash tells the newest committed loss again.
            losses.setdefault(one.round_id, {})[one.done] = one.public_loss
    told = {}
    if any(study.folder.glob("allocation-round-*.json")):
        told = {one.round: facts_of(one) for one in read_rounds(study.folder, None)}
    for round_id in study.memory.trained_rounds():
        own = losses.get(round_id, {})
        yield RoundReport(
            round=round_id,
            adapters_sha256=study.adapters(round_id).sha256,
            losses=tuple(LossAt(step=step, public_loss=own[step]) for step in sorted(own)),
            evaluation=read_evaluation(study.folder, round_id),
            topics=told.get(round_id),
        )


def _work(events: Iterable[Event]) -> tuple[Work, ...]:
    steps: dict[str, list[StepFinished]] = {}
    for one in events:
        if isinstance(one, StepFinished):
            steps.setdefault(one.step, []).append(one)
    return tuple(
        Work(
            step=step,
            times=len(own),
            seconds=round(sum(one.seconds for one in own), 1),
            bytes_up=sum(one.bytes_up for one in own),
            bytes_down=sum(one.bytes_down for one in own),
        )
        for step, own in steps.items()
    )
