"""A process of its own for native code, and what crosses the pipe to it."""
