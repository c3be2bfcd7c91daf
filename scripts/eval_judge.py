"""Measures the accuracy of the shapes judge: ``python scripts/eval_judge.py --scenes 1000 --vae path/to/vae``.

Prints one line per treatment of random scenes (share of objects found exactly right: shape, colour, box; and what was found
besides), and one per kind of ruined picture (share of pictures in which anything is found; share of foreground explained).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from attnguide.judges.boxes import box_iou
from attnguide.shapes.judge import Verdict, judge
from attnguide.shapes.renderer import object_masks, render
from attnguide.shapes.scene import Scene, random_scene
from attnguide.types import Box

FIRST_SEED = 20_000_000
BATCH = 16
BOX_IOU = 0.7


def visible_box(mask: np.ndarray) -> Box:
    """Bounds of a mask as fractions."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def right_objects(scene: Scene, verdict: Verdict) -> int:
    """Objects of the scene with a detection of their own of the same name and place."""
    left = list(verdict.detections)
    for obj, mask in zip(scene.objects, object_masks(scene), strict=True):
        found = (d for d in left if d.name == obj.name and box_iou(d.box, visible_box(mask)) >= BOX_IOU)
        if (first := next(found, None)) is not None:
            left = [d for d in left if d is not first]
    return len(verdict.detections) - len(left)


@dataclass
class Row:
    """Sums over scenes."""

    objects: int = 0
    right: int = 0
    extra: int = 0
    pictures: int = 0
    backgrounds: int = 0
    explained: float = 0.0

    def add(self, scene: Scene, pixels: np.ndarray) -> None:
        """Judge one picture of a scene."""
        verdict = judge(pixels)
        right = right_objects(scene, verdict)
        self.objects += len(scene.objects)
        self.right += right
        self.extra += len(verdict.detections) - right
        self.pictures += 1
        self.backgrounds += verdict.background == scene.background
        self.explained += verdict.explained

    def __str__(self) -> str:
        return (
            f"{self.objects:8d} {self.right / self.objects:8.2%} {self.extra / self.objects:8.2%} "
            f"{self.backgrounds / self.pictures:11.2%} {self.explained / self.pictures:10.3f}"
        )


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _blurred(pixels: np.ndarray, std: float) -> np.ndarray:
    return ndimage.gaussian_filter(pixels.astype(float), (std, std, 0))


def _scene_pixels(seed: int) -> np.ndarray:
    return np.asarray(render(random_scene(FIRST_SEED + seed)))


def _tinted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return pixels * rng.uniform(0.94, 1.04, 3) + rng.uniform(-6, 6, 3)


TREATMENTS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "clean": lambda pixels, rng: pixels,
    "blurred, 0.7 px": lambda pixels, rng: _blurred(pixels, 0.7),
    "blurred, 1.2 px": lambda pixels, rng: _blurred(pixels, 1.2),
    "tinted": _tinted,
    "grain, std 8 of 255": lambda pixels, rng: pixels + rng.normal(0, 8, pixels.shape),
}


def _field(rng: np.random.Generator, std: float) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.normal(size=(128, 128, 3)), (std, std, 0))
    return 128 + 60 * field / field.std((0, 1))


RUINS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "white noise": lambda i, rng: rng.integers(0, 256, (128, 128, 3)),
    "colour field, 3 px": lambda i, rng: _field(rng, 3),
    "colour field, 8 px": lambda i, rng: _field(rng, 8),
    "colour field, 20 px": lambda i, rng: _field(rng, 20),
    "scenes blurred, 4 px": lambda i, rng: _blurred(_scene_pixels(i), 4),
    "scenes blurred, 8 px": lambda i, rng: _blurred(_scene_pixels(i), 8),
    "scenes under noise": lambda i, rng: _scene_pixels(i) + rng.normal(0, 60, (128, 128, 3)),
    "scenes in colour field": lambda i, rng: _scene_pixels(i) * 0.6 + _field(rng, 4) * 0.4,
    "mean of 5 scenes": lambda i, rng: np.mean([_scene_pixels(5 * i + j) for j in range(5)], axis=0),
}


class Autoencoder:
    """Encodes and decodes pictures with the ``AutoencoderKL`` of a folder."""

    def __init__(self, folder: Path) -> None:
        import torch
        from diffusers import AutoencoderKL

        self.torch = torch
        self.model = AutoencoderKL.from_pretrained(folder).eval()

    def decode(self, latents: object) -> np.ndarray:
        """Latents to uint8 ``batch height width 3``."""
        with self.torch.no_grad():
            decoded = self.model.decode(latents).sample
        return _bytes(((decoded + 1) * 127.5).permute(0, 2, 3, 1).numpy())

    def encode(self, pixels: np.ndarray) -> object:
        """Latent means of uint8 pictures ``batch height width 3``."""
        with self.torch.no_grad():
            batch = self.torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            return self.model.encode(batch).latent_dist.mode()

    def random(self, like: object, seed: int, smooth: bool) -> np.ndarray:
        """Pictures of random latents with the spread of ``like``."""
        shape, spread = like.shape, like.std()  # type: ignore[attr-defined]
        noise = self.torch.randn(shape, generator=self.torch.Generator().manual_seed(seed))
        if smooth:
            noise = self.torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2) * 5
        return self.decode(noise * spread)


def _reconstructions(model: Autoencoder, scenes: list[Scene]) -> Iterable[tuple[Scene, np.ndarray]]:
    for start in range(0, len(scenes), BATCH):
        batch = scenes[start : start + BATCH]
        decoded = model.decode(model.encode(np.stack([np.asarray(render(scene)) for scene in batch])))
        yield from zip(batch, decoded, strict=True)


def _ruined_line(name: str, pictures: Iterable[np.ndarray]) -> str:
    verdicts = [judge(pixels) for pixels in pictures]
    share = np.mean([bool(verdict.detections) for verdict in verdicts])
    return f"{name:24s} {len(verdicts):8d} {share:8.2%} {np.mean([verdict.explained for verdict in verdicts]):10.3f}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, help="folder of an AutoencoderKL")
    parser.add_argument("--scenes", type=int, default=200, help="random scenes per treatment")
    args = parser.parse_args()
    scenes = [random_scene(FIRST_SEED + index, held_out=index % 4 == 0) for index in range(args.scenes)]
    model = Autoencoder(args.vae) if args.vae else None

    print(f"{'treatment':24s} {'objects':>8s} {'right':>8s} {'extra':>8s} {'background':>11s} {'explained':>10s}")
    for name, treat in TREATMENTS.items():
        rng, row = np.random.default_rng(0), Row()
        for scene in scenes:
            row.add(scene, _bytes(treat(np.asarray(render(scene)), rng)))
        print(f"{name:24s} {row}")
    if model is not None:
        row = Row()
        for scene, pixels in _reconstructions(model, scenes):
            row.add(scene, pixels)
        print(f"{'autoencoder':24s} {row}")

    print(f"\n{'ruined pictures':24s} {'pictures':>8s} {'found in':>8s} {'explained':>10s}")
    count = max(args.scenes // 2, BATCH)
    for name, ruin in RUINS.items():
        rng = np.random.default_rng(1)
        print(_ruined_line(name, (_bytes(ruin(index, rng)) for index in range(count))))
    if model is not None:
        like = model.encode(np.stack([np.asarray(render(scene)) for scene in scenes[:BATCH]]))
        for name, smooth in (("random latents", False), ("smooth random latents", True)):
            print(_ruined_line(name, (p for seed in range(count // BATCH) for p in model.random(like, seed, smooth))))


if __name__ == "__main__":
    main()
