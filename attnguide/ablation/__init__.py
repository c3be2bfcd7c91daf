"""Ablations: axes of a file become rows of one table, and its records become sheets, curves and a summary."""
