"""The embedded world of coloured shapes: scenes, renderer, captions, judge, layouts, and a model trained on them."""
