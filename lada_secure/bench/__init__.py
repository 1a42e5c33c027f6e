"""Benchmarks that run their baselines beside them, in the same process and the same minute."""
