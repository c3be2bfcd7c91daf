"""A W&B workspace and a report of runs, by code: what the panels show, and their form in ``wandb-workspaces``."""
