"""Records of sites, the coordinator's public pool, and loaders for both."""
