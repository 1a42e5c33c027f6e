"""Progress events: what every process tells its operator, one canonical JSON object a line.

Events hold ids, counts, seconds and epsilon; never tensors, records, keys or shares. `Accuracy`
is measured on private records: it stays in the party's own folder. Writers and readers share the
types; on a line `round_id` is called `round`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Concatenate, Final, Literal, ParamSpec, TypeAlias

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)
from pydantic.dataclasses import dataclass

from lada_protocol.rounds.tasks import Wait
from lada_secure.allocation.fallback import Action, Cause
from lada_secure.canonical import canonical_json
from lada_secure.errors import ParameterError

EVENTS_FILE: Final = "events.jsonl"
MAX_EVENT_BYTES: Final = 64 * 1024
WAITING_INTERVAL_S = 10.0
# Between two looks of a process that runs. In a longer gap it was stopped, and nobody could answer.
LONGEST_GAP_S: Final = 30.0

P = ParamSpec("P")
_STRICT = ConfigDict(
    strict=True, extra="forbid", validate_by_name=True, validate_by_alias=True,
    serialize_by_alias=True,
)  # fmt: skip


@dataclass(frozen=True, slots=True, config=_STRICT)
class _Told:
    """What all events have. `round_id` starts at 0; `time_s` counts from the Unix epoch."""

    time_s: float
    party: str
    _: KW_ONLY
    round_id: Annotated[int, Field(alias="round")]
    step: str


@dataclass(frozen=True, slots=True, config=_STRICT)
class Joined(_Told):
    """A site goes on with this study; what it tells from here on is about it."""

    study_id: str
    plan_hash: str
    event: Literal["joined"] = "joined"


@dataclass(frozen=True, slots=True, config=_STRICT)
class StepStarted(_Told):
    """A step of a round began."""

    event: Literal["step_started"] = "step_started"


@dataclass(frozen=True, slots=True, config=_STRICT)
class StepFinished(_Told):
    """A step of a round is done; bytes are this party's traffic during the step."""

    seconds: float
    bytes_up: int
    bytes_down: int
    event: Literal["step_finished"] = "step_finished"


