"""Layout benchmarks as other projects write them, read as rows of a table. Importing this needs no torch."""
