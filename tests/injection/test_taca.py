from dataclasses import replace
from typing import Any

import pytest
import torch

from attnguide.attention.attach import attach
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.sites import SiteSelector
from attnguide.engine.cfg import pass_context
from attnguide.methods import build_method
from attnguide.types import MethodConfig, Step
from tests import tiny
from tests.attention import cases
from tests.injection import common

FIRST, LATER = Step.at_sigma(0, 30, 999.0, 14.6), Step.at_sigma(3, 30, 900.0, 10.0)


@pytest.mark.parametrize("make", [cases.unet, cases.flux], ids=["UNet", "FLUX"])
def test_scores_with_all_of_the_text_are_multiplied(make: Any) -> None:
    """At the network's first site, whose inputs the method does not change; three columns are all that methods are shown."""
    network, modules, run, shape = make()
    site, inputs = next(iter(modules)), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    rows = [tiny.row(str(number)) for number in range(shape[0])]
    method: Any = build_method("taca", {"gamma": 1.5})
    (edit,) = method.edits(common.targets_of(rows))

    def seen(step: Step, *edits: Any) -> dict[str, torch.Tensor]:
        found = {name: Recorder() for name in ("scores", "probs", "query", "key")}
        probes = [Probe(name, record, SiteSelector(names=(site.name,))) for name, record in found.items()]  # type: ignore[arg-type]
        context = pass_context(step, "denoise", range(shape[0]), ("cond",))
        with torch.no_grad(), attach(modules, probes, edits, network, [0, 3, 5]) as attention, attention.during(context):
            run(inputs)
        return {name: record.tensors[site] for name, record in found.items()}

    plain, louder, later = seen(FIRST), seen(FIRST, edit), seen(LATER, edit)
    torch.testing.assert_close(louder["scores"], 1.5 * plain["scores"])
    assert torch.equal(later["scores"], plain["scores"])
    # Multiplied by 1.5, exp(scores) of a column over what all columns together weigh beside the image.
    assert not torch.allclose(louder["probs"], plain["probs"], rtol=1e-3)
    ratio = louder["probs"] / (1.5 * plain["scores"]).exp()
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))


def test_window_scale_and_branches() -> None:
    method: Any = build_method("taca", {"scale": [1.0, 0.5]})
    (edit,) = method.edits(common.targets_of([tiny.row("0"), tiny.row("1")]))
    context = replace(common.context_of(2, ("uncond", "cond")), step=FIRST)
    factor = edit.gain(common.CROSS, context, torch.device("cpu"))
    assert factor.flatten().tolist() == pytest.approx([1.2, 1.1, 1.2, 1.1])
    steps = [Step(index, 30, 0.0, 1.0, 0.0) for index in range(30)]
    assert [step.index for step in steps if edit.active(replace(context, step=step))] == [0, 1, 2]
    assert build_method("taca", {"gamma": 1}).edits(common.targets_of([tiny.row()])) == []  # type: ignore[arg-type]


def test_without_strength_nothing_happens() -> None:
    common.assert_no_method(common.four_rows("taca", [{"scale": 0.0}]))


def test_a_batch_equals_its_rows() -> None:
    common.assert_rows_equal_rows_alone(common.four_rows("taca", [{"gamma": 3.0}, {"gamma": 3.0, "scale": 0.5}], steps=3))


def test_it_goes_with_another_method() -> None:
    methods = (MethodConfig("taca", {"gamma": 2.0, "stop": 1.0}), MethodConfig("forward_layout"), MethodConfig("mask_guidance"))
    common.assert_rows_equal_rows_alone(
        [tiny.row("0", methods=methods, steps=2), tiny.row("1", seed=5, methods=methods, steps=2)]
    )


def test_refusals() -> None:
    with pytest.raises(ValueError, match="gamma must be finite; got inf"):
        build_method("taca", {"gamma": float("inf")})
