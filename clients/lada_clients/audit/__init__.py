"""Checks of exported evidence, for auditors and data-protection officers."""
