"""Study plans: one byte form, every field bounded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from protocol_world import GUIDE, make_plan

from lada_protocol.kinds import Kind
from lada_protocol.plan import (
    MATRIX_BLOCK,
    MAX_MATRIX_COLUMNS,
    MAX_PLAN_BYTES,
    format_time,
    parse_plan,
    parse_time,
)
from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.encryption.parameters import scoring_parameters
from lada_secure.errors import PeerError


def _changed(path: str, value: Any) -> bytes:
    plan: Any = parse_canonical_json(make_plan().to_bytes(), max_bytes=MAX_PLAN_BYTES)
    part = plan
    *folders, last = path.split(".")
    for folder in folders:
        part = part[folder]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return canonical_json(plan)


def test_a_plan_reads_back_to_the_same_plan_and_hash() -> None:
    plan = make_plan()
    assert parse_plan(plan.to_bytes()) == plan
    assert parse_plan(plan.to_bytes()).hash == plan.hash


def test_a_guide_is_in_the_bytes_only_where_there_is_one() -> None:
    plain, guided = make_plan(), make_plan(guide=GUIDE)
    assert b'"guide"' not in plain.to_bytes()
    assert parse_plan(guided.to_bytes()) == guided
    assert guided.hash != plain.hash


def test_a_form_of_the_gap_is_in_the_bytes_only_where_it_is_named() -> None:
    plain = make_plan()
    assert b'"sample_value"' not in plain.to_bytes()
    gap = {"sample_value": "gain"}
    named = make_plan(allocation=plain.allocation.model_copy(update=gap))
    assert parse_plan(named.to_bytes()) == named
    assert b'"sample_value"' in named.to_bytes()


def test_what_is_said_of_fallbacks_is_in_the_bytes_only_where_it_is_named() -> None:
    plain = make_plan()
    fields = {"fallback": "off", "least_llm_right": 0.3}
    assert not any(f'"{field}"'.encode() in plain.to_bytes() for field in fields)
    named = make_plan(allocation=plain.allocation.model_copy(update=fields))
    assert parse_plan(named.to_bytes()) == named
    assert all(f'"{field}"'.encode() in named.to_bytes() for field in fields)


def test_a_replay_is_in_the_bytes_only_where_it_is_named() -> None:
    plain = make_plan(guide=GUIDE)
    assert b"replay_batch_size" not in plain.to_bytes().partition(b'"guide"')[2]
    named = make_plan(guide=GUIDE.model_copy(update={"replay_batch_size": 4}))
    assert parse_plan(named.to_bytes()) == named
    assert named.hash != plain.hash


def test_a_time_to_decide_is_in_the_bytes_only_where_there_is_one() -> None:
    plain = make_plan()
    assert b"approve_by" not in plain.to_bytes()
    timed = make_plan(approve_by="2026-05-08T12:00:00Z")
    assert parse_plan(timed.to_bytes()) == timed
    assert timed.hash != plain.hash
    # Files of plans that were made before the field was keep their hash.
    assert parse_plan(plain.to_bytes()).hash == plain.hash


@pytest.mark.parametrize("approve_by", ["2030-02-01T00:00:00Z", "tomorrow", "", 7])
def test_a_time_to_decide_that_is_none_or_after_the_plan_s_end_is_refused(approve_by: Any) -> None:
    plan: Any = parse_canonical_json(make_plan().to_bytes(), max_bytes=MAX_PLAN_BYTES)
    with pytest.raises(PeerError) as caught:
        parse_plan(canonical_json({**plan, "approve_by": approve_by}))
    assert caught.value.reason == "bad_plan"


@pytest.mark.parametrize(
    "path",
    [
        "allocation.sample_value",
        "allocation.fallback",
        "allocation.least_llm_right",
    ],
)
def test_what_is_left_out_is_never_null(path: str) -> None:
    plan: Any = parse_canonical_json(make_plan().to_bytes(), max_bytes=MAX_PLAN_BYTES)
    part, field = path.split(".")
    plan[part][field] = None
    with pytest.raises(PeerError, match="same bytes"):
        parse_plan(canonical_json(plan))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("least_share", 1.5),
        ("private_share", -0.1),
        ("rate_decay", 0.0),
        ("rate_decay", 1.5),
        ("own_paths", 0),
        ("own_paths", 65),
        ("pool_steps", 0),
        ("last_pool_steps", 0),
        ("pool_learning_rate", 0.0),
        ("replay_batch_size", 0),
        ("records_with_reasons", 1),
        ("finish", 1),
        ("own_reasons", "yes"),
        ("surprise", 1),
    ],
)
def test_a_guide_with_a_bad_field_is_refused(field: str, value: Any) -> None:
    plan: Any = parse_canonical_json(make_plan(guide=GUIDE).to_bytes(), max_bytes=MAX_PLAN_BYTES)
    plan["guide"][field] = value
    with pytest.raises(PeerError) as caught:
        parse_plan(canonical_json(plan))
    assert caught.value.reason == "bad_plan"


def test_a_guide_cannot_finish_in_the_round_that_makes_it() -> None:
    finishing = GUIDE.model_copy(update={"finish": True})
    assert parse_plan(make_plan(guide=finishing, rounds=2).to_bytes()).guide == finishing
    with pytest.raises(PeerError, match="needs rounds >= 2"):
        parse_plan(make_plan().model_copy(update={"guide": finishing, "rounds": 1}).to_bytes())


def test_own_reasons_beside_bare_answers_are_refused() -> None:
    both = GUIDE.model_copy(update={"own_reasons": True, "records_with_reasons": False})
    with pytest.raises(PeerError, match="needs records_with_reasons"):
        parse_plan(make_plan().model_copy(update={"guide": both}).to_bytes())


@pytest.mark.parametrize("factors", ["seed", "weights"])
def test_a_core_is_in_the_bytes_only_where_there_is_one(factors: Any) -> None:
    plain = make_plan()
    assert b"adapter_core" not in plain.to_bytes()
    wanted = {"adapter_core": factors, "train_a": False}
    with_core = plain.model_copy(
        update={"distillation": plain.distillation.model_copy(update=wanted)}
    )
    assert parse_plan(with_core.to_bytes()) == with_core
    assert parse_plan(with_core.to_bytes()).distillation.adapter_core == factors
    assert with_core.hash != plain.hash


def test_a_core_beside_a_trained_a_is_refused_by_name() -> None:
    plain = make_plan()
    both = plain.distillation.model_copy(update={"adapter_core": "seed", "train_a": True})
    with pytest.raises(PeerError, match=r"adapter_core .* train_a must be false"):
        parse_plan(plain.model_copy(update={"distillation": both}).to_bytes())


@pytest.mark.parametrize("value", [None, "pool", "", 1, True])
def test_a_core_of_other_factors_is_refused(value: object) -> None:
    plan: Any = parse_canonical_json(make_plan().to_bytes(), max_bytes=MAX_PLAN_BYTES)
    plan["distillation"] |= {"adapter_core": value, "train_a": False}
    with pytest.raises(PeerError):
        parse_plan(canonical_json(plan))


def test_a_guide_beside_private_pool_gradients_is_refused() -> None:
    raw = make_plan(guide=GUIDE).to_bytes().replace(b'"public"', b'"private"')
    with pytest.raises(PeerError, match="pool_gradients must be public"):
        parse_plan(raw)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", 1),
        ("privacy.ledger_time_step_s", 0),
        ("privacy.ledger_time_step_s", 86_401),
        ("privacy.ledger_time_step_s", None),
        ("version", None),
        ("study_id", ".."),
        ("study_id", "a/b"),
        ("study_id", ""),
        ("title", "x" * 201),
        ("coordinator", "Coordinator"),
        ("expires", "2030-01-31"),
        ("expires", "2030-01-31T12:00:00+00:00"),
        ("rounds", 0),
        ("rounds", 1001),
        ("rounds", 1.0),
        ("rounds", True),
        ("min_cohort", 2),
        ("max_cohort", 2),
        ("max_cohort", 1001),
        ("seed", -1),
        ("pool_sha256", "1" * 63),
        ("pool_size", 0),
        ("phase_timeout_s", 0.0),
        ("phase_timeout_s", 60),
        ("privacy", None),
        ("privacy.adjacency", "replace_one"),
        ("privacy.adjacency", None),
        ("privacy.unit", ""),
        ("privacy.target_delta", 0.0),
        ("privacy.target_delta", 1.0),
        ("privacy.epsilon_cap", -1.0),
        ("privacy.max_units", 0),
        ("statistics.noise_multiplier", 0.0),
        ("statistics.surprise", 1),
        ("statistics.measure", "rank"),
        ("training.sampling_probability", 1.5),
        ("training.pool_gradients", "secret"),
        ("allocation.threshold", 2.0),
        ("allocation.screen_low", -0.5),
        ("allocation.strategy", "../evil"),
        ("allocation.sample_value", "best"),
        ("allocation.draw", "top"),
        ("allocation.fallback", "maybe"),
        ("allocation.least_llm_right", 1.5),
        ("paths.attempts", 0),
        ("paths.temperature", 0.0),
        ("paths.temperature", 11.0),
        ("paths.top_p", 0.0),
        ("paths.top_p", 1.5),
        ("paths.keep", "longest"),
        ("paths.keep", None),
        ("answer_form", "essay"),
        ("answer_form", None),
        ("verifier", None),
        ("verifier.rule", "fuzzy"),
        ("verifier.tolerance", 0.1),
        ("verifier.tolerance", -1.0),
        ("unknown", 1),
    ],
)
def test_a_plan_with_a_bad_field_is_refused(path: str, value: Any) -> None:
    with pytest.raises(PeerError) as caught:
        parse_plan(_changed(path, value))
    assert caught.value.reason == "bad_plan"


def test_keeping_one_of_several_paths_needs_several() -> None:
    raw = _changed("paths.keep", "shortest")
    with pytest.raises(PeerError, match="attempts must be 2 or more"):
        parse_plan(raw)


def test_a_cohort_that_cannot_be_is_refused() -> None:
    raw = _changed("min_cohort", 7)
    with pytest.raises(PeerError, match="max_cohort is below min_cohort"):
        parse_plan(raw)


@pytest.mark.parametrize(
    ("clusters", "pool_size"), [(513, 9), (1, 1_000_001), (512, 66_000)], ids=str
)
def test_a_matrix_that_no_message_holds_is_refused(clusters: int, pool_size: int) -> None:
    plan: Any = parse_canonical_json(make_plan().to_bytes(), max_bytes=MAX_PLAN_BYTES)
    plan["allocation"]["clusters"], plan["pool_size"] = clusters, pool_size
    with pytest.raises(PeerError, match="cells") as caught:
        parse_plan(canonical_json(plan))
    assert caught.value.reason == "bad_plan"


def test_the_largest_matrix_fits_into_its_message() -> None:
    columns = MAX_MATRIX_COLUMNS * 2048 * 4 + 36
    assert columns <= Kind.MATRIX.rules.max_payload_bytes < columns + 2048 * 4
    one = scoring_parameters(cells=3, row_bound=1)
    assert one.matrix_bytes(5 * MATRIX_BLOCK) == 36 + 5 * 3 * 2048 * 4


def test_a_screen_upside_down_is_refused() -> None:
    raw = _changed("allocation.screen_low", 1.0).replace(b'"screen_high":1.0', b'"screen_high":0.5')
    with pytest.raises(PeerError, match="screen_low is above screen_high"):
        parse_plan(raw)


@pytest.mark.parametrize("number", [b"1e400", b"NaN", b"Infinity"])
def test_a_plan_without_a_finite_cap_is_refused(number: bytes) -> None:
    raw = make_plan().to_bytes().replace(b'"epsilon_cap":8.0', b'"epsilon_cap":' + number)
    with pytest.raises(PeerError) as caught:
        parse_plan(raw)
    assert caught.value.reason == "malformed"


def test_a_plan_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(PeerError) as caught:
        parse_plan(b" " * (MAX_PLAN_BYTES + 1))
    assert caught.value.reason == "too_large"


def test_times_are_utc_with_whole_seconds() -> None:
    local = datetime(2030, 1, 31, 13, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=1)))
    assert format_time(local) == "2030-01-31T12:00:00Z"
    assert parse_time("2030-01-31T12:00:00Z") == datetime(2030, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2030-01-31",
        "2030-01-31T12:00:00",
        "2030-01-31T12:00:00+00:00",
        "2030-01-31T12:00:00.5Z",
        "2030-02-30T12:00:00Z",
        "2030-01-31T24:00:00Z",
        "\u0662030-01-31T12:00:00Z",
    ],
)
def test_other_spellings_of_a_time_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|range|must be"):
        parse_time(text)
