"""A study in every answer form: what the LLM writes, what sites make of it, and what comes back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from form_models import TAUGHT, form_model, taught_records, taught_samples
from method_doubles import ledger, plan

from lada_protocol.plan import StudyPlan
from lada_secure.allocation.cells import fit_clusters
from lada_secure.data.forms import FORMS, FormName, answer_form
from lada_secure.data.records import Record
from lada_secure.data.verification import Verifier
from lada_secure.method.execution import Execution
from lada_secure.method.holdout import HoldoutScore
from lada_secure.method.llm_round import view_pool, write_rationales
from lada_secure.method.llm_transfer import improve
from lada_secure.method.plan import MethodPlan, split_pool
from lada_secure.method.rejected import with_rejected
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_round import confidence_excess, site_statistics, solved
from lada_secure.method.site_state import KnownRationale, SiteState
from lada_secure.method.site_training import train
from lada_secure.method.training import held_out_tokens, private_units, written_tokens
from lada_secure.models.confidence import Answers
from lada_secure.models.embedding import HashedNgramEmbedder
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.tuning import TuningSettings
from lada_secure.privacy.release.private_records import PrivateRecords
from lada_secure.privacy.release.units import Unit

POOL = taught_samples()
EVERYTHING = [1] * len(POOL)
UPLINK = {
    "bar": 0.5,
    "clip": 0.5,
    "integer_scale": 100,
    "holdout": 2,
    "candidates": 4,
    "budget": 4,
    "first_round": 0,
    "last_round": True,
    "adapter_rank": 2,
    "adapter_layers": 1,
    "adapter_targets": ("q_proj",),
    "steps": 1,
    "batch_size": 2,
    "replay_batch_size": 0,
    "learning_rate": 1e-3,
    "contrastive_weight": 0.1,
    "contrastive_form": "margin",
}
ALL_FORMS = pytest.mark.parametrize("name", FORMS)


def study(name: FormName, **changes: object) -> StudyPlan:
    """A plan in one form over the questions that the model knows."""
    document = plan().model_dump() | {"guide": None, "uplink": UPLINK, "pool_size": len(POOL)}
    document["paths"] |= {"budget": 6, "max_new_tokens": 40, "attempts": 1}
    document["distillation"] |= {"adapter_layers": 1, "contrastive_weight": 0.1}
    document["allocation"] |= {"strategy": "random", "screen_low": 0.0, "screen_high": 1.0}
    document["training"] |= {"steps_per_round": 1, "sampling_probability": 0.5}
    return StudyPlan.model_validate(document | {"answer_form": name} | changes)


def own_copy() -> LanguageModel:
    """Of the model that knows the questions; adapters are put into it."""
    lm = form_model("cloze")
    return replace(lm, model=copy.deepcopy(lm.model))


def opened(base: StudyPlan, records: Sequence[Record] = ()) -> SiteContext:
    embedder = HashedNgramEmbedder()
    clusters = fit_clusters(embedder.embed([one.question for one in POOL]), 2, 0)
    units = [
        Unit(unit_id=unit, records=tuple(one for one in records if one.unit == unit))
        for unit in dict.fromkeys(one.unit for one in records)
    ]
    return SiteContext.open(
        base,
        own_copy(),
        pool=POOL,
        clusters=clusters,
        embedder=embedder,
        records=PrivateRecords(units),
        book=ledger(base),
        execution=Execution(threads=1, batch_size=4),
    )


def gold(name: FormName) -> dict[int, str]:
    form = answer_form(name)
    return {
        at: form.target(answer, choices, reason)
        for at, (_, choices, answer, reason) in enumerate(TAUGHT)
    }


def test_the_form_and_the_verifier_are_part_of_what_is_hashed() -> None:
    plans = [study(name) for name in FORMS]
    plans += [
        study("cloze", verifier={"rule": "normalised"}),
        study("cloze", verifier={"rule": "numeric", "tolerance": 0.1}),
    ]
    assert len({one.hash for one in plans}) == 5
    assert plans[2].form == answer_form("reasoned")
    assert plans[4].form.verifier == Verifier(rule="numeric", tolerance=0.1)
    assert b'"answer_form":"cloze"' in plans[0].to_bytes()


def test_a_plan_that_names_neither_means_what_it_meant() -> None:
    document = study("cloze").model_dump()
    del document["answer_form"], document["verifier"]
    for name in ("temperature", "top_p", "keep"):
        del document["paths"][name]
    old = StudyPlan.model_validate(document)
    assert old == study("cloze")
    assert (old.paths.temperature, old.paths.top_p, old.paths.keep) == (0.7, 1.0, "first")
    assert old.verifier.rule == "exact"


@ALL_FORMS
def test_the_llm_writes_in_the_form_and_its_pool_has_confidence_where_it_is_right(
    name: FormName,
) -> None:
    base = study(name)
    lm = form_model(name)
    embeddings = HashedNgramEmbedder().embed([one.question for one in POOL])
    clusters = fit_clusters(embeddings, 2, 0)
    view = view_pool(lm, base, POOL, clusters, embeddings)
    assert (view.features.sum(axis=1) > 0.0).all()
    crossed = tuple(replace(one, answer=f"{one.answer}0", choices=()) for one in POOL[4:])
    missed = view_pool(lm, base, crossed, clusters, embeddings[4:])
    assert (missed.features == 0.0).all()
    written = write_rationales(lm, base, POOL, EVERYTHING)
    assert dict(written.texts) == gold(name)
    assert (written.wrong, written.dropped) == (0, 0)


def test_several_paths_are_drawn_where_the_plan_says_so() -> None:
    base = study("reasoned")
    base = StudyPlan.model_validate(
        base.model_dump()
        | {
            "paths": {
                "budget": 6,
                "max_new_tokens": 40,
                "attempts": 3,
                "temperature": 5.0,
                "top_p": 1e-6,
                "keep": "shortest",
            }
        }
    )
    # A nucleus of one token draws the greedy path again.
    assert dict(write_rationales(form_model("reasoned"), base, POOL, EVERYTHING).texts) == gold(
        "reasoned"
    )


@ALL_FORMS
def test_a_site_measures_answers_learns_and_trains_in_the_form(name: FormName) -> None:
    base = study(name)
    site = opened(base, taught_records(bare=False))
    assert site.lm.form == base.form
    assert site.prompt(0) == base.form.prompt(POOL[0].question, POOL[0].choices)
    start = SiteState(picks={0: tuple(range(len(POOL)))})

    noised = site_statistics(site, start, 0).value
    excess = confidence_excess(site, start)
    candidates = split_pool(base).candidates
    assert all((excess[at] > 0) == (at in candidates) for at in range(len(POOL)))
    assert solved(site, start, candidates) == {at: gold(name)[at] for at in candidates}

    known = [
        KnownRationale(pool_index=at, cell=0, text=text, p=0.0) for at, text in gold(name).items()
    ]
    done = train(site, start, 0, noised, known)
    assert done.trained_on == tuple(range(len(POOL)))
    # Known by heart: every path is likely.
    assert all(one.p > 0.7 for one in done.state.rationales)


@ALL_FORMS
def test_bare_answers_take_part_with_reasons_in_the_form(name: FormName) -> None:
    guide = plan().guide
    assert guide is not None
    base = study(name, guide=guide.model_dump() | {"own_reasons": True})
    units = [Unit(unit_id=one.unit, records=(one,)) for one in taught_records(bare=True)]
    found = private_units(base, form_model(name), units, round_id=1, batch_size=4)
    assert [one.path for unit in found for one in unit.examples] == list(gold(name).values())


@ALL_FORMS
def test_wrong_responses_are_rejected_in_the_form(name: FormName) -> None:
    base, lm = study(name), form_model(name)
    form = base.form
    asked = [
        POOL[0],
        replace(POOL[1], answer="pig"),
        *([] if name == "cloze" else [replace(POOL[4], answer="5")]),
    ]
    examples = [
        RationaleExample(
            example_id=one.sample_id,
            prompt=form.prompt(one.question, one.choices),
            path=form.target(one.answer, one.choices, "so"),
            rejected=None,
        )
        for one in asked
    ]
    found = with_rejected(lm, base, examples, asked, batch_size=2)
    assert found[0].rejected is None
    wrong = found[1].rejected
    assert wrong is not None
    assert form.answer(wrong, asked[1].choices) == "cow"
    if name == "reasoned":
        # What it says first is a whole path, not the answer alone.
        assert wrong == gold(name)[1]


class _Llm:
    """An LLM that answers everything wrongly, and better once it was tuned."""

    def __init__(self, base: MethodPlan) -> None:
        self.base = base
        self.seen: list[RationaleExample] = []

    def answer(self, pool_indices: Sequence[int]) -> Answers:
        return self._answers(pool_indices, confidence=0.1)

    def answer_tuned(self, pool_indices: Sequence[int]) -> Answers:
        return self._answers(pool_indices, confidence=0.9)

    def _answers(self, pool_indices: Sequence[int], *, confidence: float) -> Answers:
        paths = [
            self.base.form.target(next(one for one in (*POOL[at].choices, "no")), (), "because")
            for at in pool_indices
        ]
        return Answers(
            paths=tuple(paths),
            right=np.zeros(len(paths), dtype=np.bool_),
            confidence=np.full(len(paths), confidence),
        )

    def tune(
        self,
        examples: Sequence[RationaleExample],
        replay: Sequence[RationaleExample],
        settings: TuningSettings,
    ) -> str:
        del replay, settings
        self.seen = list(examples)
        return "tuned"


@ALL_FORMS
def test_the_llm_learns_from_what_sites_got_right_in_the_form_alone(name: FormName) -> None:
    base = study(name)
    llm, form = _Llm(base), base.form
    candidates = split_pool(base).candidates
    others = [one for one in FORMS if one != name]
    received = {
        "site-a": {at: gold(name)[at] for at in candidates},
        # Another form's paths: not one of them ends in an answer that can be read as the gold one.
        "site-b": {at: gold(others[-1])[at] for at in candidates if POOL[at].choices},
    }
    decision = improve(llm, base, POOL, received, {}, seed=0)
    assert decision.used == len(candidates)
    assert decision.after == HoldoutScore(right=0, confidence=2 * 90)
    assert decision.weights == "tuned"
    for example in llm.seen:
        at = next(at for at, one in enumerate(POOL) if one.sample_id == example.example_id)
        assert example.path == gold(name)[at]
        assert example.prompt == form.prompt(POOL[at].question, POOL[at].choices)
        assert example.rejected is not None


@pytest.mark.parametrize(
    ("name", "paths", "closed", "any_kind"),
    [
        ("cloze", 40, 0, 40),
        ("listed", 40, 0, 40),
        ("reasoned", 40, 40, 40),
        ("cloze", 24, 0, 32),
        ("reasoned", 24, 24, 24),
    ],
)
def test_what_a_model_may_write_on_held_out_records(
    name: FormName, paths: int, closed: int, any_kind: int
) -> None:
    base = study(name)
    paths_of = base.paths.model_copy(update={"max_new_tokens": paths})
    base = base.model_copy(update={"paths": paths_of})
    records = taught_records(bare=True)
    assert held_out_tokens(base, records[0]) == closed
    assert held_out_tokens(base, records[-1]) == written_tokens(base) == any_kind
