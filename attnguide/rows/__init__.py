"""Rows of a table: read from files, checked early, written as plain values. Importing this needs no torch."""
