"""The only place that installs anything in a model, and always takes it out again.

The module's own forward and processor run; only the scaled-dot-product call inside is intercepted, module by module, by
torch's forward hooks. They are in place for the length of a pass, at the sites that have a probe or an edit active in it, and
they act in the thread of that pass alone; every other pass is the library's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from attnguide.attention.capture import Probe
from attnguide.attention.edits import Edit
from attnguide.attention.hooks import eager, foreign_hooks, hooked, path_modules
from attnguide.attention.intercept import CaptureError, Interception, Visitors, text_length
from attnguide.attention.sites import Site, select
from attnguide.types import PassContext

__all__ = ["Attention", "CaptureError", "attach", "stop_after"]


class _StopForward(Exception):
    """Everything the pass was for has been computed."""


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


class _Pass:
    """What has run of one pass, and the interceptions that are open in it."""

    def __init__(self) -> None:
        self.ran: set[Site] = set()
        self.open: dict[Site, Interception] = {}

    def close(self) -> None:
        """Leave what an exception that torch calls no hooks for (an interrupt) has left open."""
        while self.open:
            self.open.popitem()[1].__exit__(None, None, None)


class Attention:
    """What :func:`attach` yields: probes and edits, waiting for a pass.

    Passes outside :meth:`during` run untouched, and so do those of other threads.
    """

    def __init__(
        self, modules: Mapping[Site, nn.Module], probes: Sequence[Probe], edits: Sequence[Edit], network: nn.Module | None
    ) -> None:
        self._modules, self._network = modules, network
        self._probes = [(probe, frozenset(select(modules, probe.sites))) for probe in probes]
        self._edits = [(edit, frozenset(select(modules, edit.sites))) for edit in edits]
        self._thread = threading.local()

    @contextmanager
    def during(self, context: PassContext, until: Collection[Site] = ()) -> Iterator[None]:
        """Say what the enclosed forward pass is for; probes and edits act inside.

        Args:
            context: What the pass is for.
            until: Where the pass may stop early: later sites need not run.

        Raises:
            CaptureError: If a site that was asked for did not run.
        """
        visited = self._visited(context)
        before, this = self._latest, _Pass()
        path = {} if self._network is None or not visited else path_modules(self._network, [site.name for site in visited])
        with ExitStack() as stack:
            stack.enter_context(eager(list(path.values())))
            for site, visitors in visited.items():
                ahead, after = self._hooks(this, visitors, path)
                stack.enter_context(hooked(self._modules[site], after, ahead, always=True))
            self._thread.latest = this
            try:
                yield
            finally:
                self._thread.latest = before
                this.close()
        missing = self._missing(visited, this.ran, until)
        if missing:
            raise CaptureError(_absent(missing, len(this.ran), foreign_hooks(path)))

    @property
    def _latest(self) -> _Pass | None:
        """The innermost pass of this thread."""
        latest: _Pass | None = getattr(self._thread, "latest", None)
        return latest

    def _visited(self, context: PassContext) -> dict[Site, Visitors]:
        """The sites that are read or edited in a pass, in the order of the modules."""
        probes = [(probe, sites) for probe, sites in self._probes if context.kind in probe.kinds]
        edits = [(edit, sites) for edit, sites in self._edits if edit.active(context)]
        if not probes and not edits:
            return {}
        every = {
            site: Visitors(
                site,
                context,
                [probe for probe, sites in probes if site in sites],
                [edit for edit, sites in edits if site in sites],
            )
            for site in self._modules
        }
        return {site: visitors for site, visitors in every.items() if visitors.probes or visitors.edits}

    def _hooks(
        self, this: _Pass, visitors: Visitors, path: Mapping[str, nn.Module]
    ) -> tuple[Callable[..., None], Callable[..., Any]]:
        """Hooks before and after one site's forward; they do nothing but in the pass that they are for."""
        site = visitors.site

        def before(module: nn.Module, args: Any, kwargs: Any = None) -> None:
            if self._latest is not this:
                return
            this.ran.add(site)
            if site.kind != "feature":
                this.open[site] = Interception(visitors, text_length(args, kwargs or {}))
                this.open[site].__enter__()

        def after(module: nn.Module, args: Any, result: Any) -> Any:
            if self._latest is not this:
                return None
            if site.kind == "feature":
                return None if result is None else visitors.given_out(result)
            interception = this.open.pop(site, None)
            if interception is None:
                return None
            interception.__exit__(None, None, None)
            if result is not None and not interception.served:
                raise CaptureError(_silent(site, module, interception, foreign_hooks(path)))
            return None

        return before, after

    def _missing(self, visited: Collection[Site], ran: Collection[Site], until: Collection[Site]) -> list[Site]:
        """Sites that should have run and did not."""
        missing = [site for site in visited if site not in ran]
        if not missing or not until:
            return missing
        order = {site: (_ORDER.get(site.place, 0), index) for index, site in enumerate(self._modules)}

        def passed(site: Site) -> bool:
            """Whether a later site ran. Features lie between attention sites in an order of their own."""
            return any(order[other] > order[site] for other in ran if (other.kind == "feature") == (site.kind == "feature"))

        return [site for site in missing if site in until or passed(site)]


