"""Train the embedded models: the UNet (`--stage all`, autoencoder first) and the joint-attention one (`--stage mmdit`).

    python scripts/train_shapes.py                          # the UNet model from nothing
    python scripts/train_shapes.py --stage mmdit            # the joint-attention model, on the embedded autoencoder and CLIP
    python scripts/train_shapes.py --stage mmdit --minutes 9 --device cuda --workers 16             # as far as 9 minutes go
    python scripts/train_shapes.py --stage mmdit --minutes 9 --device cuda --workers 16 --finish    # the last of such calls
    python scripts/train_shapes.py --stage diffusion --start-from attnguide/shapes/weights --minutes 60 --finish

The same command goes on where it stopped; SIGTERM stops it with its state kept. It computes in float32 on a CPU, on a graphics
card in bfloat16, compiled, with batches of 512. Checkpoints, prepared scenes, judged previews and logs go to --out, pipelines
to --export. docs/training.md says more.
"""

from __future__ import annotations

from attnguide.shapes.training.run import main

if __name__ == "__main__":
    main()
