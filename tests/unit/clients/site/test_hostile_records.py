"""Records that got past the gate: no release fails, changes its form, or moves what others add.

Hostile records are generated (sizes, characters, choices, units) and put among good ones, behind
the gate. Every step of a round runs on them, on the real code around a small model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from method_doubles import BAD, GOOD, GUIDE, ledger, received
from site_doubles import file_of, record, site_learner, site_plan, site_policy
from trainer_doubles import grid_sum, opened_trainer, small_model

from lada_clients.site.gates.files import SiteFiles
from lada_protocol.plan import StudyPlan
from lada_secure.allocation.cells import fit_clusters
from lada_secure.allocation.measurement import measured_gains, measured_records
from lada_secure.allocation.statistics import unit_statistics
from lada_secure.allocation.statistics_parameters import StatisticsParameters
from lada_secure.allocation.valuation_gains import ValuationParameters, unit_gains
from lada_secure.data.records import Record
from lada_secure.dpsgd.trainer import Trainer
from lada_secure.method.mechanisms import privacy_parameters
from lada_secure.method.plan import ValuationPlan
from lada_secure.method.site_training import RoundReports
from lada_secure.method.training import private_units, trainer_settings
from lada_secure.models import forward
from lada_secure.models.adapters import AdapterSettings, adapter_weights, attach_adapters
from lada_secure.models.embedding import HashedNgramEmbedder
from lada_secure.models.loading import LanguageModel
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.entries import CommitEntry, DecisionEntry, ReserveEntry
from lada_secure.privacy.release.units import Unit

ORDINARY = tuple(record(at) for at in range(6))
ODD = (
    "",
    " ",
    "\n",
    "\r\n\u2028",
    "\ud800",
    "\udfff\ud800",
    "\x00\x07\x1b",
    "<end><pad>",
    "\ufeff",
)
TEXTS = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(codec=None), max_size=12),
    st.integers(60, 3000).map(lambda size: "x1 " * (size // 3)),
)
CHOICES = st.one_of(
    st.just(()),
    st.tuples(TEXTS),
    TEXTS.map(lambda text: (text, text)),
    st.integers(2, 30).map(lambda count: tuple(f"c{at}" for at in range(count))),
)
HOSTILE = st.lists(
    st.builds(
        Record,
        # Ids and units of good records among them, and the same id many times.
        record_id=st.sampled_from(["", "r0", "h", "\ud800"]),
        unit=st.sampled_from(["", "nan", "h", "H ", "h\u200b", "\ud800"]),
        question=TEXTS,
        choices=CHOICES,
        answer=TEXTS,
        rationale=st.one_of(st.none(), TEXTS),
    ),
    min_size=1,
    max_size=20,
)
FEW = settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
GUIDED = GUIDE.model_copy(
    update={
        "own_reasons": True,
        "own_paths": 1,
        "trials": ValuationPlan(noise_multiplier=4.0, gain_clip=0.5, least_gain=-1.0),
    }
)
PLANS = {
    "together": site_plan(),
    "private pool": site_plan(
        training=site_plan().training.model_copy(update={"pool_gradients": "private"})
    ),
    "guided": site_plan(guide=GUIDED),
}
# The first has both streams in one step; what differs in the others is tried among the slow tests.
KINDS = [pytest.param(name, marks=() if name == "together" else pytest.mark.slow) for name in PLANS]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return attach_adapters(small_model(), AdapterSettings(rank=2))


def units_of(records: Sequence[Record]) -> tuple[Unit, ...]:
    files = SiteFiles(records=file_of("records.jsonl", records), held_out=None)
    return files.units(site_policy(), max_records_per_unit=4)


def kinds(book: LedgerBook) -> list[tuple[object, ...]]:
    """What a ledger says of a round, without hashes and times."""
    told: list[tuple[object, ...]] = []
    for entry in book.entries():
        match entry:
            case DecisionEntry():
                told.append(("decision", entry.decision))
            case ReserveEntry():
                told.append(("reserve", entry.round_id, entry.purpose, entry.chunk, entry.event))
            case CommitEntry():
                told.append(("commit", entry.round_id, entry.purpose, entry.chunk))
    return told


def two_rounds(
    folder: Path, records: Sequence[Record], plan: StudyPlan
) -> tuple[list[tuple[object, ...]], list[int]]:
    """All that a site computes on records in two rounds. Returns: ledger and sizes sent."""
    book, sizes = ledger(plan), []
    learner = site_learner(folder, records, held_out=records, study=plan, book=book)
    for round_id, picks in enumerate(((0, 1, 2, 3), (4, 5))):
        noised = learner.release_statistics(round_id)
        sizes.append(len(noised.value.vector))
        learner.state = learner.state.with_picks(round_id, picks)
        rationales = [*received(GOOD, cell=0), *received(BAD, cell=1)]
        learner.train(round_id, noised.value, rationales, RoundReports())
        sizes.append(len(learner.released_adapters(round_id).value.data))
        accuracy = learner.held_out_accuracy()
        assert accuracy is not None
        assert 0.0 <= accuracy <= 1.0
    return kinds(book), sizes


BASELINE: dict[str, tuple[list[tuple[object, ...]], list[int]]] = {}


@pytest.mark.parametrize("kind", KINDS)
@settings(FEW, max_examples=5)
@given(hostile=HOSTILE)
def test_a_site_with_hostile_records_sends_and_pays_the_same_as_one_without(
    tmp_path_factory: pytest.TempPathFactory, kind: str, hostile: list[Record]
) -> None:
    plan = PLANS[kind]
    if kind not in BASELINE:
        BASELINE[kind] = two_rounds(tmp_path_factory.mktemp("good"), ORDINARY, plan)
    found = two_rounds(tmp_path_factory.mktemp("hostile"), (*ORDINARY, *hostile), plan)
    assert found == BASELINE[kind]


CLUSTERS = fit_clusters(HashedNgramEmbedder().embed([one.question for one in ORDINARY]), 2, 0)


def exact_statistics(lm: LanguageModel, units: Sequence[Unit]) -> np.ndarray:
    measured = measured_records(
        lm,
        units,
        clusters=CLUSTERS,
        embedder=HashedNgramEmbedder(),
        batch_size=4,
    )
    parameters = StatisticsParameters(
        clusters=CLUSTERS.count,
        loss_clip=4.0,
        noise_multiplier=4.0,
        max_units=500,
        scale=120,
    )
    return unit_statistics(measured, parameters)


def exact_trials(lm: LanguageModel, units: Sequence[Unit]) -> np.ndarray:
    reference = adapter_weights(lm)
    measured = measured_gains(
        lm, units, {0: reference}, reference=reference, clusters=2, batch_size=4
    )
    return unit_gains(
        measured, ValuationParameters(clusters=2, gain_clip=0.5, noise_multiplier=4.0)
    )


EXACT = (exact_statistics, exact_trials)


@FEW
@given(hostile=HOSTILE)
def test_what_good_units_add_to_the_vectors_is_what_they_add_without_hostile_ones(
    lm: LanguageModel, hostile: list[Record]
) -> None:
    good, odd = units_of(ORDINARY), units_of(hostile)
    for exact in EXACT:
        alone = sum(exact(lm, [one]) for one in odd)
        together, without = exact(lm, [*good, *odd]), exact(lm, good)
        # A loss next to another rounding may fall on the other side of a step, per unit.
        assert np.abs(together - without - alone).max() <= len(good) + len(odd)


def trainer_over(lm: LanguageModel, units: Sequence[Unit]) -> Trainer:
    plan = PLANS["together"]
    execution = site_learner(Path("nowhere"), ORDINARY, model=lm).context.execution
    return opened_trainer(
        lm,
        private_units(plan, lm, units, round_id=0, batch_size=4),
        pool=(),
        privacy=privacy_parameters(plan),
        settings=trainer_settings(plan, execution, round_id=0),
    )


@FEW
@given(hostile=HOSTILE)
def test_what_good_units_add_to_a_training_step_is_what_they_add_without_hostile_ones(
    lm: LanguageModel, hostile: list[Record]
) -> None:
    clip_steps = privacy_parameters(PLANS["together"]).clip_steps
    sums = []
    for units in (units_of(ORDINARY), units_of((*ORDINARY, *hostile))):
        trainer = trainer_over(lm, units)
        total = grid_sum(trainer)
        trainer.close()
        sums.append(total.integers().double() / clip_steps)
    assert float((sums[1] - sums[0]).norm()) <= len(units_of(hostile)) * (1.0 + 1e-3)


def provoked(question: str, error: BaseException) -> Callable[..., Any]:
    """A tokenizer's call that fails on one record, as libraries do, quoting it."""
    real = LanguageModel.tokens_of

    def tokens_of(self: LanguageModel, text: str) -> list[int]:
        if question in text:
            raise error
        return real(self, text)

    return tokens_of


