"""The board over gRPC: callers, limits, calls, who is present."""
