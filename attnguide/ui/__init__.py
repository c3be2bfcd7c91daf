"""A page in the browser on which one draws where words should be, and watches the picture follow."""
