import pytest
import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps, gaussian_smooth, min_max, resize, token_softmax
from attnguide.attention.sites import Site, SiteSelector

LARGE = Site("a", "cross", 4, 6, 2, "down", 0)
ALSO_LARGE = Site("b", "cross", 4, 6, 1, "up", 0)
SMALL = Site("c", "cross", 2, 3, 2, "mid", 1)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _maps() -> AttentionMaps:
    return AttentionMaps(
        {LARGE: _random(2, 2, 24, 5), ALSO_LARGE: _random(2, 1, 24, 5, seed=1), SMALL: _random(2, 2, 6, 5, seed=2)}
    )


def test_average_weighs_every_head_alike_and_is_row_major() -> None:
    maps = _maps()
    got = maps.average(4, 6)
    by_hand = (maps.probs[LARGE][:, 0] + maps.probs[LARGE][:, 1] + maps.probs[ALSO_LARGE][:, 0]) / 3
    assert got.shape == (2, 4, 6, 5)
    torch.testing.assert_close(got[1, 3, 2], by_hand[1, 3 * 6 + 2])


def test_average_of_a_size_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"No captured site has a 6x4 map; captured sizes are \(\(4, 6\), \(2, 3\)\)"):
        _maps().average(6, 4)


def test_queries_must_fit_the_site() -> None:
    with pytest.raises(ValueError, match="probs of site 'a' have 20 queries; its map is 4x6 cells"):
        AttentionMaps({LARGE: torch.zeros(1, 2, 20, 5)})


def test_choose_and_select() -> None:
    maps = _maps()
    assert set(maps.choose(SiteSelector(levels=(1,))).probs) == {SMALL}
    assert torch.equal(maps.select([1]).probs[LARGE], maps.probs[LARGE][[1]])
    assert maps.resolutions == ((4, 6), (2, 3))
    with pytest.raises(ValueError, match="No attention site matches"):
        maps.choose(SiteSelector(kind="self"))


def test_resized_average_of_constant_maps() -> None:
    maps = AttentionMaps({LARGE: torch.full((1, 2, 24, 1), 0.2), SMALL: torch.full((1, 2, 6, 1), 0.6)})
    torch.testing.assert_close(maps.resized_average(8, 8), torch.full((1, 8, 8, 1), 0.4))


def test_resize_keeps_axes_apart() -> None:
    maps = torch.zeros(1, 2, 3, 2)
    maps[0, 1, 2, 1] = 1
    bigger = resize(maps, 4, 6, "nearest")
    assert bigger.shape == (1, 4, 6, 2)
    assert bigger[0, 2:, 4:, 1].min() == 1 and bigger.sum() == 4
    assert resize(maps, 2, 3) is maps


def _between(*spans: tuple[int, int], keys: int = 6) -> torch.Tensor:
    position = torch.arange(keys)
    return torch.stack([(position >= first) & (position < stop) for first, stop in spans])


def test_token_softmax_compares_words_only() -> None:
    maps = _random(2, 2, 2, 6) / 20
    got = token_softmax(maps, _between((1, 3), (1, 5)))
    torch.testing.assert_close(got[0, ..., 1:3], (100 * maps[0, ..., 1:3]).softmax(-1))
    torch.testing.assert_close(got[1, ..., 1:5], (100 * maps[1, ..., 1:5]).softmax(-1))
    assert got[0, ..., [0, 3, 4, 5]].abs().max() == 0
    torch.testing.assert_close(got.sum(-1), torch.ones(2, 2, 2, dtype=torch.float64))


def test_token_softmax_with_padding() -> None:
    maps = _random(1, 2, 2, 6) / 20
    got = token_softmax(maps, _between((1, 5)))
    torch.testing.assert_close(got[0, ..., 1:5], (100 * maps[0, ..., 1:5]).softmax(-1))
    assert got[..., [0, 5]].abs().max() == 0


def test_token_softmax_leaves_its_argument() -> None:
    maps = _random(1, 2, 2, 6)
    before = maps.clone()
    token_softmax(maps, _between((1, 4)))
    assert torch.equal(maps, before)


