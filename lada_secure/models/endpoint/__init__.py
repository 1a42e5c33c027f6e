"""An LLM behind a server that speaks OpenAI's completions protocol."""
