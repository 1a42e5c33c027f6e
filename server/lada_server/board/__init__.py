"""The message board's storage: schema, payloads, uploads, the store."""
