"""The sampler as a Lightning module, run by ``Trainer.predict``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from attnguide.attention.capture import Probe
from attnguide.data import Unopened
from attnguide.engine.observer import BatchInfo, Observer, UpdateEvent, guarded, guarded_probe
from attnguide.models.base import ModelAdapter
from attnguide.models.load import DEFAULT_MODEL, load_model, resolve_device
from attnguide.models.offload import is_offloaded
from attnguide.sampling.arguments import check_model
from attnguide.sampling.table import sample_each
from attnguide.types import Sample, SampleResult, Step


class GuidanceModule(L.LightningModule):
    """Samples batches of rows in ``predict_step``; it cannot be trained.

    Args:
        model: An adapter, or a name for :func:`~attnguide.models.load.load_model`, loaded when a run begins.
        dtype: ``fp32``, ``fp16``, ``bf16`` or one of torch's, for a model given by name; fp16 on a GPU and else fp32 by
            default.

    Example::

        trainer = make_trainer("runs/first", callbacks=[Samples(), RunFolder()])
        trainer.predict(GuidanceModule("shapes"), SampleDataModule([Sample("a", "a red circle")]))

    During a run the networks are submodules, so that Lightning moves and casts them; afterwards they are detached and moved
    back to their former device. A model whose weights are offloaded is not moved.
    """

    def __init__(self, model: ModelAdapter | str = DEFAULT_MODEL, *, dtype: str | torch.dtype | None = None) -> None:
        super().__init__()
        if not isinstance(model, str):
            check_model(model)
        self._model = model
        self._dtype_name = dtype
        self._home: torch.device | None = None
        self.networks = nn.ModuleDict()

    @property
    def adapter(self) -> ModelAdapter:
        """The model's adapter.

        Raises:
            RuntimeError: If it was given by name and no run has begun.
        """
        if isinstance(self._model, str):
            raise RuntimeError(f"Model {self._model!r} is loaded when a run begins.")
        return self._model

    def configure_model(self) -> None:
        """Load the model on the run's device, if it was given by name, and register its networks."""
        if len(self.networks) or self._home is not None:  # Lightning may ask more than once
            return
        if isinstance(self._model, str):
            self._model = load_model(self._model, device=str(self.trainer.strategy.root_device), dtype=self._dtype_name)
        self._home = self._model.device
        if not is_offloaded(self._model.networks.values()):
            self.networks.update(self._model.networks)

    def predict_step(self, batch: Sequence[Sample], batch_idx: int = 0, dataloader_idx: int = 0) -> list[SampleResult]:
        """Sample a batch of rows; returns the results of those that are wanted, and callbacks see only these.

        A row that cannot be made ends by itself, with the reason as its status.

        Raises:
            RuntimeError: If the trainer runs in inference mode, in which guidance has no gradients.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError("Guidance needs gradients: use Trainer(inference_mode=False), as make_trainer does.")
        if not batch:  # padding for a device that has no batch left
            return Unopened()
        wanted = getattr(batch, "wanted", None)
        return Unopened(sample_each(self.adapter, batch, CallbackObserver(self.trainer, self), wanted=wanted))

    def teardown(self, stage: str) -> None:
        for name in list(self.networks):  # Lightning moves registered modules to the CPU after this
            self.networks.pop(name).to(self._home)
        self._home = None


class CallbackObserver(Observer):
    """Calls the loop's hooks of the trainer's callbacks, in the order of the list; callbacks without a hook are skipped.

    If a callback with :attr:`~attnguide.callbacks.SamplingCallback.only_shows` raises, there is a warning, and its hooks are
    skipped until the next batch. An exception of any other callback ends the run.

    Together with Lightning's own hooks the order is::

        setup
        on_predict_start
        for batch in batches:
            on_predict_batch_start
            on_rows_given_up             # if rows are refused, or after the steps if the batch was lost
            probes
            on_sample_start
            for step in steps:
                on_denoise_step_start
                on_guidance_update       # zero or more times
                on_row_stopped           # for each row that is given up, at any time
                on_denoise_step_end
            on_sample_end
            on_predict_batch_end
        on_predict_end
        teardown

    Args:
        trainer: Trainer that has the callbacks.
        module: Module that is passed to their hooks.
    """

    def __init__(self, trainer: L.Trainer, module: GuidanceModule) -> None:
        self._trainer = trainer
        self._module = module
        folder = Path(trainer.default_root_dir)
        self._folder = folder if folder.is_dir() else None

    def _hooks(self, name: str) -> Iterator[tuple[L.Callback, Callable[..., Any]]]:
        callbacks: Sequence[L.Callback] = self._trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            hook = getattr(callback, name, None)
            if hook is not None and not getattr(callback, "failed", False):
                yield callback, hook

    def _tell(self, name: str, *arguments: Any) -> None:
        for callback, hook in self._hooks(name):
            with guarded(callback):
                hook(self._trainer, self._module, *arguments)

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        for callback in self._trainer.callbacks:  # type: ignore[attr-defined]
            if getattr(callback, "failed", False):
                callback.failed = False
        found: list[Probe] = []
        for callback, hook in self._hooks("probes"):
            with guarded(callback):
                found += [guarded_probe(callback, probe) for probe in hook(info)]
        return found

    def on_sample_start(self, info: BatchInfo) -> None:
        self._tell("on_sample_start", info)

    def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
        self._tell("on_denoise_step_start", step, latents)

    def on_guidance_update(self, event: UpdateEvent) -> None:
        self._tell("on_guidance_update", event)

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        self._tell("on_denoise_step_end", step, latents, noise_pred)

    def on_row_stopped(self, row: int, reason: str) -> None:
        self._tell("on_row_stopped", row, reason)

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        if self._folder is not None and not self._folder.is_dir():  # callbacks would recreate it for the remaining rows
            raise FileNotFoundError(f"Folder {str(self._folder)!r} was removed while the run was writing to it")
        self._tell("on_sample_end", results)

    def on_rows_given_up(self, results: Sequence[SampleResult]) -> None:
        self._tell("on_rows_given_up", results)


def make_trainer(
    run_folder: str | Path = ".",
    *,
    callbacks: Sequence[L.Callback] = (),
    loggers: Sequence[Logger] = (),
    device: str | None = None,
    **overrides: Any,
) -> L.Trainer:
    """A trainer with the settings that sampling needs: gradients allowed, no checkpoints, no model summary.

    Args:
        run_folder: Folder that callbacks write to; the trainer's ``default_root_dir``.
        callbacks: Callbacks, called in this order.
        loggers: Lightning loggers.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; the best available by default.
        overrides: Further arguments of ``Trainer``, such as ``devices=4, strategy="ddp"``; they override all others.

    Raises:
        ValueError: If the device is unknown or does not exist.
    """
    where = resolve_device(device)
    settings: dict[str, Any] = {
        "accelerator": {"cuda": "gpu"}.get(where.type, where.type),
        "devices": 1 if where.index is None or where.type != "cuda" else [where.index],
        "default_root_dir": str(run_folder),
        "callbacks": list(callbacks),
        "logger": list(loggers) or False,
        "inference_mode": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": any(isinstance(callback, L.pytorch.callbacks.ProgressBar) for callback in callbacks),
    }
    return L.Trainer(**{**settings, **overrides})
