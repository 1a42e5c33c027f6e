"""What the LLM said of the pool is kept over a restart, exactly, and never believed if damaged."""

import numpy as np
import pytest

from lada_secure.method.llm_round import PoolView
from lada_secure.models.confidence import Answers
from lada_server.study.inference_cache import InferenceCache

ABOUT = ["plan", "tiny-llm", "0" * 64, []]
VIEW = PoolView(
    features=np.random.default_rng(1).random((7, 4)), cells=np.arange(7, dtype=np.int64) % 4
)
ANSWERS = Answers(
    paths=("1 + 2 = 3", "", "\u00e4"),
    right=np.array([True, False, True]),
    confidence=np.array([1 / 3, 0.0, 1.0]),
)


@pytest.fixture
def looks(tmp_path):
    return InferenceCache(folder=tmp_path / "llm")


def test_nothing_is_known_before_anything_was_kept(looks):
    assert looks.view(ABOUT) is None
    assert looks.answers(ABOUT) is None


def test_views_and_answers_come_back_bit_by_bit(looks):
    looks.keep_view(ABOUT, VIEW)
    looks.keep_answers(ABOUT, ANSWERS)
    again = InferenceCache(folder=looks.folder)
    view, answers = again.view(ABOUT), again.answers(ABOUT)
    assert view.features.tobytes() == VIEW.features.tobytes()
    assert view.cells.tobytes() == VIEW.cells.tobytes()
    assert answers.paths == ANSWERS.paths
    assert answers.right.tolist() == ANSWERS.right.tolist()
    assert answers.confidence.tobytes() == ANSWERS.confidence.tobytes()


@pytest.mark.parametrize("place", range(4))
def test_another_plan_model_version_or_set_of_samples_is_another_look(looks, place):
    looks.keep_view(ABOUT, VIEW)
    other = [*ABOUT[:place], "other", *ABOUT[place + 1 :]]
    assert looks.view(other) is None


def test_a_damaged_file_is_passed_over_and_only_its_owner_may_read_it(looks):
    looks.keep_view(ABOUT, VIEW)
    (path,) = looks.folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    raw = bytearray(path.read_bytes())
    raw[-30] ^= 1
    path.write_bytes(bytes(raw))
    assert looks.view(ABOUT) is None
    path.write_bytes(bytes(raw[:40]))
    assert looks.view(ABOUT) is None


def test_a_disk_that_refuses_costs_nothing_but_another_look(tmp_path):
    (tmp_path / "llm").write_bytes(b"a file where the folder should be")
    looks = InferenceCache(folder=tmp_path / "llm")
    looks.keep_view(ABOUT, VIEW)
    assert looks.view(ABOUT) is None
