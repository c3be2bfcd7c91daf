"""A batch of rows becomes padded tensors that say per row what one row says alone."""

from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
import torch

from attnguide.prompt.drawing import binary_mask
from attnguide.prompt.regions import rasterise
from attnguide.prompt.targets import Targets, region_maps
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Region, Sample
from tests import tiny

LEFT = Region("red cat", box=(0.0, 0.0, 0.5, 1.0), weight=2.0)
DOG = Region("dog", box=(0.5, 0.25, 1.0, 0.75))
WORD = Region("grass")


def tokenize(text: str, length: int = 10) -> TokenizedPrompt:
    """One token a word, between a start and an end token."""
    words = text.split()
    firsts = [len(" ".join([*words[:index], ""])) if index else 0 for index in range(len(words))]
    spans = [(first, first + len(word)) for first, word in zip(firsts, words, strict=True)]
    padding = length - len(words) - 1
    tokens = ("<s>", *words, *["</s>"] * padding)
    return TokenizedPrompt(text, tokens, (None, *spans, *[None] * padding), tuple(range(length)))


def build(*rows: tuple[str, tuple[Region, ...]]) -> Targets:
    samples = [Sample(id=f"row{index}", prompt=text, regions=regions) for index, (text, regions) in enumerate(rows)]
    return Targets.build(samples, [tokenize(text) for text, _ in rows], "cpu")


@pytest.fixture
def targets() -> Targets:
    return build(("a red cat and a dog", (LEFT, DOG)), ("nothing here", ()), ("grass under a dog", (WORD,)))


def test_tokens_are_averaging_weights(targets: Targets) -> None:
    expected = torch.zeros(3, 2, 10)
    expected[0, 0, [2, 3]] = 0.5
    expected[0, 1, 6] = 1
    expected[2, 0, 1] = 1
    torch.testing.assert_close(targets.tokens, expected, rtol=0, atol=0)


def test_flags_and_weights(targets: Targets) -> None:
    assert targets.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert targets.placed.tolist() == [[True, True], [False, False], [False, False]]
    assert targets.weights.tolist() == [[2.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    assert [row.nonzero()[:, 0].tolist() for row in targets.ends] == [[7], [3], [5]]
    assert [row.nonzero()[:, 0].tolist() for row in targets.sinks] == [[0]] * 3
    assert (targets.valid.dtype, targets.weights.dtype, targets.ends.dtype) == (torch.bool, torch.float32, torch.bool)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 7), (8, 2)])
def test_masks_at_any_size(targets: Targets, height: int, width: int) -> None:
    masks, hard = targets.masks(height, width), targets.binary_masks(height, width)
    assert masks.shape == hard.shape == (3, 2, height, width)
    assert torch.equal(masks[0, 0], rasterise(LEFT, height, width))
    assert torch.equal(hard[0, 1], binary_mask(DOG, height, width))
    assert not masks[1:].any()
    assert not hard[1:].any()


def test_masks_are_drawn_once_per_size(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int, int]] = []

    def counted(region: Region, height: int, width: int) -> torch.Tensor:
        drawn.append((region.phrase, height, width))
        return rasterise(region, height, width)

    monkeypatch.setattr("attnguide.prompt.targets.soft_mask", counted)
    first = targets.masks(4, 4)
    assert targets.masks(4, 4) is first
    assert torch.equal(targets.select([2, 0]).masks(4, 4)[1], first[0])
    targets.masks(2, 4)
    assert drawn == [("red cat", 4, 4), ("dog", 4, 4), ("red cat", 2, 4), ("dog", 2, 4)]


def test_a_batch_equals_its_rows(targets: Targets) -> None:
    for row in range(3):
        alone, count = targets.select([row]), targets.select([row]).count
        assert count == len(targets.regions[row])
        assert torch.equal(alone.tokens[0], targets.tokens[row, :count])
        assert torch.equal(alone.masks(5, 6)[0], targets.masks(5, 6)[row, :count])
        assert torch.equal(alone.weights[0], targets.weights[row, :count])
        assert torch.equal(alone.ends[0], targets.ends[row])


def test_select_keeps_the_order_and_may_repeat(targets: Targets) -> None:
    picked = targets.select([2, 0, 0])
    assert picked.ends.nonzero()[:, 1].tolist() == [5, 7, 7]
    assert torch.equal(picked.tokens, targets.tokens[[2, 0, 0]])


def test_rows_without_regions() -> None:
    empty = build(("a cat", ()), ("", ()))
    assert empty.tokens.shape == (2, 0, 10)
    assert empty.valid.shape == empty.placed.shape == empty.weights.shape == (2, 0)
    assert empty.masks(4, 6).shape == (2, 0, 4, 6)
    assert region_maps(torch.rand(2, 24, 10), empty.tokens).shape == (2, 0, 24)


def test_two_regions_of_one_phrase() -> None:
    both = build(("a dog", (DOG, Region("dog", blob=(0.2, 0.2, 0.1, 0.1)))))
    assert torch.equal(both.tokens[0, 0], both.tokens[0, 1])
    assert not torch.equal(both.masks(8, 8)[0, 0], both.masks(8, 8)[0, 1])


