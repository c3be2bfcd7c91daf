"""Locks on networks: one thread at a time may run on each."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
"""One lock per living network; as an attribute of the network it would prevent copying and pickling."""

_looking_up = threading.Lock()


@contextmanager
def exclusive(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Lock networks for this thread (reentrant); other threads that ask for one of them wait.

    Args:
        networks: All networks that are needed; locked in one global order, so that threads cannot deadlock.
    """
    with _looking_up:
        locks = [_locks.setdefault(network, threading.RLock()) for network in sorted(set(networks), key=id)]
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield
