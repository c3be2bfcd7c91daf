"""The only room that knows diffusers and transformers."""

from attnguide.models import quiet as quiet  # before any library that would say more than it has to
