"""Events and their price: epsilon, composition, calibration, plans."""
