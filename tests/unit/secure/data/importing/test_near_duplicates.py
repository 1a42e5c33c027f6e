"""Near duplicates: found where two texts share most of their letters, and nowhere else."""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lada_secure.data.importing.near_duplicates import SAME, NearTexts, signatures
from lada_secure.data.importing.run import ImportRequest, run_import
from lada_secure.data.records import PoolSample, write_json_lines

SEED = 7
PAGE = (Path(__file__).parents[5] / "docs" / "import-data.md").read_text(encoding="utf-8")


def texts(count: int, words: int = 40) -> list[str]:
    chance = random.Random(SEED)
    known = [
        "".join(chance.choices("abcdefghijklmnop", k=chance.randint(3, 9))) for _ in range(5000)
    ]
    return [" ".join(chance.choices(known, k=words)) for _ in range(count)]


def one_word_else(text: str) -> str:
    return " ".join(["otherwise", *text.split()[1:]])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text, id="the same"),
        pytest.param(str.upper, id="capitals"),
        pytest.param(lambda text: text.replace(" ", " \n "), id="spaces"),
        pytest.param(one_word_else, id="one word of forty"),
    ],
)
def test_a_text_that_is_nearly_the_same_is_found(change: Callable[[str], str]) -> None:
    known = texts(500)
    found = NearTexts(known).find([change(text) for text in known])
    # A word of forty leaves a Jaccard index of about 0.93.
    assert sum(place == own for own, place in enumerate(found)) >= 495


def test_other_texts_are_not_found() -> None:
    every = texts(1000)
    assert NearTexts(every[:500]).find(every[500:]) == [None] * 500


def test_the_share_of_equal_minima_estimates_the_jaccard_index() -> None:
    known = texts(200)
    pairs = list(itertools.pairwise(known))
    half = [" ".join(text.split()[:20] + other.split()[20:]) for text, other in pairs]
    same = (signatures(known[:-1]) == signatures(half)).mean()

    def windows(text: str) -> set[bytes]:
        raw = text.encode()
        return {raw[at : at + 8] for at in range(len(raw) - 7)}

    exact = [
        len(windows(a) & windows(b)) / len(windows(a) | windows(b))
        for a, b in zip(known, half, strict=False)
    ]
    # 199 pairs of 64 minima: the standard error of the mean is below 0.005.
    assert abs(same - sum(exact) / len(exact)) < 0.025


@pytest.mark.parametrize(("index", "found"), [(0.9, 0.99), (0.8, 0.48), (0.7, 0.03)])
def test_the_page_says_how_surely_a_pair_is_found(index: float, found: float) -> None:
    agree = 52
    assert 51 / 64 < SAME <= agree / 64
    chance = sum(
        math.comb(64, one) * index**one * (1 - index) ** (64 - one) for one in range(agree, 65)
    )
    # No band of 4 agrees in one of a thousand of those pairs, or fewer.
    assert (1 - (agree / 64) ** 4) ** 16 < 0.001
    assert abs(chance - found) < 0.006
    assert f"{index} " in PAGE
    assert f"{found}" in PAGE


def test_short_and_empty_texts_and_none_at_all() -> None:
    assert NearTexts([]).find(["a"]) == [None]
    assert NearTexts(["a"]).find([]) == []
    assert NearTexts(["a", "", "b"]).find(["A", " ", "c"]) == [0, 1, None]


def words_of(line: str) -> list[str]:
    words: list[str] = json.loads(line)["question"].split()
    return words


def test_an_import_names_lines_across_the_split_and_samples_of_the_pool(tmp_path: Path) -> None:
    known = texts(200)
    # Everybody's text twice, of another person, with one word else.
    rows = [(f"p{one}", text) for one, text in enumerate(known)]
    rows += [(f"q{one}", one_word_else(text)) for one, text in enumerate(known)]
    with (tmp_path / "cases.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("unit", "question"), *rows])
    (tmp_path / "mapping.toml").write_text(
        'format = "lada-mapping/1"\n[record]\nunit = "unit"\nquestion = "question"\n'
        'answer = { constant = "1" }\n[split]\nheld_out = 0.3\n',
        encoding="utf-8",
    )
    sample = PoolSample(sample_id="pool-9", question=known[0], choices=(), answer="1")
    write_json_lines(tmp_path / "pool.jsonl", [sample])
    asked = ImportRequest(
        source=str(tmp_path / "cases.csv"),
        mapping=tmp_path / "mapping.toml",
        out=tmp_path / "out",
        pool=tmp_path / "pool.jsonl",
    )
    told = run_import(asked, progress=lambda _: None)
    lines = {
        name: (asked.out / name).read_text("utf-8").splitlines()
        for name in ("records.jsonl", "held-out.jsonl")
    }
    with (asked.out / "near-duplicates.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    across = [one for one in found if one["near"] == "held-out.jsonl"]
    assert told["near_duplicates"]["training_near_held_out"] == len(across)
    # Of 200 pairs, 42% are expected to be parted.
    assert 50 < len(across) < 120
    for one in across:
        own = lines["records.jsonl"][int(one["line"]) - 1]
        other = lines["held-out.jsonl"][int(one["named"]) - 1]
        assert words_of(own)[1:5] == words_of(other)[1:5]
    assert [one["named"] for one in found if one["near"] == "pool"] == ["pool-9", "pool-9"]
