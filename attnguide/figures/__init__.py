"""What notebooks show: results side by side, maps and losses that were watched, figures for papers, a bar of progress."""
