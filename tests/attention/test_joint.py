"""Blocks of joint attention: several sites of one module, read and changed against the whole square."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnguide.attention import attend
from attnguide.attention.attach import CaptureError, attach
from attnguide.attention.capture import Probe, Quantity, Recorder
from attnguide.attention.edits import Edit, Stage
from attnguide.attention.sites import Site, SiteKind, SiteSelector
from attnguide.engine.cfg import pass_context
from attnguide.types import PassContext, Step

STEP = Step.at_sigma(0, 4, 999.0, 14.6)
CELLS, TEXT = 12, 5
ORDERS = {
    "text, image": (range(TEXT, TEXT + CELLS), range(TEXT), (-CELLS, None), (0, -CELLS)),
    "image, text": (range(CELLS), range(CELLS, CELLS + TEXT), (0, CELLS), (CELLS, None)),
    "registers, text, image": (range(TEXT, TEXT + CELLS), range(2, TEXT), (-CELLS, None), (2, -CELLS)),
    "image, padding, text": (range(CELLS), range(CELLS + 2, CELLS + TEXT), (0, CELLS), (CELLS + 2, None)),
}


class _Joint(nn.Module):
    """Nothing but the call that is intercepted."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask)


def _inputs(dtype: torch.dtype = torch.float64, batch: int = 2) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [2 * torch.randn(batch, 3, CELLS + TEXT, 8, generator=random, dtype=dtype) for _ in range(3)]


def _sites(order: str) -> dict[SiteKind, Site]:
    _, _, image, text = ORDERS[order]
    spans: dict[SiteKind, Any] = {"cross": (image, text), "self": (image, image), "joint": (None, None)}
    return {kind: Site("attn", kind, 3, 4, 3, "down", 1, 0.0, *blocks) for kind, blocks in spans.items()}


def _context(batch: int = 2) -> PassContext:
    return pass_context(STEP, "denoise", tuple(range(batch)), ("cond",))


@dataclass
class _Change(Edit):
    """A change at one stage of one kind of site."""

    kind: SiteKind
    stage: Stage
    change: Callable[[Tensor], Tensor]
    at: tuple[int, ...] | None = None
    stages: frozenset[Stage] = field(init=False)
    sites: SiteSelector = field(init=False)

    def __post_init__(self) -> None:
        self.stages, self.sites = frozenset({self.stage}), SiteSelector(self.kind)

    def touches(self, context: PassContext) -> tuple[int, ...] | None:
        return self.at

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        return self.change(scores)

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        return self.change(probs)

    def output(self, output: Tensor, site: Site, context: PassContext) -> Tensor:
        return self.change(output)

    def qkv(self, query: Tensor, key: Tensor, value: Tensor, site: Site, context: PassContext) -> tuple[Tensor, Tensor, Tensor]:
        return self.change(query), self.change(key), self.change(value)


def _tilted(values: Tensor) -> Tensor:
    """Raised more for later queries and keys."""
    rows, keys = (torch.linspace(-1, 2, size, dtype=values.dtype) for size in values.shape[-2:])
    return values + rows[:, None] * keys


def _expected(inputs: list[Tensor], mask: Tensor | None, edits: list[tuple[Any, range, list[int]]]) -> tuple[Tensor, Tensor]:
    """Output and probabilities of attention whose blocks (stage, rows, keys) are tilted."""
    query, key, value = inputs
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))

    def edited(values: Tensor, stage: str) -> Tensor:
        for acts, rows, keys in edits:
            if acts == stage:
                block = values[:, :, rows.start : rows.stop][..., keys]
                strip = values[:, :, rows.start : rows.stop].index_copy(-1, torch.tensor(keys), _tilted(block))
                values = torch.cat([values[:, :, : rows.start], strip, values[:, :, rows.stop :]], 2)
        return values

    probs = edited(edited(scores, "scores").softmax(-1), "probs")
    return probs @ value, probs


def _run(
    inputs: list[Tensor],
    sites: dict[SiteKind, Site],
    edits: list[Edit],
    columns: list[int] | None = None,
    mask: Tensor | None = None,
    quantities: tuple[Quantity, ...] = (),
    owned: Callable[[PassContext], Tensor] | None = None,
) -> tuple[Tensor, dict[Quantity, dict[Site, Tensor]]]:
    recorders = {quantity: Recorder() for quantity in quantities}
    everywhere = SiteSelector(also=(SiteSelector("joint"),))
    probes = [Probe(quantity, recorder, everywhere) for quantity, recorder in recorders.items()]
    module = _Joint()
    with attach(dict.fromkeys(sites.values(), module), probes, edits, columns=columns, owned=owned) as attention:
        with attention.during(_context(len(inputs[0]))):
            output = module(*inputs, mask)
    return output, {quantity: recorder.tensors for quantity, recorder in recorders.items()}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("columns", [None, [0, 2]])
