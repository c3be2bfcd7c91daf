"""Networks that one thread at a time may run on."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
"""One lock per network, for as long as the network lives; as its attribute a lock would hinder copying and saving it."""

_looking_up = threading.Lock()


@contextmanager
def exclusive(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Hold networks; other threads that ask for one of them wait, and the holder may ask again.

    Args:
        networks: All that are needed. They are locked in one order, so that threads never wait for each other in a circle.
    """
    with _looking_up:
        locks = [_locks.setdefault(network, threading.RLock()) for network in sorted(set(networks), key=id)]
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield
