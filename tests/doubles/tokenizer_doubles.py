"""Small tokenizers of every kind that makers use, trained here on a few public sentences."""

from __future__ import annotations

from typing import Final

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CONTROL: Final = ("<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT: Final = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
KINDS: Final = (
    "byte-level BPE",
    "byte-level BPE with digits apart",
    "metaspace unigram",
    "metaspace unigram without prefix",
    "metaspace BPE",
    "metaspace BPE without prefix",
    "replaced-space BPE with byte fallback",
    "replaced-space BPE with dummy prefix",
)
_SENTENCES: Final = (
    "The patient has a fever and a cough. Which group does the diagnosis belong to?",
    "Answer: chronic kidney disease. Because the kidneys have failed for years.",
    "Answer: gout. Because uric acid crystals inflame the joints of the foot.",
    "A mortgage is a security interest in a house; the bank is the lender.\n",
    "Question: what is owed to the bank?\nAnswer: the loan with its interest.\n",
    "Explain your reasoning step by step, then give the final answer.\n\nFinal answer: 42",
    "User and assistant take turns; e.g. 1, 2, 3, 10, 100 and 1,000 or 0.5%.",
)


def small_tokenizer(
    kind: str,
    *,
    bos: bool = False,
    chat: str | None = None,
    pad: bool = True,
    end: bool = True,
    size: int = 400,
) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind. bos: it puts "<s>" in front by itself. chat: a template."""
    raw = _raw(kind, size)
    if bos:
        raw.post_processor = processors.Sequence(
            [
                raw.post_processor or processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
                ),
            ]
        )
    found = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        **({"eos_token": "</s>"} if end else {}),
        **({"pad_token": "</s>"} if pad and end else {}),
    )
    if chat is not None:
        found.chat_template = chat
    return found


def _raw(kind: str, size: int) -> Tokenizer:
    special = [AddedToken(one, special=True, normalized=False) for one in CONTROL]
    options = {"vocab_size": size, "special_tokens": special, "show_progress": False}
    if kind.startswith("byte-level"):
        raw = Tokenizer(models.BPE())
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        raw.pre_tokenizer = pre_tokenizers.Sequence([digits, level]) if "digits" in kind else level
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **options)
    elif kind.startswith("metaspace"):
        scheme = "never" if "without" in kind else "always"
        raw = Tokenizer(models.Unigram() if "unigram" in kind else models.BPE(unk_token="<unk>"))
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
        trainer = (
            trainers.UnigramTrainer(unk_token="<unk>", **options)
            if "unigram" in kind
            else trainers.BpeTrainer(**options)
        )
    else:
        # As Llama 2 and Gemma have it: trained on words, used without a pre-tokenizer.
        raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        steps = [normalizers.Replace(" ", "\u2581")]
        outer = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        if "dummy prefix" in kind:
            steps.insert(0, normalizers.Prepend("\u2581"))
            outer.append(decoders.Strip(" ", 1, 0))
        raw.normalizer = normalizers.Sequence(steps)
        raw.pre_tokenizer = pre_tokenizers.Split(
            Regex("\u2581?[^\u2581\n]+|\n+|\u2581+"), "isolated"
        )
        raw.decoder = decoders.Sequence(outer)
        trainer = trainers.BpeTrainer(
            initial_alphabet=["\u2581"],
            **{
                **options,
                "special_tokens": [*special, *(f"<0x{byte:02X}>" for byte in range(256))],
                "vocab_size": size + 256,
            },
        )
    raw.train_from_iterator(_SENTENCES, trainer)
    if kind.startswith("replaced-space"):
        raw.pre_tokenizer = None
    return raw
