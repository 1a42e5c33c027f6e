"""Real parties whose study asks in the other answer forms: what is hashed, sent and accepted."""

import pytest
from byte_models import byte_model_folder
from federation import PreparedFederation

from lada_clients.audit.folder import read_evidence
from lada_clients.site.memory import SiteMemory
from lada_lab.mock.presets import by_strategy, preset_for
from lada_lab.worlds.sites import FederationData, Question, SiteData, numbered, pool_of, records_of
from lada_protocol.evidence.study import verify_evidence
from lada_secure.data.forms import answer_form

DEADLINE_S = 300
COLOURS = ("red", "green", "blue", "grey")
POOL = 80


def questions(count, first):
    """Multiple choice with its reason; the right option is at every place equally often."""
    return [
        Question(
            question=f"Thing {number} has the colour of thing {number % 4}. Which?",
            answer=COLOURS[number % 4],
            rationale=f"thing {number % 4} is {COLOURS[number % 4]}",
            choices=tuple(COLOURS[(at + number // 4) % 4] for at in range(4)),
        )
        for number in range(first, first + count)
    ]


def data():
    sites = {}
    for at, site in enumerate(("site-a", "site-b", "site-c")):
        first = 1000 * (at + 1)
        sites[site] = SiteData(
            train=records_of(questions(60, first), numbered("person", 60), prefix=site),
            held_out=records_of(
                questions(20, first + 500), numbered("other", 20), prefix=f"{site}-held-out"
            ),
        )
    return FederationData(sites=sites, pool=pool_of(questions(POOL, 0)), teacher=())


def small_study(form, model):
    """The tiny preset in another form, with a model of random weights at every party."""
    # At random: what this LLM finds hard is all that it gets wrong, and no rationale would come.
    tiny = by_strategy(preset_for("tiny", sites=3, rounds=1, seed=7), "random")
    short = {"steps_per_round": 2, "expected_units": 6.0}
    assert tiny.uplink is not None
    return tiny.model_copy(
        update={
            "answer_form": form,
            "site_slm": str(model),
            "llm": str(model),
            "training": tiny.training.model_copy(update=short),
            "paths": tiny.paths.model_copy(
                update={"budget": 40, "max_new_tokens": 12, "attempts": 1}
            ),
            "uplink": tiny.uplink.model_copy(
                update={"bar": 0.0, "holdout": 20, "candidates": 40, "steps": 2}
            ),
        }
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["listed", "reasoned"])
def test_a_study_in_another_answer_form_ends_valid(tmp_path, form):
    model = byte_model_folder(tmp_path / "model", "qwen2", positions=1024)
    prepared = PreparedFederation(
        tmp_path / "run", preset=small_study(form, model), data=data(), weights=False
    )
    layout = prepared.layout
    parties = ("coordinator", "auditor", *layout.site_ids)
    running = {party: prepared.start(party) for party in parties}
    try:
        for party, one in running.items():
            said, _ = one.communicate(timeout=DEADLINE_S)
            assert one.returncode == 0, (party, said)
    finally:
        for one in running.values():
            one.kill()
    evidence = read_evidence(layout.export)
    assert verify_evidence(evidence).faults == ()

    known = [
        one
        for site in layout.site_ids
        for one in SiteMemory(folder=layout.site(site).study).load().rationales
    ]
    if form == "reasoned":
        # Random weights never end in an answer line, so nothing of theirs may reach a site.
        assert known == []
        return
    # A letter is the most probable one for every question, and right for about a fourth of them.
    assert known
    asked = questions(POOL, 0)
    for one in known:
        question = asked[one.pool_index]
        assert answer_form(form).right(one.text, question.choices, question.answer)
