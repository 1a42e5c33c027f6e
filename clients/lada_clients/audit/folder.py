"""Finding and reading the exported files of a study."""

from __future__ import annotations

from pathlib import Path

from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.studies import STUDIES
from lada_secure.errors import ParameterError

MAX_FILE_BYTES = 1 << 30
# `lada mock run --out DIR` lets its auditor export here.
MOCK_EXPORT = "export"


def evidence_root(folder: Path) -> Path:
    """The export folder itself; `folder` may be the folder above it.

    Raises: ParameterError: neither is one.
    """
    root = folder if (folder / PLAN_FILE).exists() else folder / MOCK_EXPORT
    if not root.is_dir():
        raise ParameterError(
            f"{folder} holds no exported study; expected {PLAN_FILE} in it or in its folder "
            f"{MOCK_EXPORT}/, as an auditor or `lada mock run --out` writes it"
        )
    return root


def read_evidence(folder: Path) -> dict[str, bytes]:
    """All files of one study by relative path; `folder` may be the folder above its export.

    Raises: ParameterError: not such a folder, a file that cannot be read or is too large.
    """
    root = evidence_root(folder)
    files: dict[str, bytes] = {}
    for path in sorted(root.rglob("*")):
        # Other studies of the same auditor are exports of their own.
        if not path.is_file() or path.relative_to(root).parts[0] == STUDIES:
            continue
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ParameterError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
            files[path.relative_to(root).as_posix()] = path.read_bytes()
        except OSError as error:
            raise ParameterError(f"cannot read {path}: {error.strerror}") from error
    return files
