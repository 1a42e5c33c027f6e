"""From private records to a released value: units, noise, release."""
