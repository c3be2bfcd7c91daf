"""Train the embedded models: the UNet (`--stage all`, autoencoder first) and the joint-attention one (`--stage mmdit`).

    python scripts/train_shapes.py                          # the UNet model from nothing
    python scripts/train_shapes.py --stage mmdit            # the joint-attention model, on the embedded autoencoder and CLIP
    python scripts/train_shapes.py --stage mmdit --minutes 8 --device cuda              # as far as 8 minutes go
    python scripts/train_shapes.py --stage mmdit --minutes 8 --device cuda --finish     # the last of such calls
    python scripts/train_shapes.py --stage diffusion --start-from attnguide/shapes/weights --minutes 8 --device cuda --finish

The same command goes on where it stopped; SIGTERM stops it with its state kept. It computes in float32 on a CPU, on a graphics
card in bfloat16, compiled, with batches of 512. Checkpoints, prepared scenes, judged previews and logs go to --out, pipelines
to --export. docs/training.md says more.
"""

from __future__ import annotations

if __name__ == "__main__":
    from attnguide.shapes.training.run import main  # here, as processes that draw scenes read this file too

    main()