def test_maps_of_a_part_of_the_keys_are_shares_of_the_rows_own() -> None:
    """Where a picture and padding share the softmax a word's probs have no scale; shares of the row's own words have."""
    probs = torch.tensor([[0.01, 0.03, 0.5], [0.002, 0.006, 0.9]], dtype=torch.float64)[:, None, None].expand(2, 2, 24, 3)
    maps = AttentionMaps({LARGE: probs}, own=torch.tensor([[True, True, False], [True, True, True]]))
    for mean in (maps.average(4, 6), maps.resized_average(4, 6), maps.among([LARGE]).average(4, 6)):
        torch.testing.assert_close(mean[0, 0, 0], torch.tensor([0.25, 0.75, 0], dtype=torch.float64))
        torch.testing.assert_close(mean[1, 0, 0], probs[1, 0, 0] / 0.908)
    assert torch.equal(maps.select([1]).average(4, 6), maps.average(4, 6)[1:])
    assert torch.equal(AttentionMaps({LARGE: probs}).average(4, 6), probs.mean(1).unflatten(1, (4, 6)))


def test_maps_of_self_attention_are_shares_of_all_cells() -> None:
    """A row of joint attention holds text as well; the picture's part of it sums to 1 again."""
    own, site = torch.tensor([[True, False]]), Site("d", "self", 2, 3, 2, "mid", 1)
    maps = AttentionMaps({site: torch.full((1, 2, 6, 6), 0.05, dtype=torch.float64)}, own=own)
    torch.testing.assert_close(maps.average(2, 3), torch.full((1, 2, 3, 6), 1 / 6, dtype=torch.float64))


def test_a_row_that_holds_nothing_has_shares_and_a_gradient_of_0() -> None:
    """A mask may keep all of a text from a cell (regional prompts)."""
    scores = torch.zeros(1, 2, 24, 3)
    scores[:, :, :6] = float("-inf")
    scores.requires_grad_()
    shares = AttentionMaps({LARGE: scores.exp()}, own=torch.tensor([[True, True, False]])).average(4, 6)
    assert shares[0, 0].abs().max() == 0 and shares[0, 1, 0].tolist() == [0.5, 0.5, 0]
    (gradient,) = torch.autograd.grad(shares[..., 0].sum(), scores)
    assert gradient[:, :, :6].abs().max() == 0 and gradient[0, 0, 6].tolist() == pytest.approx([0.125, -0.125, 0])


def test_smoothing_a_single_cell_by_hand() -> None:
    maps = torch.zeros(1, 5, 5, dtype=torch.float64)
    maps[0, 2, 2] = 1
    tap = torch.exp(torch.tensor(-2.0, dtype=torch.float64))  # exp(-1 / (2 * 0.5^2))
    side, middle = tap / (1 + 2 * tap), 1 / (1 + 2 * tap)
    got = gaussian_smooth(maps)[0]
    torch.testing.assert_close(got[2, 2], middle * middle)
    torch.testing.assert_close(got[1, 2], middle * side)
    torch.testing.assert_close(got[3, 3], side * side)
    assert got[0].abs().max() == 0


def test_smoothing_keeps_size_shape_and_constants() -> None:
    maps = torch.full((2, 3, 4, 6), 0.3, dtype=torch.float64)
    torch.testing.assert_close(gaussian_smooth(maps, 1.0, 5), maps)


@pytest.mark.parametrize("size", [2, 9])
def test_smoothing_with_a_wrong_kernel(size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be odd .* got {size} for a"):
        gaussian_smooth(torch.zeros(1, 4, 4), 0.5, size)


def test_min_max() -> None:
    scaled = min_max(_random(2, 4, 6))
    assert scaled.amin((1, 2)).tolist() == [0, 0] and scaled.amax((1, 2)).tolist() == [1, 1]
    assert min_max(torch.full((2, 2), 0.7)).tolist() == [[0, 0], [0, 0]]
    nearly = torch.tensor([[0.0130, 0.0130 + 1e-9], [0.0130, 0.0130 - 1e-9]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(min_max(nearly).sum(), nearly)
    assert not min_max(nearly).any() and not gradient.any()
    assert min_max(torch.tensor([[1.0, 1.002]])).tolist() == [[0, 1]]
    assert min_max(torch.tensor([[-1e-6, 1e-6]])).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "function", [gaussian_smooth, min_max, lambda maps: token_softmax(maps.movedim(0, -1)[None] / 50, _between((1, 2), keys=3))]
)
def test_gradcheck(function: object) -> None:
    maps = _random(3, 3, 4).requires_grad_(True)
    assert torch.autograd.gradcheck(function, (maps,))
