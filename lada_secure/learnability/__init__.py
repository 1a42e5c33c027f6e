"""Learnability: which pool samples a small model can learn from now, found without showing why."""
