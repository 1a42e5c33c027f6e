"""What is known of a running party, folded from its events. Pure: no clock, no disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lada_protocol.events import (
    Accuracy,
    Epsilon,
    Event,
    Failed,
    FellBack,
    Finished,
    LlmUpdate,
    Progress,
    StepFinished,
    StepStarted,
    Waiting,
)

LONG_WAIT_S = 5.0

Phase = Literal["starting", "working", "waiting", "finished", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyProgress:
    """The latest state of one party. `done` of `total` is 0 of 0 where a step does not count."""

    party: str
    phase: Phase = "starting"
    round_id: int = 0
    step: str = ""
    done: int = 0
    total: int = 0
    epsilon: float = 0.0
    cap: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    accuracies: tuple[float, ...] = ()
    wait: Waiting | None = None

    def after(self, event: Event) -> PartyProgress:
        """The state once `event` has happened."""
        match event:
            case StepStarted():
                now = replace(self, round_id=event.round_id, step=event.step, done=0, total=0)
                return replace(now, phase="working", wait=None)
            case StepFinished():
                up, down = self.bytes_up + event.bytes_up, self.bytes_down + event.bytes_down
                return replace(self, phase="working", bytes_up=up, bytes_down=down, wait=None)
            case Progress():
                return replace(self, phase="working", done=event.done, total=event.total, wait=None)
            case Epsilon():
                return replace(self, epsilon=event.epsilon, cap=event.cap)
            case Accuracy():
                return replace(self, accuracies=(*self.accuracies, event.accuracy))
            case Waiting():
                return replace(self, phase="waiting", wait=event)
            case Finished() | Failed():
                return replace(self, phase=event.event, wait=None)
            case _:
                return self


def event_line(event: Event, *, started_s: float) -> str | None:
    """One plain line for a log that is not a terminal; None for events too small to print."""
    match event:
        case StepFinished():
            what = (
                f"round {event.round_id + 1}, {event.step}: {event.seconds:.1f} s, "
                f"{bytes_text(event.bytes_up)} up, {bytes_text(event.bytes_down)} down"
            )
        case Accuracy():
            what = f"held-out accuracy {event.accuracy:.1%} of {event.n} records"
        case FellBack():
            what = f"round {event.round_id + 1} falls back: {event.because}"
        case LlmUpdate():
            what = (
                f"update of the LLM {'kept' if event.accepted else 'dropped'}: {event.used} site "
                f"paths, hold-out {event.right_before} to {event.right_after} of {event.holdout}"
            )
        case Waiting():
            # Short waits are the rule; one that goes on is told again now and then.
            if event.waited_s < LONG_WAIT_S:
                return None
            what = waiting_text(event, waited_s=event.waited_s)
        case Finished():
            what = "finished"
        case Failed():
            what = f"failed: {event.message}"
        case _:
            return None
    return f"{event.time_s - started_s:7.1f} s  {event.party:<12}  {what}"


def waiting_text(event: Waiting, *, waited_s: float) -> str:
    """For whom a party waits, since when and why."""
    return f"waits for {', '.join(event.awaited)} since {waited_s:.0f} s: {event.because}"


def bytes_text(count: float) -> str:
    """Bytes with a decimal unit: 999 B, 1.5 kB, 2.1 MB."""
    for limit, unit, digits in ((1e3, "B", 0), (1e6, "kB", 1), (1e9, "MB", 1)):
        if count < limit:
            return f"{count / limit * 1e3:.{digits}f} {unit}"
    return f"{count / 1e9:.1f} GB"
