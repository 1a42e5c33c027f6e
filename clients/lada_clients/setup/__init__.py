"""`lada init`: a party's folder from nothing, and taking the study's bundle in."""
