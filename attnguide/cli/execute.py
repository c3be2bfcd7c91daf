"""Carries out a plan: loads the model, samples the rows into the run folder, and reports the outcome."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from attnguide.cli.errors import RunError, UsageError, one_line, reason
from attnguide.cli.folders import probe
from attnguide.cli.going_on import check_settings, made_with_model, with_kept
from attnguide.cli.kinds import check_kinds
from attnguide.cli.opening import Opened, check_on_model, is_first_process, quiet
from attnguide.cli.outcome import describe, report
from attnguide.cli.plan import Plan, is_strict
from attnguide.run_folder.folder import RunLock, locked_run, tidy
from attnguide.run_folder.made_with import MADE_WITH
from attnguide.run_folder.records import RECORDS_FILE, complete_ids

if TYPE_CHECKING:
    from lightning import Callback
    from lightning.pytorch.loggers import Logger

    from attnguide.judges import Judge
    from attnguide.models.base import ModelAdapter

NOT_THE_TRAINERS = {
    "precision": "use --dtype",
    "default_root_dir": "use --out",
    "logger": "use --logger",
    "callbacks": "a run from Python takes callbacks, see attnguide.make_trainer",
    "inference_mode": "guidance needs gradients",
    "barebones": "a run is written by callbacks",
    "fast_dev_run": "use fewer --seed or --steps",
    "limit_predict_batches": "use fewer --seed or rows",
}
"""Arguments of Lightning's Trainer that would break a run -> what to do instead."""

INTERRUPTED = 130

NOT_JUDGED = (
    "not judged: no judge knows these prompts; add --judge detector=MODEL (such as google/owlv2-base-patch16-ensemble, or a "
    "folder), clip=MODEL or vqa=MODEL"
)

NOTHING_ASKED = (
    "not judged: the rows name no object that could be looked for; give them regions or a tag 'asked', or add "
    "--judge clip=MODEL or vqa=MODEL, which compare the picture with the prompt"
)


@dataclass(frozen=True)
class _Held:
    """Resources that a run holds until its outcome is printed.

    Attributes:
        lock: Lock of the run folder; ``None`` on other processes than the first.
        closing: Callbacks that run at the very end, in reverse order.
    """

    lock: RunLock | None
    closing: ExitStack


def execute(
    plan: Plan,
    further: Sequence[Callback] = (),
    tell: Callable[[Plan, Sequence[str]], int] = report,
    opened: Opened | None = None,
) -> int:
    """Carry out a plan.

    Args:
        plan: Rows, settings and folder of the run.
        further: Callbacks after the standard ones.
        tell: Prints the outcome, with notes at the end; returns 1 if a row failed or is missing, else 0.
        opened: Model and judges, if other plans of the command share them.

    Returns:
        0, 1 if a row failed or is missing, 130 after Ctrl-C.

    Raises:
        UsageError: If the folder, the device or the model cannot be used; nothing is written then.
        RunError: If the run stopped; finished rows are kept, and their outcome has been printed.
    """
    first = is_first_process()
    with ExitStack() as closing:
        held = _Held(_lock(plan, closing), closing)
        plan, kept, done = _begun(plan)
        interrupted, notes = False, list[str]()
        try:
            if len(done) < len(plan.samples):
                ready = _ready(plan, kept, done, opened or Opened(plan.config))
                interrupted, notes = _predict(ready, done, further, held)
        except RunError:
            if first:
                with suppress(OSError, ValueError):  # a full disk, say, which the RunError reports already
                    tell(plan, [])
                    _write_page(plan)
            raise
        if not first:
            return 0
        status = tell(plan, notes)
        if status and held.lock is not None:
            _check_folder(held.lock)  # or rows would be said to be missing, and not why
        _write_page(plan)
        return INTERRUPTED if interrupted else status