@pytest.mark.parametrize("graph", [False, True])
def test_blocks_are_read(order: str, columns: list[int] | None, graph: bool) -> None:
    inputs, sites = [tensor.requires_grad_(graph) for tensor in _inputs()], _sites(order)
    image, text, *_ = ORDERS[order]
    shown = [text[position] for position in (columns or range(len(text)))]
    plain, probs = _expected(inputs, None, [])
    keys = {"cross": shown, "self": list(image), "joint": list(range(CELLS + TEXT))}
    for kinds in (("cross",), ("cross", "self"), ("cross", "self", "joint")):
        chosen = {kind: sites[kind] for kind in kinds}
        output, seen = _run(inputs, chosen, [], columns, None, ("probs", "original_probs", "query", "key", "value", "output"))
        torch.testing.assert_close(output, plain, rtol=0, atol=1e-12)
        for kind, site in chosen.items():
            rows = list(range(CELLS + TEXT)) if kind == "joint" else list(image)
            for quantity in ("probs", "original_probs"):
                torch.testing.assert_close(seen[quantity][site], probs[:, :, rows][..., keys[kind]], rtol=0, atol=1e-12)
            torch.testing.assert_close(seen["query"][site], inputs[0][:, :, rows])
            torch.testing.assert_close(seen["value"][site], inputs[2][:, :, keys[kind]])
            torch.testing.assert_close(seen["output"][site], plain[:, :, rows], rtol=0, atol=1e-12)
            if graph:
                weight = torch.rand(seen["probs"][site].shape, dtype=torch.float64)
                wanted = torch.autograd.grad((probs[:, :, rows][..., keys[kind]] * weight).sum(), inputs[:2], retain_graph=True)
                found = torch.autograd.grad((seen["probs"][site] * weight).sum(), inputs[:2], retain_graph=True)
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_reading_changes_no_bit() -> None:
    inputs, sites = _inputs(torch.float32), _sites("text, image")
    for kinds in (("cross",), ("cross", "self", "joint")):
        output, _ = _run(inputs, {kind: sites[kind] for kind in kinds}, [], [1, 3], None, ("probs", "scores", "key"))
        assert torch.equal(output, F.scaled_dot_product_attention(*inputs))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "stages", [["cross scores"], ["cross probs"], ["self scores"], ["cross scores", "cross probs", "self scores", "self probs"]]
)
def test_blocks_are_changed(order: str, masked: bool, stages: list[str]) -> None:
    sites, columns = _sites(order), [0, 2]
    image, text, *_ = ORDERS[order]
    mask = torch.ones(2, 1, 1, CELLS + TEXT, dtype=torch.bool) if masked else None
    if mask is not None:
        mask[1, ..., text[1]] = False
    keys = {"cross": [text[position] for position in columns], "self": list(image)}
    changes = [(stage, image, keys[kind]) for kind, stage in (name.split() for name in stages)]
    edits: list[Edit] = [_Change(kind, stage, _tilted) for kind, stage in (name.split() for name in stages)]  # type: ignore[arg-type]
    inputs = [tensor.requires_grad_() for tensor in _inputs()]
    wanted, probs = _expected(inputs, mask, changes)
    output, seen = _run(inputs, sites, edits, columns, mask, ("probs",))
    torch.testing.assert_close(output, wanted, rtol=0, atol=1e-12)
    alone, _ = _run(inputs, {"cross": sites["cross"], "self": sites["self"]}, edits, columns, mask)
    torch.testing.assert_close(alone, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen["probs"][sites["cross"]], probs[:, :, list(image)][..., keys["cross"]], rtol=0, atol=1e-12)
    weight = torch.rand_like(wanted)
    found = torch.autograd.grad((alone * weight).sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad((wanted * weight).sum(), inputs), rtol=0, atol=1e-12)


@torch.no_grad()
def test_changed_words_never_form_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(attend, "_square_probs")
    inputs, sites = _inputs(), _sites("text, image")
    edit = _Change("cross", "scores", _tilted, at=(1,))
    output, _ = _run(inputs, {"cross": sites["cross"]}, [edit], [1, 3])
    wanted, _ = _expected(inputs, None, [("scores", range(TEXT, TEXT + CELLS), [1, 3])])
    assert torch.equal(output[0], F.scaled_dot_product_attention(*inputs)[0])
    torch.testing.assert_close(output[1], wanted[1], rtol=0, atol=1e-12)


