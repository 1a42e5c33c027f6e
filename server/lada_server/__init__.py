"""The coordinator: sees ciphertexts and opened sums, never a key that opens anything."""
