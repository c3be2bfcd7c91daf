"""The only sampling loop, and the tables of rows that it samples."""