@torch.no_grad()
def test_inputs_and_output_are_changed_in_their_blocks() -> None:
    inputs, sites = _inputs(), _sites("text, image")
    output, _ = _run(inputs, sites, [_Change("self", "qkv", lambda tensor: 2 * tensor)])
    doubled = [torch.cat([tensor[:, :, :TEXT], 2 * tensor[:, :, TEXT:]], 2) for tensor in inputs]
    torch.testing.assert_close(output, F.scaled_dot_product_attention(*doubled))
    chosen, _ = _run(inputs, sites, [_Change("cross", "qkv", lambda tensor: 2 * tensor)], [3])
    query = torch.cat([inputs[0][:, :, :TEXT], 2 * inputs[0][:, :, TEXT:]], 2)
    key, value = (tensor.index_copy(2, torch.tensor([3]), 2 * tensor[:, :, 3:4]) for tensor in inputs[1:])
    torch.testing.assert_close(chosen, F.scaled_dot_product_attention(query, key, value))
    shifted, _ = _run(inputs, sites, [_Change("cross", "output", lambda tensor: tensor + 1)])
    plain = F.scaled_dot_product_attention(*inputs)
    assert torch.equal(shifted[:, :, :TEXT], plain[:, :, :TEXT])
    torch.testing.assert_close(shifted[:, :, TEXT:], plain[:, :, TEXT:] + 1)


@dataclass
class _Hides(Edit):
    """Hides one key of a block from its first query, or all from it."""

    kind: SiteKind
    everything: bool = False
    stages: frozenset[Stage] = frozenset({"mask"})
    asked: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sites = SiteSelector(self.kind)

    def mask(self, site: Site, queries: int, keys: int, context: PassContext, device: torch.device) -> Tensor:
        self.asked.append((queries, keys))
        allowed = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        allowed[..., 0, slice(None) if self.everything else 0] = False
        return allowed


@torch.no_grad()
@pytest.mark.parametrize("own", ["none", "bool", "additive"])
@pytest.mark.parametrize(("kind", "hidden", "size"), [("cross", 1, (12, 2)), ("self", TEXT, (12, 12)), ("joint", 0, (17, 17))])
def test_masks_of_edits_join_the_call_s_own(own: str, kind: SiteKind, hidden: int, size: tuple[int, int]) -> None:
    inputs, edit = _inputs(), _Hides(kind)
    allowed = torch.ones(2, 1, 1, CELLS + TEXT, dtype=torch.bool)
    allowed[0, ..., 2] = own == "none"
    additive = torch.zeros(2, 1, 1, CELLS + TEXT, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    mask = {"none": None, "bool": allowed, "additive": additive}[own]
    output, _ = _run(inputs, _sites("text, image"), [edit], [1, 3], mask)
    both = allowed.expand(-1, -1, CELLS + TEXT, -1).clone()
    both[:, :, 0 if kind == "joint" else TEXT, hidden] = False
    torch.testing.assert_close(output, F.scaled_dot_product_attention(*inputs, both))
    assert edit.asked == [size]


def test_a_mask_that_leaves_a_query_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="_Hides forbids every key to 1 queries of an attention call; each needs one"):
        _run(_inputs(), _sites("text, image"), [_Hides("joint", everything=True)])


@torch.no_grad()
@pytest.mark.parametrize("kinds", [("cross",), ("cross", "self")], ids=["columns", "squares"])
def test_a_row_is_the_same_beside_rows_with_other_columns(kinds: tuple[SiteKind, ...]) -> None:
    """An edit that compares all words that it sees sees those of the row alone."""
    inputs, sites, own = _inputs(), {kind: _sites("text, image")[kind] for kind in kinds}, ([0, 2], [0, 1, 4])
    union = sorted({column for columns in own for column in columns})
    owned = torch.tensor([[column in columns for column in union] for columns in own])
    edits: list[Edit] = [
        _Change("cross", "scores", lambda scores: scores + scores.softmax(-1)),
        _Change("cross", "probs", lambda probs: probs.roll(1, 2) * probs.sum(-1, keepdim=True)),
    ]
    edits += [_Change("self", "probs", lambda probs: probs / 2)] if "self" in kinds else []
    quantities: tuple[Quantity, ...] = ("scores", "original_probs", "probs")
    together, seen = _run(inputs, sites, edits, union, None, quantities, lambda context: owned)
    for element, columns in enumerate(own):
        alone, wanted = _run([one[element : element + 1] for one in inputs], sites, edits, columns, None, quantities)
        torch.testing.assert_close(together[element : element + 1], alone, rtol=0, atol=1e-12)
        for quantity in quantities:
            found = seen[quantity][sites["cross"]][element][..., owned[element]]
            torch.testing.assert_close(found, wanted[quantity][sites["cross"]][0], rtol=0, atol=1e-12)
            others = seen[quantity][sites["cross"]][element][..., ~owned[element]]
            assert (others == (float("-inf") if quantity == "scores" else 0.0)).all()


