"""Parties' folders as `lada mock run` writes them, with a small model that has a chat template."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from architecture_doubles import family_folder
from safetensors.torch import load_file, save_file

from lada_lab.mock.layout import PartyFolder, RunLayout
from lada_lab.mock.preparation import write_run
from lada_lab.mock.presets import Preset, preset_for
from lada_lab.worlds.federation import build_federation
from lada_secure.check.findings import Finding
from lada_secure.check.running import Request, RoleChecks, run_checks

SITE = "site-a"
PORT = 45_123


def tiny_preset() -> Preset:
    """The preset whose settings the folders have."""
    return preset_for("tiny", sites=3, rounds=None, seed=0)


def write_checked_run(root: Path) -> RunLayout:
    """Make the folders; everything in them is relative to them but the models' folder."""
    preset = tiny_preset()
    for reference in (preset.slm_of(SITE), preset.llm):
        family_folder("Llama", root / "models" / reference)
    data = build_federation(preset.data, sites=3, seed=0)
    (root / "run").mkdir()
    layout = RunLayout(root=root / "run", site_ids=tuple(data.sites))
    write_run(layout, preset, data, port=PORT, cache_dir=Path("../../models"))
    return layout


def slm_folder(layout: RunLayout) -> Path:
    """Where the sites' model lies."""
    return layout.root.parent / "models" / tiny_preset().slm_of(SITE)


def llm_folder(layout: RunLayout) -> Path:
    """Where the coordinator's model lies."""
    return layout.root.parent / "models" / tiny_preset().llm


def change_toml(path: Path, **changes: Any) -> None:
    """Set keys of a settings file; a table is added to, None takes a key out."""
    table = tomllib.loads(path.read_text())
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(table.get(key), dict):
            table[key] = {**table[key], **value}
        elif value is None:
            del table[key]
        else:
            table[key] = value
    path.write_text(tomli_w.dumps(table))


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in its place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def findings_of(
    role: RoleChecks, folder: PartyFolder, *, quick: bool = True, **request: Any
) -> tuple[Finding, ...]:
    """What a role's list finds in a party's settings file."""
    asked = Request(**{"questions": 6, **request})
    return tuple(run_checks(role.checks(folder.settings, asked), quick=quick))


def levels(findings: tuple[Finding, ...]) -> dict[str, str]:
    """The worst level of every check, by its name."""
    order = ("skipped", "ok", "warning", "fault")
    found: dict[str, str] = {}
    for one in findings:
        found[one.check] = max(found.get(one.check, "skipped"), one.level, key=order.index)
    return found


def told(findings: tuple[Finding, ...], check: str) -> str:
    """All that one check says."""
    return "\n".join(one.message for one in findings if one.check == check)


def tree(root: Path) -> dict[str, tuple[int, str]]:
    """Every file and folder under a root: time of its last change, and hash."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(root.rglob("*"))
    }


def change_weights(change: Callable[[dict[str, object]], None]) -> Callable[[RunLayout], None]:
    """Changes the tensors of the site's SLM, by name, in place."""

    def spoil(layout: RunLayout) -> None:
        path = slm_folder(layout) / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return spoil
