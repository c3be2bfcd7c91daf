"""Notebook displays and figures: results side by side, maps and losses of watched rows, figures for papers, a progress bar."""
