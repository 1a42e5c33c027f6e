"""What a model takes in a process of its own is what was forecast before it was loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lada_lab.micro.memory import MemoryCase, measure_memory
from lada_secure.errors import ParameterError
from lada_secure.models.placement import Placement

WEIGHTS = Path(os.environ.get("LADA_CACHE_DIR", Path.home() / ".cache" / "lada-secure"))
SMOLLM2 = WEIGHTS / "smollm2-135m"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc"
)


def case(folder, **changes):
    values = {
        "folder": folder,
        "placement": Placement(device="cpu"),
        "work": "step",
        "batch": 8,
        "length": 128,
    }
    return MemoryCase(**{**values, **changes})


@pytest.mark.slow
@pytest.mark.skipif(
    not SMOLLM2.is_dir(),
    reason="the weights of SmolLM2 are not in the cache; `make setup` puts them there",
)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="a private step of 8 x 128"),
        pytest.param({"batch": 1, "length": 1024}, id="a private step of 1 x 1024"),
        pytest.param(
            {"placement": Placement(device="cpu", gradient_checkpointing=True)},
            id="a private step of 8 x 128 with checkpointing",
        ),
        pytest.param(
            {
                "placement": Placement(device="cpu", dtype="bfloat16"),
                "work": "tuning",
                "batch": 4,
                "length": 64,
            },
            id="tuning on 4 x 64 in bfloat16",
        ),
        pytest.param({"work": "scores"}, id="scores of 8 x 128"),
    ],
)
def test_a_forecast_is_within_a_fifth_of_what_smollm2_then_takes(changes):
    found = measure_memory(case(SMOLLM2, **changes))
    print(found)
    for part in ("at_work", "whole"):
        assert abs(found[part]["error_percent"]) <= 20.0


@pytest.mark.slow
@pytest.mark.parametrize("work", ["step", "writing"])
def test_a_small_model_takes_what_was_forecast(tiny_slm, tiny_cache, work):
    found = measure_memory(case(tiny_cache / tiny_slm.name, work=work, batch=4, length=32))
    print(found)
    for part in ("at_work", "whole"):
        assert abs(found[part]["error_percent"]) <= 20.0
    assert found["lasting"]["weights"] == sum(
        one.nbytes for one in (*tiny_slm.model.parameters(), *tiny_slm.model.buffers())
    )


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="--work: expected one of step, tuning"):
        measure_memory(case(tmp_path, work="thinking"))
    with pytest.raises(ParameterError, match="has no config"):
        measure_memory(case(tmp_path))
