"""Micro-benchmarks that run their baselines beside them, in the same minute."""