ERRORS = [
    RuntimeError("SENTINEL in a message of a library"),
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    UnicodeEncodeError("utf-8", "SENTINEL", 0, 1, "surrogates not allowed"),
    KeyError("SENTINEL"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_that_one_record_provokes_ends_nothing_and_says_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    error: BaseException,
) -> None:
    plan = PLANS[kind]
    expected = two_rounds(tmp_path / "good", ORDINARY, plan)
    monkeypatch.setattr(LanguageModel, "tokens_of", provoked("SENTINEL-question", error))
    odd = record(9, unit="SENTINEL-unit", record_id="SENTINEL-id", question="SENTINEL-question")
    with caplog.at_level(logging.DEBUG):
        assert two_rounds(tmp_path / "odd", (*ORDINARY, odd), plan) == expected
    assert "1 of 7 units could not be measured and add nothing" in caplog.text
    printed, said = capfd.readouterr()
    assert "SENTINEL" not in caplog.text + printed + said


@pytest.mark.parametrize("error", ERRORS, ids=lambda one: type(one).__name__)
def test_the_unit_that_fails_adds_zero_and_the_others_what_they_add(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    good = units_of(ORDINARY)
    odd = units_of([record(9, question="SENTINEL-question"), record(10, unit="u9")])
    expected = [exact(lm, good) for exact in EXACT]
    monkeypatch.setattr(LanguageModel, "tokens_of", provoked("SENTINEL-question", error))
    for exact, without in zip(EXACT, expected, strict=True):
        assert np.abs(exact(lm, [*odd, *good]) - without).max() <= len(good)


def test_a_person_can_still_end_a_measurement(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "tokens_of", provoked("riddle", KeyboardInterrupt()))
    for exact in EXACT:
        with pytest.raises(KeyboardInterrupt):
            exact(lm, units_of(ORDINARY))


def test_memory_that_one_unit_needs_too_much_of_is_asked_for_record_by_record(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = units_of([*ORDINARY, *(record(20 + at, unit="large") for at in range(4))])
    expected = exact_statistics(lm, units)
    real = forward._left_padded

    def limited(model: Any, rows: Sequence[Sequence[int]], *, pad: int) -> Any:
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, rows, pad=pad)

    monkeypatch.setattr(forward, "_left_padded", limited)
    assert np.abs(exact_statistics(lm, units) - expected).max() <= len(units)
