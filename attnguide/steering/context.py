"""The context manager in which a pipeline is steered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from attnguide.attention.hooks import eager
from attnguide.steering.errors import SteerError
from attnguide.steering.follower import Follower
from attnguide.steering.methods import check_places, fitting_methods
from attnguide.steering.pipelines import adapter_of, known_pipeline
from attnguide.steering.request import Request
from attnguide.steering.run import SteerRun

_Given = ParamSpec("_Given")
_Held = TypeVar("_Held")


class _Once(AbstractContextManager[_Held]):
    """A context manager that can be entered once; ``name`` is the function that made it."""

    def __init__(self, block: AbstractContextManager[_Held], name: str) -> None:
        self._block, self._name, self._entered = block, name, False

    def __enter__(self) -> _Held:
        if self._entered:
            raise SteerError(f"A block of {self._name}() can be entered once: call {self._name}() anew for each block.")
        self._entered = True
        return self._block.__enter__()

    def __exit__(self, *raised: Any) -> bool | None:
        return self._block.__exit__(*raised)


def entered_once(make: Callable[_Given, AbstractContextManager[_Held]]) -> Callable[_Given, AbstractContextManager[_Held]]:
    """Decorate a function that returns context managers: entering one a second time raises a :class:`SteerError`."""

    @functools.wraps(make)
    def made(*args: _Given.args, **kwargs: _Given.kwargs) -> AbstractContextManager[_Held]:
        return _Once(make(*args, **kwargs), make.__name__)

    return made


@contextmanager
def steer_calls(pipeline: Any, request: Request, run: SteerRun | None = None) -> Iterator[SteerRun]:
    """Apply methods to every call of ``pipeline`` inside the block.

    Args:
        pipeline: A diffusers pipeline; all replaced methods are restored at the end.
        request: Prompts, regions, methods and options.
        run: Object to fill with results; a new one when ``None``.

    Raises:
        SteerError: If the pipeline or a method cannot run this way, or the pipeline does something that cannot be followed.
    """
    run = SteerRun() if run is None else run
    run.seed = request.seed
    known = known_pipeline(pipeline)
    network = getattr(pipeline, known.form.network)
    if hasattr(network, "_orig_mod"):
        raise SteerError(
            f"The pipeline's {known.form.network} is compiled code, in which nothing can be read: compile it in place "
            f"(pipeline.{known.form.network}.compile()), which is left out where attention is read."
        )
    for regions in request.regions:
        check_places(regions)
    request = replace(request, methods=fitting_methods(request.methods, run.notes))
    run.standing = len(run.notes)
    follower = Follower(pipeline, known.form, adapter_of(pipeline, known), request, run)
    with eager([network]), follower.hooks.undone():
        try:
            follower.install()
            yield run
            follower.finish()
        except BaseException:
            follower.failed()
            raise
        finally:
            follower.close()
    if run.calls == 0:
        raise SteerError(f"The block was left without a call of the {type(pipeline).__name__}: nothing was steered.")
