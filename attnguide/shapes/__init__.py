"""The embedded world of coloured shapes: scenes, renderer, captions, judge, layouts, and training of its models."""
