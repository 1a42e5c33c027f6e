"""Reading WordNet's noun file."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada_lab.worlds.wordnet import DEFAULT_FOLDER, ENVIRONMENT_VARIABLE, read_nouns, wordnet_folder
from lada_lab.worlds.wordnet_topics import kinds_below
from lada_secure.errors import ParameterError

LICENCE = "  1 This software and database is provided as is.  \n"
# In WordNet's own format: two hypernyms, an instance pointer, a verb pointer, a hexadecimal count.
LINES = [
    '00000010 21 n 01 wealth 0 002 ~ 00000020 n 0000 ~ 00000030 n 0000 | what one owns; "all"',
    "00000020 21 n 02 loan 0 money_lent 0 003 @ 00000010 n 0000 ~ 00000040 n 0000 + 01000000 v 0101"
    " | money (or goods) lent to someone",
    "00000030 21 n 01 gift 0 002 @ 00000010 n 0000 ~ 00000040 n 0000 | something given away",
    "00000040 21 n 01 soft_loan 0 003 @ 00000030 n 0000 @ 00000020 n 0000 @i 00000010 n 0000"
    ' | a loan on easy terms : "cheap"',
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data.noun").write_text(LICENCE + "\n".join(LINES) + "\n", encoding="utf-8")
    return tmp_path


def test_words_definition_and_kin_are_read(folder: Path) -> None:
    loan = read_nouns(folder).synsets["00000020"]
    assert loan.words == ("loan", "money lent")
    assert loan.name == "loan"
    assert loan.definition == "money lent to someone"
    assert loan.hypernyms == ("00000010",)
    assert loan.hyponyms == ("00000040",)


def test_examples_and_instance_pointers_are_left_out(folder: Path) -> None:
    soft = read_nouns(folder).synsets["00000040"]
    assert soft.definition == "a loan on easy terms"
    assert soft.hypernyms == ("00000030", "00000020")


def test_everything_below_a_root_is_found_once(folder: Path) -> None:
    nouns = read_nouns(folder)
    below = nouns.below(nouns.find("wealth", definition_part="owns"))
    assert [one.name for one in below] == ["loan", "gift", "soft loan"]


def test_the_chain_ends_at_the_root_and_everything_above_is_known(folder: Path) -> None:
    nouns = read_nouns(folder)
    root = nouns.find("wealth", definition_part="owns")
    soft = nouns.synsets["00000040"]
    assert [one.name for one in nouns.chain(soft, root=root)] == ["gift", "wealth"]
    assert nouns.above(soft) == {"00000010", "00000020", "00000030"}
    with pytest.raises(ParameterError, match="is not above"):
        nouns.chain(root, root=soft)


def test_a_word_that_is_not_there_or_not_unique_is_refused(folder: Path) -> None:
    nouns = read_nouns(folder)
    with pytest.raises(ParameterError, match="got 0"):
        nouns.find("debt", definition_part="")


def test_a_damaged_line_is_named(folder: Path) -> None:
    path = folder / "data.noun"
    path.write_text(LICENCE + LINES[0] + "\n00000020 21 n zz loan 0\n", encoding="utf-8")
    with pytest.raises(ParameterError, match=r"data\.noun:3: not a line of WordNet"):
        read_nouns(folder)


def test_a_missing_wordnet_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="apt-get install wordnet-base") as raised:
        wordnet_folder(tmp_path)
    assert str(tmp_path / "data.noun") in str(raised.value)


def test_the_folder_comes_from_caller_then_environment_then_default(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(folder))
    assert wordnet_folder(None) == folder
    with pytest.raises(ParameterError):
        wordnet_folder(tmp_path / "elsewhere")
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    if (DEFAULT_FOLDER / "data.noun").is_file():
        assert wordnet_folder(None) == DEFAULT_FOLDER


def test_the_answer_is_the_nearest_kind_with_enough_words(tmp_path: Path) -> None:
    rows = ["00000001 21 n 01 wealth 0 001 ~ 00000002 n 0000 | what one owns"]
    rows.append(
        "00000002 21 n 01 loan 0 010 @ 00000001 n 0000 "
        + " ".join(f"~ {number:08d} n 0000" for number in range(10, 19))
        + " | money lent"
    )
    rows += [
        f"{number:08d} 21 n 01 loan_{number} 0 001 @ 00000002 n 0000 | a loan of kind {number}"
        for number in range(10, 19)
    ]
    (tmp_path / "data.noun").write_text("\n".join(rows) + "\n", encoding="utf-8")
    nouns = read_nouns(tmp_path)
    root = nouns.find("wealth", definition_part="owns")
    question = "{word}, {definition}?"
    topics = kinds_below(nouns, root, question=question, vague=frozenset())
    assert {one.answer for one in topics} == {"loan"}
    first = next(one for one in topics if one.key == "wordnet:00000010")
    assert first.question == "loan 10, a loan of kind 10?"
    assert first.rationale == "wealth"
    assert first.forbidden == {"loan", "wealth"}
    assert kinds_below(nouns, root, question=question, vague=frozenset({"loan"})) == ()
