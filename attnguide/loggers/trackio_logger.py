"""trackio as a Lightning logger: a local dashboard without an account."""

from __future__ import annotations

import contextlib
import io
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image


class TrackioLogger(Logger):
    """Writes to trackio's own folder (``TRACKIO_DIR``), where its dashboard finds the runs of a project side by side.

    Args:
        project: Project, which ``trackio show --project <project>`` shows.
        name: Name of the run.
        group: Group of the run.
    """

    def __init__(self, project: str, name: str, group: str | None = None) -> None:
        super().__init__()
        self._project, self._name, self._group = project, name, group
        self._config: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        """Name of the project."""
        return self._project

    @property
    def version(self) -> str:
        """Name of the run."""
        return self._name

    @property
    def experiment(self) -> Any:
        """Trackio's run; it begins on first access."""
        if self._run is None:
            import trackio

            with contextlib.redirect_stdout(io.StringIO()):  # trackio prints its folder, which attnguide prints as well
                self._run = trackio.init(
                    self._project,
                    self._name,
                    group=self._group,
                    config=self._config,
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Keep the configuration; trackio writes it with the first numbers."""
        self._config.update(vars(params) if isinstance(params, Namespace) else params)
        if self._run is not None:
            self._run.config.update(self._config)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at a step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_image(self, key: str, image: Image.Image, caption: str, step: int) -> None:
        """Log a picture; trackio shows one a step."""
        import trackio

        self.experiment.log({key: trackio.Image(image, caption=caption)}, step=step)

    @rank_zero_only
    def log_table(self, key: str, columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
        """Log a table of plain values."""
        import trackio

        self.experiment.log({key: trackio.Table(columns=list(columns), data=[list(line) for line in lines])})

    @rank_zero_only
    def close(self) -> None:
        """Write pending data and end the run."""
        if self._run is not None:
            import trackio

            with contextlib.redirect_stdout(io.StringIO()):
                trackio.finish()
            self._run = None
