"""Lightning's loggers by name. Importing this needs neither torch nor Lightning."""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

LOGGERS: tuple[str, ...] = ("wandb", "csv", "tensorboard", "none")
"""Names that :func:`make_loggers` knows."""

_NEEDS = {"wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX")}
_WANDB_SERVER = "https://api.wandb.ai"
_log = logging.getLogger(__name__)


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers that do not exist or are not installed.

    Raises:
        ValueError: Naming what exists, or the extra to install.
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
) -> list[Logger]:
    """Loggers that write below a run folder.

    Weights & Biases runs offline where there is no key or its server cannot be reached; :func:`sync_hint` says how to upload
    later. Its staged tables are kept in the run folder too.

    Args:
        names: Of :data:`LOGGERS`; ``none`` adds nothing.
        run_folder: Where files go.
        project: W&B project.
        name: Of the run, in W&B; the run folder's own name when ``None``.
        group: W&B group.
        tags: W&B tags.

    Raises:
        ValueError: If a name is unknown, or its package is not installed.
    """
    check_loggers(names)
    folder = Path(run_folder)
    made: list[Logger] = []
    for chosen in dict.fromkeys(names):
        if chosen == "wandb":
            made.append(_wandb(folder, project, name or folder.resolve().name, group, tags))
        elif chosen == "csv":
            made.append(_csv(folder))
        elif chosen == "tensorboard":
            made.append(_tensorboard(folder))
    return made


def sync_hint(loggers: Iterable[Logger]) -> str | None:
    """The command that uploads offline W&B runs, or ``None`` if there are none yet.

    Args:
        loggers: As :func:`make_loggers` made them.
    """
    for logger in loggers:
        folder = Path(str(logger.save_dir)) / "wandb"
        if type(logger).__name__ == "WandbLogger" and any(folder.glob("offline-run-*")):
            return f"wandb sync {folder}/offline-run-*"
    return None


def close_loggers(loggers: Iterable[Logger]) -> None:
    """End W&B runs, so that their files are complete and the next run of this process gets one of its own.

    Args:
        loggers: Any; other loggers have been closed by the trainer.
    """
    for logger in loggers:
        if type(logger).__name__ == "WandbLogger" and getattr(logger, "_experiment", None) is not None:
            logger.experiment.finish()  # type: ignore[attr-defined]


def _csv(folder: Path) -> CSVLogger:
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(folder, name="csv", version="")


def _tensorboard(folder: Path) -> TensorBoardLogger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="tensorboard", version="")


def _wandb(folder: Path, project: str, name: str, group: str | None, tags: Sequence[str]) -> WandbLogger:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    offline = wandb_offline()
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb-data").resolve())  # read by the library each time it stages a table
    folder.mkdir(parents=True, exist_ok=True)
    # Not WandbLogger's own offline=True: it would set WANDB_MODE for the rest of the process. The terminal is not recorded.
    quiet = wandb.Settings(silent=offline, console="off")
    options: dict[str, Any] = {"mode": "offline" if offline else None, "settings": quiet, "job_type": "sample"}
    logger = WandbLogger(name=name, save_dir=folder, project=project, group=group, tags=list(tags), **options)
    getattr(logger, "_wandb_init", {}).pop("anonymous", None)  # W&B warns of this argument, which Lightning always gives
    return logger


def wandb_offline() -> bool:
    """Whether W&B has to run offline: told so by ``WANDB_MODE``, no key, or no way to its server."""
    mode = os.environ.get("WANDB_MODE")
    if mode is not None:
        return mode in ("offline", "dryrun")
    server = urlsplit(os.environ.get("WANDB_BASE_URL", _WANDB_SERVER))
    host = server.hostname or ""
    if not os.environ.get("WANDB_API_KEY") and not _has_netrc_entry(host):
        _log.info("W&B has no key; the run is kept offline.")
        return True
    port = server.port or (80 if server.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError as error:
        _log.warning("W&B at %s cannot be reached (%s); the run is kept offline.", host, error)
        return True
    return False


def _has_netrc_entry(host: str) -> bool:
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
