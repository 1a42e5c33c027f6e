"""What a server has said, on disk by the content of the question.

Asking a served LLM costs time and often money. An answer is a function of the model, its adapters
and the request, so it is kept under a hash of all of them, and a coordinator that is started again
asks only for what it does not have. A file that cannot be used costs time, never a study.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from pathlib import Path

from lada_secure.canonical import Json, canonical_json, sha256_hex

LOG = logging.getLogger(__name__)


class AnswerCache:
    """A SQLite file; many threads of one process may share it."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it. One that is damaged is put aside."""
        self._path = path
        self._lock = threading.Lock()
        self._file: sqlite3.Connection | None = None
        try:
            self._file = self._opened()
        except sqlite3.DatabaseError as error:
            LOG.warning("%s is not used (%s); the LLM is asked again", path, error)
            self._put_aside()
        except OSError as error:
            LOG.warning("cannot keep answers in %s: %s", path, error.strerror)

    def _opened(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = sqlite3.connect(self._path, check_same_thread=False)
        try:
            self._path.chmod(0o600)
            with file:
                file.execute(
                    "CREATE TABLE IF NOT EXISTS answers"
                    " (question BLOB PRIMARY KEY, answer BLOB NOT NULL, sha256 TEXT NOT NULL)"
                )
        except BaseException:
            file.close()
            raise
        return file

    def _put_aside(self) -> None:
        try:
            self._path.replace(self._path.with_suffix(".damaged"))
            self._file = self._opened()
        except (OSError, sqlite3.DatabaseError) as error:
            LOG.warning("cannot keep answers in %s: %s", self._path, error)

    def find(self, question: Json) -> Json:
        """The answer to a question, None where there is none or it is damaged."""
        with self._lock:
            if self._file is None:
                return None
            try:
                row = self._file.execute(
                    "SELECT answer, sha256 FROM answers WHERE question = ?", (_key(question),)
                ).fetchone()
            except sqlite3.DatabaseError as error:
                self._give_up(error)
                return None
        if row is None or sha256_hex(bytes(row[0])) != row[1]:
            return None
        found: Json = json.loads(row[0])
        return found

    def keep(self, question: Json, answer: Json) -> None:
        """Remember an answer, every number exactly. A disk that refuses ends the remembering."""
        raw = canonical_json(answer)
        with self._lock:
            if self._file is None:
                return
            try:
                with self._file:
                    self._file.execute(
                        "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)",
                        (_key(question), raw, sha256_hex(raw)),
                    )
            except sqlite3.DatabaseError as error:
                self._give_up(error)

    def _give_up(self, error: sqlite3.DatabaseError) -> None:
        LOG.warning("%s is not used any more (%s); a restart asks again", self._path, error)
        if self._file is not None:
            self._file.close()
        self._file = None

    def close(self) -> None:
        """Close the file; nothing is kept from now on."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None


def _key(question: Json) -> bytes:
    return sha256_hex(canonical_json(question)).encode("ascii")
