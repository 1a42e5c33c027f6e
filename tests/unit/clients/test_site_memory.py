"""What a site remembers between rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada_clients.site.memory import KnownPath, SiteMemory
from lada_secure.errors import ParameterError


def known(sample: int, p: float, cell: int = 0) -> KnownPath:
    return KnownPath(sample=sample, cell=cell, p=p)


def test_a_new_site_knows_nothing(tmp_path: Path) -> None:
    memory = SiteMemory(folder=tmp_path)
    assert memory.known_paths() == ()
    assert memory.picks(0) is None
    assert memory.picked_before(3) == set()


def test_what_is_known_of_a_path_is_replaced_and_other_paths_are_kept(tmp_path: Path) -> None:
    memory = SiteMemory(folder=tmp_path)
    memory.keep_known_paths([known(7, 0.25), known(2, 1.0)])
    memory.keep_known_paths([known(7, 0.5, cell=3), known(1, 0.0)])
    assert memory.known_paths() == (known(1, 0.0), known(2, 1.0), known(7, 0.5, cell=3))


@pytest.mark.parametrize(
    "text",
    ["{}", "[3]", '[{"sample":0,"cell":0}]', '[{"sample":0,"cell":0,"p":1.5}]', '[{"sample":-1}]'],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "known-paths.json").write_text(text)
    with pytest.raises(ParameterError, match=r"known-paths\.json is damaged"):
        SiteMemory(folder=tmp_path).known_paths()


def test_picks_of_earlier_rounds_are_put_together(tmp_path: Path) -> None:
    memory = SiteMemory(folder=tmp_path)
    memory.keep_picks(0, [1, 4])
    memory.keep_picks(1, [4, 9])
    assert memory.picked_before(1) == {1, 4}
    assert memory.picked_before(2) == {1, 4, 9}
