"""Any bytes parse or raise; any history that a ledger accepts verifies and keeps its caps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lada_secure.privacy.countersignature import parse_countersignature

from lada_secure.canonical import canonical_json
from lada_secure.errors import LedgerError, PrivacyBudgetExceeded
from lada_secure.privacy.entries import LedgerIdentity, format_ledger_lines, parse_ledger_lines
from lada_secure.privacy.events import (
    PrivacyEvent,
    composed_event,
    dpsgd_event,
    gaussian_event,
    parse_event,
)
from lada_secure.privacy.ledger import BudgetCaps, ReleaseSpec
from lada_secure.privacy.memory_ledger import MemoryLedger
from lada_secure.privacy.verification import verify_ledger

KEY = Ed25519PrivateKey.from_private_bytes(b"site key for tests only, 32 byte")
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
START = datetime(2026, 1, 31, tzinfo=UTC)
CAPS = BudgetCaps(target_delta=1e-6, total_epsilon=1.5, study_epsilon=1.0)
NOISE = 15.0

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
GAUSSIANS = st.builds(
    gaussian_event, st.floats(0.01, 1e6), count=st.integers(min_value=1, max_value=10**6)
)
TRAININGS = st.builds(
    dpsgd_event,
    noise_multiplier=st.floats(0.01, 1e6),
    sampling_probability=st.floats(0, 1, exclude_min=True),
    steps=st.integers(min_value=1, max_value=10**6),
)
PARTS = GAUSSIANS | TRAININGS
EVENTS = PARTS | st.lists(PARTS, min_size=2, max_size=5).map(composed_event)


@given(EVENTS)
def test_any_event_survives_its_json(event: PrivacyEvent) -> None:
    assert parse_event(event.to_json()) == event


@given(JSON)
@example({"class_name": "ComposedDpEvent", "events": [None, None]})
@example({"class_name": "GaussianDpEvent", "noise_multiplier": 1e300})
def test_any_json_is_an_event_or_refused(value: object) -> None:
    try:
        parse_event(value)  # type: ignore[arg-type]  # any JSON is the point
    except LedgerError:
        return
    raise AssertionError(f"{value!r} was taken for an event")


@given(st.binary(max_size=200))
@example(b"\n")
@example(b"{}\n")
@example(b'{"kind":"reserve","version":1}\n')
@example(b"[" * 10_000 + b"\n")
@example(b"9" * 5000 + b"\n")
def test_any_bytes_are_a_ledger_or_refused(raw: bytes) -> None:
    try:
        entries = parse_ledger_lines(raw)
    except LedgerError:
        return
    assert format_ledger_lines(entries) == raw


@given(st.binary(max_size=200) | JSON.map(canonical_json))
def test_any_bytes_are_a_countersignature_or_refused(raw: bytes) -> None:
    try:
        parsed = parse_countersignature(raw)
    except LedgerError:
        return
    assert parsed.to_bytes() == raw


class _Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["approve", "refuse", "withdraw"]), st.sampled_from(["a", "b"])),
        st.tuples(
            st.sampled_from(["reserve", "release"]),
            st.sampled_from(["a", "b"]),
            st.integers(0, 3),
        ),
        st.tuples(st.just("wait"), st.integers(-10, 100)),
    ),
    max_size=40,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
@example([("approve", "a"), *[("release", "a", number) for number in range(4)] * 2])
@example(
    [("approve", "a"), ("approve", "b"), *[("reserve", "ab"[n % 2], n % 4) for n in range(30)]]
)
def test_whatever_is_tried_the_ledger_verifies_and_stays_under_its_caps(
    steps: list[tuple[str, ...]],
) -> None:
    clock = _Clock()
    ledger = MemoryLedger(
        identity=LedgerIdentity(site="s", population="p", public_key=PUBLIC),
        signing_key=KEY,
        caps=CAPS,
        data_fingerprint="0" * 64,
        clock=clock,
    )
    outputs: dict[object, bytes] = {}
    for number, step in enumerate(steps):
        before, spent = ledger.head(), ledger.epsilon_spent(1e-6)
        try:
            _apply(ledger, clock, step, number, outputs)
        except (LedgerError, PrivacyBudgetExceeded):
            assert ledger.head() == before, "a refusal must write nothing"
            assert ledger.epsilon_spent(1e-6) == spent, "a refusal must spend nothing"
        assert ledger.epsilon_spent(1e-6) >= spent, "nothing is ever given back"
    for key, output in outputs.items():
        assert ledger.stored_output(key) == output  # type: ignore[arg-type]
    entries = parse_ledger_lines(ledger.export_lines())
    summary = verify_ledger(entries, public_key=PUBLIC, caps=CAPS, site="s", population="p")
    assert summary.epsilon <= CAPS.total_epsilon
    assert all(one.epsilon <= CAPS.study_epsilon for one in summary.studies)


def _apply(
    ledger: MemoryLedger,
    clock: _Clock,
    step: tuple[object, ...],
    number: int,
    outputs: dict[object, bytes],
) -> None:
    match step:
        case ("wait", int(seconds)):
            clock.now += timedelta(seconds=seconds)
        case ("approve" | "refuse" | "withdraw" as decision, str(study)):
            ledger.decide(
                decision,
                study_id=study,
                plan_hash="a" * 64,
                expires=START + timedelta(minutes=20),
                decided_by="x",
            )
        case (str(action), str(study), int(round_id)):
            spec = ReleaseSpec(
                study_id=study,
                plan_hash="a" * 64,
                round_id=round_id,
                purpose="statistics",
                mechanism="discrete_gaussian",
                event=gaussian_event(NOISE),
                parameters={"l2_sensitivity": 10.0, "std": 10 * NOISE},
            )
            reservation = ledger.reserve(spec)
            if action == "release":
                output = reservation.stored_output or b"output %d" % number
                ledger.commit(reservation, output)
                assert outputs.setdefault(spec.key, output) == output, "one output per key, ever"
