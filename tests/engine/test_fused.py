"""The fused step: one conditional pass gives prediction and gradient, to the same pictures at a lower cost."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.ablation.cost import expected_cost
from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.fused import fused_guidance
from attnguide.engine.observer import BatchInfo
from attnguide.guidance.mask_guidance import MaskGuidance
from attnguide.guidance.update import Update
from attnguide.injection.base import Injection
from attnguide.methods import build_method
from attnguide.models.load import adapt
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, PassContext, Region, Sample, SampleResult
from tests import tiny
from tests.closeness import assert_close
from tests.engine.watch import Watch, inputs_of, latents
from tests.models import families

UNET: Any = tiny.model().networks["unet"]
STRONG = {"space": "noise", "step_size": 4000.0, "stop": 0.5}
HELD = {"guide": True, "inject": False, "space": "noise", "step_size": 4000.0, "attempts": 1}


def _rows(*methods: tuple[str, dict[str, Any]], **settings: Any) -> list[Sample]:
    configs = tuple(MethodConfig(name, options) for name, options in methods)
    ball = Region("blue ball", box=(0.3, 0.5, 1.0, 1.0))
    return [
        tiny.row("0", seed=3, methods=configs, **settings),
        tiny.row("1", seed=9, methods=configs, regions=(Region("red cat", box=(0.0, 0.0, 0.5, 0.4)), ball), **settings),
    ]


def _sampled(*methods: tuple[str, dict[str, Any]], **settings: Any) -> tuple[list[SampleResult], Watch]:
    watch = Watch()
    return sample_batch(tiny.model(), _rows(*methods, **settings), watch), watch


@pytest.mark.parametrize(("name", "options"), [("mask_guidance", STRONG), ("stable", HELD), ("focus", {"step_size": 5.0})])
@pytest.mark.parametrize("settings", [{}, {"scheduler": "heun"}, {"cfg_scale": 1.0}], ids=str)
def test_fused_gives_the_same_gradient_and_the_same_prediction(
    name: str, options: dict[str, Any], settings: dict[str, Any]
) -> None:
    (apart, before), (fused, after) = (_sampled((name, {**options, "fused": fused}), **settings) for fused in (False, True))
    assert before.events and any(any(event.moved) for event in before.events)
    for one, other in zip(before.events, after.events, strict=True):
        assert (one.step, one.rows, one.moved, one.iteration) == (other.step, other.rows, other.moved, other.iteration)
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert one.gradient_norms == pytest.approx(other.gradient_norms, rel=1e-3)
    for one, other in zip(apart, fused, strict=True):
        assert_close(latents(one), latents(other))
    plain, _ = _sampled(**settings)
    assert float((latents(plain[0]) - latents(apart[0])).abs().max()) > 1e-2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_joint_attention_without_an_unconditional_half(checkpointing: bool) -> None:
    """FLUX is distilled for guidance: a guided step is one forward and one backward, also where blocks are recomputed."""
    pipeline = families.build("flux_dev")
    if checkpointing:
        pipeline.transformer.enable_gradient_checkpointing()
    model, found = adapt(pipeline), []
    for fused in (False, True):
        options = {"space": "noise", "step_size": 400.0, "stop": 1.0, "fused": fused}
        row = tiny.row(methods=(MethodConfig("mask_guidance", options),), steps=2)
        found += sample_batch(model, [row])
    apart, shared = found
    assert_close(latents(apart), latents(shared))
    assert [result.cost.unet_forwards for result in found] == [4, 2] and shared.cost.unet_backwards == 2


def test_the_graph_ends_at_the_last_site_that_is_read() -> None:
    """What lies behind it is computed without memory for a gradient."""
    graphs: list[tuple[bool, bool]] = []
    ahead = UNET.conv_in.register_forward_hook(lambda module, args, out: graphs.append((True, out.requires_grad)))
    behind = UNET.conv_out.register_forward_hook(lambda module, args, out: graphs.append((False, out.requires_grad)))
    _sampled(("mask_guidance", {**STRONG, "fused": True}), steps=2)  # the first of two is guided
    ahead.remove()
    behind.remove()
    assert graphs == [(True, True), (False, False), *[(True, False), (False, False)] * 2]


@pytest.mark.parametrize("cfg_scale", [5.0, 1.0])
def test_the_cost_is_told_truthfully_and_known_before(cfg_scale: float) -> None:
    """Four steps, two of them guided: no pass beside the halves', and one gradient in each of the two."""
    halves = 2 if cfg_scale > 1 else 1
    with inputs_of(UNET.conv_in) as entered, inputs_of(UNET.conv_out) as left:
        results, _ = _sampled(("mask_guidance", {**STRONG, "fused": True}), cfg_scale=cfg_scale)
    for result in results:
        assert (result.cost.unet_forwards, result.cost.unet_backwards) == (4 * halves, 2)
        expected = expected_cost(result.sample)
        assert (expected.forwards, expected.most, expected.backwards) == (4 * halves, 4 * halves, 2)
    assert sum(map(len, entered)) == sum(map(len, left)) == 2 * 4 * halves
    apart = expected_cost(_rows(("mask_guidance", STRONG), cfg_scale=cfg_scale)[0])
    assert (apart.forwards, apart.backwards) == (4 * halves + 2, 2)


