"""Types what a page of docs/ shows, at machines that are folders, and compares what is printed.

Blocks marked `console` hold lines `MACHINE$ COMMAND`, and below each what it prints; three dots
stand for anything. `lada` commands run in this process, everything else in a shell.
"""

import os
import re
import shlex
import subprocess
from contextlib import chdir
from pathlib import Path

from typer.testing import CliRunner

from lada_secure.cli import build_app
from lada_secure.errors import LadaError

DOCS = Path(__file__).parents[2] / "docs"
_LINE = re.compile(r"^([a-z-]+)\$ (.+)\n((?:(?![a-z-]+\$ ).*\n)*)", re.MULTILINE)


class Page:
    """A page's commands by the heading that they stand under."""

    def __init__(self, name):
        self.name = name
        text = (DOCS / name).read_text(encoding="utf-8")
        self.sections = {}
        for section in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
            heading = section.split("\n", 1)[0]
            blocks = re.findall(r"^```console\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
            lines = [line for block in blocks for line in _LINE.findall(block)]
            if lines:
                self.sections[heading] = lines
        self.left = set(self.sections)


class PageShell:
    """Machines by name below `root`. said: texts of a page, and what they are here."""

    def __init__(self, root):
        self.root = root
        self.said = {}

    def type_section(self, page, heading, *, machines=None, without=()):
        """Type a section at the machines that it names.

        Args: machines: names of the page, and of others that do the same in their place.
          without: beginnings of commands that are somebody else's turn.
        """
        page.left.discard(heading)
        for machine, line, shown in page.sections[heading]:
            if line.startswith(tuple(without)):
                continue
            there = (machines or {}).get(machine, machine)
            self.type(there, line.replace(machine, there), shown.replace(machine, there))

    def type(self, machine, line, shown="", *, status=(0, 1)):
        """Type one line, and compare; what it printed."""
        for word, here in self.said.items():
            line = line.replace(word, here.get(machine, "") if isinstance(here, dict) else here)
        ended, printed = self._ran(machine, line)
        assert ended in status, (machine, line, ended, printed)
        wanted = "".join(
            ".*" if part == "..." else re.escape(part)
            for part in re.split(r"(\.\.\.)", shown.strip())
        )
        assert re.search(wanted, printed, re.DOTALL), (machine, line, shown, printed)
        return printed

    def _ran(self, machine, line):
        if line.startswith("lada ") and " | " not in line:
            with chdir(self.root / machine):
                done = CliRunner().invoke(build_app(), shlex.split(line)[1:])
            if isinstance(done.exception, LadaError):
                return done.exception.exit_status, f"{done.output}{done.exception}"
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise done.exception
            return done.exit_code, done.output
        done = subprocess.run(
            ["bash", "-ec", line],
            cwd=self.root / machine,
            env=os.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        return (0 if done.returncode == 0 else 100), done.stdout