def test_places_of_the_same_words_are_joined() -> None:
    """One word has one map, which should fill all its boxes."""
    left, right = (Region("dog", box=box, occurrence=0) for box in ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 0.5)))
    both = build(
        (
            "a red dog",
            (left, Region("red", box=(0.0, 0.0, 1.0, 0.5), occurrence=0), right, Region("red dog", box=(0.0, 0.5, 0.5, 1.0))),
        )
    )
    masks, joined = both.masks(4, 4)[0], both.joined_masks(4, 4)[0]
    assert torch.equal(joined[0], torch.maximum(masks[0], masks[2])) and torch.equal(joined[2], joined[0])
    # Words that only share a token are other words.
    assert torch.equal(joined[1], masks[1]) and torch.equal(joined[3], masks[3])


def test_joining_takes_the_larger_of_two_soft_masks() -> None:
    blobs = (Region("dog", blob=(0.4, 0.5, 0.2, 0.2)), Region("dog", blob=(0.6, 0.5, 0.2, 0.2)))
    both = build(("a dog", blobs))
    masks = both.masks(8, 8)[0]
    assert torch.equal(both.joined_masks(8, 8)[0, 0], masks.amax(0)) and masks.amax(0).max() <= 1


def test_joining_leaves_other_occurrences_rows_and_words_without_a_place_alone(targets: Targets) -> None:
    first, second = Region("dog", box=(0.0, 0.0, 0.5, 1.0)), Region("dog", box=(0.5, 0.0, 1.0, 1.0), occurrence=1)
    other = build(("a dog and a dog", (first, second)), ("a dog", (Region("dog"), first)))
    assert torch.equal(other.joined_masks(4, 4)[0], other.masks(4, 4)[0])
    assert not other.joined_masks(4, 4)[1, 0].any()
    assert torch.equal(other.joined_masks(4, 4)[1, 1], rasterise(first, 4, 4))
    assert torch.equal(targets.joined_masks(3, 5), targets.masks(3, 5))
    assert build(("a cat", ())).joined_masks(4, 6).shape == (1, 0, 4, 6)


def test_tensors_are_what_their_annotations_say(targets: Targets) -> None:
    def declared(member: Callable[..., Any]) -> Any:
        return get_type_hints(member)["return"]

    for name in ("tokens", "valid", "placed", "weights", "ends"):
        assert isinstance(getattr(targets, name), declared(vars(Targets)[name].func)), name
    for name in ("masks", "joined_masks", "binary_masks"):
        assert isinstance(getattr(targets, name)(3, 5), declared(vars(Targets)[name])), name
    assert not isinstance(targets.valid, declared(vars(Targets)["weights"].func))
    assert not isinstance(targets.valid, declared(vars(Targets)["tokens"].func))


def test_region_maps_average_the_words(targets: Targets) -> None:
    probs = torch.rand(3, 12, 10, dtype=torch.float64).softmax(-1)
    maps = region_maps(probs, targets.tokens)
    assert maps.dtype == torch.float64
    torch.testing.assert_close(maps[0, 0], probs[0, :, 2:4].mean(-1))
    torch.testing.assert_close(maps[0, 1], probs[0, :, 6])
    torch.testing.assert_close(maps[2, 0], probs[2, :, 1])
    assert not maps[1].any()
    assert not maps[2, 1].any()


def test_region_maps_gradient(targets: Targets) -> None:
    probs = torch.rand(3, 4, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda maps: region_maps(maps, targets.tokens), probs)


def test_vanishing_region_is_named() -> None:
    small = build(("a cat", (Region("cat", box=(0.40, 0.40, 0.45, 0.45)),)))
    assert small.binary_masks(8, 8).sum() == 1 and not small.binary_masks(8, 8, "truncated").any()
    assert not small.joined_binary_masks(8, 8, "rounded")[:, :, 4:].any()
    small.require_cells(8, 8)
    with pytest.raises(ValueError, match="Region 'cat' covers no cell of the 8x8 map with its edges truncated"):
        small.require_cells(8, 8, "truncated")
    with pytest.raises(ValueError, match="Region 'cat' covers no cell of the 1x1 map"):
        small.require_cells(1, 1)


def test_build_refuses_what_does_not_fit() -> None:
    sample = Sample(id="a", prompt="a cat")
    with pytest.raises(ValueError, match="one prompt per sample, at least one; got 2 for 1"):
        Targets.build([sample], [tokenize("a cat"), tokenize("a cat")], "cpu")
    with pytest.raises(ValueError, match="at least one; got 0 for 0"):
        Targets.build([], [], "cpu")
    with pytest.raises(ValueError, match=r"must have one length; got \[8, 10\]"):
        Targets.build([sample, sample], [tokenize("a cat"), tokenize("a cat", 8)], "cpu")
    with pytest.raises(ValueError, match="Phrase 'cow' does not occur"):
        build(("a cat", (Region("cow"),)))


def _targets(*samples: Sample) -> Targets:
    return Targets.build(samples, [tiny.model().tokenize(sample.prompt) for sample in samples], "cpu")


def test_words_with_several_places_share_their_say() -> None:
    regions = (Region("dog", box=(0.0, 0.0, 0.5, 1.0)), Region("cat"), Region("dog", box=(0.5, 0.0, 1.0, 1.0)), Region("dog"))
    targets = _targets(Sample("0", "a cat and a dog", regions=regions), Sample("1", "a cat", regions=regions[1:2]))
    assert targets.shares(targets.placed).tolist() == [[0.5, 0, 0.5, 0], [0, 0, 0, 0]]
    assert torch.allclose(targets.shares(targets.valid), torch.tensor([[1 / 3, 1, 1 / 3, 1 / 3], [1, 0, 0, 0]]))
    joined = targets.joined_binary_masks(4, 4)
    assert joined[0, 0].all() and joined[0, 2].all() and not joined[0, 1].any() and not joined[1].any()
