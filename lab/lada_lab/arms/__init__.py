"""`lada bench allocation`: does choosing samples help, with privacy and without, and how much."""
