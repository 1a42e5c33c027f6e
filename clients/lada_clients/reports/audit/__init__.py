"""The report on a study's evidence, as a document and as a page."""
