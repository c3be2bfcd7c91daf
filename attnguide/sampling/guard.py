"""A failure of something that only shows a run must not end it."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site
from attnguide.types import PassContext

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)


@contextmanager
def guarded(watcher: Any) -> Iterator[None]:
    """Turn an exception of a watcher that declares ``only_shows`` into one warning; everyone else's passes through.

    A watcher that failed has ``failed`` set to True, so that it can be left alone until the next batch. What a full or closed
    disk refuses is no failure of the watcher: it passes through, as a row may be on record as finished only when all of its
    files are written.
    """
    try:
        yield
    except Exception as error:
        if not getattr(watcher, "only_shows", False) or getattr(error, "errno", None) in _OF_THE_DISK:
            raise
        watcher.failed = True
        warnings.warn(
            f"Callback {type(watcher).__name__} failed and shows nothing of this batch; the run goes on "
            f"({type(error).__name__}: {error}).",
            stacklevel=3,
        )


def guarded_probe(watcher: Any, probe: Probe) -> Probe:
    """The same reader, silent once its watcher has failed."""
    if not getattr(watcher, "only_shows", False):
        return probe

    def record(site: Site, tensor: Tensor, context: PassContext) -> None:
        if not watcher.failed:
            with guarded(watcher):
                probe.record(site, tensor, context)

    return replace(probe, record=record)