def test_edits_act_in_the_fused_pass_and_the_loss_sees_probs_before_them() -> None:
    """The only site that is read and edited is the first: what it shows unedited is what a pass without edits shows."""
    first = {"levels": (0,), "places": ("down",)}
    masks = {**STRONG, **first, "stop": 0.25}
    edit = ("map_injection", {**first, "scale": 3.0, "start": 0.0})
    (apart, before), (fused, after) = (_sampled(("mask_guidance", {**masks, "fused": on}), edit) for on in (False, True))
    assert before.events[0].losses == pytest.approx(after.events[0].losses, rel=1e-4)
    for one, other in zip(apart, fused, strict=True):
        assert_close(latents(one), latents(other))


class _Conditional(Watch):
    """Reads the conditional half in every denoising pass, as the callbacks do."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        def record(site: Site, tensor: Tensor, context: PassContext) -> None:
            assert not tensor.requires_grad
            self.seen.append(tensor[context.positions("cond")].clone())

        return [Probe("probs", record, SiteSelector(kind="cross", levels=(1,)))]


def test_observers_see_the_conditional_half_once_a_step_and_without_a_graph() -> None:
    watches = []
    for fused in (False, True):
        watches.append(_Conditional())
        sample_batch(tiny.model(), _rows(("mask_guidance", {**STRONG, "fused": fused})), watches[-1])
    apart, fused_ones = (watch.seen for watch in watches)
    assert len(apart) == len(fused_ones) and {len(maps) for maps in fused_ones} == {2}
    for one, other in zip(apart, fused_ones, strict=True):
        assert_close(one, other)


def test_a_row_that_stops_leaves_the_fused_pass_to_the_others() -> None:
    class Breaking(MaskGuidance):
        def loss(self, maps: Any, targets: Any, step: Any) -> Any:
            output = super().loss(maps, targets, step)
            broken = torch.tensor([row == 0 and step.index == 0 for row in targets.rows])
            output.loss.data[broken] = float("nan")
            return output

    rows = [tiny.row("0", seed=3), tiny.row("1", seed=4)]
    options: dict[str, Any] = {**STRONG, "fused": True}
    first, second = Sampler(tiny.model(), [Breaking(**options)]).run(rows)
    assert first.status == "loss of mask_guidance is not finite at step 0"
    assert_close(latents(second), latents(Sampler(tiny.model(), [MaskGuidance(**options)]).run(rows[1:])[0]))


@pytest.mark.parametrize("name", ["pag", "prompt_to_prompt"])
def test_beside_a_method_with_further_branches_the_guide_pass_is_made_apart(name: str) -> None:
    options: dict[str, Any] = {"source_prompt": "a red dog and a blue ball"} if name == "prompt_to_prompt" else {}
    injection, guidance = build_method(name, options), MaskGuidance(space="noise", fused=True)
    assert isinstance(injection, Injection)
    assert fused_guidance([guidance], []) is guidance and fused_guidance([guidance], [injection]) is None
    (result, *_), _ = _sampled(("mask_guidance", {**STRONG, "fused": True}), (name, options))
    assert result.cost.unet_forwards == expected_cost(result.sample).forwards
    assert result.cost.unet_backwards == 2


def test_beside_bounded_attention_as_well() -> None:
    bounded, guidance = build_method("bounded_attention", {}), MaskGuidance(space="noise", fused=True)
    assert fused_guidance([guidance, bounded], []) is None  # type: ignore[list-item]


@pytest.mark.parametrize("options", [{"space": "latents"}, {"space": "noise", "iterations": 2}])
def test_fused_is_one_update_of_the_prediction(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"fused takes the gradient from the denoising pass|takes one iteration"):
        Update(fused=True, **options)
    with pytest.raises(ValueError, match="fused takes the gradient from the denoising pass"):
        MaskGuidance(fused=True)
