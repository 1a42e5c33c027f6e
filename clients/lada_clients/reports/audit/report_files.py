"""Writing a privacy report: a page for people, a document for programs."""

from __future__ import annotations

from pathlib import Path

from lada_clients.reports.audit.report_document import PrivacyReport
from lada_clients.reports.audit.report_page import privacy_page
from lada_secure.errors import ParameterError
from lada_secure.storage.whole_files import write_atomically

PAGE_FILE = "privacy-report.html"
DOCUMENT_FILE = "privacy-report.json"


def check_out(out: Path, root: Path) -> None:
    """Refuse a place for the report that would spoil the evidence, before anything is computed.

    Args: root: the export folder. Raises: ParameterError: `out` is a file or inside the export.
    """
    if out.exists() and not out.is_dir():
        raise ParameterError(f"--out: expected a folder, {out} is a file")
    if out.resolve().is_relative_to(root.resolve()):
        raise ParameterError(
            f"--out: {out} is inside the exported evidence, where every file must be one that "
            "signed messages speak of; choose another folder"
        )


def write_report(report: PrivacyReport, out: Path) -> tuple[Path, Path]:
    """Write page and document. Returns: their paths. Raises: TransportError: cannot be written."""
    page, document = out / PAGE_FILE, out / DOCUMENT_FILE
    write_atomically(document, (report.model_dump_json(indent=1) + "\n").encode("utf-8"))
    write_atomically(page, privacy_page(report).encode("utf-8"))
    return page, document
