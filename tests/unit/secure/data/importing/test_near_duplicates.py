"""Near duplicates: found where two texts share most of their letters, and nowhere else."""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lada_secure.data.importing.near_duplicates import BANDS, ROWS, SAME, NearTexts, signatures
from lada_secure.data.importing.pool_alike import alike_samples
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


def jaccard(text: str, other: str) -> float:
    """Of the sets of windows, in plain words; for texts in lower case and single spaces."""
    own, others = (
        {raw[at : at + 8] for at in range(len(raw) - 7)} for raw in (text.encode(), other.encode())
    )
    return len(own & others) / len(own | others)


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


def test_a_text_that_was_not_compared_with_all_that_are_like_it_is_counted() -> None:
    # A third of every letter is its own: below the index, and far above what is no candidate.
    chance = random.Random(SEED)
    form = " ".join(texts(1)[0].split()[:34])
    every = [f"{form} {''.join(chance.choices('klmnop', k=45))}" for _ in range(700)]
    index = NearTexts(every[:600])
    assert index.find(every[600:]) == [None] * 100
    assert index.cut == 100
    some = NearTexts(every[:100])
    assert some.find(every[600:]) == [None] * 100
    # Of a hundred not all are compared whole, and JSON takes the count.
    assert json.dumps(some.cut) == "100"
    few = NearTexts(every[:30])
    assert few.find(every[600:]) == [None] * 100
    assert few.cut == 0


def test_every_part_of_an_import_says_how_far_it_is(tmp_path: Path) -> None:
    with (tmp_path / "cases.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [("unit", "question"), *((f"p{at}", one) for at, one in enumerate(texts(3000)))]
        )
    (tmp_path / "mapping.toml").write_text(
        'format = "lada-mapping/1"\n[record]\nunit = "unit"\nquestion = "question"\n'
        'answer = { constant = "1" }\n[split]\nheld_out = 0.3\n',
        encoding="utf-8",
    )
    asked = ImportRequest(
        source=str(tmp_path / "cases.csv"), mapping=tmp_path / "mapping.toml", out=tmp_path / "out"
    )
    parts: dict[str, list[tuple[int, int | None]]] = {}

    def progress(done: int, what: str = "rows", whole: int | None = None, /) -> None:
        parts.setdefault(what, []).append((done, whole))

    for _ in range(2):
        run_import(asked, progress=progress)
    assert parts["earlier held-out records looked at"]
    looked = parts["texts looked at for near duplicates"]
    assert looked[len(looked) // 2 - 1] == (3000, 3000)
    steps = [done for done, _ in looked[: len(looked) // 2]]
    assert steps == sorted(steps)
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 1024
    pool = [
        PoolSample(sample_id=str(at), question=one, choices=(), answer="1")
        for at, one in enumerate(texts(2000))
    ]
    done: list[int] = []
    alike_samples(pool, told=done.append)
    assert (done == sorted(done), done[-1]) == (True, 2000)


def test_the_share_of_equal_minima_estimates_the_jaccard_index() -> None:
    known = texts(200)
    pairs = list(itertools.pairwise(known))
    half = [" ".join(text.split()[:20] + other.split()[20:]) for text, other in pairs]
    same = (signatures(known[:-1]) == signatures(half)).mean()

    exact = [jaccard(a, b) for a, b in zip(known, half, strict=False)]
    # 199 pairs of 60 minima: the standard error of the mean is below 0.005.
    assert abs(same - sum(exact) / len(exact)) < 0.025


def letters() -> list[str]:
    """Form letters: all alike but for what stands in their gaps."""
    chance = random.Random(SEED)
    gap = lambda: "".join(chance.choices("abcdefghij", k=6))  # noqa: E731
    return [
        f"the patient {gap()} came with {gap()} and {gap()}, has taken {gap()} for some days "
        f"without effect, and {gap()} was found; the value of {gap()} was high. which is it?"
        for _ in range(3000)
    ]


def changed(text: str, chance: random.Random, words: int) -> str:
    """Some neighbouring words else, so that the index falls in small steps."""
    parts = text.split()
    first = chance.randrange(len(parts) - words)
    for place in range(first, first + words):
        parts[place] = "".join(chance.choices("klmnop", k=len(parts[place])))
    return " ".join(parts)


@pytest.mark.parametrize("known", [texts(3000), letters()], ids=["texts", "form letters"])
def test_of_pairs_just_above_the_index_nineteen_of_twenty_are_told(known: list[str]) -> None:
    # A pair at the estimate's own border was told about every other time.
    chance = random.Random(SEED)
    pairs = [(text, changed(text, chance, words)) for text in known for words in (2, 3, 4)]
    border = [pair for pair in pairs if SAME <= jaccard(*pair) < SAME + 0.03]
    assert len(border) > 400
    found = NearTexts(known).find([other for _, other in border])
    assert sum(place is not None for place in found) > 0.95 * len(border)


@pytest.mark.parametrize("known", [texts(3000), letters()], ids=["texts", "form letters"])
def test_what_is_told_is_above_the_index(known: list[str]) -> None:
    chance = random.Random(SEED)
    below = [changed(text, chance, words) for text in known[:600] for words in (2, 3, 5)]
    found = NearTexts(known).find(below)
    told = [(known[place], text) for place, text in zip(found, below, strict=True) if place]
    assert told
    assert min(jaccard(*pair) for pair in told) >= SAME
    refused = [
        text
        for text, own in zip(below, (one for one in known[:600] for _ in range(3)), strict=True)
        if SAME - 0.03 < jaccard(own, text) < SAME
    ]
    assert len(refused) > 100
    assert NearTexts(known).find(refused).count(None) == len(refused)


@pytest.mark.parametrize(("index", "found"), [(0.9, "0.9999"), (0.8, "0.991")])
def test_the_page_says_how_surely_a_pair_is_a_candidate(index: float, found: str) -> None:
    chance = 1 - (1 - index**ROWS) ** BANDS
    assert chance >= float(found) - 0.0005
    assert chance > 0.95
    assert f"{index} " in PAGE
    assert found in PAGE


def test_an_indexed_text_is_found_by_those_behind_it_alone() -> None:
    known = texts(50)
    every = [*known, *(one_word_else(text) for text in known)]
    index = NearTexts(every)
    assert index.earlier(0, known) == [None] * 50
    assert index.earlier(50, every[50:]) == list(range(50))


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
    told = run_import(asked, progress=lambda *_: None)
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
