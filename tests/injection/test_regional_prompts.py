from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnguide.attention.attach import attach
from attnguide.attention.sites import Site
from attnguide.engine.cfg import pass_context
from attnguide.injection.regional_prompts import RegionalPrompts
from attnguide.methods import build_method
from attnguide.models.base import Conditioning
from attnguide.prompt.targets import Targets
from attnguide.sampling.check import mark_rows
from attnguide.types import MethodConfig, Region, Step
from tests import tiny
from tests.injection import common
from tests.reference import regional_prompts as reference

FIRST, LAST = Step(0, 24, 1000.0, 0.0, 1.0), Step(20, 24, 200.0, 0.8, 0.2)
LEFT = Region("red cat", box=(0.0, 0.0, 0.5, 1.0), prompt="a red cat")
RIGHT = Region("ball", box=(0.5, 0.5, 1.0, 1.0), prompt="a blue ball and a dog", negative_prompt="a cat")
ROW = tiny.row(regions=(LEFT, RIGHT))
HEIGHT, WIDTH, TEXT = 4, 6, tiny.LENGTH
CELLS = HEIGHT * WIDTH


def _method(**options: Any) -> RegionalPrompts:
    method = build_method("regional_prompts", options)
    assert isinstance(method, RegionalPrompts)
    return method


def _conditioned(method: RegionalPrompts, row: Any = ROW) -> tuple[Targets, Conditioning]:
    targets, model = common.targets_of([row]), tiny.model()
    states = model.encode_prompt([row.prompt], [row.negative_prompt or ""])
    return targets, method.condition(states, targets, model)


def test_texts_stand_behind_the_prompt() -> None:
    _, states = _conditioned(_method(background="a dog"))
    model = tiny.model()
    texts = [tiny.PROMPT, "a red cat", "a blue ball and a dog", "a dog"]
    torch.testing.assert_close(states.cond[0], model.encode_prompt(texts, None).cond.flatten(0, 1))
    assert states.uncond is not None
    # A region without a negative prompt has the row's, and so has the background.
    negative = model.encode_prompt(["", "", "a cat", ""], None).cond.flatten(0, 1)
    torch.testing.assert_close(states.uncond[0], negative)


class _Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


def _masked(inputs: tuple[Tensor, ...], mask: Any) -> Tensor:
    query, key, value = inputs
    scores = (query @ key.mT / 8**0.5).masked_fill(~torch.from_numpy(mask), float("-inf"))
    return scores.softmax(-1) @ value


