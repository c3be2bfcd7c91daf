import pytest
import torch

from attnguide.injection.aligned_attention import AlignedCrossAttention, token_spans
from attnguide.types import Step
from tests import tiny
from tests.injection import common

BRANCHES = ("uncond", "cond", "source_uncond", "source")


def _edit(matrix: torch.Tensor, keeps: bool, spans: list[tuple[float, float]] | None = None) -> AlignedCrossAttention:
    tokens = matrix.shape[-1]
    return AlignedCrossAttention(
        1.0,
        matrix[None],
        torch.tensor([[1.0, 2.0, 1.0]]),
        [spans or [(0.0, 1.0)] * tokens],
        lambda step, start, stop: start <= step.progress < stop,
        keeps,
    )


def _probs() -> torch.Tensor:
    """Of one cell and head: own (0.5, 0.3, 0.2), the source's (0.2, 0.2, 0.6)."""
    rows = [[1.0, 0.0, 0.0], [0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.2, 0.2, 0.6]]
    return torch.tensor(rows).view(4, 1, 1, 3)


SWAPPED = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
"""Token 1 is the source's token 2; token 2 has no source."""


@pytest.mark.parametrize(("keeps", "last"), [(True, 0.2), (False, 0.0)])
def test_by_hand(keeps: bool, last: float) -> None:
    edited = _edit(SWAPPED, keeps).probs(
        _probs(), common.CROSS, common.context_of(1, BRANCHES, Step.at_sigma(0, 10, 901.0, 8.4))
    )
    assert edited[1, 0, 0].tolist() == pytest.approx([0.2, 2 * 0.6, last])
    assert torch.equal(edited[[0, 2, 3]], _probs()[[0, 2, 3]])


def test_each_token_has_its_window() -> None:
    edit = _edit(SWAPPED, True, [(0.0, 1.0), (0.5, 1.0), (0.0, 1.0)])
    context = common.context_of(1, BRANCHES, Step.at_sigma(0, 10, 901.0, 8.4))
    assert edit.active(context)
    assert edit.probs(_probs(), common.CROSS, context)[1, 0, 0].tolist() == pytest.approx([0.2, 0.3, 0.2])


def test_spans_of_phrases() -> None:
    prompt = tiny.model().tokenize("a red cat")
    spans = token_spans({"cat": (0.25, 0.5)}, (0.0, 0.8), prompt)
    assert len(spans) == len(prompt.ids) and spans[3] == (0.25, 0.5) and set(spans) == {(0.0, 0.8), (0.25, 0.5)}
    with pytest.raises(ValueError, match="dog"):
        token_spans({"dog": (0.0, 1.0)}, (0.0, 0.8), prompt)