def _lock(plan: Plan, held: ExitStack) -> RunLock | None:
    """The lock of the run folder, which the first process holds for all of them until the stack is closed.

    Raises:
        UsageError: If the folder cannot be made or written to, or another run holds its lock.
    """
    if not is_first_process():
        return None
    probe(plan.folder, _longest_path(plan))
    try:
        return held.enter_context(locked_run(plan.folder))
    except ValueError as error:
        raise UsageError(f"out: {error}") from error


def _begun(plan: Plan) -> tuple[Plan, Mapping[str, Any], set[str]]:
    """Read the run folder, and print the description of the run.

    Returns:
        The plan, with method options as a resumed run had them; what ``made_with`` of that run holds; ids of finished rows.

    Raises:
        UsageError: If the folder's rows are not those of the plan.
    """
    first = is_first_process()
    if first:
        check_settings(plan, plan.kept_config, "dtype")
    plan, kept = with_kept(plan)
    try:
        done = complete_ids(plan.folder, plan.samples) if plan.resume else set()
    except ValueError as error:
        raise UsageError(f"out: {error}") from error
    if first:
        if len(done) == len(plan.samples):
            tidy(plan.folder)
        print(describe(plan, len(done)), flush=True)
    return plan, kept, done


def _check_folder(lock: RunLock) -> None:
    """Raise :class:`RunError` if the run folder was removed after its last row."""
    try:
        lock.check()
    except FileNotFoundError as error:
        raise RunError(f"{reason(error)}; make the run again") from error


def _longest_path(plan: Plan) -> str:
    """An estimate of the longest path below the run folder: a word's map under its temporary name."""
    return os.path.join("maps", max((sample.id for sample in plan.samples), key=len), "x" * 80)


def _write_page(plan: Plan) -> None:
    """Write ``report.html`` from the records so far; an error is printed and does not fail the run."""
    from attnguide.report.page import write_report

    if not (plan.folder / RECORDS_FILE).exists():
        return
    try:
        print(f"{write_report(plan.folder)}  all of it on one page")
    except (OSError, ValueError) as error:
        print(f"no report.html: {one_line(error)}")


@dataclass(frozen=True)
class _Ready:
    """A plan that passed all checks, with model and judges loaded.

    Attributes:
        plan: The plan; rows that the model cannot make have a ``problem``.
        config: Content of ``config.yaml``.
        model: The loaded model.
        judges: Judges with loaded networks.
    """

    plan: Plan
    config: dict[str, Any]
    model: ModelAdapter
    judges: tuple[Judge, ...]


def _ready(plan: Plan, kept: Mapping[str, Any], done: set[str], opened: Opened) -> _Ready:
    """Make every check that needs no model, load the model, and let it check the rows that are not done."""
    quiet()
    config = _resolved(plan)
    check_kinds(plan.samples, plan.config)
    devices = _check_trainer(plan)
    if plan.resume:
        check_settings(plan, config)
    judges, model = opened.judges, opened.model  # in this order: a judge that fails to open spares loading the model
    left = [sample for sample in plan.samples if sample.id not in done]
    waiting = check_on_model(model, left, strict=is_strict(plan.config), going_on=bool(done))
    known = {sample.id: sample for sample in waiting}
    plan = replace(plan, samples=tuple(known.get(sample.id, sample) for sample in plan.samples))
    config[MADE_WITH] = made_with_model(plan, kept, model, devices)
    return _Ready(plan, config, model, judges)


def _resolved(plan: Plan) -> dict[str, Any]:
    """Settings that ``config.yaml`` keeps, with device and precision resolved to those in use.

    Raises:
        UsageError: If the device does not exist.
    """
    from attnguide.models.folder import usual_half
    from attnguide.models.load import DTYPES, resolve_device, resolve_dtype

    try:
        device = resolve_device(plan.config["device"])
        precision = resolve_dtype(plan.config["dtype"], device, usual_half(plan.config["model"]))
    except ValueError as error:
        raise UsageError(str(error)) from error
    dtype = next(name for name, value in DTYPES.items() if value is precision)
    return {**plan.kept_config, "device": str(device), "dtype": dtype}


