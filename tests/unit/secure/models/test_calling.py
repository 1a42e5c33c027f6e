"""Special tokens, templates and the seam between a question and its answer."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from architecture_doubles import BYTES, small_lm
from tokenizer_doubles import CHAT, KINDS, small_tokenizer
from transformers import PreTrainedTokenizerFast

from lada_secure.data.prompts import option_text, prompt_of
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.calling import CallingStyle, common_length, open_style
from lada_secure.models.calling_settings import Calling
from lada_secure.models.evaluation import (
    generate_texts,
    greedy_rationales,
    option_probabilities,
    rationale_log_probabilities,
)
from lada_secure.models.examples import encode_row
from lada_secure.models.loading import LanguageModel
from lada_secure.models.preflight import needed_tokens

PROMPT = "Which group does the diagnosis belong to?\nAnswer:"
PATH = " gout. Because uric acid crystals inflame the joints of the foot."
PLAIN, CHATTING = Calling(), Calling(style="chat")
INSTRUCTED = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
    "{{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|user|>\nYou answer questions.<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEMPLATES = (CHAT, INSTRUCTED, WITH_SYSTEM)
ODD = ("", "\ud800", "\x00\x07", "</s>", "<|end|>\n<|assistant|>\n", "\u2028", " ", "a" * 900)


@cache
def tokenizer_of(kind: str, *, bos: bool = False, chat: str | None = None):
    return small_tokenizer(kind, bos=bos, chat=chat)


@cache
def lm_of(
    kind: str, *, bos: bool = False, chat: str | None = None, calling: Calling = PLAIN
) -> LanguageModel:
    return small_lm(tokenizer_of(kind, bos=bos, chat=chat), calling=calling)


class TestPlain:
    @pytest.mark.parametrize("bos", [False, True], ids=["no BOS", "BOS"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_prompt_and_path_are_tokens_of_one_text_behind_the_tokenizers_own_front(
        self, kind: str, bos: bool
    ) -> None:
        lm = lm_of(kind, bos=bos)
        whole = lm.tokenizer(PROMPT + PATH)["input_ids"]
        alone = lm.tokenizer(PROMPT)["input_ids"]
        assert lm.encode_prompt(PROMPT) == alone
        row = encode_row(lm, PROMPT, PATH)
        assert list(row.tokens) == [*whole, lm.end_token]
        assert row.target_start == common_length(whole, alone)
        assert (alone[0] == lm.tokenizer.bos_token_id) == bos

    @pytest.mark.parametrize("kind", [BYTES, "replaced-space BPE with byte fallback"])
    def test_a_token_that_spans_the_seam_is_the_targets(self, kind: str) -> None:
        lm = lm_of(kind)
        prompt, path = "Answer: the kidn", "eys have failed"
        context, target = lm.encode_pair(prompt, path)
        shared = len(context)
        assert list(context) == lm.encode_prompt(prompt)[:shared]
        assert 0 < shared < len(lm.encode_prompt(prompt))
        assert lm.decode(target[:-1]).strip().endswith(path)
        assert lm.decode([*context, *target]) == prompt + path

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_written_keeps_the_space_it_begins_with(self, kind: str) -> None:
        lm = lm_of(kind)
        context = lm.encode_prompt(PROMPT)
        prefixed = lm.decode(lm.tokens_of(" a")) == lm.decode(lm.tokens_of("a"))
        dummy = prefixed or "dummy" in kind or kind in ("metaspace unigram", "metaspace BPE")
        written = lm.tokens_of("gout." if dummy else " gout.")
        assert lm.continuation(context, written) == " gout."
        assert lm.continuation([], written) == lm.decode(written)


class TestChat:
    @pytest.mark.parametrize("template", TEMPLATES, ids=["marks", "plain text", "system turn"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_question_has_the_tokens_that_its_makers_code_gives_it(
        self, kind: str, template: str
    ) -> None:
        lm = lm_of(kind, bos=True, chat=template, calling=CHATTING)
        asked = [{"role": "user", "content": PROMPT}]
        expected = lm.tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert lm.encode_prompt(PROMPT) == expected
        assert lm.style.name == "chat"

    def test_the_turn_ends_with_the_token_that_the_template_ends_it_with(self) -> None:
        lm = lm_of(BYTES, bos=True, chat=CHAT, calling=CHATTING)
        end = lm.tokenizer.convert_tokens_to_ids("<|end|>")
        assert lm.end_token == end != lm.tokenizer.eos_token_id
        assert lm.end_tokens == (end, lm.tokenizer.eos_token_id)
        assert encode_row(lm, PROMPT, PATH).tokens[-1] == end
        assert lm_of(BYTES, bos=True, chat=CHAT).end_token == lm.tokenizer.eos_token_id

    def test_an_answer_stands_alone_behind_the_frame_without_its_space(self) -> None:
        lm = lm_of(BYTES, chat=CHAT, calling=CHATTING)
        row = encode_row(lm, PROMPT, PATH)
        assert list(row.tokens[: row.target_start]) == lm.encode_prompt(PROMPT)
        assert list(row.tokens[row.target_start : -1]) == lm.tokens_of(PATH[1:])

    def test_a_template_of_plain_text_joins_the_answer_to_its_end(self) -> None:
        lm = lm_of(BYTES, bos=True, chat=INSTRUCTED, calling=CHATTING)
        row = encode_row(lm, PROMPT, PATH)
        whole = lm.tokenizer(f"[INST] {PROMPT} [/INST]{PATH}")["input_ids"]
        assert list(row.tokens[:-1]) == whole

    def test_paths_are_texts_that_any_other_style_can_read(self) -> None:
        lm = lm_of(BYTES, chat=CHAT, calling=CHATTING)
        written = greedy_rationales(lm, [PROMPT, "4 + 4\n"], batch_size=2, max_new_tokens=6)
        assert written[0].startswith(" ")
        assert not written[1].startswith(" ")
        (further,) = generate_texts(
            lm, [PROMPT], begun=[" gout."], batch_size=1, max_new_tokens=4, temperature=0.0, seed=0
        )
        tokens = lm.encode_prompt(PROMPT, begun=" gout.")
        assert tokens == lm.encode_prompt(PROMPT) + lm.tokens_of("gout.")
        with torch.no_grad():
            ids = lm.model.generate(
                torch.tensor([tokens]),
                do_sample=False,
                max_new_tokens=4,
                eos_token_id=list(lm.end_tokens),
                pad_token_id=lm.end_token,
            )
        assert further == lm.decode(ids[0, len(tokens) :].tolist())

    @pytest.mark.parametrize("prompt", ["?\nAnswer:", "4 + 4\n", ""])
    @pytest.mark.parametrize("path", [" gout. So", "so\n4", " ", "", "  two"])
    @pytest.mark.parametrize(
        "style",
        [
            CallingStyle(),
            CallingStyle(name="chat", tail=(1,)),
            CallingStyle(name="template", trail=" [/INST]"),
            CallingStyle(name="template", trail="\nA: "),
        ],
        ids=["plain", "tail", "trail", "trail with a space"],
    )
    def test_a_path_comes_out_of_a_frame_as_it_went_in(
        self, style: CallingStyle, path: str, prompt: str
    ) -> None:
        spaced = bool(prompt) and not prompt[-1].isspace()
        usual = path.strip() == path.removeprefix(" ") and spaced == path.startswith(" ")
        if not style.framed or (path.strip() and usual):
            assert style.path(prompt, style.answer(path)) == path
        # Once through a frame, a path stays as it is.
        once = style.path(prompt, style.answer(path))
        assert style.path(prompt, style.answer(once)) == once


class TestOwnTemplate:
    def test_the_sites_own_words_stand_around_the_question(self, tmp_path: Path) -> None:
        file = tmp_path / "ours.jinja"
        file.write_text("Question: {{ question }}\nShort answer:")
        lm = lm_of(BYTES, bos=True, calling=Calling(template=file))
        row = encode_row(lm, "What is owed?\nAnswer:", PATH)
        text = f"Question: What is owed?\nAnswer:\nShort answer:{PATH}"
        assert list(row.tokens) == [*lm.tokenizer(text)["input_ids"], lm.end_token]
        assert lm.style.name == "template"

    def test_a_bos_token_that_the_template_writes_itself_stands_once(self, tmp_path: Path) -> None:
        file = tmp_path / "ours.jinja"
        file.write_text("{{ bos_token }}Q: {{ question }}")
        lm = lm_of(BYTES, bos=True, calling=Calling(template=file))
        assert lm.encode_prompt("a").count(lm.tokenizer.bos_token_id) == 1

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            pytest.param("no question", "shows the question 0 times", id="no question"),
            pytest.param("{{ question }}{{ question }}", "2 times", id="question twice"),
            pytest.param("{{ question", "cannot be used", id="no template"),
            pytest.param("{{ 1 / 0 }}{{ question }}", "division by zero", id="an error"),
            pytest.param("{{ raise_exception('no') }}", "cannot be used: no", id="a refusal"),
            pytest.param("{{ ''.__class__.__mro__ }}", "cannot be used", id="out of the sandbox"),
            pytest.param(
                "{% for i in range(10 ** 9) %}x{% endfor %}", "cannot be used", id="no end"
            ),
            pytest.param("{{ question }}" + "x" * 70_000, "at most 65536", id="too long"),
            pytest.param("{{ question }}" + " word" * 400, "leave|alone takes", id="no room"),
        ],
    )
    def test_a_template_that_cannot_be_used_is_refused(
        self, tmp_path: Path, template: str, message: str
    ) -> None:
        file = tmp_path / "ours.jinja"
        file.write_text(template)
        with pytest.raises(ParameterError, match=message):
            small_lm(tokenizer_of(BYTES), calling=Calling(template=file))

    def test_a_file_that_cannot_be_read_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match="cannot be read: No such file"):
            lm_of(BYTES, calling=Calling(template=tmp_path / "none"))
        (tmp_path / "ours").write_bytes("{{ question }}\u00e9".encode("utf-16"))
        with pytest.raises(ParameterError, match="is not UTF-8"):
            lm_of(BYTES, calling=Calling(template=tmp_path / "ours"))


class TestRefusals:
    def test_a_base_model_has_no_chat_style(self) -> None:
        with pytest.raises(ParameterError, match=r'"chat".*no chat template.*"plain"'):
            lm_of(BYTES, calling=CHATTING)

    def test_a_template_that_raises_is_refused_with_what_it_says(self) -> None:
        template = "{{ raise_exception('Conversation roles must alternate') }}"
        with pytest.raises(ParameterError, match=r"Conversation roles must alternate.*\"plain\""):
            lm_of(BYTES, chat=template, calling=CHATTING)
        assert lm_of(BYTES, chat=template).style.name == "plain"

    def test_style_and_template_together_are_refused(self) -> None:
        with pytest.raises(ParameterError, match="name one of them"):
            Calling(style="chat", template=Path("ours.jinja"))

    def test_a_tokenizer_without_an_end_token_is_refused_and_one_without_padding_is_not(
        self,
    ) -> None:
        with pytest.raises(ParameterError, match="no end token"):
            small_lm(small_tokenizer(BYTES, end=False))
        lm = small_lm(small_tokenizer(BYTES, pad=False))
        assert lm.tokenizer.pad_token is None
        found = rationale_log_probabilities(lm, ["a", PROMPT], [PATH, " b"], batch_size=2)
        alone = rationale_log_probabilities(lm, ["a"], [PATH], batch_size=1)
        assert found.total[0] == pytest.approx(alone.total[0], rel=1e-5)

    def test_a_tokenizer_of_another_model_is_refused(self) -> None:
        larger = small_tokenizer(BYTES, size=450)
        lm = lm_of(BYTES)
        from lada_secure.models.loading import wrap_model

        with pytest.raises(ParameterError, match=r"has a token 4[0-9]+, the model has 400 rows"):
            wrap_model(lm.model, larger, name="other")


STYLED = [
    pytest.param(BYTES, None, PLAIN, id="plain"),
    pytest.param("replaced-space BPE with dummy prefix", None, PLAIN, id="plain, merges"),
    pytest.param(BYTES, CHAT, CHATTING, id="chat"),
    pytest.param("metaspace unigram", INSTRUCTED, CHATTING, id="chat, plain text"),
]


@pytest.mark.parametrize(("kind", "chat", "calling"), STYLED)
class TestEveryStyle:
    @pytest.mark.parametrize("odd", ODD)
    def test_any_text_is_a_row_that_fits_and_keeps_its_frame(
        self, kind: str, chat: str | None, calling: Calling, odd: str
    ) -> None:
        lm = lm_of(kind, bos=True, chat=chat, calling=calling)
        for prompt, path in ((odd, PATH), (PROMPT, odd), (odd, odd)):
            row = encode_row(lm, prompt, path)
            assert 1 <= row.target_start < len(row.tokens) <= lm.max_tokens
            assert row.tokens[-1] == lm.end_token
            style, context = lm.style, row.tokens[: row.target_start]
            assert context[: len(style.head)] == style.head
            assert context[row.target_start - len(style.tail) :] == style.tail
            asked = lm.encode_prompt(prompt, room=100)
            assert 1 <= len(asked) <= 100
            assert tuple(asked[: len(style.head)]) == style.head
            assert tuple(asked[len(asked) - len(style.tail) :]) == style.tail

    def test_a_long_question_loses_its_start_and_a_long_path_its_end(
        self, kind: str, chat: str | None, calling: Calling
    ) -> None:
        lm = lm_of(kind, bos=True, chat=chat, calling=calling)
        question = "The patient has a fever. " * 200 + "Which group?"
        row = encode_row(lm, question, PATH)
        assert len(row.tokens) == lm.max_tokens
        text = lm.decode(row.tokens[: row.target_start])
        assert "Which group?" in text
        long = encode_row(lm, PROMPT, " the loan with its interest" * 200)
        assert len(long.tokens) == lm.max_tokens
        assert "the loan with its interest" in lm.decode(long.tokens[long.target_start :])

    @pytest.mark.parametrize("mark", ["</s>", "<|end|>", "<s>", "<|assistant|>"])
    def test_a_control_token_in_a_record_stays_a_text(
        self, kind: str, chat: str | None, calling: Calling, mark: str
    ) -> None:
        lm = lm_of(kind, bos=True, chat=chat, calling=calling)
        token = lm.tokenizer.convert_tokens_to_ids(mark)
        clean, marked = encode_row(lm, "a b", " c"), encode_row(lm, f"a {mark} b", f" {mark}c")
        assert marked.tokens.count(token) == clean.tokens.count(token)

    def test_the_tokens_that_a_record_needs_are_counted_with_its_frame(
        self, kind: str, chat: str | None, calling: Calling
    ) -> None:
        lm = lm_of(kind, bos=True, chat=chat, calling=calling)
        sample = PoolSample(sample_id="1", question=f"{PROMPT}?", choices=(), answer="4")
        row = encode_row(lm, prompt_of(sample.question, ()), "4")
        (needed,) = needed_tokens(lm, [sample], written=[0])
        assert len(row.tokens) <= needed <= len(row.tokens) + 1
        (writing,) = needed_tokens(lm, [sample], written=[70])
        assert writing == len(lm.encode_prompt(prompt_of(sample.question, ()))) + 70

    def test_option_scores_are_those_of_whole_sequences(
        self, kind: str, chat: str | None, calling: Calling
    ) -> None:
        lm = lm_of(kind, bos=True, chat=chat, calling=calling)
        sample = PoolSample(
            sample_id="1",
            question="Which group does gout belong to?",
            choices=("gout", "a fever", "chronic kidney disease", "goutweed"),
            answer="gout",
        )
        prompt, means = prompt_of(sample.question, sample.choices), []
        for choice in sample.choices:
            joined = lm.join(prompt, option_text(choice))
            with torch.no_grad():
                ids = torch.tensor([joined.context + joined.target])
                logits = lm.model(ids).logits[0].double().log_softmax(-1)
            first = len(joined.context)
            scores = [float(logits[first - 1 + at, one]) for at, one in enumerate(joined.target)]
            means.append(sum(scores) / len(scores))
        (found,) = option_probabilities(lm, [sample], batch_size=1)
        expected = torch.tensor(means, dtype=torch.float64).softmax(0)
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_mark_that_is_not_listed_as_special_is_a_text_in_a_record(tmp_path: Path) -> None:
    from architecture_doubles import family_model

    from lada_secure.models.loading import load_folder

    tokenizer = small_tokenizer(BYTES)
    tokenizer.add_tokens(["<think>", "\n\n"])
    family_model("Llama", len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = load_folder(tmp_path, name="thinking")
    mark, breaks = lm.tokenizer.convert_tokens_to_ids(["<think>", "\n\n"])
    assert mark not in lm.tokens_of("a <think> b")
    assert breaks in lm.tokens_of("a\n\nb")


def test_the_day_is_not_in_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{{ strftime_now('%d %b %Y') }} " + CHAT
    style = open_style(CHATTING, tokenizer_of(BYTES, chat=template), name="dated")
    text = tokenizer_of(BYTES).decode(list(style.head))
    assert "01 Jan 2025" in text


def test_a_mark_that_swallows_the_space_behind_it_swallows_it_here_as_well() -> None:
    from tokenizers import AddedToken

    tokenizer: PreTrainedTokenizerFast = small_tokenizer(BYTES, chat=CHAT.replace("user", "ask"))
    tokenizer.chat_template = "<|ask|>\n{{ messages[0]['content'] }}<|end|>\n<|assistant|>\n"
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|ask|>", rstrip=True, special=True)]}
    )
    lm = small_lm(tokenizer, calling=CHATTING)
    asked = [{"role": "user", "content": PROMPT}]
    expected = tokenizer.apply_chat_template(asked, tokenize=True, return_dict=False)
    assert lm.encode_prompt(PROMPT) == expected
