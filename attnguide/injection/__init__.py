"""Methods made of edits inside the forward pass; no gradient. One file per family."""
