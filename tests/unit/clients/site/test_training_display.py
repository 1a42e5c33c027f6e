"""What an operator sees while a site trains."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lada_clients.site.training_display import TrainingDisplay, time_text
from lada_secure.dpsgd.distillation import StepReport
from lada_secure.dpsgd.parameters import SignalToNoiseEstimate


def report(step: int, steps: int = 40, **changes: float | None) -> StepReport:
    values = {"public_loss": 1.25, "study_epsilon": 1.5, "seconds_left": 75.0}
    return StepReport(step=step, steps=steps, **{**values, **changes})  # type: ignore[arg-type]


def shown(reports: list[StepReport], *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=140)
    with TrainingDisplay(console, epsilon_cap=8.0) as display:
        for one in reports:
            display.show(2, one)
    return out.getvalue()


def test_a_terminal_gets_a_bar_with_step_public_loss_epsilon_and_time_left() -> None:
    text = shown([report(1), report(7)], terminal=True)
    for part in ("round 2 training", "7/40", "public loss 1.2500", "epsilon 1.5000 of 8", "1 min"):
        assert part in text
    assert "\x1b[?25h" in text, "the cursor is shown again"


def test_a_log_gets_a_plain_line_for_the_first_step_and_every_tenth_of_the_round() -> None:
    lines = shown([report(step) for step in range(1, 41)], terminal=False).splitlines()
    assert lines[0] == (
        "round 2, training step 1 of 40: public loss 1.2500, epsilon 1.5000 of 8, 1 min 15 s left"
    )
    assert [int(line.split()[4]) for line in lines] == [1, *range(4, 41, 4)]
    assert "\x1b" not in "".join(lines)


def test_a_round_of_few_steps_gets_a_line_for_each() -> None:
    lines = shown([report(step, 3) for step in range(1, 4)], terminal=False).splitlines()
    assert len(lines) == 3


def test_without_public_samples_the_loss_is_a_dash() -> None:
    assert "public loss -," in shown([report(1, public_loss=None)], terminal=False)


def test_what_would_be_trained_is_said_first_and_drowning_noise_is_a_warning() -> None:
    out = io.StringIO()
    with TrainingDisplay(Console(file=out, width=60), epsilon_cap=8.0) as display:
        display.begin(
            0, SignalToNoiseEstimate(parameters=1_234_567, signal_to_noise=0.05, hint="lower it")
        )
        display.begin(1, SignalToNoiseEstimate(parameters=12, signal_to_noise=2.0, hint=None))
    first, warning, second = out.getvalue().splitlines()
    assert "1,234,567 trainable parameters" in first
    assert "signal-to-noise 0.05" in first
    assert warning == "warning: lower it"
    assert second.startswith("round 1")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (61.0, "1 min 01 s"), (3725.0, "1 h 02 min"), (-1.0, "0 s")],
)
def test_times_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
