"""The only place that installs anything in a model, and always takes it out again.

The module's own forward and processor run; only the scaled-dot-product call inside is intercepted, module by module, by
torch's forward hooks. They are in place for the length of a pass, at the sites that have a probe or an edit active in it, and
they act in the thread of that pass alone; every other pass is the library's own. What gradient checkpointing computes again in
the backward pass, it computes with the same probes and edits in place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from attnguide.attention.attend import Checked
from attnguide.attention.blocks import Columns, Owned
from attnguide.attention.capture import Probe
from attnguide.attention.complaints import absent, silent
from attnguide.attention.edits import Edit
from attnguide.attention.hooks import eager, foreign_hooks, hooked, path_modules
from attnguide.attention.intercept import Interception, text_length
from attnguide.attention.parts import Parts, current_part
from attnguide.attention.recompute import checkpointing
from attnguide.attention.sites import Site, select
from attnguide.attention.visitors import CaptureError, Visitors
from attnguide.types import PassContext

__all__ = ["Attention", "CaptureError", "attach", "stop_after", "unseen"]

_unseen: ContextVar[bool] = ContextVar("forwards that nobody reads or edits", default=False)


@contextmanager
def unseen() -> Iterator[None]:
    """Run the enclosed forwards without probes and edits, although they happen inside a pass that has some."""
    token = _unseen.set(True)
    try:
        yield
    finally:
        _unseen.reset(token)


class _StopForward(Exception):
    """Raised to leave a forward pass once the last module of :func:`stop_after` has run."""


@contextmanager
def stop_after(modules: Collection[nn.Module]) -> Iterator[None]:
    """Leave the enclosed forward pass as soon as every one of ``modules`` has run; what comes later is never computed.

    The statement that runs the model is abandoned, so its result is not assigned. Passes of other threads go on.
    """
    pending = {id(module) for module in modules}
    if not pending:
        raise ValueError("stop_after needs at least one module; got none.")
    owner, stop = threading.get_ident(), _StopForward()

    def after(module: nn.Module, args: Any, result: Any) -> None:
        if threading.get_ident() != owner:
            return
        pending.discard(id(module))
        if not pending:
            raise stop

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(hooked(module, after))
        try:
            yield
        except _StopForward as caught:
            if caught is not stop:
                raise
            stop.with_traceback(None)  # the traceback's frames would keep the pass's activations alive


Visited = Mapping[nn.Module, Sequence[Visitors]]
"""The modules that are read or edited in a pass, each with its sites."""


class _Pass:
    """State of one forward pass: sites that have run, and open interceptions."""

    def __init__(self) -> None:
        self.ran: set[Site] = set()
        self.open: dict[nn.Module, Interception] = {}
        self.checked: Checked = {}
        self.parts = Parts()

    def close(self) -> None:
        """Exit interceptions left open by an exception for which torch calls no hooks (an interrupt)."""
        while self.open:
            self.open.popitem()[1].__exit__(None, None, None)


class Attention:
    """Probes and edits that :func:`attach` yields; they act in passes inside :meth:`during`.

    All other passes run untouched, also passes of other threads.
    """

    def __init__(
        self,
        modules: Mapping[Site, nn.Module],
        probes: Sequence[Probe],
        edits: Sequence[Edit],
        network: nn.Module | None,
        columns: Columns,
    ) -> None:
        self._modules, self._network, self._columns = modules, network, columns
        self._probes = [(probe, frozenset(select(modules, probe.sites))) for probe in probes]
        self._edits = [(edit, frozenset(select(modules, edit.sites))) for edit in edits]
        self._thread = threading.local()

    @contextmanager
    def during(self, context: PassContext, until: Collection[Site] = ()) -> Iterator[None]:
        """Run the enclosed forward pass with probes and edits in place.

        Args:
            context: Step, kind, rows and branches of the pass.
            until: Last sites of a pass that stops early; sites behind them need not run.

        Raises:
            CaptureError: If a site that a probe or an edit selects did not run.
        """
        visited = self._visited(context)
        path = {} if self._network is None or not visited else path_modules(self._network, _names(visited))

        @contextmanager
        def again(part: nn.Module | None) -> Iterator[None]:
            modules = visited if part is None else [one for one in part.modules() if one in visited]
            inside = {one: [visitors.unrecorded() for visitors in visited[one]] for one in modules}
            with self._entered(inside, path):
                yield

        with (
            checkpointing(self._network if visited else None, again),
            self._entered(visited, path) as this,
            ExitStack() as stack,
        ):
            for probe, _ in self._probes:
                if probe.around is not None and probe.reads(context):
                    stack.enter_context(probe.around(context, probe.record))
            yield
        this.parts.show()
        missing = self._missing([one.site for several in visited.values() for one in several], this.ran, until)
        if missing:
            raise CaptureError(absent(missing, len(this.ran), foreign_hooks(path)))

    @contextmanager
    def _entered(self, visited: Visited, path: Mapping[str, nn.Module]) -> Iterator[_Pass]:
        """Forward hooks on the visited modules, acting in this thread."""
        before, this = self._latest, _Pass()
        with ExitStack() as stack:
            stack.enter_context(eager(list(path.values())))
            for module, visitors in visited.items():
                ahead, after = self._hooks(this, visitors, path)
                stack.enter_context(hooked(module, after, ahead, always=True))
            self._thread.latest = this
            try:
                yield this
            finally:
                self._thread.latest = before
                this.close()

    @property
    def _latest(self) -> _Pass | None:
        """The innermost pass of this thread."""
        latest: _Pass | None = getattr(self._thread, "latest", None)
        return latest

    def _visited(self, context: PassContext) -> Visited:
        """Modules that are read or edited in a pass, each with its sites, in network order."""
        probes = [(probe, sites) for probe, sites in self._probes if probe.reads(context)]
        edits = [(edit, sites) for edit, sites in self._edits if edit.active(context)]
        visited: dict[nn.Module, list[Visitors]] = {}
        if not probes and not edits:
            return visited
        for site, module in self._modules.items():
            readers = [probe for probe, sites in probes if site in sites]
            changes = [edit for edit, sites in edits if site in sites]
            if readers or changes:
                visited.setdefault(module, []).append(Visitors(site, context, readers, changes, self._columns))
        return visited

    def _hooks(
        self, this: _Pass, visitors: Sequence[Visitors], path: Mapping[str, nn.Module]
    ) -> tuple[Callable[..., None], Callable[..., Any]]:
        """Hooks before and after one module's forward; no-ops outside the pass ``this``."""
        attending = [one for one in visitors if one.site.kind != "feature"]
        features = [one for one in visitors if one.site.kind == "feature"]

        def before(module: nn.Module, args: Any, kwargs: Any = None) -> None:
            if self._latest is not this or _unseen.get():
                return
            this.ran.update(one.site for one in visitors)
            if attending:
                elements = current_part()
                here = attending if elements is None else [this.parts.of(one, elements) for one in attending]
                this.open[module] = Interception(here, text_length(args, kwargs or {}), this.checked)
                this.open[module].__enter__()

        def after(module: nn.Module, args: Any, result: Any) -> Any:
            if self._latest is not this or _unseen.get():
                return None
            interception = this.open.pop(module, None)
            if interception is not None:
                interception.__exit__(None, None, None)
            if result is None:
                return None
            if interception is not None and interception.waiting:
                site, passed = interception.waiting[0].site, interception.passed
                raise CaptureError(silent(site, module, passed, interception.tokens, foreign_hooks(path)))
            for one in features:
                result = one.given_out(result)
            return result if features else None

        return before, after

    def _missing(self, visited: Collection[Site], ran: Collection[Site], until: Collection[Site]) -> list[Site]:
        """Visited sites that did not run; with ``until``, only those in it and those before a site that ran."""
        missing = [site for site in visited if site not in ran]
        if not missing or not until:
            return missing
        order = {site: (site.depth, _ORDER.get(site.place, 0), index) for index, site in enumerate(self._modules)}

        def passed(site: Site) -> bool:
            """Whether a later site ran. Features lie between attention sites in an order of their own."""
            return any(order[other] > order[site] for other in ran if (other.kind == "feature") == (site.kind == "feature"))

        return [site for site in missing if site in until or passed(site)]


