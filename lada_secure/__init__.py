"""Mechanisms of lada-secure: privacy, encryption, learnability, distillation and data.

Nothing in this package opens a socket or a database. See DESIGN in `docs/`.
"""
