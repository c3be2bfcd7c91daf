"""Methods that move latents along the gradient of a loss on attention maps; one file per paper."""