_ORDER: Mapping[str, int] = {"down": 0, "mid": 1, "up": 2}
"""The order in which the parts of a network run, where sites tell no depth."""


def _names(visited: Visited) -> list[str]:
    sites: Iterable[Site] = (one.site for several in visited.values() for one in several)
    return list(dict.fromkeys(site.name for site in sites))


@contextmanager
def attach(
    modules: Mapping[Site, nn.Module],
    probes: Sequence[Probe] = (),
    edits: Sequence[Edit] = (),
    network: nn.Module | None = None,
    columns: Sequence[int] | None = None,
    owned: Owned | None = None,
) -> Iterator[Attention]:
    """Prepare probes and edits for the passes of :meth:`Attention.during`.

    Args:
        modules: The network's attention modules by site; a module may have several.
        probes: Readers of attention.
        edits: Changes of attention; at each site applied in the order given.
        network: The network in which the sites' names are paths. Where it, or a block of it, was compiled in place, it runs
            eagerly in passes with probes or edits; where it checkpoints its blocks, recomputation runs with both again.
        columns: Text positions, rising, that cross sites show: keys, values, scores and probs have these columns alone, and
            rows of probs do not sum to 1. Columns beyond the end of a shorter text have probs of 0. All when ``None``.
        owned: Columns that belong to each batch element's own text. Other columns (padding beside longer texts) are shown with
            scores of minus infinity and probs of 0, and edits of them are dropped, so that padding changes no row.

    Raises:
        ValueError: If a probe or an edit matches no site.
        CaptureError: During a pass, if a site runs without calling ``scaled_dot_product_attention``, or does not run.
    """
    yield Attention(modules, probes, edits, network, Columns(columns, owned))