def _joint_call(
    method: RegionalPrompts, targets: Targets, step: Step, name: str = "blocks.0"
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and inputs of one joint attention over the text and the cells."""
    length = sum(method._lengths)
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, length + CELLS, 8, generator=random, dtype=torch.float64) for _ in range(3))
    spans: dict[str, Any] = {"cross": ((-CELLS, None), (0, -CELLS)), "joint": (None, None)}
    module = _Attention()
    modules = {Site(name, kind, HEIGHT, WIDTH, 2, "down", 0, 0.0, *span): module for kind, span in spans.items()}  # type: ignore[arg-type]
    context = pass_context(step, "denoise", (0,), ("cond",))
    with attach(modules, edits=method.edits(targets), columns=[1, 2]) as attention, attention.during(context):
        return module(query, key, value), (query, key, value)


def _positions(method: RegionalPrompts) -> list[tuple[str, int]]:
    words = [("text", number) for number, length in enumerate(method._lengths) for _ in range(length)]
    return [*words, *[("cell", cell) for cell in range(CELLS)]]


def _cells(*regions: Region) -> list[set[int]]:
    drawn = common.targets_of([replace(ROW, regions=regions)]).binary_masks(HEIGHT, WIDTH)[0]
    return [set(one.flatten().nonzero()[:, 0].tolist()) for one in drawn]


@pytest.mark.parametrize("picture", ["own", "background", "free"])
@pytest.mark.parametrize("base", [0.0, 0.3])
@pytest.mark.parametrize("background", [None, "a dog"])
def test_joint_attention_against_reference(picture: str, base: float, background: str | None) -> None:
    """The two branches of the published code: under the masks, and of the whole prompt; blended at the cells."""
    method = _method(picture=picture, base=base, background=background)
    targets, _ = _conditioned(method)
    found, inputs = _joint_call(method, targets, FIRST)
    everywhere, regions = set(range(CELLS)), _cells(LEFT, RIGHT)
    outside = everywhere - regions[0] - regions[1]
    texts = [outside if background is None else set(), *regions, *([outside] if background else [])]
    masked = reference.mask(_positions(method), regions, texts, picture)
    plain = reference.mask(_positions(method), [], [everywhere, *[set()] * (len(texts) - 1)], "free")
    first = method._lengths[0]
    if base > 0:  # the prompt's own stream belongs to the branch of the whole prompt
        masked[:first] = plain[:first]
    expected = _masked(inputs, masked)
    expected[:, :, -CELLS:] = (1 - base) * expected[:, :, -CELLS:] + base * _masked(inputs, plain)[:, :, -CELLS:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7 if base > 0 else 1e-12)  # the share is a float32


@pytest.mark.parametrize(("name", "step"), [("blocks.0", LAST), ("blocks.1", FIRST)])
def test_outside_of_the_window_and_between_blocks_the_prompt_is_all_there_is(name: str, step: Step) -> None:
    """As if there were no further text: the same output at the cells and at the prompt's own positions."""
    method = _method(interval=2)
    targets, _ = _conditioned(method)
    found, inputs = _joint_call(method, targets, step, name)
    own = [*range(TEXT), *range(sum(method._lengths), sum(method._lengths) + CELLS)]
    expected = _Attention()(*(tensor[:, :, own] for tensor in inputs))
    torch.testing.assert_close(found[:, :, own], expected, rtol=0, atol=1e-12)
    free = _method(interval=2, between="all")
    targets, _ = _conditioned(free)
    if step is FIRST:
        found, inputs = _joint_call(free, targets, step, name)
        torch.testing.assert_close(found, _Attention()(*inputs), rtol=0, atol=1e-12)


def _run(row: Any = ROW, **options: Any) -> Tensor:
    settings = {"steps": 3, "height": 32, "width": 48, "scheduler": "euler"}
    return common.latents_of([replace(row, methods=(MethodConfig("regional_prompts", options),), **settings)])[0]


def _plain() -> Tensor:
    return common.latents_of([replace(ROW, methods=(), steps=3, height=32, width=48, scheduler="euler")])[0]


def test_a_window_that_is_over_and_no_strength_are_no_method() -> None:
    expected = _plain()
    for options in ({"stop": 0.0}, {"scale": 0.0}):
        torch.testing.assert_close(_run(**options), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_prompts_of_regions_and_their_negatives_matter() -> None:
    found, size = _run(), float(_plain().abs().max())
    others = (
        _run(replace(ROW, regions=(replace(LEFT, prompt="a dog"), RIGHT))),
        _run(replace(ROW, regions=(LEFT, replace(RIGHT, negative_prompt="a dog")))),
        _run(background="a dog"),
        _run(base=0.0),
        _run(picture="free"),
    )
    for other in others:
        assert float((found - other).abs().max()) > 1e-3 * size


def test_a_batch_equals_its_rows() -> None:
    options = [{"background": "a dog"}, {"base": 0.0}, {"scale": 0.5}, {"picture": "free"}]
    for one in options:
        rows = common.four_rows("regional_prompts", [{"stop": 1.0, **one}])
        rows[1] = replace(rows[1], regions=(replace(rows[1].regions[0], prompt="a cat", negative_prompt="a dog"),))
        common.assert_rows_equal_rows_alone(rows[:2] if one is not options[0] else rows)


def test_with_guidance_the_guide_passes_are_masked_too() -> None:
    """Guidance of step size 0 changes nothing; guidance reads the prompt's words beside the regions' texts."""
    methods = (MethodConfig("regional_prompts", {"stop": 1.0}), MethodConfig("mask_guidance", {"step_size": 5.0}))
    common.assert_rows_equal_rows_alone(
        [tiny.row("0", methods=methods, steps=2), tiny.row("1", seed=5, methods=methods, steps=2)]
    )


def test_refusals() -> None:
    for options, message in (
        ({"base": 1.0}, r"base must lie in \[0, 1\); got 1.0"),
        ({"scale": 2.0}, r"scale must lie in \[0, 1\]; got 2.0"),
        ({"interval": 0}, "interval must be at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build_method("regional_prompts", options)
    long = replace(ROW, regions=(replace(LEFT, prompt="a red cat and " * 9),), methods=(MethodConfig("regional_prompts"),))
    both = replace(ROW, methods=(MethodConfig("regional_prompts"), MethodConfig("masactrl", {"source_prompt": "a dog"})))
    found = [one.problem or "" for one in mark_rows(tiny.model(), [long, both])]
    assert "prompt of a region of regional_prompts" in found[0] and "longer than the text encoder reads" in found[0]
    assert found[1] == "regional_prompts gives a row several texts, beside which there is no place for those of masactrl."


def test_guidance_towards_places_that_see_no_word_of_the_prompt_is_refused() -> None:
    guidance = MethodConfig("mask_guidance")
    hidden, seen, early, none = (
        replace(ROW, methods=(MethodConfig("regional_prompts", options), guidance))
        for options in ({}, {"interval": 2}, {"stop": 0.2}, {"scale": 0.0})
    )
    (refused, *fine) = mark_rows(tiny.model(), [hidden, seen, early, none])
    assert str(refused.problem).startswith("Method 'mask_guidance' reads where words of the prompt look inside their regions")
    assert [one.problem for one in fine] == [None] * 3


def test_no_strength_in_any_row_hides_no_word() -> None:
    assert [_method(scale=scale).hides_words(FIRST) for scale in (0.0, [0.0, 0.0], [0.0, 0.5])] == [False, False, True]
