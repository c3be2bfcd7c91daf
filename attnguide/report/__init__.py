"""A run folder as one page of HTML that needs no other file."""
