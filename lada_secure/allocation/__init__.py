"""Which pool samples a site should learn from, from released values alone."""
