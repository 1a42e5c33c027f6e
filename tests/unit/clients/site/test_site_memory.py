"""What a site remembers between steps, and what it says of a damaged memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lada_clients.site.memory import SiteMemory
from lada_secure.allocation.data_valuation import ClusterValuation
from lada_secure.allocation.reward_model import RewardHistory, RoundObservations
from lada_secure.errors import ParameterError
from lada_secure.method.site_state import KnownRationale, SiteState
from lada_secure.models.adapters import AdapterWeights

STATE = SiteState(
    picks={0: (1, 4), 1: (9,)},
    trained=(0,),
    rationales=(
        KnownRationale(pool_index=1, cell=2, text="f9 9", p=0.25),
        KnownRationale(pool_index=4, cell=0, text="f3 3", p=1.0, drawn=("f1 1", ""), gain=-0.5),
    ),
    history=RewardHistory().with_round(
        RoundObservations(
            round_id=0,
            cells=np.array([2], dtype=np.int64),
            features=np.array([[0.25, 0.5]]),
            rewards=np.array([0.125]),
            samples=np.array([2], dtype=np.int64),
        )
    ),
    valuations=(ClusterValuation(cluster=1, paths=5, gain=0.5, std=0.25),),
    excess={0: (0, 3)},
    student=AdapterWeights(data=b"student"),
    dp_reference=AdapterWeights(data=b"reference"),
)


def test_a_new_site_knows_nothing(tmp_path: Path) -> None:
    assert SiteMemory(folder=tmp_path).load() == SiteState()


def test_a_state_is_read_back_as_it_was_kept(tmp_path: Path) -> None:
    memory = SiteMemory(folder=tmp_path)
    memory.keep(STATE)
    found = memory.load()
    assert found.history.to_json() == STATE.history.to_json()
    assert (found.picks, found.trained, found.rationales) == (
        STATE.picks,
        STATE.trained,
        STATE.rationales,
    )
    assert (found.valuations, found.excess) == (STATE.valuations, STATE.excess)
    assert (found.student, found.dp_reference) == (STATE.student, STATE.dp_reference)
    assert (tmp_path / "adapters-round-0.safetensors").read_bytes() == b"student"


@pytest.mark.parametrize("text", ["{}", "[3]", "no JSON", '{"picks":{"a":[]}}'])
def test_a_damaged_state_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "site-state.json").write_text(text)
    with pytest.raises(ParameterError, match=r"site-state\.json is damaged"):
        SiteMemory(folder=tmp_path).load()


@pytest.mark.parametrize(
    ("field", "value"),
    [("trained", ["0"]), ("excess", {"0": [0.5]}), ("history", [3]), ("rationales", [{"p": 1}])],
)
def test_a_state_with_one_damaged_field_is_named(tmp_path: Path, field: str, value: object) -> None:
    memory = SiteMemory(folder=tmp_path)
    memory.keep(STATE)
    path = tmp_path / "site-state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ParameterError, match=r"site-state\.json is damaged"):
        memory.load()


def test_adapters_that_are_not_those_of_the_state_are_refused(tmp_path: Path) -> None:
    memory = SiteMemory(folder=tmp_path)
    memory.keep(STATE)
    path = tmp_path / "adapters-round-0.safetensors"
    path.write_bytes(b"others")
    with pytest.raises(ParameterError, match="restore both"):
        memory.load()
    path.unlink()
    with pytest.raises(ParameterError, match="cannot read"):
        memory.load()


def test_adapters_without_a_state_are_no_new_study(tmp_path: Path) -> None:
    memory = SiteMemory(folder=tmp_path)
    memory.keep(STATE)
    (tmp_path / "site-state.json").unlink()
    with pytest.raises(ParameterError, match="restore the folder from its backup"):
        memory.load()


def test_the_adapters_of_every_round_are_named_by_the_state(tmp_path: Path) -> None:
    memory = SiteMemory(folder=tmp_path)
    memory.keep(STATE)
    second = AdapterWeights(data=b"second")
    memory.keep(replace(STATE, trained=(0, 1), student=second))
    assert memory.trained_rounds() == (0, 1)
    assert memory.student(0) == (STATE.student, True)
    assert memory.student(1) == (second, True)
    (tmp_path / "adapters-round-0.safetensors").write_bytes(b"others")
    with pytest.raises(ParameterError, match=r"is not what site-state\.json speaks of"):
        memory.student(0)


def test_a_state_of_before_names_the_last_rounds_adapters_alone(tmp_path: Path) -> None:
    memory = SiteMemory(folder=tmp_path)
    memory.keep(STATE)
    memory.keep(replace(STATE, trained=(0, 1), student=AdapterWeights(data=b"second")))
    path = tmp_path / "site-state.json"
    told = json.loads(path.read_text())
    del told["students"]
    path.write_text(json.dumps(told))
    assert memory.student(0) == (STATE.student, False)
    assert memory.student(1) == (AdapterWeights(data=b"second"), True)


def test_adapters_of_a_round_that_was_not_trained_are_refused(tmp_path: Path) -> None:
    memory = SiteMemory(folder=tmp_path)
    with pytest.raises(ParameterError, match="finished rounds: none yet"):
        memory.student(0)
    memory.keep(STATE)
    with pytest.raises(ParameterError, match=r"--round 3: .* finished rounds: 0"):
        memory.student(3)
