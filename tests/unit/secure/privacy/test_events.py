"""Events: one JSON spelling each, and none for what is unknown or not private."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lada_secure.canonical import canonical_json, parse_canonical_json
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.events import (
    ComposedEvent,
    DpSgdEvent,
    GaussianEvent,
    PrivacyEvent,
    composed_event,
    event_parts,
    parse_event,
)

GAUSSIAN = GaussianEvent(2.5)
TRAINING = DpSgdEvent(noise_multiplier=1.0, sampling_probability=0.02, steps=500)


@pytest.mark.parametrize(
    "event",
    [GAUSSIAN, GaussianEvent(2.5, count=3), TRAINING, composed_event([GAUSSIAN, TRAINING])],
    ids=["Gaussian", "three Gaussians", "DP-SGD", "both together"],
)
def test_an_event_survives_its_canonical_json(event: PrivacyEvent) -> None:
    raw = canonical_json(event.to_json())
    assert parse_event(parse_canonical_json(raw, max_bytes=10_000)) == event


def test_events_have_dp_accountings_vocabulary() -> None:
    assert GAUSSIAN.to_json() == {"class_name": "GaussianDpEvent", "noise_multiplier": 2.5}
    assert composed_event([GAUSSIAN, TRAINING]).to_json() == {
        "class_name": "ComposedDpEvent",
        "events": [GAUSSIAN.to_json(), TRAINING.to_json()],
    }
    assert TRAINING.to_json() == {
        "class_name": "SelfComposedDpEvent",
        "count": 500,
        "event": {
            "class_name": "PoissonSampledDpEvent",
            "sampling_probability": 0.02,
            "event": {"class_name": "GaussianDpEvent", "noise_multiplier": 1.0},
        },
    }


def test_composing_flattens_and_a_single_event_stays() -> None:
    nested = composed_event([composed_event([GAUSSIAN, TRAINING]), GAUSSIAN])
    assert event_parts(nested) == (GAUSSIAN, TRAINING, GAUSSIAN)
    assert composed_event([GAUSSIAN]) is GAUSSIAN
    with pytest.raises(ParameterError, match="parts"):
        ComposedEvent(parts=(GAUSSIAN,))


@pytest.mark.parametrize("noise", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-3, 1e7])
def test_absurd_noise_is_refused(noise: float) -> None:
    with pytest.raises(ParameterError, match=r"^noise_multiplier: "):
        GaussianEvent(noise)
    with pytest.raises(ParameterError, match=r"^noise_multiplier: "):
        DpSgdEvent(noise_multiplier=noise, sampling_probability=0.1, steps=1)


@pytest.mark.parametrize("q", [math.nan, 0.0, -0.1, 1.0001, math.inf])
def test_a_sampling_probability_outside_its_range_is_refused(q: float) -> None:
    with pytest.raises(ParameterError, match=r"^sampling_probability: "):
        DpSgdEvent(noise_multiplier=1.0, sampling_probability=q, steps=1)


@pytest.mark.parametrize("count", [0, -1, 10**10, True, 2.0])
def test_a_count_outside_its_range_is_refused(count: Any) -> None:
    with pytest.raises(ParameterError, match=r"^steps: "):
        DpSgdEvent(noise_multiplier=1.0, sampling_probability=0.1, steps=count)
    with pytest.raises(ParameterError, match=r"^count: "):
        GaussianEvent(1.0, count=count)


def inner(name: str, **fields: Any) -> dict[str, Any]:
    return {"class_name": name, **fields}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(inner("NonPrivateDpEvent"), "not private", id="a non-private release"),
        pytest.param(inner("UnsupportedDpEvent"), "unknown", id="an unsupported one"),
        pytest.param(inner("NoOpDpEvent"), "unknown", id="one that claims to cost nothing"),
        pytest.param(inner("LaplaceDpEvent", noise_multiplier=1.0), "unknown", id="not shipped"),
        pytest.param(inner("GaussianDpEvent"), "missing", id="no noise"),
        pytest.param(
            inner("GaussianDpEvent", noise_multiplier=1), "noise_multiplier", id="a whole number"
        ),
        pytest.param(
            inner("GaussianDpEvent", noise_multiplier=0.0), "noise_multiplier", id="zero noise"
        ),
        pytest.param(
            inner("GaussianDpEvent", noise_multiplier=1.0, extra=1), "unknown fields", id="extra"
        ),
        pytest.param(
            inner(
                "SelfComposedDpEvent",
                count=1,
                event=inner("GaussianDpEvent", noise_multiplier=1.0),
            ),
            "one spelling",
            id="another spelling of a single Gaussian",
        ),
        pytest.param(
            inner(
                "SelfComposedDpEvent",
                count=True,
                event=inner("GaussianDpEvent", noise_multiplier=1.0),
            ),
            "count",
            id="a truth value as a count",
        ),
        pytest.param(
            inner("SelfComposedDpEvent", count=2, event=inner("NonPrivateDpEvent")),
            "not private",
            id="non-private inside",
        ),
        pytest.param(
            inner(
                "SelfComposedDpEvent",
                count=2,
                event=inner(
                    "PoissonSampledDpEvent",
                    sampling_probability=1.5,
                    event=inner("GaussianDpEvent", noise_multiplier=1.0),
                ),
            ),
            "sampling_probability",
            id="sampling above one",
        ),
        pytest.param(
            inner("ComposedDpEvent", events=[GAUSSIAN.to_json()]), "parts", id="composed of one"
        ),
        pytest.param(inner("ComposedDpEvent", events=3), "expected a list", id="no list"),
        pytest.param([], "JSON object", id="not an object"),
        pytest.param(None, "JSON object", id="nothing"),
    ],
)
def test_json_that_is_no_known_event_is_refused(value: Any, message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        parse_event(value)
