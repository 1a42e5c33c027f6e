"""Reading the event files of all parties: strict lines in, typed events out.

The writer is `lada_protocol.events`. Lines of a kind that this version does not know are left
out, so that an older view reads a newer party's file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

from lada_secure.errors import ParameterError

EVENTS_FILE = "events.jsonl"
MAX_EVENT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    """What all events have. `round_id` starts at 0; `time_s` counts from the Unix epoch."""

    time_s: float
    party: str
    round_id: int
    step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted(_Event):
    """A step of a round began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished(_Event):
    """A step of a round is done; bytes are this party's traffic during the step."""

    seconds: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(_Event):
    """`done` of `total` units of work within a step."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Epsilon(_Event):
    """What the site's ledger says is spent after a reservation, and the cap of this study."""

    epsilon: float
    cap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy(_Event):
    """Share of right answers on the site's own held-out records. Never leaves its folder.

    `when` is `before` the first round or `after` a round.
    """

    when: Literal["before", "after"]
    accuracy: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmUpdate(_Event):
    """The coordinator decided on an update of the LLM; the same figures stand in `llm_update`.

    `certainty_before` and `certainty_after` are sums over the hold-out in steps of the plan.
    """

    asked: int
    received: int
    used: int
    holdout: int
    right_before: int
    right_after: int
    certainty_before: int
    certainty_after: int
    accepted: bool
    llm_after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(_Event):
    """The party can go no further before others do. `waited_s` is the time it has waited."""

    awaited: tuple[str, ...]
    waited_s: float
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(_Event):
    """The party has done all its work of the study."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(_Event):
    """The party gave up; `message` says why."""

    message: str


Event: TypeAlias = (
    StepStarted
    | StepFinished
    | Progress
    | Epsilon
    | Accuracy
    | LlmUpdate
    | Waiting
    | Finished
    | Failed
)


def parse_event(line: bytes) -> Event | None:
    """Read one line; None for an event of a kind that this version does not know.

    Raises: ParameterError: not a JSON object, or a known event without its fields.
    """
    if len(line) > MAX_EVENT_BYTES:
        raise ParameterError(f"event of {len(line)} bytes, at most {MAX_EVENT_BYTES}")
    try:
        row = json.loads(line)
        return _build(row)
    except (ValueError, KeyError, TypeError) as error:
        raise ParameterError(f"not an event: {error!r} in {line[:120]!r}") from error


class _Common(TypedDict):
    time_s: float
    party: str
    round_id: int
    step: str


def _build(row: dict[str, Any]) -> Event | None:
    common: _Common = {
        "time_s": float(row["time_s"]),
        "party": str(row["party"]),
        "round_id": int(row["round"]),
        "step": str(row["step"]),
    }
    match row["event"]:
        case "step_started":
            return StepStarted(**common)
        case "step_finished":
            return StepFinished(
                **common,
                seconds=float(row["seconds"]),
                bytes_up=int(row["bytes_up"]),
                bytes_down=int(row["bytes_down"]),
            )
        case "progress":
            return Progress(**common, done=int(row["done"]), total=int(row["total"]))
        case "epsilon":
            return Epsilon(**common, epsilon=float(row["epsilon"]), cap=float(row["cap"]))
        case "accuracy":
            return Accuracy(
                **common,
                when="before" if row["when"] == "before" else "after",
                accuracy=float(row["accuracy"]),
                n=int(row["n"]),
            )
        case "llm_update":
            return LlmUpdate(
                **common,
                asked=int(row["asked"]),
                received=int(row["received"]),
                used=int(row["used"]),
                holdout=int(row["holdout"]),
                right_before=int(row["right_before"]),
                right_after=int(row["right_after"]),
                certainty_before=int(row["certainty_before"]),
                certainty_after=int(row["certainty_after"]),
                accepted=bool(row["accepted"]),
                llm_after=str(row["llm_after"]),
            )
        case "waiting":
            return Waiting(
                **common,
                awaited=tuple(str(party) for party in row["for"]),
                waited_s=float(row["since_s"]),
                because=str(row["because"]),
            )
        case "finished":
            return Finished(**common)
        case "failed":
            return Failed(**common, message=str(row["message"]))
        case _:
            return None


@dataclass(slots=True, kw_only=True)
class EventTail:
    """Follows one event file that another process appends to."""

    path: Path
    _offset: int = field(default=0, init=False)

    def read_new(self) -> tuple[Event, ...]:
        """Events in the complete lines since the last call; nothing while there is no file.

        Raises: ParameterError: a complete line that is not an event.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return ()
        # The last line may still be in the writer's hands.
        complete, _, _ = chunk.rpartition(b"\n")
        if not complete:
            return ()
        self._offset += len(complete) + 1
        events = (parse_event(line) for line in complete.split(b"\n") if line.strip())
        return tuple(event for event in events if event is not None)
