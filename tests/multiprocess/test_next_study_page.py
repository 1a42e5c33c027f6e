"""The page about the next study, as it stands: its commands are run, and say what it says."""

import contextlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from lada_lab.mock.preparation import child_environment, lada_command

PAGE = Path(__file__).parents[2] / "docs" / "next-study.md"
# What follows is about files that are lost or put back; `test_second_study` does the same.
END = "## Two studies at once"
HASH = re.compile(r"\b[0-9a-f]{12,16}\b")
DATE = re.compile(r"\b\d{4}-\d\d-\d\d")


def blocks(text):
    """Language and lines of each fenced block."""
    for language, body in re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", text):
        yield language, body.splitlines()


def steps(text):
    """Commands, each with the lines that the page shows under it."""
    found = []
    for language, lines in blocks(text):
        if language == "sh":
            found.append(("\n".join(lines), []))
            continue
        for line in lines:
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line != "...":
                found[-1][1].append(line)
    return found


def normal(line):
    return DATE.sub("DATE", HASH.sub("HASH", line))


def expected(line):
    """A pattern for one line of the page; three dots stand for anything."""
    return ".*".join(re.escape(part) for part in normal(line).split("..."))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_commands_of_the_page_say_what_it_says(tmp_path):
    text = PAGE.read_text().partition(END)[0]
    told = steps(text)
    assert len(told) > 15
    assert not [command for command, _ in told if "sed" in command and "auditor" in command]
    script = "".join(f"echo '@@{at}'\n{command}\n" for at, (command, _) in enumerate(told))
    environment = child_environment(os.environ)
    environment["PATH"] = f"{Path(lada_command()[0]).parent}:{os.environ['PATH']}"
    with subprocess.Popen(
        ["bash", "-c", f"exec 2>&1\n{script}"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            said = shell.communicate(timeout=2300)[0]
        finally:
            # Its services are in the group, too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, 9)
    answers = {int(at): body for at, body in re.findall(r"(?ms)^@@(\d+)\n(.*?)(?=^@@|\Z)", said)}
    for at, (command, lines) in enumerate(told):
        answer = [normal(line) for line in answers[at].splitlines()]
        for line in lines:
            pattern = expected(line)
            assert any(re.fullmatch(pattern, one) for one in answer), (
                f"{command}\nthe page says:\n{line}\nit said:\n{answers[at]}"
            )
    services = [tmp_path / "runs" / "studies" / party / "service.log" for party in
                ("auditor", "site-a", "site-b", "site-c")]  # fmt: skip
    for log in services:
        assert "Traceback" not in log.read_text(), log.read_text()