def _check_trainer(plan: Plan) -> int:
    """Check the trainer's settings by making a trainer, before anything is loaded or written; returns its world size.

    Raises:
        UsageError: With Lightning's error message, or if several processes have no common folder.
    """
    from attnguide.module import make_trainer

    for name, instead in NOT_THE_TRAINERS.items():
        if name in plan.config["trainer"]:
            raise UsageError(f"trainer: {name} is not the trainer's to set here; {instead}")
    try:
        trainer = make_trainer(plan.folder, device=plan.config["device"], **plan.config["trainer"])
    except Exception as error:  # Lightning raises exceptions of many types, some its own
        raise UsageError(f"trainer: {one_line(error)}") from error
    if trainer.world_size > 1 and plan.config["out"] is None:
        raise UsageError(f"out: expected --out with a folder for all {trainer.world_size} processes to write to; got none")
    return int(trainer.world_size)


def _predict(ready: _Ready, done: set[str], further: Sequence[Callback], held: _Held) -> tuple[bool, list[str]]:
    """Sample the rows that are not done with Lightning's trainer; callbacks write them.

    Returns:
        Whether Ctrl-C ended it, and lines to print at the end.

    Raises:
        RunError: If the run stopped.
    """
    plan, config, model, judges = ready.plan, ready.config, ready.model, ready.judges
    from attnguide.callbacks import ValueInvariance, standard_callbacks
    from attnguide.callbacks.judging import Judging
    from attnguide.data import SampleDataModule
    from attnguide.judges.shapes import ShapesJudge
    from attnguide.loggers import show_hint, sync_hint
    from attnguide.module import GuidanceModule, make_trainer

    chosen = {name: plan.config[name] for name in ("maps", "norms", "values", "row_curves")}
    facts = {**plan.facts, "command": plan.command}
    standard = standard_callbacks(
        config, resume=plan.resume, lock=held.lock, facts=facts, judges=judges, sheet=plan.sheet, **chosen
    )
    callbacks = [*standard, *further]
    loggers = _loggers(plan)
    held.closing.callback(_close, loggers, plan)
    trainer = make_trainer(
        plan.folder, callbacks=callbacks, loggers=loggers, device=plan.config["device"], **plan.config["trainer"]
    )
    data = SampleDataModule(plan.samples, config[MADE_WITH]["batch_size"], skip=done)
    try:
        trainer.predict(GuidanceModule(model), datamodule=data, return_predictions=False)
    except KeyboardInterrupt:
        pass
    except SystemExit:  # how Lightning ends after Ctrl-C
        if not trainer.interrupted:
            raise
    except Exception as error:
        raise RunError(f"the run stopped: {reason(error)}; go on with --resume --out {plan.folder}") from error
    verdicts = [callback.verdict for callback in callbacks if isinstance(callback, ValueInvariance)]
    hint, dashboard = sync_hint(loggers), show_hint(loggers)
    notes = [*verdicts, *([f"W&B kept the run offline; upload it with: {hint}"] if hint else [])]
    if any(isinstance(one, Judging) and one.looked and not one.judged for one in callbacks):
        notes.append(NOT_JUDGED if all(isinstance(judge, ShapesJudge) for judge in judges) else NOTHING_ASKED)
    notes += [f"trackio has the run; look at it with: {dashboard}"] if dashboard else []
    return trainer.interrupted, notes


def _loggers(plan: Plan) -> list[Logger]:
    from attnguide.loggers import make_loggers

    tags = plan.config["wandb"].get("tags", ())
    options = {**plan.config["wandb"], "tags": [tags] if isinstance(tags, str) else list(tags)}
    return make_loggers(plan.config["logger"], plan.folder, job_type=plan.command, **options)


def _close(loggers: Sequence[Logger], plan: Plan) -> None:
    """Log the run's files, ``report.html`` included, as artifacts to loggers that keep files, and end the loggers' runs."""
    from attnguide.loggers import close_loggers
    from attnguide.loggers.artifacts import keep_files

    if is_first_process():
        keep_files(loggers, plan.folder)
    close_loggers(loggers)
