"""A cached folder is complete or not there, whoever builds it and whatever fails."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lada_lab.worlds.model_cache import cached_folder
from lada_secure.errors import ParameterError


def test_a_cached_folder_is_built_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "weights").write_text("done", encoding="utf-8")

    first = cached_folder(tmp_path / "cache", "model", build)
    assert cached_folder(tmp_path / "cache", "model", build) == first
    assert (first / "weights").read_text(encoding="utf-8") == "done"
    assert len(calls) == 1


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "weights").write_text("half", encoding="utf-8")
        raise ParameterError("no")

    with pytest.raises(ParameterError, match="no"):
        cached_folder(tmp_path, "model", build)
    assert list(tmp_path.iterdir()) == []


def test_readers_never_see_a_folder_that_is_being_built(tmp_path: Path) -> None:
    seen: list[bool] = []

    def build(folder: Path) -> None:
        (folder / "weights").write_text("half", encoding="utf-8")
        seen.append((tmp_path / "model").exists())

    cached_folder(tmp_path, "model", build)
    assert seen == [False]


def test_two_builders_at_once_both_get_the_whole_folder(tmp_path: Path) -> None:
    barrier = threading.Barrier(2, timeout=30)
    found: list[str] = []

    def build(folder: Path) -> None:
        (folder / "weights").write_text("done", encoding="utf-8")
        barrier.wait()

    def work() -> None:
        folder = cached_folder(tmp_path, "model", build)
        found.append((folder / "weights").read_text(encoding="utf-8"))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["done", "done"]
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(ParameterError, match="cannot write this cache"):
        cached_folder(blocked / "cache", "model", lambda folder: None)
