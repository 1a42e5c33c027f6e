"""Mechanisms of lada-secure: privacy, encryption, models, DP-SGD and allocation.

Nothing in this package opens a socket or a database. See `docs/architecture.md`.
"""
