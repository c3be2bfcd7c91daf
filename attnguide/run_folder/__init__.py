"""The run folder: its lock, configuration, records, and atomic writing of its files. Importing this needs no torch."""
