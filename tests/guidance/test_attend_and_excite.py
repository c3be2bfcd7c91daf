import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.attend_and_excite import THRESHOLDS, AttendAndExcite
from attnguide.prompt.targets import Targets
from attnguide.types import Region, Sample, Step
from tests import tiny
from tests.reference import attend_and_excite as reference

STEP = Step.at_sigma(0, 4, 751.0, 4.0)
LARGE = [Site("down.attn2", "cross", 5, 4, 2, "down", 0), Site("up.attn2", "cross", 5, 4, 3, "up", 0)]
SMALL = Site("mid.attn2", "cross", 4, 3, 2, "mid", 1)
PROMPTS = {"a red cat and a blue ball": ("cat", "ball"), "a dog": ("dog",)}


def _targets() -> Targets:
    rows = [
        Sample(str(index), prompt, regions=tuple(Region(word) for word in words))
        for index, (prompt, words) in enumerate(PROMPTS.items())
    ]
    return Targets.build(rows, [tiny.model().tokenize(row.prompt) for row in rows], "cpu")


def _maps(*sites: Site, requires_grad: bool = False) -> AttentionMaps:
    random = torch.Generator().manual_seed(1)
    probs = {
        site: (3 * torch.randn(2, site.heads, site.height * site.width, tiny.LENGTH, generator=random, dtype=torch.float64))
        .softmax(-1)
        .requires_grad_(requires_grad)
        for site in sites
    }
    return AttentionMaps(probs)


def _layers(maps: AttentionMaps, row: int, sites: list[Site]) -> list[np.ndarray]:  # type: ignore[type-arg]
    return [maps.probs[s][row].detach().unflatten(1, (s.height, s.width)).numpy() for s in sites]


@pytest.mark.parametrize("until_end", [False, True])
@pytest.mark.parametrize(("quirks", "std"), [("none", 0.5), ("reference", reference.REFERENCE_STD)])
def test_loss_against_the_paper_s_code(until_end: bool, quirks: str, std: float) -> None:
    maps, targets = _maps(*LARGE), _targets()
    output = AttendAndExcite(until_end=until_end, quirks=quirks).loss(maps, targets, STEP)  # type: ignore[arg-type]
    for row in range(2):
        last = targets.tokenized[row].ends[0] if until_end else tiny.LENGTH - 1
        words = [indices[0] for indices in targets.token_indices[row]]
        expected = reference.loss(_layers(maps, row, LARGE), words, last, std)
        assert float(output.loss[row]) == pytest.approx(expected, rel=1e-9)
    assert torch.equal(output.loss, output.indicator)


def test_maps_of_several_sizes_count_alike() -> None:
    targets = _targets()
    maps = _maps(*LARGE, SMALL)
    output = AttendAndExcite().loss(maps, targets, STEP)
    for row in range(2):
        words = targets.token_indices[row]
        each = [
            np.mean([reference.loss(_layers(maps, row, sites), [word[0]], tiny.LENGTH - 1, 0.5) for sites in (LARGE, [SMALL])])
            for word in words
        ]
        assert float(output.loss[row]) == pytest.approx(max(each), rel=1e-9)


def test_without_the_blur_a_peak_is_a_cell() -> None:
    maps, targets = _maps(*LARGE), _targets()
    found, blurred = (AttendAndExcite(blur_std=std).loss(maps, targets, STEP).loss for std in (0.0, 0.5))
    assert (found < blurred).all()


def test_words_of_several_tokens_are_averaged() -> None:
    row = Sample("0", "a zebra", regions=(Region("zebra"),))
    targets = Targets.build([row], [tiny.model().tokenize(row.prompt)], "cpu")
    assert len(targets.token_indices[0][0]) == 5
    maps = _maps(*LARGE).select([0])
    competing = maps.average(5, 4)[0, :, :, 1 : tiny.LENGTH - 1].mul(100).softmax(-1)
    expected = 1 - competing[..., 1:6].mean(-1).max()
    torch.testing.assert_close(AttendAndExcite(blur_std=0.0).loss(maps, targets, STEP).loss[0], expected)


