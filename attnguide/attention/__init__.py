"""Reading and changing attention inside a network; plain torch."""
