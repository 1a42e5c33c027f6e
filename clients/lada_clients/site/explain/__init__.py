"""`lada explain`: what a site allocated and why, from the site's own files."""
