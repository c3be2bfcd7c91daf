"""Rows of a table: reads them from files, checks them early, writes them as plain values. Importing this needs no torch."""
