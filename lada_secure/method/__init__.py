"""One round of a site and of the LLM, as states and functions; product and laboratory run it."""
