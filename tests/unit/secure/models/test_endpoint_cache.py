"""Answers that are kept by the content of their question."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from lada_secure.models.endpoint.cache import AnswerCache


def test_answers_come_back_after_a_restart_every_number_exactly(tmp_path: Path) -> None:
    first = AnswerCache(tmp_path / "llm" / "answers.sqlite")
    assert first.find(["score", 1]) is None
    first.keep(["score", 1], -0.1 - 0.2)
    first.keep(["write", "ä"], ["text", [1, 2]])
    first.close()
    again = AnswerCache(tmp_path / "llm" / "answers.sqlite")
    assert again.find(["score", 1]) == -0.1 - 0.2
    assert again.find(["write", "ä"]) == ["text", [1, 2]]
    assert again.find(["score", 2]) is None
    again.close()
    assert (tmp_path / "llm" / "answers.sqlite").stat().st_mode & 0o077 == 0


def test_a_damaged_file_is_put_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"no database" * 100)
    cache = AnswerCache(path)
    cache.keep("q", 1)
    assert cache.find("q") == 1
    cache.close()
    assert path.with_suffix(".damaged").exists()


def test_a_damaged_answer_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    cache = AnswerCache(path)
    cache.keep("q", 12)
    cache.close()
    with sqlite3.connect(path) as file:
        file.execute("UPDATE answers SET answer = ?", (b"13",))
    file.close()
    cache = AnswerCache(path)
    assert cache.find("q") is None
    cache.close()


def test_a_disk_that_refuses_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "llm").write_bytes(b"a file where the folder should be")
    cache = AnswerCache(tmp_path / "llm" / "answers.sqlite")
    cache.keep("q", 1)
    assert cache.find("q") is None
    path = tmp_path / "answers.sqlite"
    open_ = AnswerCache(path)
    with sqlite3.connect(path) as file:
        file.execute("DROP TABLE answers")
    file.close()
    open_.keep("q", 1)
    assert open_.find("q") is None
    open_.close()
