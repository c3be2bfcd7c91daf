"""Plain values and text: what is read from files and options within bounds, and what is shown."""
