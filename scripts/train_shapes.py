"""Train the embedded model, autoencoder first, then text encoder and UNet together, and export a diffusers pipeline.

    python scripts/train_shapes.py                      # everything; run it again to resume where it stopped
    python scripts/train_shapes.py --stage diffusion --diffusion-steps 20000 --logger wandb
    python scripts/train_shapes.py --start-from attnguide/shapes/weights --diffusion-steps 20000   # go on from those

Checkpoints, cached latents and logs go to --out; the finished pipeline goes to --export.
"""

from __future__ import annotations

from attnguide.shapes.training.run import main

if __name__ == "__main__":
    main()
