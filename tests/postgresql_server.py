"""A PostgreSQL server of a test's own, from the installed binaries, in a folder that goes with it.

The server refuses to run as root, so root starts it as the user `postgres` or `nobody`. It listens
on a socket in its folder alone, and dies with the process that started it.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

import pytest
from dies_with_parent import command

DEADLINE_S = 60
SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "16MB",
    # Killed processes lose nothing by it, only a machine that loses power would.
    "fsync": "off",
    "log_statement": "none",
}


def installed_binaries():
    """The newest installed server's folder of programs, or None."""
    found = [one.parent for one in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    on_path = shutil.which("postgres")
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    return max(
        found,
        key=lambda one: [int(part) for part in one.parts if part.isdigit()] or [0],
        default=None,
    )


def _account():
    """Popen arguments to run as somebody who is not root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    return None


class PostgresServer:
    """A cluster that was made, and is started and stopped as tests please."""

    def __init__(self):
        binaries, account = installed_binaries(), _account()
        if binaries is None or account is None:
            pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
        self._binaries, self._account = binaries, account
        # Not pytest's own folder: that one is closed to other users.
        self.folder = Path(tempfile.mkdtemp(prefix="lada-pg-"))
        if account:
            os.chown(self.folder, account["user"], account["group"])
        self._data = self.folder / "data"
        self._numbers = count()
        self._process = None
        made = subprocess.run(
            [
                *(binaries / "initdb", "-D", self._data, "-U", "lada", "-A", "trust"),
                *("--no-sync", "--encoding=UTF8", "--locale=C"),
            ],
            capture_output=True,
            text=True,
            cwd=self.folder,
            check=False,
            **account,
        )
        if made.returncode != 0:
            self.remove()
            pytest.skip(f"initdb does not work here: {made.stderr[-300:]}")

    def start(self):
        """Start the server and wait until it answers."""
        arguments = [f"--{name}={value}" for name, value in SETTINGS.items()]
        account = self._account
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command(
                    [self._binaries / "postgres", "-D", self._data, "-k", self.folder, *arguments],
                    how=signal.SIGQUIT,
                    account=(account["user"], account["group"]) if account else None,
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        deadline = time.monotonic() + DEADLINE_S
        while subprocess.run(
            [self._binaries / "pg_isready", "-q", "-h", self.folder, "-U", "lada"], check=False
        ).returncode:
            assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self, how=signal.SIGINT):
        """SIGINT ends all sessions in an orderly way, SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(DEADLINE_S)
            self._process = None

    def restart(self, how=signal.SIGINT):
        """Stop and start again."""
        self.stop(how)
        self.start()

    def new_database(self):
        """The URL of an empty database."""
        name = f"board_{next(self._numbers)}"
        self.execute("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, name):
        """The URL of a database by name."""
        return f"postgresql://lada@/{name}?host={self.folder}"

    def execute(self, name, *statements, values=None):
        """Run statements in a session of their own; the rows of the last one."""
        psycopg = pytest.importorskip("psycopg")
        with psycopg.connect(
            f"host={self.folder} user=lada dbname={name}", autocommit=True
        ) as session:
            for statement in statements:
                answer = session.execute(statement, values)
            return answer.fetchall() if answer.description else []

    def run(self, program, *arguments):
        """Run one of the server's own programs."""
        subprocess.run([self._binaries / program, *arguments], check=True)

    def remove(self):
        """Stop the server and delete its folder."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)


def name_of(url):
    """The database's name in a URL of ours."""
    return url.partition("@/")[2].partition("?")[0]