@dataclass(frozen=True, slots=True, config=_STRICT)
class Progress(_Told):
    """`done` of `total` units of work within a step.

    A site that trains adds the time left and, of committed steps, the loss on public texts.
    """

    done: int
    total: int
    public_loss: float | None = None
    seconds_left: float | None = None
    event: Literal["progress"] = "progress"

    @model_serializer(mode="wrap")
    def _as_written(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        row: dict[str, Any] = fields(self)
        if self.seconds_left is None:
            del row["public_loss"], row["seconds_left"]
        return row


@dataclass(frozen=True, slots=True, config=_STRICT)
class Epsilon(_Told):
    """What the site's ledger says is spent after a reservation, and the cap of this study."""

    epsilon: float
    cap: float
    event: Literal["epsilon"] = "epsilon"


@dataclass(frozen=True, slots=True, config=_STRICT)
class Accuracy(_Told):
    """Share of right answers on the site's own held-out records. Never leaves its folder.

    `when` is `before` the first round or `after` a round.
    """

    when: Literal["before", "after"]
    accuracy: float
    n: int
    seconds: float
    event: Literal["accuracy"] = "accuracy"


@dataclass(frozen=True, slots=True, config=_STRICT)
class FellBack(_Told):
    """A site did not follow its own choice of samples in a round, or did without the pool.

    See `lada_secure.allocation.fallback`; public and released figures alone.
    """

    action: Action
    cause: Cause
    because: str
    event: Literal["fallback"] = "fallback"


@dataclass(frozen=True, slots=True, config=_STRICT)
class LlmUpdate(_Told):
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
    llm_before: str
    llm_after: str
    event: Literal["llm_update"] = "llm_update"


@dataclass(frozen=True, slots=True, config=_STRICT)
class NewLedger(_Told):
    """The auditor had seen nothing of a site's ledger before."""

    site: str
    population: str
    restarted: bool
    entries: int
    event: Literal["new_ledger"] = "new_ledger"


@dataclass(frozen=True, slots=True, config=_STRICT)
class Traffic(_Told):
    """What a whole study has cost a site's line, without TLS and HTTP/2 framing."""

    messages_up: int
    messages_down: int
    bytes_up: int
    bytes_down: int
    event: Literal["traffic"] = "traffic"


@dataclass(frozen=True, slots=True, config=_STRICT)
class Waiting(_Told):
    """The party can go no further before others do. `waited_s` is the time it has waited.

    `until` is there where people have time to decide until then, ISO 8601 in UTC.
    """

    awaited: Annotated[tuple[str, ...], Field(alias="for")]
    waited_s: Annotated[float, Field(alias="since_s")]
    because: str
    until: str | None = None
    event: Literal["waiting"] = "waiting"

    @model_serializer(mode="wrap")
    def _as_written(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        row: dict[str, Any] = fields(self)
        if self.until is None:
            del row["until"]
        return row


@dataclass(frozen=True, slots=True, config=_STRICT)
class Finished(_Told):
    """The party has done all its work of the study."""

    event: Literal["finished"] = "finished"


@dataclass(frozen=True, slots=True, config=_STRICT)
class Failed(_Told):
    """The party gave up; `message` says why, `code` is that of the error."""

    message: str
    code: str = ""
    event: Literal["failed"] = "failed"


Event: TypeAlias = (
    Joined
    | StepStarted
    | StepFinished
    | Progress
    | Epsilon
    | Accuracy
    | FellBack
    | LlmUpdate
    | NewLedger
    | Traffic
    | Waiting
    | Finished
    | Failed
)
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def parse_event(line: bytes) -> Event:
    """Read one line.

    Raises: ParameterError: not a JSON object, or not exactly the fields of its event.
    """
    if len(line) > MAX_EVENT_BYTES:
        raise ParameterError(f"event of {len(line)} bytes, at most {MAX_EVENT_BYTES}")
    try:
        return _EVENT.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ParameterError(f"not an event: {where}: {first['msg']} in {line[:120]!r}") from error


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """Writes events of one party to a sink (a file, a test's list).

    Args: sink: takes one line including the line feed. clock: seconds since the epoch.
    """

    party: str
    sink: Callable[[bytes], None]
    clock: Callable[[], float]

    def write(
        self, kind: Callable[Concatenate[float, str, P], Event], *args: P.args, **fields: P.kwargs
    ) -> None:
        """Write one event: its type and its fields; time and party are added here."""
        event = kind(self.clock(), self.party, *args, **fields)
        self.sink(canonical_json(_EVENT.dump_python(event)) + b"\n")

    def waiting(self, task: Wait, *, since_s: float) -> None:
        """Say for whom this party waits, for how long already, and why."""
        self.write(
            Waiting,
            round_id=task.round_id,
            step=task.step,
            awaited=task.parties,
            waited_s=round(since_s, 3),
            because=f"{task.awaited} not here yet",
            until=task.until,
        )


@plain_dataclass(slots=True, kw_only=True)
class StallTimer:
    """How long a party has waited for the same thing, and when it last said so.

    Args: clock: monotonic seconds. The wall clock may jump, and a jump must use up nobody's time.
    """

    clock: Callable[[], float]
    _task: Wait | None = None
    _waited_s: float = 0.0
    _looked_s: float = 0.0
    _said_s: float = 0.0

    def wait(self, task: Wait, events: EventLog) -> float:
        """Note one more look at an unchanged wait; says so at once, then at every interval.

        A gap of more than `LONGEST_GAP_S` between two looks counts as that much: a process that
        was suspended for an hour has not given anybody an hour to answer.

        Returns: seconds waited for this so far.
        """
        now = self.clock()
        fresh = self._task is None or not task.is_like(self._task)
        gap_s = 0.0 if fresh else min(now - self._looked_s, LONGEST_GAP_S)
        self._waited_s = 0.0 if fresh else self._waited_s + gap_s
        if fresh or now - self._said_s >= WAITING_INTERVAL_S:
            events.waiting(task, since_s=self._waited_s)
            self._said_s = now
        self._task, self._looked_s = task, now
        return self._waited_s
