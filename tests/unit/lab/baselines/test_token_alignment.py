"""Tokens of one tokenizer as tokens of another: by text, by edit distance, or not at all."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tiny_baselines import END, lm_with_tokens

from lada_lab.baselines.token_alignment import TokenAlignment, TopLogits, edit_distance, warping
from lada_secure.errors import ParameterError

TEACHER = lm_with_tokens("teacher", ["a", "b", "ab", "abc", "7", "70"])
LEARNER = lm_with_tokens("learner", ["b", "a", "7", "0", "abd", "c"])


def obvious_distance(first: str, second: str) -> int:
    if not first or not second:
        return len(first) + len(second)
    return min(
        obvious_distance(first[1:], second) + 1,
        obvious_distance(first, second[1:]) + 1,
        obvious_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


def test_edit_distances_are_those_of_the_obvious_recursion() -> None:
    texts = ["", "a", "ab", "ba", "abc", "cab", "xbcy"]
    for first, second in product(texts, texts):
        assert edit_distance(first, second) == obvious_distance(first, second)


def all_warpings(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    """Every monotone path from the first pair of places to the last one."""
    found: list[list[tuple[int, int]]] = []

    def walk(path: list[tuple[int, int]]) -> None:
        row, column = path[-1]
        if (row, column) == (rows - 1, columns - 1):
            found.append(path)
        for step in ((row + 1, column + 1), (row + 1, column), (row, column + 1)):
            if step[0] < rows and step[1] < columns:
                walk([*path, step])

    walk([(0, 0)])
    return found


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["ab", "c", "7"], ["a", "b", "c", "7"]),
        (["a", "b"], ["a", "b"]),
        (["a"], ["b", "c", "a"]),
        (["70", "abc"], ["7", "0", "abc"]),
    ],
)
def test_an_alignment_has_the_smallest_total_distance_of_all(
    first: list[str], second: list[str]
) -> None:
    def cost(pairs: list[tuple[int, int]]) -> int:
        return sum(edit_distance(first[row], second[column]) for row, column in pairs)

    found = warping(first, second)
    assert cost(found) == min(cost(one) for one in all_warpings(len(first), len(second)))
    assert {row for row, _ in found} == set(range(len(first)))
    assert {column for _, column in found} == set(range(len(second)))


def test_nothing_cannot_be_aligned() -> None:
    with pytest.raises(ParameterError, match="at least one"):
        warping([], ["a"])


def test_a_token_maps_to_the_same_text_or_the_nearest_or_to_nothing() -> None:
    alignment = TokenAlignment(TEACHER, LEARNER)
    ids, own = TEACHER.tokenizer.get_vocab(), LEARNER.tokenizer.get_vocab()
    assert not alignment.same
    for text in ("a", "b", "7"):
        assert alignment.learner_token(ids[text]) == own[text]
    assert alignment.learner_token(ids["abc"]) == own["abd"]
    # "70" is as near to "7" as to "0"; the lower id is taken.
    assert alignment.learner_token(ids["70"]) == min(own["7"], own["0"])
    assert alignment.learner_token(TEACHER.end_token) == LEARNER.end_token
    lonely = TokenAlignment(
        lm_with_tokens("teacher", ["a", "zz"]), lm_with_tokens("learner", ["a", "bb"])
    )
    zz = lm_with_tokens("teacher", ["a", "zz"]).tokenizer.get_vocab()["zz"]
    assert lonely.learner_token(zz) is None
    assert lonely.learner_token(10_000) is None


def test_logits_are_carried_where_one_token_stands_against_one() -> None:
    """Teacher: "ab", "7". Learner: "a", "b", "7". Only the digit and the end are one to one."""
    alignment = TokenAlignment(TEACHER, LEARNER)
    ids, own = TEACHER.tokenizer.get_vocab(), LEARNER.tokenizer.get_vocab()
    told = [ids["ab"], ids["7"], TEACHER.end_token]
    heard = [own["a"], own["b"], own["7"], LEARNER.end_token]
    top = TopLogits(
        tokens=torch.tensor([[ids["ab"], ids["a"]], [ids["7"], ids["a"]], [told[2], ids["b"]]]),
        probabilities=torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]]),
    )
    carried = alignment.carried(top, told, heard)
    assert carried.tokens.shape == (4, 2)
    rows = [
        {int(token): round(float(share), 4) for token, share in zip(*row, strict=True) if share > 0}
        for row in zip(carried.tokens, carried.probabilities, strict=True)
    ]
    assert rows == [
        {own["a"]: 1.0},
        {own["b"]: 1.0},
        {own["7"]: 0.6, own["a"]: 0.4},
        {LEARNER.end_token: 0.7, own["b"]: 0.3},
    ]


def test_one_vocabulary_needs_no_alignment() -> None:
    alignment = TokenAlignment(TEACHER, TEACHER)
    top = TopLogits(tokens=torch.tensor([[1]]), probabilities=torch.tensor([[1.0]]))
    assert alignment.same
    assert alignment.carried(top, [3], [3]) is top


def test_tokenizers_that_share_nothing_are_refused_with_what_to_do() -> None:
    other = lm_with_tokens("runes", ["ᚠ", "ᚢ"])
    with pytest.raises(ParameterError, match=r"share no token.*whole paths"):
        TokenAlignment(TEACHER, other)


def test_the_end_is_no_common_token() -> None:
    """Both tokenizers call their end token the same; that alone teaches nothing."""
    assert END in lm_with_tokens("runes", ["ᚠ"]).tokenizer.get_vocab()
    with pytest.raises(ParameterError, match="share no token"):
        TokenAlignment(lm_with_tokens("x", ["x"]), lm_with_tokens("y", ["y"]))
