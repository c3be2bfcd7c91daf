"""Contact sheets: grids of pictures with labels and colours, and overlays of regions and heat maps."""
