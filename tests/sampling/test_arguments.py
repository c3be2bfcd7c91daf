"""What is handed to the samplers is checked before anything runs, and read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attnguide.engine.observer import Observer
from attnguide.guidance.mask_guidance import MaskGuidance
from attnguide.injection.pag import PerturbedAttention
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.table import sample_rows
from attnguide.types import SampleResult, Step
from tests import tiny

ODD: Sequence[Any] = (None, 3, "row", [1], np.zeros(3), np.array(1), torch.tensor(1), object, tiny.row)
ROW = tiny.row(steps=1)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd).split(" at 0x")[0])
def test_other_things_are_refused_by_the_argument_s_name(odd: Any) -> None:
    model = tiny.model()
    calls = {
        "model": [lambda: list(sample_rows(odd, [ROW])), lambda: Sampler(odd)],
        "samples": [lambda: list(sample_rows(model, odd)), lambda: Sampler(model).run(odd)],
        "guidances": [lambda: Sampler(model, odd), lambda: Sampler(model, [odd])],
        "injections": [lambda: Sampler(model, (), odd), lambda: Sampler(model, (), [odd])],
        "observer": [lambda: Sampler(model, observer=odd)],
    }
    if odd is not None:
        calls["initial_latents"] = [lambda: Sampler(model).run([ROW], odd)]
        calls["observer"].append(lambda: list(sample_rows(model, [ROW], observer=odd)))
    if not isinstance(odd, int | Tensor | np.ndarray | None):
        calls["batch_size"] = [lambda: list(sample_rows(model, [ROW], batch_size=odd))]
    for name, ways in calls.items():
        for call in ways:
            with pytest.raises(ValueError, match=f"^{name} must ") as error:
                call()
            assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_method_in_the_other_s_place() -> None:
    with pytest.raises(ValueError, match=r"guidances must be a list of Guidances; got <.*PerturbedAttention.*> in it"):
        Sampler(tiny.model(), [PerturbedAttention()])  # type: ignore[list-item]


def test_initial_latents_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="initial_latents must be finite"):
        Sampler(tiny.model()).run([ROW], torch.full((1, 4, 16, 16), torch.nan))


def test_methods_from_a_generator_act_in_every_run() -> None:
    sampler = Sampler(tiny.model(), (guidance for guidance in [MaskGuidance()]))  # type: ignore[arg-type]
    first, second = sampler.run([ROW])[0], sampler.run([ROW])[0]
    plain = Sampler(tiny.model()).run([ROW])[0]
    assert first.latents is not None and second.latents is not None and plain.latents is not None
    assert torch.equal(first.latents, second.latents) and not torch.equal(first.latents, plain.latents)


def test_rows_of_one_id_keep_their_own_results() -> None:
    found = list(sample_rows(tiny.model(), [tiny.row("a", steps=1, seed=seed) for seed in (1, 2)]))
    assert [result.sample.seed for result in found] == [1, 2]


def test_a_preview_that_scales_latents_in_place_leaves_the_picture() -> None:
    class Preview(Observer):
        def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
            latents /= 0.18215

        def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
            latents.zero_()
            noise_pred.zero_()

    seen, alone = Sampler(tiny.model(), observer=Preview()).run([ROW])[0], Sampler(tiny.model()).run([ROW])[0]
    assert seen.latents is not None and alone.latents is not None and torch.equal(seen.latents, alone.latents)


def test_a_hook_that_is_set_on_a_plain_observer_is_called() -> None:
    told: list[Sequence[SampleResult]] = []
    observer = Observer()
    observer.on_sample_end = told.append  # type: ignore[method-assign]
    results = list(sample_rows(tiny.model(), [ROW], observer=observer))
    assert told == [results]
