"""Checks that a resumed run, or one repeated from its ``config.yaml``, agrees with the earlier run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from attnguide.cli.errors import UsageError
from attnguide.cli.plan import Plan
from attnguide.cli.settings import run_settings
from attnguide.run_folder.folder import check_run_folder
from attnguide.run_folder.made_with import MADE_WITH, kept_options, made_with, other_versions, read_made_with, with_kept_options
from attnguide.run_folder.records import complete_ids, model_defaults

if TYPE_CHECKING:
    from attnguide.models.base import ModelAdapter

MAY_DIFFER = ("logger", "wandb", "trainer", "device", "batch_size", "maps", "norms", "values", "strict")
"""Settings that a resumed run may change."""


def with_kept(plan: Plan) -> tuple[Plan, dict[str, Any]]:
    """The plan with method defaults of the earlier run, and that run's ``made_with``.

    The earlier run is the one in the folder with ``--resume``, otherwise the one whose ``config.yaml`` was passed.

    Returns:
        The plan, whose rows set options explicitly if a method's default has changed since; and ``made_with``.
    """
    kept: dict[str, Any] = read_made_with(plan.folder) if plan.resume else plan.config[MADE_WITH]
    return replace(plan, samples=tuple(with_kept_options(plan.samples, kept_options(kept)))), kept


def check_settings(plan: Plan, config: Mapping[str, Any], *open_settings: str) -> None:
    """Compare settings with those of the run in the folder; without ``--resume`` the folder must hold no run.

    A setting that the folder's ``config.yaml`` lacks is newer than that run, and counts as its default.

    Args:
        plan: Plan of the run.
        config: Its settings.
        open_settings: Names of settings that are not resolved yet and are not compared.

    Raises:
        UsageError: If the folder holds another run, or a run without ``--resume``.
    """
    try:
        unsaid = {setting.name: setting.default for setting in run_settings() if setting.name in config}
        check_run_folder(plan.folder, config, resume=plan.resume, ignore=(*MAY_DIFFER, *open_settings), defaults=unsaid)
    except ValueError as error:
        raise UsageError(f"out: {error}") from error


def made_with_model(plan: Plan, kept: Mapping[str, Any], model: ModelAdapter, devices: int) -> dict[str, Any]:
    """``made_with`` of this run (model, versions, method defaults, batch size), checked against an earlier run's.

    Args:
        plan: Plan of the run.
        kept: ``made_with`` of the earlier run; empty without one.
        model: The model adapter.
        devices: Number of devices that share the rows.

    Raises:
        UsageError: If finished rows were made by another model, or with other defaults of the model.
    """
    from attnguide.models.identity import controlnet_fingerprints, lora_fingerprints, model_fingerprint
    from attnguide.sampling.table import fitting_batch_size

    defaults = model_defaults(model, plan.samples[0].steps)
    files = model_fingerprint(plan.config["model"], plan.config["model_config"])
    found = {"name": plan.config["model"], "fingerprint": files, **asdict(defaults)}
    if plan.config["lora"]:
        found["loras"] = lora_fingerprints(plan.config["lora"])
    if plan.config["controlnet"]:
        found["controlnets"] = controlnet_fingerprints(plan.config["controlnet"])
    batch_size = plan.config["batch_size"] or (kept.get("batch_size") if plan.resume else None)
    batch_size = batch_size or fitting_batch_size(model, plan.samples, devices)
    if plan.resume:
        _check_model(plan, kept, found)
        try:
            complete_ids(plan.folder, plan.samples, defaults)
        except ValueError as error:
            raise UsageError(f"out: {error}") from error
    if (told := other_versions(kept)) is not None:
        print(f"warning: {plan.folder if plan.resume else 'config'}: {told}", file=sys.stderr)
    return made_with(plan.samples, kept_options(kept), model=found, batch_size=batch_size)


def _check_model(plan: Plan, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    before = kept.get("model")
    for name, value in before.items() if isinstance(before, dict) else ():
        if name in now and value is not None and now[name] is not None and value != now[name]:
            raise UsageError(
                f"out: the run in {str(plan.folder)!r} was made with a model of {name} {value!r}, not {now[name]!r}; choose "
                "another folder"
            )
