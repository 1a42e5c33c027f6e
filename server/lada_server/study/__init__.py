"""The coordinator's own part in a study: proposal, rounds, the LLM, status."""
