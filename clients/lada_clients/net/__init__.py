"""A party's connection to the board, its credentials, outbox and study folder."""
