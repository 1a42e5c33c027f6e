"""Which program makes a run: a digest of the source files that decide what comes out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import lada_lab
import lada_secure

_SECURE = ("allocation", "data", "dpsgd", "encryption", "method", "models", "privacy")
_LAB = ("baselines", "worlds")
# Modules of `arms` that only ask, store, report or draw; a new one counts until it is named here.
_REPORTING = frozenset(
    {
        *("ablation", "analyse_command", "analysis", "analysis_report", "command", "plot"),
        *("program", "results", "run_file", "runs", "signal"),
    }
)


def program_sha256() -> str:
    """SHA-256, as hex, over names and contents of the source files, in the order of names."""
    secure, lab = (Path(str(one.__file__)).parent for one in (lada_secure, lada_lab))
    files = [
        *((secure, path) for name in _SECURE for path in (secure / name).rglob("*.py")),
        *((lab, path) for name in _LAB for path in (lab / name).rglob("*.py")),
        *((lab, path) for path in (lab / "arms").rglob("*.py") if path.stem not in _REPORTING),
    ]
    digest = hashlib.sha256()
    for root, path in sorted(files):
        content = path.read_bytes()
        name = f"{root.name}/{path.relative_to(root).as_posix()}"
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
