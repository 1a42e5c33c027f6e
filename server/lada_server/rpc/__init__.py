"""The board over gRPC: callers, limits, calls."""
