"""Readers of other projects' layout benchmarks, which turn them into rows of a table. Importing this needs no torch."""
