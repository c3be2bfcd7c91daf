"""What a guidance may do beside a gradient on latents: edits of its own, and latents replaced before a step."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.noise import generators, initial_noise
from attnguide.engine.observer import Observer
from attnguide.guidance.base import Guidance, LossOutput, Trials
from attnguide.injection.base import Injection
from attnguide.methods import build_method
from attnguide.prompt.targets import Targets
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.table import sample_batch
from attnguide.schedules import Window
from attnguide.types import MethodConfig, PassContext, Region, Step
from tests import tiny
from tests.closeness import assert_close


class _Seen(Edit):
    sites = SiteSelector(kind="self")
    stages = frozenset({"scores"})

    def __init__(self) -> None:
        self.kinds: set[str] = set()

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        self.kinds.add(context.kind)
        return scores


class _Replacing(Guidance):
    name = "replacing"

    def __init__(self, at: float, value: float | None, stop: float = 0.0) -> None:
        super().__init__(window=Window(0.0, stop))
        self.optimise_at, self.value, self.edit = at, value, _Seen()
        self.calls: list[tuple[int, float]] = []
        self.noises: list[Tensor] = []

    def edits(self, targets: Targets, level: int) -> Sequence[Edit]:
        return [self.edit]

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        loss = sum(probs[:, :, :, 2].mean((1, 2)) for probs in maps.probs.values())
        assert isinstance(loss, Tensor)
        return LossOutput(loss, loss.detach())

    def optimise(self, latents: Tensor, trials: Trials) -> Tensor:
        self.calls.append((trials.step.index, float(latents.std())))
        self.noises.append(trials.noise(0, latents[0]))
        return latents if self.value is None else torch.full_like(latents, self.value)


class _Latents(Observer):
    def __init__(self) -> None:
        self.before: list[Tensor] = []

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        self.before.append(latents)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "unipc"])
def test_latents_are_replaced_once_in_the_scale_that_the_network_reads(scheduler: str) -> None:
    row = tiny.row(steps=4, scheduler=scheduler)
    plain = Sampler(tiny.model()).run([row])[0].latents
    idle, zero = _Replacing(0.0, None), _Replacing(0.5, 0.0)
    kept = Sampler(tiny.model(), [idle]).run([row])[0].latents
    assert plain is not None and kept is not None
    assert_close(kept, plain)  # the edit forms scores, which the fused kernel does not
    watch = _Latents()
    Sampler(tiny.model(), [zero], observer=watch).run([row])
    count = len(watch.before)
    assert len(zero.calls) == 1 and abs(zero.calls[0][0] - count / 2) <= 1
    # Near unit variance at the start, also where the scheduler's latents are fifteen times as large.
    assert idle.calls[0][0] == 0 and 0.9 < idle.calls[0][1] < 1.1
    other = _Latents()
    Sampler(tiny.model(), [_Replacing(0.5, 0.0)], observer=other).run([tiny.row(steps=4, scheduler=scheduler, seed=8)])
    index = zero.calls[0][0]
    if scheduler in ("ddim", "euler"):  # nothing of the seed is left in methods that remember no earlier step
        assert_close(watch.before[index], other.before[index])


def test_further_noise_is_the_row_s_own() -> None:
    methods = [_Replacing(0.0, None) for _ in range(3)]
    rows = [tiny.row("0", seed=3), tiny.row("1", seed=4)]
    Sampler(tiny.model(), [methods[0]]).run(rows)
    Sampler(tiny.model(), [methods[1]]).run(rows[:1])
    Sampler(tiny.model(), [methods[2]]).run(rows[1:])
    assert torch.equal(methods[0].noises[0], methods[1].noises[0])
    assert not torch.equal(methods[0].noises[0], methods[2].noises[0])


def test_edits_of_a_guidance_are_in_place_in_its_own_guide_passes_and_in_denoising() -> None:
    acting, idle = _Replacing(0.0, None, stop=1.0), _Replacing(0.0, None, stop=0.0)
    Sampler(tiny.model(), [acting, idle]).run([tiny.row(steps=2)])
    assert acting.edit.kinds == {"guide", "denoise"}
    assert idle.edit.kinds == {"denoise"}


class _Restarting(Guidance):
    """Begins one row again from the noise of seed 8."""

    name = "restarting"
    optimise_at = 0.5

    def __init__(self, row: int) -> None:
        super().__init__(window=Window(0.0, 0.0))
        self.row, self.seen = row, _Seen()

    def edits(self, targets: Targets, level: int) -> Sequence[Edit]:
        return [self.seen]

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        raise AssertionError("there is nothing to guide")

    def optimise(self, latents: Tensor, trials: Trials) -> Tensor:
        noise = initial_noise(generators([8]), tuple(latents.shape[1:]), latents.dtype, latents.device)[0]
        trials.noise = lambda row, like: noise  # type: ignore[method-assign]
        attempt = trials.restart(latents[[self.row]], [self.row])
        assert attempt is not None
        found = latents.clone()
        found[self.row] = attempt.latents[0]
        trials.adopt(attempt, [self.row])
        return found


DETERMINISTIC = ["ddim", "pndm", "lms", "euler", "heun", "dpmpp_2m", "dpm_single", "kdpm2", "deis", "unipc"]


@pytest.mark.parametrize("scheduler", DETERMINISTIC)
def test_a_row_denoised_anew_is_the_picture_of_its_new_noise(scheduler: str) -> None:
    """Whatever the scheduler remembers of past steps, the rows beside it included."""
    rows = [tiny.row("0", seed=3, steps=6, scheduler=scheduler), tiny.row("1", seed=4, steps=6, scheduler=scheduler)]
    method = _Restarting(1)
    found = Sampler(tiny.model(), [method]).run(rows)
    other = tiny.row("1", seed=8, steps=6, scheduler=scheduler)
    for result, expected in zip(found, Sampler(tiny.model(), [_Replacing(0.0, None)]).run([rows[0], other]), strict=True):
        assert result.latents is not None and expected.latents is not None
        assert_close(result.latents, expected.latents)
    assert found[1].cost.unet_forwards > found[0].cost.unet_forwards
    assert method.seen.kinds == {"denoise"}


def test_no_row_is_denoised_anew_beside_an_edit_that_remembers() -> None:
    """The first row is held by a region that is the whole picture, the second is not."""
    options = [MethodConfig("stable", {"held": 1.0}), MethodConfig("bounded_attention", {})]
    small = (Region("cat", box=(0, 0, 0.5, 0.5)), Region("ball", box=(0.5, 0.5, 1, 1)))
    rows = [
        tiny.row("0", seed=0, steps=4, methods=tuple(options), regions=(Region("cat", box=(0, 0, 1, 1)),)),
        tiny.row("1", seed=1, steps=4, methods=tuple(options), regions=small),
    ]
    together = sample_batch(tiny.model(), rows)
    for row, result in zip(rows, together, strict=True):
        (alone,) = sample_batch(tiny.model(), [row])
        assert result.latents is not None and alone.latents is not None
        assert_close(result.latents, alone.latents)
        assert result.cost.unet_forwards == alone.cost.unet_forwards


def test_no_row_is_denoised_anew_beside_a_method_with_branches_of_its_own() -> None:
    found: list[object] = []

    class Asking(_Restarting):
        def optimise(self, latents: Tensor, trials: Trials) -> Tensor:
            found.append(trials.restart(latents, [0]))
            return latents

    injection = build_method("prompt_to_prompt", {"source_prompt": "a red dog and a blue ball"})
    assert isinstance(injection, Injection)
    Sampler(tiny.model(), [Asking(0)], [injection]).run([tiny.row(steps=2)])
    assert found == [None]
