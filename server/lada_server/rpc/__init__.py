"""The board over gRPC: limits, calls, service."""
