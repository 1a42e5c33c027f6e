"""The auditor: the one party that can open sums, and only sums."""
