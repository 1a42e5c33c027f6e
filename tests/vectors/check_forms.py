"""The checker's answer forms and verifiers (section 5), from the page alone."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import Any

from check_text import need

LINE_BREAK = re.compile("\r\n|[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
EDGES = " .,;:!?\"'`*$"
LISTED = "Answer with the letter of the right option in a line, then give the reason."
REASONED = 'Reason step by step. End with a line that says "Answer:" and '


def one_line(text: str) -> str:
    """Line breaks as spaces; one at the end is none."""
    lines = LINE_BREAK.split(text)
    return " ".join(lines[:-1] if lines[-1] == "" else lines)


def prompt(form: str, question: str, choices: list[str]) -> str:
    """What a model reads."""
    if form == "cloze" or (form == "listed" and not choices):
        return question + ("\nAnswer:" if choices else "\n")
    options = "".join(f"{'ABCDEFGHIJ'[at]}. {one_line(one)}\n" for at, one in enumerate(choices))
    if form == "listed":
        return f"{question}\n{options}{LISTED}\nAnswer:"
    wanted = "the letter of the right option" if choices else "the answer alone"
    return f"{question}\n{options}{REASONED}{wanted}.\nReasoning:"


def target(form: str, choices: list[str], answer: str, reason: str | None) -> str:
    """What it is to write."""
    if form == "reasoned":
        stated = "ABCDEFGHIJ"[choices.index(answer)] if choices else one_line(answer)
        return ("" if reason is None else f" {reason}") + f"\nAnswer: {stated}"
    if not choices:
        return ("" if reason is None else f"{reason}\n") + one_line(answer)
    if form == "listed":
        stated = " ABCDEFGHIJ"[choices.index(answer) + 1]
        return f" {stated}" + ("" if reason is None else f"\n{reason}")
    return f" {answer}." + ("" if reason is None else f" {reason}")


def read(form: str, choices: list[str], path: str) -> str | None:
    """The answer of a path."""
    text = path.strip()
    if not text:
        return None
    lines = LINE_BREAK.split(text)
    if not choices:
        last = lines[-1].strip()
        if form != "reasoned":
            return last
        return (last[7:].strip() or None) if last[:7] == "Answer:" else None
    if form == "cloze":
        fits = [one for one in choices if text == one or text.startswith((f" {one}.").strip())]
        return max(fits, key=len) if fits else None
    line = lines[0].strip() if form == "listed" else lines[-1].strip()
    if form == "reasoned":
        if line[:7] != "Answer:":
            return None
        line = line[7:].strip()
    for at, one in enumerate(choices):
        letter, text = "ABCDEFGHIJ"[at], one_line(one).strip()
        for begin in (f"({letter})", f"{letter}.", f"{letter})", f"{letter}:"):
            if line.startswith(begin) and line[len(begin) :].strip() in ("", text, f"{text}."):
                return one
        if line == letter:
            return one
    return None


def folded(text: str) -> str:
    """NFKC, case folding, single spaces."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def right(rule: str, tolerance: float, given: str, gold: str) -> bool:
    """Whether an open answer is the gold one."""
    if rule == "exact":
        return given == gold
    if rule == "numeric":
        numbers = [number(given), number(gold)]
        if None not in numbers:
            (one, behind), (other, wanted) = numbers  # type: ignore[misc]
            if behind != wanted:
                return False
            if one == other or tolerance == 0.0:
                return bool(one == other)
            apart, scale = abs(float(one) - float(other)), abs(float(other)) or 1.0
            return bool(apart <= tolerance * scale)
    return folded(given).strip(EDGES) == folded(gold).strip(EDGES)


def number(text: str) -> tuple[Decimal, str] | None:
    """A number at the start, and what stands behind it."""
    plain = folded(text).replace("\u2212", "-").replace("\u2013", "-").lstrip(" \"'`*$")
    whole = r"[0-9]{1,3}(,[0-9]{3})+|[0-9]+"
    found = re.match(rf"[+-]?(({whole})(\.[0-9]+)?|\.[0-9]+)(e[+-]?[0-9]{{1,4}})?", plain)
    if found is None:
        return None
    behind = plain[len(found[0]) :].strip(EDGES)
    first = behind[1:2] if behind[:1] in tuple("/([{") else behind[:1]
    if behind and not (first.isalpha() or first in tuple("%\u2030\u00b0\u20ac\u00a3\u00a5$")):
        return None
    return Decimal(found[0].replace(",", "")), behind


def check_forms(vectors: Any) -> None:
    """Prompts, targets, readings and verdicts."""
    for one in vectors["texts"]:
        form, choices = one["form"], one["choices"]
        need(form in ("cloze", "listed", "reasoned"), "form")
        need(prompt(form, one["question"], choices) == one["prompt"], "prompt")
        written = target(form, choices, one["answer"], one["reason"] or None)
        need(written == one["target"], "target")
        need(read(form, choices, written) == one["answer"], "the target's answer")
    for one in vectors["read"]:
        found = read(one["form"], one["choices"], one["path"])
        need(found == one["answer"], f"answer of {one['path']!r}")
    for one in vectors["verified"]:
        found_right = right(one["rule"], one["tolerance"], one["given"], one["gold"])
        need(found_right == bool(one["right"]), f"verdict on {one['given']!r}")
