"""`lada pool`: the coordinator's public questions, imported and looked at before a study."""
