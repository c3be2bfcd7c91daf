"""The only room that knows diffusers and transformers."""
