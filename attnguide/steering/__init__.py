"""Methods inside a pipeline call that the user makes."""