class _Twice(nn.Module):
    """Text among itself, then image queries over both, as Qwen-Image 2.1 calls."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        text = F.scaled_dot_product_attention(query[:, :, :TEXT], key[:, :, :TEXT], value[:, :, :TEXT])
        return torch.cat([text, F.scaled_dot_product_attention(query[:, :, TEXT:], key, value)], 2)


@torch.no_grad()
def test_the_call_that_fits_is_taken() -> None:
    module, recorder, inputs = _Twice(), Recorder(), _inputs()
    cross = Site("attn", "cross", 3, 4, 3, queries=None, keys=(0, -CELLS))
    own = Site("attn", "self", 3, 4, 3, queries=None, keys=(-CELLS, None))
    with attach({cross: module, own: module}, [Probe("probs", recorder)]) as attention, attention.during(_context()):
        module(*inputs)
    probs = _expected(inputs, None, [])[1][:, :, TEXT:]
    torch.testing.assert_close(recorder.tensors[cross], probs[..., :TEXT])
    torch.testing.assert_close(recorder.tensors[own], probs[..., TEXT:])
    missing = Site("attn", "cross", 4, 4, 3, keys=(0, -16))
    with attach({cross: module, missing: module}, [Probe("probs", recorder)]) as attention, attention.during(_context()):
        with pytest.raises(
            CaptureError, match=r"'attn' \(cross\) made attention calls over 5x5 positions; none is that of a 4x4"
        ):
            module(*inputs)


@pytest.mark.parametrize("columns", [[2, 0], [1, 1], [-1, 2]])
def test_columns_must_rise(columns: list[int]) -> None:
    with pytest.raises(ValueError, match=r"columns must be positions of the text in rising order; got"):
        _run(_inputs(), {"cross": _sites("text, image")["cross"]}, [], columns, None, ("probs",))


@pytest.mark.parametrize("kinds", [("cross",), ("cross", "self")], ids=["columns", "squares"])
def test_columns_beyond_a_shorter_text_get_nothing(kinds: tuple[SiteKind, ...]) -> None:
    """Rows of a batch whose texts are longer may rest; what is drawn for their words must touch nothing."""
    inputs, sites = _inputs(), {kind: _sites("text, image")[kind] for kind in kinds}
    edits: list[Edit] = [_Change("cross", stage, _tilted) for stage in ("scores", "probs")]
    edits += [_Change(kind, "probs", lambda probs: probs + 0) for kind in kinds]

    def tilted(values: Tensor, keys: list[int]) -> Tensor:
        padded = torch.cat([values[:, :, TEXT:][..., keys], torch.zeros(2, 3, CELLS, 2, dtype=values.dtype)], -1)
        rows = values[:, :, TEXT:].index_copy(-1, torch.tensor(keys), _tilted(padded)[..., :2])
        return torch.cat([values[:, :, :TEXT], rows], 2)

    scores = inputs[0] @ inputs[1].transpose(-1, -2) * 8**-0.5
    probs = tilted(tilted(scores, [1, 3]).softmax(-1), [1, 3])
    output, seen = _run(inputs, sites, edits, [1, 3, 5, 9], None, ("probs", "scores", "key"))
    found = seen["probs"][sites["cross"]]
    torch.testing.assert_close(output, probs @ inputs[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[..., :2], probs[:, :, TEXT:][..., [1, 3]], rtol=0, atol=1e-12)
    if kinds == ("cross",):
        assert not found[..., 2:].any()
    assert seen["scores"][sites["cross"]][..., 2:].isneginf().all() and not seen["key"][sites["cross"]][:, :, 2:].any()


@torch.no_grad()
@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
def test_autocast_lowers_neither_scores_nor_probs(lowered: torch.dtype) -> None:
    inputs, sites = _inputs(torch.float32), _sites("text, image")
    cross = {"cross": sites["cross"]}
    wanted = _expected(inputs, None, [("scores", range(TEXT, TEXT + CELLS), [1, 3])])[0]
    with torch.autocast("cpu", lowered):
        read, seen = _run(inputs, cross, [], [1, 3], None, ("probs",))  # type: ignore[arg-type]
        edited, _ = _run(inputs, cross, [_Change("cross", "scores", _tilted)], [1, 3])  # type: ignore[arg-type]
    torch.testing.assert_close(seen["probs"][sites["cross"]], _expected(inputs, None, [])[1][:, :, TEXT:][..., [1, 3]])
    assert read.dtype == edited.dtype == lowered
    torch.testing.assert_close(edited.float(), wanted, atol=0.1, rtol=0.05)
