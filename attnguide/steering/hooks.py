"""Replacement of methods on a pipeline's parts while it is steered; they are restored whatever happens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
"""From a method to the wrapper that replaces it."""

_MARK = "__steered__"


class Replacement:
    """A method of one object, replaced for a while.

    Offloading libraries replace a network's ``forward`` too, and again after every call of the pipeline; :meth:`renew` wraps
    their replacement.

    Args:
        owner: The object.
        name: Name of its method.
        wrap: Makes the replacement, which keeps the method's name and signature, since pipelines inspect them.
    """

    def __init__(self, owner: Any, name: str, wrap: Wrap) -> None:
        self.owner, self.name, self._wrap = owner, name, wrap
        self._install()

    def _install(self) -> None:
        self._own = self.name in vars(self.owner)
        self.before: Callable[..., Any] = getattr(self.owner, self.name)
        self._now = functools.wraps(self.before)(self._wrap(self.before))
        setattr(self._now, _MARK, True)
        setattr(self.owner, self.name, self._now)

    @property
    def in_place(self) -> bool:
        """Whether the object still has the replacement."""
        return vars(self.owner).get(self.name) is self._now

    def renew(self) -> None:
        """Wrap the method again if another library has overwritten the replacement."""
        if not self.in_place:
            self._install()

    def undo(self) -> None:
        """Restore the method, unless another library has overwritten the replacement."""
        if not self.in_place:
            return
        if self._own:
            setattr(self.owner, self.name, self.before)
        else:
            delattr(self.owner, self.name)


def steered(owner: Any, name: str) -> bool:
    """Whether a method of an object is a replacement already."""
    return hasattr(vars(owner).get(name), _MARK)


class Hooks:
    """All replacements on one pipeline."""

    def __init__(self) -> None:
        self._all: list[Replacement] = []

    def add(self, owner: Any, name: str, wrap: Wrap) -> None:
        """Replace a method."""
        self._all.append(Replacement(owner, name, wrap))

    def renew(self) -> None:
        """See :meth:`Replacement.renew`."""
        for one in self._all:
            one.renew()

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Restore all methods at the end, the newest first, even if restoring one of them fails."""
        try:
            yield
        finally:
            with ExitStack() as stack:
                for one in self._all:
                    stack.callback(one.undo)
