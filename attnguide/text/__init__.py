"""Text and plain values: bounded parsing of files and options, and formatting of text and HTML."""
