"""A model that is called by its card alone, in a process without this project."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finished_study import take_part, write_site

from lada_clients.site.results.asking import ask, checked_question
from lada_clients.site.results.export import ExportSettings, export
from lada_clients.site.results.study import open_study
from lada_secure.data.forms import FORMS

_QUICK = (("reasoned", "plain"),)

# What the card says of a question with options, by hand: no line of this project.
CHOOSE = """
import json, sys
facts = json.load(open("lada.json"))
call = facts["calls"]["two options"]
def ids_of(text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
def mean_of(option):
    before, behind = facts["tokens_before"], facts["tokens_behind"]
    if behind:
        read, scored = before + ids_of(call["reads"]) + behind, ids_of(option)
    else:
        whole = ids_of(call["reads"] + option)
        count = len(ids_of(call["reads"]))
        read, scored = before + whole[:count], whole[count:]
    with torch.no_grad():
        log_p = model(torch.tensor([read + scored])).logits[0, len(read) - 1 : -1].log_softmax(-1)
    return float(log_p.gather(-1, torch.tensor([scored]).T).mean())
print("-----")
print(max(call["scored"], key=mean_of) if call["scored"] else None)
print("-----")
assert not any(name.startswith("lada") for name in sys.modules)
"""


def by_its_card(folder: Path, base: Path, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What the card's own lines print for each text that is read, and the option that is chosen,
    in a process without this project."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (text,) = re.findall(r"^text = .*$", code, re.MULTILINE)
    code = code.replace('"slm"', repr(str(base)))
    program = "".join(
        code.replace(text, f"text = {call['reads']!r}") + CHOOSE for call in facts["calls"].values()
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode("utf-8").split("-----\n")
    return [(one.strip(), other.strip()) for one, other in zip(said[::2], said[1::2], strict=False)]


@pytest.mark.parametrize(
    ("form", "style"),
    [
        pytest.param(form, style, marks=() if (form, style) in _QUICK else pytest.mark.slow)
        for form in FORMS
        for style in ("plain", "chat")
    ],
)
def test_a_stranger_who_calls_it_by_its_card_gets_what_the_site_is_told(
    tmp_path: Path, form: str, style: str
) -> None:
    settings = write_site(tmp_path)
    settings.write_text(settings.read_text().replace("[model]", f'[model]\nstyle = "{style}"'))
    take_part(settings, rounds=1, answer_form=form)
    base = tmp_path / "cache" / "slm"
    # Of its maker: greedy would no longer be so.
    (base / "generation_config.json").write_text('{"repetition_penalty": 9.0, "max_new_tokens": 3}')
    study, out = open_study(settings, None), tmp_path / "out"
    facts = export(study, None, out, ExportSettings()).facts
    assert facts["max_tokens"] == study.open_model().max_tokens < study.settings.model.max_tokens
    card = (out / "README.md").read_text(encoding="utf-8")
    printed = by_its_card(out, base, facts)
    for call, said, choices in zip(
        facts["calls"].values(), printed, ((), ("FIRST", "SECOND")), strict=True
    ):
        for one in (call["reads"], call["writes"]):
            assert f"\n{json.dumps(one, ensure_ascii=False)}\n" in card
        told = ask(study, checked_question("QUESTION", choices))[-1]
        if call["scored"]:
            named = dict(zip((one.strip() for one in call["scored"]), choices, strict=True))
            assert named[said[1]] == told.answer
        else:
            assert said[0] == told.path
