"""Opens the model and the judges that settings name; failures become usage errors."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from attnguide.cli.errors import UsageError, one_line

if TYPE_CHECKING:
    from attnguide.judges import Judge
    from attnguide.models.base import ModelAdapter
    from attnguide.types import Sample


class Opened:
    """The model and the judges that settings name, opened on first use; plans of one command share them.

    Args:
        config: Settings of the command, from which model and judges are opened.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    @cached_property
    def judges(self) -> tuple[Judge, ...]:
        """The judges, opened by :func:`judging`."""
        return tuple(judging(self.config["judge"]))

    @cached_property
    def model(self) -> ModelAdapter:
        """The model, loaded by :func:`loaded`."""
        if is_first_process():
            print(f"loading model {self.config['model']} ...", flush=True)
        return loaded(self.config)


def is_first_process() -> bool:
    """Whether this is the process that the user started, and not one that Lightning started for another device."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("SLURM_PROCID", "0") == "0"


def quiet() -> None:
    """Silence warnings and progress of the libraries; errors are still shown."""
    from attnguide.models.load import quiet_libraries

    quiet_libraries()
    warnings.filterwarnings("ignore", module=r"(lightning|diffusers|transformers|wandb|torch|huggingface_hub)\b")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Where one process of several dies, this is the only line said before Lightning kills the others.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)


def judging(configs: Sequence[Mapping[str, Any]] | None) -> list[Judge]:
    """Open the judges of the setting ``judge``; the judge of the shapes world when ``None``.

    Raises:
        UsageError: If a judge cannot be opened.
    """
    from attnguide.judges import open_judges

    try:
        return open_judges([{"name": "shapes"}] if configs is None else configs)
    except ValueError as error:
        raise UsageError(f"judge: {one_line(error)}") from error


def loaded(config: Mapping[str, Any]) -> ModelAdapter:
    """Load the model that settings name, with its LoRAs and ControlNets.

    Raises:
        UsageError: If the model, a LoRA or a ControlNet cannot be loaded.
    """
    from attnguide.models.controlnets import ControlNetError
    from attnguide.models.load import load_model
    from attnguide.models.loras import LoraError

    chosen = {name: config[name] for name in ("device", "dtype", "variant", "offload", "checkpointing")}
    try:
        extras: dict[str, Any] = {"loras": config.get("lora") or (), "controlnets": config.get("controlnet") or ()}
        return load_model(config["model"], config=config["model_config"], **extras, **chosen)
    except LoraError as error:
        raise UsageError(f"lora: {one_line(error)}") from error
    except ControlNetError as error:
        raise UsageError(f"controlnet: {one_line(error)}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"model: {one_line(error)}") from error


def check_on_model(
    model: ModelAdapter, samples: Sequence[Sample], *, strict: bool = True, going_on: bool = False
) -> list[Sample]:
    """Check rows against the loaded model: prompts too long, words without a token, methods without a site, too few steps.

    Args:
        model: The loaded model.
        samples: The rows that are not done.
        strict: Whether one row that cannot be made refuses all.
        going_on: Whether the run has finished rows beside these.

    Returns:
        The rows; those that cannot be made have the reason as their ``problem``.

    Raises:
        UsageError: With the row's id, if no row can be made, one cannot under ``strict``, or the scheduler takes no such steps.
    """
    from attnguide.sampling.check import mark_rows, sampleable

    try:
        marked = mark_rows(model, samples) if going_on and not strict else sampleable(model, samples, strict=strict)
        for name, steps in dict.fromkeys((sample.scheduler, sample.steps) for sample in samples):
            model.make_scheduler(name, steps)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return marked
