"""Pure functions from maps and masks to one value per region or row; lower is better. Independent of models."""