def test_a_row_without_regions_has_nothing_to_gain() -> None:
    rows = [Sample("0", "a dog", regions=(Region("dog"),)), Sample("1", "a cat")]
    targets = Targets.build(rows, [tiny.model().tokenize(row.prompt) for row in rows], "cpu")
    loss = AttendAndExcite().loss(_maps(*LARGE), targets, STEP).loss
    assert loss[0] > 0 and loss[1] == 0


def test_gradient() -> None:
    site = Site("a", "cross", 3, 3, 1)
    targets, guidance = _targets(), AttendAndExcite()
    # At temperature 100 the softmax saturates; maps that are nearly even stay off its flat parts.
    start = (0.1 * torch.randn(2, 1, 9, tiny.LENGTH, dtype=torch.float64)).softmax(-1).requires_grad_(True)

    def loss(probs: Tensor) -> Tensor:
        return guidance.loss(AttentionMaps({site: probs}), targets, STEP).loss

    assert torch.autograd.gradcheck(loss, (start,))


def test_only_the_worst_word_pulls() -> None:
    maps, targets = _maps(LARGE[0], requires_grad=True), _targets()
    words = [index[0] for index in targets.token_indices[0]]
    (gradient,) = torch.autograd.grad(AttendAndExcite(blur_std=0.0).loss(maps, targets, STEP).loss[0], [maps.probs[LARGE[0]]])
    assert gradient[1].abs().max() == 0
    cells = gradient[0].abs().sum((0, 2)) > 0
    assert cells.sum() == 1
    strongest = gradient[0].sum(0)[cells.nonzero()[0, 0]]
    assert strongest.argmin() in words  # more attention there lowers the loss


def test_defaults_are_the_paper_s() -> None:
    guidance = AttendAndExcite()
    assert (guidance.window.start, guidance.window.stop, guidance.sites) == (0.0, 0.5, None)
    assert guidance.update.iterations == 1
    sizes = [guidance.update.step_size(Step.at_sigma(index, 50, 0.0, 1.0)) for index in (0, 24, 49)]
    assert sizes == pytest.approx([20.0, 17.38, 14.14], abs=0.01)
    assert {r.at: r.until for r in guidance.update.refinements} == pytest.approx(
        {(point,): 1 - peak for point, peak in THRESHOLDS.items()}
    )
    steps = [index for index in range(50) if guidance.update.refinement(Step.at_sigma(index, 50, 0.0, 1.0))]
    assert steps == [0, 10, 20]
    assert all(r.iterations == 20 and not r.lagging for r in guidance.update.refinements)


def test_quirks_of_the_reference() -> None:
    guidance = AttendAndExcite(quirks="reference")
    assert guidance.blur_std == pytest.approx(reference.REFERENCE_STD)
    assert all(refinement.lagging for refinement in guidance.update.refinements)


def test_options() -> None:
    guidance = AttendAndExcite(levels=(1, 2), scale=[1.0, 2.0], stop=0.3)
    assert guidance.sites == SiteSelector(kind="cross", levels=(1, 2))
    assert guidance.update.scale == [1.0, 2.0] and guidance.window.stop == 0.3
    with pytest.raises(ValueError, match="step size must be finite; got inf"):
        AttendAndExcite(step_size=float("inf"))
    with pytest.raises(ValueError, match="iterations must be at least 1; got 0"):
        AttendAndExcite(max_refinements=0)


def test_rows_may_have_thresholds_of_their_own() -> None:
    guidance = AttendAndExcite(thresholds=[{0.2: 0.5}, {"0.4": 0.75}, {}])  # type: ignore[dict-item]
    assert [(one.at, one.until) for one in guidance.update.refinements] == [
        ((0.2,), [0.5, math.inf, math.inf]),
        ((0.4,), [math.inf, 0.25, math.inf]),
    ]
