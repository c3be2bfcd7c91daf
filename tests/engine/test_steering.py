"""Methods around one pass of the network, for whoever makes it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.batching import build_methods
from attnguide.engine.batch import make_batch
from attnguide.engine.cfg import combine, pass_context
from attnguide.engine.observer import Observer
from attnguide.engine.steering import Steering
from attnguide.guidance.mask_guidance import MaskGuidance
from attnguide.sampling.sampler import Sampler
from attnguide.types import Branch, MethodConfig, Sample
from tests import tiny
from tests.closeness import assert_close
from tests.engine.watch import latents

HALVES: tuple[Branch, ...] = ("uncond", "cond")


def _driven(rows: Sequence[Sample]) -> Tensor:
    """The last latents of a loop that is not ours: it lays out its own passes and combines the halves itself."""
    model, (guidances, injections) = tiny.model(), build_methods(rows)
    with torch.no_grad(), model.evaluating():
        batch = make_batch(model, rows, guidances, injections, Observer())
        steering = Steering(batch, guidances, injections, fuses=False)
        x, scheduler = batch.latents, batch.scheduler
        with steering.attached():
            for step in scheduler.steps:
                x = steering.before(x, step)
                shift = steering.shift(x, step)
                context = pass_context(step, "denoise", range(len(rows)), HALVES)
                inputs = scheduler.scale_model_input(torch.cat([x, x]), step)
                with steering.during(context):
                    answer = model.predict(inputs, step, batch.branches.for_pass(context))
                assert answer is not None
                answers = dict(zip(HALVES, answer.chunk(2), strict=True))
                combined = combine(steering.unconditional(answers, step), answers["cond"], [5.0] * len(rows))
                noise_pred = steering.shifted(steering.correct(combined, answers, step), shift, step)
                x = steering.after(scheduler.step(noise_pred, step, x, batch.generators), step)
    assert batch.ledger.forwards == [result.cost.unet_forwards for result in _sampled(rows)]
    return x


def _sampled(rows: Sequence[Sample]) -> Any:
    guidances, injections = build_methods(rows)
    return Sampler(tiny.model(), guidances, injections).run(rows)


@pytest.mark.parametrize(
    "methods",
    [
        [],
        [("mask_guidance", {"step_size": 40.0}), ("inject5", {"start": 0.0})],
        [("mask_guidance", {"space": "noise", "step_size": 400.0})],
        [("stable", {"held": 1.0, "attempts": 2})],
    ],
    ids=lambda methods: "+".join(name for name, _ in methods) or "plain",
)
def test_another_driver_makes_the_same_pictures(methods: list[tuple[str, dict[str, Any]]]) -> None:
    configs = tuple(MethodConfig(name, options) for name, options in methods)
    rows = [tiny.row(str(seed), seed=seed, methods=configs, scheduler="unipc") for seed in (3, 4)]
    for driven, result in zip(_driven(rows), _sampled(rows), strict=True):
        assert_close(driven, latents(result))


def test_a_guidance_of_the_prediction_is_judged_where_the_prediction_is_made() -> None:
    """Whatever order the methods are named in: latents are moved first."""
    moving, shifting = MaskGuidance(step_size=4000.0), MaskGuidance(space="noise", step_size=4000.0)
    one, other = (Sampler(tiny.model(), order).run([tiny.row()])[0] for order in ([moving, shifting], [shifting, moving]))
    assert torch.equal(latents(one), latents(other))


def test_passes_outside_of_attached_are_refused() -> None:
    model = tiny.model()
    with torch.no_grad(), model.evaluating():
        batch = make_batch(model, [tiny.row()], [], [], Observer())
        steering = Steering(batch, [], [])
        context = pass_context(batch.scheduler.steps[0], "denoise", [0], HALVES)
        with pytest.raises(AssertionError, match="inside attached"), steering.during(context):
            pass
