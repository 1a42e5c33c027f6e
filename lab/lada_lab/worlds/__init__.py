"""Synthetic worlds, demo data and the small models that are trained for them."""
