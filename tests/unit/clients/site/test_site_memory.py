"""What a site remembers between rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada_clients.site.memory import JudgedRationale, KnownRationale, SiteMemory
from lada_secure.allocation.data_valuation import ClusterValuation
from lada_secure.errors import ParameterError


def known(sample: int, p: float, cell: int = 0) -> KnownRationale:
    return KnownRationale(sample=sample, cell=cell, p=p)


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
    memory.keep_adapters(0, b"weights")
    memory.keep_adapters(1, b"weights")
    assert memory.picked_before(1) == {1, 4}
    assert memory.picked_before(2) == {1, 4, 9}


def test_picks_of_a_round_that_the_site_was_left_out_of_change_nothing_later(
    tmp_path: Path,
) -> None:
    # Nobody has checked the scores that they follow from: those of a coordinator that sends one
    # site a ladder and takes it out of the sum would be read from what the site no longer wants.
    memory = SiteMemory(folder=tmp_path)
    memory.keep_picks(0, [1, 4])
    memory.keep_picks(1, [4, 9])
    memory.keep_adapters(1, b"weights")
    assert memory.picked_before(2) == {4, 9}


def judged(sample: int, gain: float) -> JudgedRationale:
    return JudgedRationale(sample=sample, cell=1, path="f9 9", own_paths=["f3 3"], gain=gain)


def test_judged_paths_are_replaced_and_read_back_by_sample(tmp_path: Path) -> None:
    memory = SiteMemory(folder=tmp_path)
    assert memory.judged_paths() == ()
    memory.keep_judged_paths([judged(7, 0.5), judged(2, -0.25)])
    assert memory.judged_paths() == (judged(2, -0.25), judged(7, 0.5))
    memory.keep_judged_paths([judged(2, 0.75)])
    assert memory.judged_paths() == (judged(2, 0.75),)


@pytest.mark.parametrize("text", ["{}", "[3]", '[{"sample":0}]', '[{"sample":0,"gain":1e999}]'])
def test_a_damaged_file_of_judged_paths_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "judged-paths.json").write_text(text)
    with pytest.raises(ParameterError, match=r"judged-paths\.json is damaged|not JSON|expected"):
        SiteMemory(folder=tmp_path).judged_paths()


def test_a_rounds_guide_is_kept_beside_its_students(tmp_path: Path) -> None:
    memory = SiteMemory(folder=tmp_path)
    memory.keep_adapters(0, b"student")
    memory.keep_guide(0, b"guide")
    assert (memory.adapters(0), memory.guide(0), memory.guide(1)) == (b"student", b"guide", None)


def tried(cluster: int, gain: float) -> ClusterValuation:
    return ClusterValuation(cluster=cluster, paths=5, gain=gain, std=0.25)


def test_trials_of_all_rounds_are_kept_and_a_retried_round_replaces_its_own(
    tmp_path: Path,
) -> None:
    memory = SiteMemory(folder=tmp_path)
    assert memory.trials() == ()
    memory.keep_trials(0, [tried(0, -1.0)])
    memory.keep_trials(1, [tried(0, 0.5), tried(2, 0.25)])
    memory.keep_trials(0, [tried(0, -0.5)])
    assert memory.trials() == (tried(0, -0.5), tried(0, 0.5), tried(2, 0.25))


@pytest.mark.parametrize("text", ["{}", "[3]", '[{"cluster":"a","paths":1,"gain":0,"std":0}]'])
def test_damaged_trials_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "trials-round-0.json").write_text(text)
    with pytest.raises(ParameterError, match=r"trials-round-0\.json is damaged"):
        SiteMemory(folder=tmp_path).trials()
