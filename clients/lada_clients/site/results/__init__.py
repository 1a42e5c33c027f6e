"""What a site has of a study: its model exported, measured, asked, and reported on."""
