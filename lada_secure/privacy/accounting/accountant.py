"""Epsilon of composed releases: dp-accounting's PLD is the one source of truth, RDP checks it.

`composition` holds how; here is who asks: an accountant that goes on, and one-off questions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from lada_secure.errors import ParameterError
from lada_secure.privacy.accounting.composition import (
    EPSILON_LIMIT,
    Composition,
    Group,
    epsilon_from_rdp,
    rdp_vector,
)
from lada_secure.privacy.accounting.events import (
    DpSgdEvent,
    EventPart,
    GaussianEvent,
    PrivacyEvent,
    event_parts,
)

# Each composition gives up to 1e-15 of probability to infinite loss, and FFT rounding is of the
# same order: after 10,000 entries a delta below this would be about numerics, not privacy.
MIN_TARGET_DELTA = 1e-10


def check_target_delta(value: float) -> float:
    """Refuse what is outside [1e-10, 1). Returns it as a float."""
    value = float(value)
    if not MIN_TARGET_DELTA <= value < 1.0:
        raise ParameterError(
            f"target_delta: expected at least {MIN_TARGET_DELTA:g} and below 1, got {value}"
        )
    return value


def check_target_epsilon(value: float) -> float:
    """Refuse what is not a finite epsilon in (0, 500]. Returns it as a float."""
    value = float(value)
    if not math.isfinite(value) or not 0.0 < value <= EPSILON_LIMIT:
        raise ParameterError(
            f"target_epsilon: expected above 0 and at most {EPSILON_LIMIT:g}, got {value}"
        )
    return value


class PldAccountant:
    """Composes releases one by one and answers for their sum, without starting over.

    The composed distribution is kept; a further release costs one convolution, however many
    came before. Gaussian releases are merged exactly. Not safe for concurrent threads.
    """

    __slots__ = ("_candidate", "_now", "_pending")

    def __init__(self) -> None:
        self._now = Composition()
        self._pending: list[PrivacyEvent] = []
        self._candidate: tuple[PrivacyEvent, Composition] | None = None

    def compose(self, event: PrivacyEvent) -> None:
        """Count one release. The work is done when an epsilon is next asked for."""
        if self._candidate is not None and self._candidate[0] == event and not self._pending:
            self._now = self._candidate[1]
        else:
            self._pending.append(event)
        self._candidate = None

    def _flushed(self) -> Composition:
        if self._pending:
            self._now = self._now.plus(self._pending)
            self._pending = []
        return self._now

    def _with(self, event: PrivacyEvent) -> Composition:
        base = self._flushed()
        if self._candidate is None or self._candidate[0] != event:
            self._candidate = (event, base.plus([event]))
        return self._candidate[1]

    def epsilon(self, target_delta: float) -> float:
        """Epsilon of everything composed so far, by PLD; `math.inf` above 500.

        Raises: ParameterError: delta outside [1e-10, 1). LocalProtocolError: PLD above RDP.
        """
        return self._flushed().checked_epsilon(check_target_delta(target_delta))

    def epsilon_with(self, event: PrivacyEvent, target_delta: float) -> float:
        """Epsilon after one more release, which is not counted yet."""
        return self._with(event).checked_epsilon(check_target_delta(target_delta))

    def epsilon_rdp(self, target_delta: float) -> float:
        """The cross-check: epsilon by Renyi DP, an upper bound that is looser than PLD."""
        return self._flushed().epsilon_rdp(check_target_delta(target_delta))

    def epsilon_rdp_with(self, event: PrivacyEvent, target_delta: float) -> float:
        """`epsilon_rdp` after one more release, which is not counted yet."""
        return self._with(event).epsilon_rdp(check_target_delta(target_delta))


class Spending:
    """What a ledger has cost: over all its studies, and each of them alone."""

    __slots__ = ("_by_study", "_total")

    def __init__(self) -> None:
        self._total = PldAccountant()
        self._by_study: dict[str, PldAccountant] = {}

    def count(self, event: PrivacyEvent, *studies: str) -> None:
        """Count one event for all of these studies, and once in total."""
        self._total.compose(event)
        for study_id in studies:
            self._by_study.setdefault(study_id, PldAccountant()).compose(event)

    def of(self, study_id: str | None = None) -> PldAccountant:
        """What one study has cost, or all of them."""
        if study_id is None:
            return self._total
        return self._by_study.get(study_id) or PldAccountant()

    def after(self, event: PrivacyEvent, study_id: str, target_delta: float) -> dict[str, float]:
        """What a reservation states once this event is counted, by the names of its fields."""
        study, total = self.of(study_id), self._total
        by_pld = study.epsilon_with(event, target_delta)
        by_rdp = study.epsilon_rdp_with(event, target_delta)
        alone = self._by_study.keys() <= {study_id}
        return {
            "study_epsilon_after": by_pld,
            "study_epsilon_rdp_after": by_rdp,
            "epsilon_after": by_pld if alone else total.epsilon_with(event, target_delta),
            "epsilon_rdp_after": by_rdp if alone else total.epsilon_rdp_with(event, target_delta),
        }


def epsilon(events: Sequence[PrivacyEvent], *, target_delta: float) -> float:
    """Epsilon of all events together, by PLD under add/remove of one unit.

    Returns: never below the exact value; rarely more than 1.5% above. 0 without events,
        `math.inf` above 500.
    Raises: ParameterError: delta outside [1e-10, 1). LocalProtocolError: PLD above RDP.
    """
    check_target_delta(target_delta)
    return Composition().plus(merged_parts(events)).checked_epsilon(target_delta)


def epsilon_rdp(events: Sequence[PrivacyEvent], *, target_delta: float) -> float:
    """Epsilon of all events together by Renyi DP, for cross-checking `epsilon`.

    Raises: ParameterError: delta outside [1e-10, 1).
    """
    check_target_delta(target_delta)
    precision, steps = 0.0, dict[Group, int]()
    for part in merged_parts(events):
        if isinstance(part, GaussianEvent):
            precision += part.count / part.noise_multiplier**2
        else:
            steps[part.noise_multiplier, part.sampling_probability] = part.steps
    return epsilon_from_rdp(rdp_vector(precision, steps), target_delta)


def merged_parts(events: Sequence[PrivacyEvent]) -> list[EventPart]:
    """The same releases with the steps of equal DP-SGD settings added up."""
    merged, steps = list[EventPart](), Counter[Group]()
    for part in (part for event in events for part in event_parts(event)):
        if isinstance(part, GaussianEvent):
            merged.append(part)
        else:
            steps[part.noise_multiplier, part.sampling_probability] += part.steps
    merged += (
        DpSgdEvent(noise_multiplier=s, sampling_probability=q, steps=n)
        for (s, q), n in steps.items()
    )
    return merged