_ORDER: Mapping[str, int] = {"down": 0, "mid": 1, "up": 2}
"""The order in which the parts of a UNet run; a transformer's blocks run as they are listed."""


def _silent(site: Site, module: nn.Module, interception: Interception, hooks: Sequence[str]) -> str:
    """Why a module that ran showed no attention."""
    if interception.passed:
        calls = ", ".join(f"{queries}x{keys}" for queries, keys in interception.passed)
        text = "" if interception.tokens is None else f" and a text of {interception.tokens} tokens"
        return (
            f"Attention site {site.name!r} ({site.kind}) made attention calls over {calls} positions; none is that of a "
            f"{site.height}x{site.width} map{text}, so nothing can be read or edited there (does token merging change them?)."
        )
    processor = getattr(module, "processor", None)
    hint = "use the library's default processor (no attention slicing, no xformers)"
    if hasattr(processor, "_attention_backend"):
        hint += (
            "; diffusers' set_attention_backend counts for every model of the process: set 'native' on this one, or leave "
            "DIFFUSERS_ATTN_BACKEND alone"
        )
    return (
        f"Attention site {site.name!r} ran without calling scaled_dot_product_attention (its processor is "
        f"{type(processor).__name__}), so nothing can be read or edited there; {hint}{_named(hooks)}."
    )


def _absent(missing: Sequence[Site], ran: int, hooks: Sequence[str]) -> str:
    """Why sites did not run at all."""
    names = repr(missing[0].name) + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    return (
        f"Attention site {names} did not run in a pass that reads or edits it ({ran} others did): a cache that skips blocks, "
        "or compiled code, keeps it from running; disable the cache (disable_cache()), and compile with module.compile()"
        f"{_named(hooks)}."
    )


def _named(hooks: Sequence[str]) -> str:
    return f" (hooks of other libraries here: {', '.join(hooks)})" if hooks else ""


@contextmanager
def attach(
    modules: Mapping[Site, nn.Module],
    probes: Sequence[Probe] = (),
    edits: Sequence[Edit] = (),
    network: nn.Module | None = None,
) -> Iterator[Attention]:
    """Probes and edits for the passes of :meth:`Attention.during`.

    Args:
        modules: The network's attention modules by site.
        probes: Readers.
        edits: Changes, applied in the order given.
        network: That the sites' names are paths in. Where it, or a block of it, was compiled in place, it runs as written in
            passes with probes or edits.

    Raises:
        ValueError: If a probe or an edit matches no site.
        CaptureError: During a pass, if a site runs without the call that is intercepted, or does not run.
    """
    yield Attention(modules, probes, edits, network)
