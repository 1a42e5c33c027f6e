"""Logs of a process: one JSON object a line on request, with ids and counts as fields."""

import io
import json
import logging

import pytest
from pydantic import ValidationError

from lada_secure.logs import JsonFormatter, LogSettings, configure_logs


def logged(settings, act, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    configure_logs(settings)
    act(logging.getLogger("lada_server.rpc.calls"))
    return out.getvalue().splitlines()


def test_json_lines_hold_level_message_and_the_fields_that_were_given(monkeypatch):
    def act(log):
        log.info("not shown")
        log.warning("refused a call of %s\nof many", "bank", extra={"peer": "bank", "count": 3})

    (line,) = logged(LogSettings(format="json"), act, monkeypatch)
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "warning",
        "logger": "lada_server.rpc.calls",
        "message": "refused a call of bank\nof many",
        "peer": "bank",
        "count": 3,
    }


def test_text_is_the_default_and_a_second_call_does_not_double_lines(monkeypatch):
    configure_logs(LogSettings())
    (line,) = logged(LogSettings(), lambda log: log.error("once"), monkeypatch)
    assert line.endswith("ERROR lada_server.rpc.calls: once")


def test_an_exception_shows_its_type_and_not_its_text():
    try:
        raise ValueError("a record's content")
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": __import__("sys").exc_info()})
    line = JsonFormatter().format(record)
    assert json.loads(line)["exception"] == "ValueError"
    assert "record's" not in line


@pytest.mark.parametrize("wrong", [{"format": "xml"}, {"level": "loud"}, {"file": "x"}])
def test_other_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        LogSettings(**wrong)
