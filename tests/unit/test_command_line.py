"""The `lada` command as a user meets it: exit status, one message, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import tomli_w
from checked_run import change_toml

from lada_lab.mock.layout import RunLayout
from lada_lab.mock.preparation import settings_tables
from lada_lab.mock.presets import preset_for
from lada_secure import cli

LADA = Path(sys.executable).with_name("lada")


def lada(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command with an empty cache and no colours."""
    return subprocess.run(
        [LADA, *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "NO_COLOR": "1",
            "COLUMNS": "200",
            "LADA_CACHE_DIR": str(cwd / "cache"),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_names_every_group_and_the_first_command(tmp_path: Path) -> None:
    done = lada("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "lada mock run --preset tiny" in done.stdout
    groups = (
        *("audit", "auditor", "bench", "ca", "data", "init", "mock", "privacy", "server", "site"),
    )
    for group in groups:
        assert group in done.stdout


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "lada data import c.csv --mapping m.toml --out o > /dev/full",
            "standard output: No space",
        ),
        ("lada data map --help > /dev/full", "standard output: No space"),
        ("lada init site x <&-", "missing; name them"),
        ("mkfifo p.parquet; lada data import p.parquet --mapping m.toml --out o", "a regular file"),
        (f"lada data import c.csv --mapping m.toml --out {'x' * 300}", "File name too long"),
        (f"lada data import {'x' * 300}.csv --mapping m.toml --out o", "File name too long"),
    ],
)
def test_what_the_system_refuses_is_one_message(command: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("unit,question,answer\np1,Q?,a\n", encoding="utf-8")
    (tmp_path / "m.toml").write_text(
        'format = "lada-mapping/1"\n[record]\nunit = "unit"\nquestion = "question"\n'
        'answer = "answer"\n',
        encoding="utf-8",
    )
    done = subprocess.run(
        ["bash", "-c", command.replace("lada", str(LADA))],
        cwd=tmp_path,
        # Unbuffered, nothing would be left to fail when the interpreter ends.
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "PYTHONUNBUFFERED": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert told in done.stderr


@pytest.mark.parametrize("screen", ["2> /dev/full", "2>&1 | head -0", "2>&-"])
def test_where_no_message_can_be_written_the_status_still_says_it(
    screen: str, tmp_path: Path
) -> None:
    command = f"set -o pipefail; {LADA} data import nix.csv --mapping m.toml --out o {screen}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2


def test_an_error_of_the_system_names_standard_output_only_where_it_is_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise OSError("no such tokenizer")

    monkeypatch.setattr(cli, "build_app", lambda: fails)
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error (transport): no such tokenizer\n"


def test_ctrl_c_while_packages_are_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n", encoding="utf-8")
    code = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "from lada_secure.entry import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (130, "stopped\n")


def test_help_does_not_load_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom lada_secure.cli import build_app\nimport typer\n"
        "typer.main.get_command(build_app())\n"
        "print(sorted({'torch', 'transformers', 'tenseal', 'opacus'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "runner", ["lada_clients.site.runner", "lada_clients.auditor.runner", "lada_server.runner"]
)
def test_a_party_that_refuses_does_not_load_the_libraries_of_models(runner: str) -> None:
    code = (
        f"import sys, {runner}\n"
        "print(sorted({'torch', 'transformers', 'peft', 'opacus'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_report_schema_is_printed_as_json(tmp_path: Path) -> None:
    done = lada("mock", "schema", cwd=tmp_path)
    assert done.returncode == 0
    assert '"schema_version"' in done.stdout


def complete_settings(party: str) -> str:
    """A settings file of a party with all its keys; the files it names do not exist."""
    preset = preset_for("tiny", sites=3, rounds=None, seed=0)
    layout = RunLayout(root=Path("run").absolute(), site_ids=("site-a",))
    tables = settings_tables(
        layout,
        preset,
        port=7000,
        roster_sha256="ab" * 32,
        cache_dir=Path("cache"),
    )
    folder = {"site": layout.site("site-a"), "auditor": layout.auditor}.get(
        party, layout.coordinator
    )
    return tomli_w.dumps(tables[folder.settings])


def _busy_port() -> tuple[socket.socket, int]:
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.listen(1)
    return holder, holder.getsockname()[1]


CASES = {
    "fewer than three sites": (["--preset", "tiny", "--sites", "2"], "--sites: expected 3"),
    "an unknown preset": (["--preset", "huge"], "--preset: expected one of demo, tiny"),
    "no rounds": (["--preset", "tiny", "--rounds", "0"], "--rounds: expected 1"),
    "a negative seed": (["--preset", "tiny", "--seed", "-1"], "--seed: expected 0 or more"),
    "a port that is none": (["--preset", "tiny", "--port", "70000"], "--port: expected 0 to"),
    "text instead of a number": (["--preset", "tiny", "--sites", "three"], "'--sites'"),
    "an option that does not exist": (["--fast"], "--fast"),
}


@pytest.mark.parametrize(("options", "message"), CASES.values(), ids=CASES.keys())
def test_a_wrong_request_ends_with_status_2_and_writes_nothing(
    tmp_path: Path, options: list[str], message: str
) -> None:
    done = lada("mock", "run", "--out", "run", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_busy_port_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    holder, port = _busy_port()
    with holder:
        options = ("--preset", "tiny", "--port", str(port))
        done = lada("mock", "run", "--out", "run", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert f"--port {port}: cannot listen on 127.0.0.1:{port}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work", encoding="utf-8")
    done = lada("mock", "run", "--preset", "tiny", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "the folder is not empty" in done.stderr
    assert [one.name for one in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_missing_data_is_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    (tmp_path / "cache" / "prepared").mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    done = subprocess.run(
        [LADA, "mock", "prepare", "--model", "no-such-model", "--cache-dir", tmp_path / "cache"],
        env={**os.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "no-such-model" in done.stderr
    assert "Traceback" not in done.stderr
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("party", ["site", "auditor", "server"])
def test_an_unknown_settings_key_is_named_with_those_that_are_known(
    tmp_path: Path, party: str
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text('speed = "fast"\n' + complete_settings(party), encoding="utf-8")
    done = lada(party, "run", "--settings", settings, cwd=tmp_path)
    assert done.returncode == 2
    assert "unknown key 'speed'; known keys are " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("party", ["site", "auditor", "server"])
def test_a_missing_settings_file_is_named(tmp_path: Path, party: str) -> None:
    done = lada(party, "run", "--settings", "nowhere.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere.toml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("role", ["site", "auditor", "server"])
def test_ctrl_c_at_a_party_that_runs_says_how_to_go_on(checked_run: RunLayout, role: str) -> None:
    folder = {
        "site": checked_run.site("site-a"),
        "auditor": checked_run.auditor,
        "server": checked_run.coordinator,
    }[role]
    # Lines for machines: the sentence is one of them.
    change_toml(folder.settings, log={"format": "json"})
    process = subprocess.Popen(
        [LADA, role, "run", "--settings", folder.settings], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 100
    while not folder.events.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    said = [json.loads(line)["message"] for line in errors.splitlines()]
    assert said[-1] == "stopped; the same command goes on where this one was"
