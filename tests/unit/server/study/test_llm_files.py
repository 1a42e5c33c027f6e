"""What the LLM said of the pool is kept over a restart, exactly, and never believed if damaged."""

import numpy as np
import pytest

from lada_secure.errors import TransportError
from lada_secure.method.llm_round import PoolView
from lada_secure.models.confidence import Answers
from lada_server.study.llm_files import ANSWERS, VIEW, InferenceCache, LlmFiles

ABOUT = ["plan", "tiny-llm", "0" * 64, []]
SEEN = PoolView(
    features=np.random.default_rng(1).random((7, 4)), cells=np.arange(7, dtype=np.int64) % 4
)
SAID = Answers(
    paths=("1 + 2 = 3", "", "\u00e4"),
    right=np.array([True, False, True]),
    confidence=np.array([1 / 3, 0.0, 1.0]),
)


class Asked(Exception):
    """The LLM was asked, so nothing was kept."""


def ask():
    raise Asked


@pytest.fixture
def looks(tmp_path):
    return InferenceCache(folder=tmp_path / "llm")


@pytest.mark.parametrize(("look", "result"), [(VIEW, SEEN), (ANSWERS, SAID)])
def test_the_llm_is_asked_where_nothing_was_kept_and_not_again(looks, look, result):
    with pytest.raises(Asked):
        looks.remembered(look, ABOUT, ask)
    assert looks.remembered(look, ABOUT, lambda: result) is result
    looks.remembered(look, ABOUT, ask)


def test_views_and_answers_come_back_bit_by_bit(looks):
    looks.remembered(VIEW, ABOUT, lambda: SEEN)
    looks.remembered(ANSWERS, ABOUT, lambda: SAID)
    again = InferenceCache(folder=looks.folder)
    view, answers = again.remembered(VIEW, ABOUT, ask), again.remembered(ANSWERS, ABOUT, ask)
    assert view.features.tobytes() == SEEN.features.tobytes()
    assert view.cells.tobytes() == SEEN.cells.tobytes()
    assert answers.paths == SAID.paths
    assert answers.right.tolist() == SAID.right.tolist()
    assert answers.confidence.tobytes() == SAID.confidence.tobytes()


@pytest.mark.parametrize("place", range(4))
def test_another_plan_model_version_or_set_of_samples_is_another_look(looks, place):
    looks.remembered(VIEW, ABOUT, lambda: SEEN)
    other = [*ABOUT[:place], "other", *ABOUT[place + 1 :]]
    with pytest.raises(Asked):
        looks.remembered(VIEW, other, ask)


def test_a_damaged_file_is_passed_over_and_only_its_owner_may_read_it(looks):
    looks.remembered(VIEW, ABOUT, lambda: SEEN)
    (path,) = looks.folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    raw = bytearray(path.read_bytes())
    raw[-30] ^= 1
    for damaged in (bytes(raw), bytes(raw[:40])):
        path.write_bytes(damaged)
        with pytest.raises(Asked):
            looks.remembered(VIEW, ABOUT, ask)


def test_a_disk_that_refuses_costs_nothing_but_another_look(tmp_path):
    (tmp_path / "llm").write_bytes(b"a file where the folder should be")
    looks = InferenceCache(folder=tmp_path / "llm")
    for _ in range(2):
        assert looks.remembered(VIEW, ABOUT, lambda: SEEN) is SEEN


def test_adapters_that_are_missing_or_damaged_are_named(tmp_path):
    files = LlmFiles(folder=tmp_path / "llm")
    version = files.keep(b"weights")
    assert files.read(version) == b"weights"
    assert files.keep(b"weights") == version
    (tmp_path / "llm" / f"{version}.safetensors").write_bytes(b"changed")
    with pytest.raises(TransportError, match="damaged"):
        files.read(version)
    with pytest.raises(TransportError, match="restore"):
        files.read("5" * 64)
