"""Bad input as a person meets it: at the command line and in the records file.

Ledgers of another site, clocks set back, full and read-only disks are in `test_ledger_rules`,
`test_ledger_store` and `test_ledger_reading`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lada_secure.data.record_faults import refuse
from lada_secure.data.records import inspect_records
from lada_secure.errors import ParameterError
from lada_secure.privacy.commands import app

GOOD_EPSILON = {"--noise-multiplier": "1", "--sampling-probability": "0.02", "--delta": "1e-5"}
GOOD_CALIBRATE = {"--epsilon": "1", "--sampling-probability": "0.02", "--delta": "1e-5"}

NOT_A_PROBABILITY = ["nan", "inf", "-inf", "0", "-0.1", "1.0000001"]
NOT_A_DELTA = ["nan", "inf", "0", "-1e-5", "1", "2"]


def refusal(command: str, options: dict[str, str]) -> str:
    """The message with which a command refuses its options."""
    arguments = [part for pair in options.items() for part in pair]
    result = CliRunner().invoke(app, [command, *arguments, "--steps", "10", "--json"])
    assert isinstance(result.exception, ParameterError), result.output
    assert result.output == "", "nothing half-printed"
    return str(result.exception)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "-1", "0.001", "1e7"])
def test_noise_that_is_none_is_refused_by_name(value: str) -> None:
    message = refusal("epsilon", {**GOOD_EPSILON, "--noise-multiplier": value})
    assert message.startswith("noise_multiplier: expected ")
    assert f"got {float(value)}" in message


@pytest.mark.parametrize("value", NOT_A_PROBABILITY)
def test_a_sampling_probability_outside_its_range_is_refused_by_name(value: str) -> None:
    for command, good in (("epsilon", GOOD_EPSILON), ("calibrate", GOOD_CALIBRATE)):
        message = refusal(command, {**good, "--sampling-probability": value})
        assert message.startswith("sampling_probability: expected above 0 and at most 1, got ")


@pytest.mark.parametrize("value", NOT_A_DELTA)
def test_a_delta_outside_its_range_is_refused_by_name(value: str) -> None:
    for command, good in (("epsilon", GOOD_EPSILON), ("calibrate", GOOD_CALIBRATE)):
        message = refusal(command, {**good, "--delta": value})
        assert message.startswith("target_delta: expected at least 1e-10 and below 1, got ")


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "501"])
def test_a_target_epsilon_outside_its_range_is_refused_by_name(value: str) -> None:
    message = refusal("calibrate", {**GOOD_CALIBRATE, "--epsilon": value})
    assert message.startswith("target_epsilon: expected above 0 and at most 500, got ")


ROW: dict[str, Any] = {
    "record_id": "r1",
    "unit": "patient-1",
    "question": "q",
    "choices": [],
    "answer": "a",
    "rationale": None,
}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        pytest.param({"unit": "patient-2"}, ":2: repeats the record_id of line 1", id="an id"),
        pytest.param({"record_id": "", "unit": "v"}, ":2: record_id is empty", id="no id"),
        pytest.param({"unit": None}, ":2: unit is null, expected text", id="null"),
        pytest.param({"unit": 7}, ":2: unit is a number, expected text", id="a number"),
    ],
)
def test_records_whose_unit_or_id_is_wrong_are_refused_by_line_and_field(
    tmp_path: Path, second: dict[str, Any], message: str
) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{json.dumps({**ROW, **second})}\n", encoding="utf-8")
    with pytest.raises(ParameterError, match=r"records\.jsonl") as refused:
        refuse([(path.name, fault) for fault in inspect_records(path).faults])
    assert message in str(refused.value)


def test_records_without_a_unit_column_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    row = {name: value for name, value in ROW.items() if name != "unit"}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(ParameterError, match=r"records\.jsonl:1: lacks unit; expected the keys"):
        refuse([(path.name, fault) for fault in inspect_records(path).faults])


@pytest.mark.parametrize("raw", [b"", b"\n\n", b"  \r\n"])
def test_an_empty_file_of_records_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(raw)
    with pytest.raises(ParameterError, match=r"records\.jsonl: holds no line"):
        refuse([(path.name, fault) for fault in inspect_records(path).faults])
