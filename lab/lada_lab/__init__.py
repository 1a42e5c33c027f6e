"""The laboratory: worlds, baselines, benchmarks and the mock federation; no site installs it."""
