"""With `format = "json"` every line on standard error is JSON, whoever writes it and when."""

import json
import subprocess
import sys

import pytest

BEGIN = """
import logging, os, subprocess, sys, threading, warnings
from pathlib import Path
from lada_secure.logs import begin_logs, progress_console
begin_logs(Path(sys.argv[1]))
"""
# What is written, and a part of the line that it must become, with the line's logger.
CASES = {
    "a message of our own": (
        "logging.getLogger('lada_clients.x').warning('own', extra={'round': 3})",
        {"logger": "lada_clients.x", "message": "own", "level": "warning", "round": 3},
    ),
    "a message of another package": (
        "logging.getLogger('elsewhere').warning('foreign')",
        {"logger": "elsewhere", "message": "foreign"},
    ),
    "a package with a handler of its own, as transformers has": (
        "log = logging.getLogger('their'); log.propagate = False\n"
        "log.addHandler(logging.StreamHandler(sys.stderr)); log.warning('theirs')",
        {"logger": "stderr", "message": "theirs"},
    ),
    "a warning of a library": (
        "warnings.warn('old function')",
        {"logger": "py.warnings", "level": "warning"},
    ),
    "native code": (
        "os.write(2, b'native, with a broken byte \\xff, not ended')",
        {"logger": "stderr", "message": "native, with a broken byte \\xff, not ended"},
    ),
    "a child process": (
        "subprocess.run([sys.executable, '-c', 'import sys; print(1, file=sys.stderr)'])",
        {"logger": "stderr", "message": "1"},
    ),
    "how far a party is, whatever the level": (
        "progress_console().print('round 0, step 1')",
        {"logger": "lada_secure.progress", "level": "info", "message": "round 0, step 1"},
    ),
    "a thread that fails": (
        "def fails():\n    raise ValueError('a cell of a record')\n"
        "one = threading.Thread(target=fails); one.start(); one.join()",
        {"logger": "lada_secure.logs", "exception": "ValueError", "level": "critical"},
    ),
    "an error that ends the process": (
        "def fails():\n    raise ValueError('a cell of a record')\nfails()",
        {"logger": "lada_secure.logs", "exception": "ValueError", "level": "critical"},
    ),
    "an object that fails while it goes": (
        "class Fails:\n    def __del__(self):\n        raise ValueError('a cell of a record')\n"
        "one = Fails(); del one",
        {"logger": "lada_secure.logs", "exception": "ValueError"},
    ),
    "the last words of a crash": (
        "os.write(2, b'terminate called'); os.abort()",
        {"logger": "stderr", "message": "terminate called"},
    ),
}


def said(settings, code):
    """Standard error of a process that logs as a settings file says, by lines."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code, str(settings)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stderr.splitlines()


@pytest.mark.parametrize("case", CASES)
def test_every_line_is_json(case, tmp_path):
    code, expected = CASES[case]
    settings = tmp_path / "site.toml"
    settings.write_text('speed = 1\n[log]\nformat = "json"\nlevel = "warning"\n')
    (line,) = map(json.loads, said(settings, code))
    assert {name: line.get(name) for name in expected} == expected
    assert "a cell of a record" not in str(line)
    if "exception" in expected:
        assert "<string>" in line["traceback"]


def test_text_stays_text(tmp_path):
    settings = tmp_path / "site.toml"
    settings.write_text("[log]\n")
    for case in ("a child process", "how far a party is, whatever the level"):
        code, expected = CASES[case]
        assert said(settings, code)[0].startswith(expected["message"][:20])


@pytest.mark.parametrize("role", ["site", "auditor", "server"])
def test_a_command_that_fails_before_it_has_read_its_settings_says_so_in_json(role, tmp_path):
    settings = tmp_path / "settings.toml"
    settings.write_text('speed = 1\n[log]\nformat = "json"\n')
    main = "from lada_secure.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", main, role, "run", "--settings", str(settings)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, line["code"], line["exit_status"]) == (2, "parameter", 2)
    assert "unknown key 'speed'" in line["message"]
