"""What a run that goes on, or that is made again from its ``config.yaml``, must have in common with the one before."""

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
    """What the folder of a resumed run, or a configuration that was fed back, says it was made with.

    Returns:
        The plan, its rows with options of their own where a method's default has changed since; and what was said.
    """
    kept: dict[str, Any] = read_made_with(plan.folder) if plan.resume else plan.config[MADE_WITH]
    return replace(plan, samples=tuple(with_kept_options(plan.samples, kept_options(kept)))), kept


def check_settings(plan: Plan, config: Mapping[str, Any], *open_settings: str) -> None:
    """Compare settings with those of the run in the folder; without ``--resume`` there must be none.

    A setting that the folder lacks was not there when the run was begun, and counts as its default.

    Args:
        plan: Of the run.
        config: Its settings.
        open_settings: Names of those that are not decided yet.

    Raises:
        UsageError: If the folder cannot be used.
    """
    try:
        unsaid = {setting.name: setting.default for setting in run_settings() if setting.name in config}
        check_run_folder(plan.folder, config, resume=plan.resume, ignore=(*MAY_DIFFER, *open_settings), defaults=unsaid)
    except ValueError as error:
        raise UsageError(f"out: {error}") from error


def made_with_model(plan: Plan, kept: Mapping[str, Any], model: ModelAdapter, devices: int) -> dict[str, Any]:
    """What this run is made with, compared with what an earlier one was made with.

    Args:
        plan: Of the run.
        kept: Of the earlier run.
        model: The adapter.
        devices: How many share the rows.

    Raises:
        UsageError: If finished rows were made by another model, or what the model decides was another for them.
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
