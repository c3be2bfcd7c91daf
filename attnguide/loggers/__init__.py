"""Lightning's loggers by name. Importing this needs neither torch nor Lightning."""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

    from attnguide.loggers.trackio_logger import TrackioLogger

LOGGERS: tuple[str, ...] = ("wandb", "csv", "tensorboard", "trackio", "none")
"""Names that :func:`make_loggers` knows."""

WANDB_LOGGER, TRACKIO_LOGGER = "WandbLogger", "TrackioLogger"
"""Class names of loggers, by which they are recognised without importing their packages."""

_NEEDS = {"wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",)}
_WANDB_SERVER = "https://api.wandb.ai"
_ANSWER, _PATIENCE = 3, 7
"""Timeouts in seconds of a request to W&B's server, and of the start of a run."""

_log = logging.getLogger(__name__)


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers that do not exist or are not installed.

    Raises:
        ValueError: With the known loggers, or the extra to install.
    """
    for name in names:
        if name not in LOGGERS:
            raise ValueError(f"Unknown logger {name!r}; choose from {', '.join(LOGGERS)}.")
        modules = _NEEDS.get(name, ())
        if modules and not any(importlib.util.find_spec(module) for module in modules):
            raise ValueError(f"Logger {name!r} needs a package that is not installed: pip install 'attnguide[{name}]'.")


def make_loggers(
    names: Sequence[str],
    run_folder: str | Path,
    *,
    project: str = "attnguide",
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    job_type: str = "sample",
) -> list[Logger]:
    """Make loggers that write below a run folder; trackio writes to a folder of its own, where its dashboard looks.

    Weights & Biases runs offline if there is no API key or its server does not answer; a warning of this module's logger says
    why, and :func:`sync_hint` how to upload later. Its staged tables are kept in the run folder too.

    Args:
        names: Names among :data:`LOGGERS`; ``none`` adds no logger.
        run_folder: The run folder.
        project: Project at W&B and trackio.
        name: Name of the run at W&B and trackio; the run folder's name when ``None``.
        group: Group of the run at W&B and trackio.
        tags: Tags at W&B.
        job_type: Job type at W&B: the command.

    Raises:
        ValueError: If a name is unknown, or its package is not installed.
    """
    check_loggers(names)
    folder = Path(run_folder)
    made: list[Logger] = []
    for chosen in dict.fromkeys(names):
        if chosen == "wandb":
            options = {"project": project, "name": name or folder.resolve().name, "group": group}
            made.append(_wandb(folder, {**options, "tags": list(tags), "job_type": job_type}))
        elif chosen == "trackio":
            made.append(_trackio(project, name or folder.resolve().name, group))
        elif chosen == "csv":
            made.append(_csv(folder))
        elif chosen == "tensorboard":
            made.append(_tensorboard(folder))
    return made


def show_hint(loggers: Iterable[Logger]) -> str | None:
    """The command that shows trackio's dashboard, or ``None`` without that logger."""
    return next((f"trackio show --project {logger.name}" for logger in loggers if _is(logger, TRACKIO_LOGGER)), None)


def _is(logger: Logger, kind: str) -> bool:
    return type(logger).__name__ == kind


def sync_hint(loggers: Iterable[Logger]) -> str | None:
    """The command that uploads offline W&B runs, or ``None`` if there are none yet.

    Args:
        loggers: Loggers of :func:`make_loggers`.
    """
    for logger in loggers:
        folder = Path(str(logger.save_dir)) / "wandb"
        if _is(logger, WANDB_LOGGER) and any(folder.glob("offline-run-*")):
            here = Path.cwd()
            return f"wandb sync {folder.relative_to(here) if folder.is_relative_to(here) else folder}/offline-run-*"
    return None


def close_loggers(loggers: Iterable[Logger]) -> None:
    """End runs of W&B and trackio, so that their files are complete and the next run of this process gets one of its own.

    Args:
        loggers: Any loggers; those other than W&B's and trackio's are left alone, since the trainer has closed them.
    """
    for logger in loggers:
        if _is(logger, TRACKIO_LOGGER):
            logger.close()  # type: ignore[attr-defined]
        if _is(logger, WANDB_LOGGER) and getattr(logger, "_experiment", None) is not None:
            try:
                logger.experiment.finish()  # type: ignore[attr-defined]
            except Exception as error:  # W&B raises many types; the run's own files are complete without it
                _log.warning("W&B could not end its run (%s).", " ".join(str(error).split())[:200])


