"""Loading without the libraries' warnings and progress bars, which fill a notebook before its first picture."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

with warnings.catch_warnings():  # of a notebook without its widgets; once imported it is not said again
    warnings.simplefilter("ignore")
    import tqdm.auto  # noqa: F401

_VERBOSITY = ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")


@contextmanager
def quietly() -> Iterator[None]:
    """Hold back warnings and progress bars of diffusers and transformers; errors are still shown.

    The user's verbosity settings are restored afterwards.
    """
    unset = [name for name in _VERBOSITY if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, "error"))  # read when the libraries are imported, which may be now
    try:
        with _libraries_at_error():
            yield
    finally:
        for name in unset:
            os.environ.pop(name, None)


@contextmanager
def _libraries_at_error() -> Iterator[None]:
    import diffusers
    import transformers

    loggings = [library.utils.logging for library in (diffusers, transformers)]
    before = [(logging, logging.get_verbosity(), logging.is_progress_bar_enabled()) for logging in loggings]
    for logging in loggings:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, verbosity, bars in before:
            logging.set_verbosity(verbosity)
            (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
