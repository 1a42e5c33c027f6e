"""Methods that transfer knowledge between an LLM and SLMs, with LaDa in front or without."""
