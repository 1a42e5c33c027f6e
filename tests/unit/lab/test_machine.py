"""How much memory processes use is looked at seldom where a look takes long."""

from __future__ import annotations

import pytest

from lada_lab import machine
from lada_lab.machine import PeakMemory


@pytest.mark.parametrize(("look_s", "looks"), [(0.001, 60), (0.1, 12)])
def test_looks_take_a_small_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch, look_s: float, looks: int
) -> None:
    now_s, taken = 0.0, 0

    def slow_look(_groups: object) -> int:
        nonlocal now_s, taken
        now_s += look_s
        taken += 1
        return 1_000 if taken == 2 else 10

    monkeypatch.setattr(machine, "group_memory_bytes", slow_look)
    monkeypatch.setattr(machine.time, "monotonic", lambda: now_s)
    peak = PeakMemory()
    while now_s < 60.0:
        peak.sample([])
        now_s += 0.01
    assert taken == pytest.approx(looks, abs=2)
    assert taken * look_s <= 0.025 * now_s
    assert peak.bytes == 1_000