def _csv(folder: Path) -> CSVLogger:
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(folder, name="csv", version="")


def _tensorboard(folder: Path) -> TensorBoardLogger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="tensorboard", version="")


def _trackio(project: str, name: str, group: str | None) -> TrackioLogger:
    from attnguide.loggers.trackio_logger import TrackioLogger

    return TrackioLogger(project, name, group)


def _wandb(folder: Path, options: dict[str, Any]) -> WandbLogger:
    offline = wandb_offline()
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb-data").resolve())  # read by the library each time it stages a table
    folder.mkdir(parents=True, exist_ok=True)
    # W&B's service process outlives a run and keeps its working directory, so that only absolute paths are safe.
    options = {**options, "save_dir": folder.resolve()}
    logger = _wandb_logger(options, offline)
    if offline and _settings_problem() is None:
        return logger  # its run begins with the first write
    if not offline:
        try:
            logger.experiment  # noqa: B018 begins the run
            return logger
        except Exception as error:  # W&B raises its own errors and those of the network library below it
            _log.warning("W&B could not begin a run (%s); the run is kept offline.", " ".join(str(error).split())[:200])
            logger = _wandb_logger(options, offline=True)
    with _harmless_settings():
        logger.experiment  # noqa: B018
    return logger


def _wandb_logger(options: dict[str, Any], offline: bool) -> WandbLogger:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    # Not WandbLogger's own offline=True: it would set WANDB_MODE for the rest of the process. The terminal is not recorded.
    quiet = wandb.Settings(silent=offline, console="off", init_timeout=_PATIENCE)
    logger = WandbLogger(**options, mode="offline" if offline else None, settings=quiet)
    getattr(logger, "_wandb_init", {}).pop("anonymous", None)  # W&B warns of this argument, which Lightning always gives
    return logger


@contextmanager
def _harmless_settings() -> Iterator[None]:
    """Remove environment variables that W&B refuses even offline for the duration of the block."""
    before = {name: os.environ.pop(name, None) for name in ("WANDB_MODE", "WANDB_BASE_URL")}
    os.environ["WANDB_MODE"] = "offline"
    try:
        yield
    finally:
        del os.environ["WANDB_MODE"]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def wandb_offline() -> bool:
    """Whether W&B has to run offline: ``WANDB_MODE`` asks for it, there is no API key, or its server does not answer."""
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "dryrun", "disabled"):
        return mode != "disabled"
    problem = _settings_problem()
    if problem is None and not _has_key():
        if mode is None:
            _log.info("W&B has no key; the run is kept offline.")
            return True
        problem = "there is no key; wandb login asks for it"
    problem = problem or _silence()
    if problem is not None:
        _log.warning("W&B: %s; the run is kept offline.", problem)
    return problem is not None


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", _WANDB_SERVER).rstrip("/")


def _settings_problem() -> str | None:
    """A sentence on an environment variable that W&B refuses even offline; ``None`` if all are valid."""
    import wandb

    for name, setting in (("WANDB_MODE", "mode"), ("WANDB_BASE_URL", "base_url")):
        value = os.environ.get(name)
        given: dict[str, Any] = {setting: value}
        try:
            if value is not None:
                wandb.Settings(**given)
                urlsplit(value).port  # noqa: B018 a port that is no number
        except ValueError:
            return f"{name} is {value!r}, which it does not take"
    return None


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return netrc.netrc(path).authenticators(urlsplit(_server()).hostname or "") is not None
    except (OSError, ValueError, netrc.NetrcParseError):
        return False


def _silence() -> str | None:
    """Why W&B's server does not answer a request (through the proxy, if one is set); ``None`` if it does."""
    said: list[str | None] = []

    def ask() -> None:
        try:
            question = Request(f"{_server()}/graphql", b"{}", {"Content-Type": "application/json"})
            with urlopen(question, timeout=_ANSWER):
                said.append(None)
        except HTTPError as error:  # 400 or 401 for an empty query without a key: the server answers
            said.append(f"HTTP {error.code}" if error.code >= 500 else None)
        except (OSError, HTTPException, ValueError) as error:
            said.append(str(getattr(error, "reason", None) or error))

    asking = threading.Thread(target=ask, daemon=True)  # urlopen's timeout does not cover the lookup of the host name
    asking.start()
    asking.join(_ANSWER + 1)
    if said and said[0] is None:
        return None
    return f"{_server()} cannot be reached ({said[0] if said else 'no answer'})"
