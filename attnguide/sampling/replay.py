"""A real picture as the source of another: what its inversion passed through stands in for the source at every step.

Denoising an inverted picture again drifts away from it, most under classifier-free guidance. Methods that only read the source
do not need it to be denoised: plug-and-play's published code reads the inversion's own latents, and so do all methods here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from attnguide.guidance.per_row import EachRow
from attnguide.injection.base import Source
from attnguide.models.base import ModelAdapter
from attnguide.models.schedulers import NoiseScheduler
from attnguide.prompt.masks import open_picture
from attnguide.sampling.inversion import Trajectory, encode_pictures, invert


@dataclass(frozen=True, eq=False)
class Replay:
    """Inverted pictures of some rows of a batch.

    Attributes:
        rows: Whose sources they are.
        path: Their latents, noisiest first.
    """

    rows: tuple[int, ...]
    path: Trajectory

    def noise(self, noise: Tensor) -> Tensor:
        """Unit noise ``batch channels height width``, the rows' own exchanged for their pictures'."""
        return self._put(noise, self.path.noise)

    def source(self, latents: Tensor, index: int) -> Tensor:
        """The sources' latents ``batch channels height width`` before evaluation ``index``, clean ones after the last."""
        return self._put(latents, self.path.latents[index] if index < len(self.path.steps) else self.path.clean)

    def _put(self, values: Tensor, ours: Tensor) -> Tensor:
        changed = values.clone()
        changed[list(self.rows)] = ours.to(values)
        return changed


def pictured_rows(source: Source | None, rows: int) -> dict[int, Path]:
    """Row -> the file that is its source.

    Raises:
        ValueError: If there is neither one picture nor one per row.
    """
    if source is None or source.pictures is None:
        return {}
    files = EachRow[str | None](source.pictures, "source_image").over(rows)
    return {row: Path(file).expanduser() for row, file in enumerate(files) if file is not None}


def check_replay(model: ModelAdapter, scheduler: NoiseScheduler, steps: int, shape: tuple[int, int, int]) -> None:
    """Refuse a scheduler whose latents the inversion does not pass through.

    Raises:
        ValueError: Naming the scheduler.
    """
    if scheduler.initial_sigma != 1 or model.make_scheduler(model.inversion_scheduler, steps, shape).steps != scheduler.steps:
        raise ValueError(
            f"source_image needs a scheduler with the noise levels of {model.inversion_scheduler!r}, which inversion undoes; "
            f"got {scheduler.name}."
        )


def invert_sources(
    model: ModelAdapter,
    source: Source | None,
    prompts: Sequence[str],
    scheduler: NoiseScheduler,
    steps: int,
    size: tuple[int, int],
) -> Replay | None:
    """Invert the pictures that rows name as sources, at a cfg scale of 1; ``None`` if no row does.

    Args:
        model: The adapter.
        source: Of the batch's methods.
        prompts: Every row's source prompt.
        scheduler: Of the batch.
        steps: Denoising steps that were asked for.
        size: Height and width of the pictures to come, to which the sources are stretched.

    Raises:
        ValueError: If the scheduler does not fit, or a file is not a picture.
    """
    files = pictured_rows(source, len(prompts))
    if source is None or not files:
        return None
    check_replay(model, scheduler, steps, model.latent_shape(*size))
    latents = encode_pictures(model, [open_picture(file, "source_image") for file in files.values()], *size)
    path = invert(model, latents, [prompts[row] for row in files], steps=steps, iterations=source.iterations)
    return Replay(tuple(files), path)


def replay_forwards(source: Source | None, steps: int) -> int:
    """Evaluations that inverting one row's picture takes."""
    return 0 if source is None or source.pictures is None else steps * (source.iterations + 1)
