"""A browser page (Gradio) to draw regions on and to make steered pictures with them."""
