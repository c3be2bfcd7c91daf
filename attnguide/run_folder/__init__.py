"""The files of a run: its lock, its settings, its records, and how they are written. Importing this needs no torch."""
