"""Bytes: envelopes, kinds of messages, their payloads, sizes and limits."""
