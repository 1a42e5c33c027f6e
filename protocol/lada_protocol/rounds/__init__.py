"""What each party does next, from the signed messages so far."""
