"""Words and places: phrases of a prompt to token positions, regions to masks. Importing it does no work."""
