"""Steer text-to-image diffusion models through their attention maps, and measure it."""
