"""docs/privacy.md: its commands print what it says, and its claims point at code that exists."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lada_secure.cli import build_app
from lada_secure.privacy.ledger.terms import MIN_STD_STEPS

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"```console\n\$ (lada [^\n]+)\n(.*?)```", PAGE, flags=re.DOTALL)
REFERENCES = re.findall(r"`([a-z_/]+\.py)`: ((?:`\w+`(?:, )?)+)", PAGE)


@pytest.mark.parametrize(("command", "printed"), CONSOLE, ids=[one for one, _ in CONSOLE])
def test_every_command_of_the_page_prints_what_the_page_shows(
    command: str, printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plan,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "plan.toml").write_text(plan, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(build_app(), shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    for line in printed.splitlines():
        assert line in result.output


def test_the_page_has_commands_and_references_to_check() -> None:
    assert len(CONSOLE) == 3
    assert len(REFERENCES) >= 18


@pytest.mark.parametrize(("path", "names"), REFERENCES)
def test_every_name_beside_a_claim_stands_in_the_code_named(path: str, names: str) -> None:
    code = (ROOT / path).read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+)`", names):
        assert re.search(rf"^(?:class |def |    def )?{name}\b", code, flags=re.MULTILINE), name


def test_the_figures_of_the_page_are_right() -> None:
    for epsilon, percent in re.findall(r"[( ](\d): ([\d.]+)%", PAGE):
        share = 100 / (1 + math.exp(-float(epsilon)))
        digits = len(percent.partition(".")[2])
        assert f"{share:.{digits}f}" == percent
    assert MIN_STD_STEPS == 16.0
    assert -2 * math.pi**2 * MIN_STD_STEPS**2 / math.log(10) < -2000
    # Of the sampler's distance, which the statistical tests measure.
    assert 10**12 * 2.0**-108 < 2.0**-68


def test_every_kind_of_gap_is_named() -> None:
    gaps = PAGE[PAGE.index("## What is not covered") :]
    for word in (
        "Tuning on private data",
        "Side channels",
        "Float noise",
        "Held-out accuracy",
        "Studies planned in view of earlier results",
        "pool_gradients",
        "Delta",
    ):
        assert f"**{word}" in gaps or f"**`{word}" in gaps
