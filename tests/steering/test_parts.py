"""Parts of calls, places in schedules, and replaced methods, by themselves."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnguide.models.schedulers import make_discrete
from attnguide.steering.calls import Call, taken_rows
from attnguide.steering.errors import SteerError
from attnguide.steering.forms import UNET, ChannelsBehind
from attnguide.steering.hooks import Hooks, Replacement, steered
from attnguide.steering.live_scheduler import live_scheduler
from attnguide.types import PassContext, Step
from tests import tiny


class TestCalls:
    def test_rows_are_taken_wherever_the_batch_is_the_first_axis(self) -> None:
        batch = torch.arange(4.0)
        given = {
            "sample": batch,
            "timestep": torch.tensor(3),
            "residuals": (batch[:, None], [batch[:, None]]),
            "cross_attention_kwargs": {"scale": 0.5, "ip_adapter_masks": [torch.zeros(4, 1)], "boxes": batch},
            "none": None,
        }
        found = taken_rows(given, [3, 1, 1], 4, UNET.whole)
        assert found["sample"].tolist() == found["cross_attention_kwargs"]["boxes"].tolist() == [3, 1, 1]
        assert isinstance(found["residuals"], tuple) and found["residuals"][1][0].tolist() == [[3], [1], [1]]
        assert found["timestep"] is given["timestep"] and found["none"] is None
        assert found["cross_attention_kwargs"]["ip_adapter_masks"][0].shape == (4, 1)
        assert found["cross_attention_kwargs"]["scale"] == 0.5

    def _call(self) -> Call:
        states = torch.arange(4.0).view(4, 1, 1)
        arguments = {"sample": torch.arange(20.0).view(4, 5, 1, 1), "timestep": 1, "encoder_hidden_states": states}
        return Call(arguments, UNET, ChannelsBehind(4), 2, ("uncond", "cond"))

    def test_further_branches_repeat_the_conditional_one(self) -> None:
        call, step = self._call(), Step.at_sigma(0, 1, 1.0, 1.0)
        context = PassContext(step, "denoise", (1, 0, 1), ("uncond", "perturbed", "cond"))
        places = [call.position(row, branch) for row, branch in zip(context.rows, context.branches, strict=True)]
        assert places == [1, 2, 3]
        assert call.part(places)["encoder_hidden_states"].flatten().tolist() == [1, 2, 3]
        assert call.part(range(4)) == call.arguments

    def test_latents_are_changed_and_what_stands_behind_them_stays(self) -> None:
        call = self._call()
        assert call.inputs().shape == (2, 4, 1, 1)
        moved = call.with_inputs(torch.zeros(4, 4, 1, 1)).arguments["sample"]
        assert moved[:, 4].flatten().tolist() == [4, 9, 14, 19] and not bool(moved[:, :4].any())

    def test_texts_of_both_halves(self) -> None:
        call = self._call()
        texts = call.texts()
        assert (
            texts.cond.flatten().tolist() == [2, 3] and texts.uncond is not None and texts.uncond.flatten().tolist() == [0, 1]
        )
        assert torch.equal(call.with_texts(texts).states, call.states)


class TestSchedules:
    @pytest.mark.parametrize("name", ["ddim", "heun", "plms", "dpm_single", "unipc", "dpmpp_2m_karras", "kdpm2"])
    def test_steps_are_those_of_our_own_scheduler(self, name: str) -> None:
        ours = make_discrete(tiny.shared_pipeline().scheduler, name, 6, torch.device("cpu"))
        inner = ours._scheduler
        inner.set_timesteps(6)
        assert live_scheduler(inner, float(inner.timesteps[0]), 0.0, None).steps == ours.steps

    def test_a_part_of_a_schedule(self) -> None:
        """A second-order scheduler has every timestep but the last twice; a pipeline says where it begins."""
        ours = make_discrete(tiny.shared_pipeline().scheduler, "heun", 6, torch.device("cpu"))
        inner = ours._scheduler
        inner.set_timesteps(6)
        inner.set_begin_index(4)
        part = live_scheduler(inner, float(inner.timesteps[4]), 0.0, 5)
        assert (part.begin, part.whole, part.asked) == (4, False, 3)
        assert [step.begins for step in part.steps] == [True, False, True, False, True]
        assert [(step.index, step.count, step.number) for step in part.steps] == [
            (0, 5, 0), (1, 5, 0), (2, 5, 1), (3, 5, 1), (4, 5, 2),
        ]  # fmt: skip
        assert [step.sigma for step in part.steps] == [step.sigma for step in ours.steps[4:9]]
        with pytest.raises(SteerError, match="cannot be begun anew"):
            part.anew()


class TestReplacements:
    def test_name_and_signature_are_kept_and_everything_is_put_back(self) -> None:
        class Owner:
            def act(self, value: int, *, generator: Any = None) -> int:
                return value

        owner, hooks = Owner(), Hooks()
        own = owner.act
        with pytest.raises(KeyboardInterrupt), hooks.undone():
            hooks.add(owner, "act", lambda before: lambda value, **given: before(value, **given) + 1)
            assert owner.act(1) == 2 and owner.act.__name__ == "act" and steered(owner, "act")
            assert list(inspect.signature(owner.act).parameters) == ["value", "generator"]
            raise KeyboardInterrupt
        assert not vars(owner) and owner.act == own and not steered(owner, "act")

    def test_what_an_object_had_of_its_own_is_put_back(self) -> None:
        module = nn.Identity()
        own = module.forward = lambda value: value + 1  # type: ignore[method-assign]
        replaced = Replacement(module, "forward", lambda before: lambda value: 10 * before(value))
        assert module(torch.tensor(1)) == 20
        replaced.undo()
        assert module.forward is own

    def test_what_came_in_the_place_of_a_replacement_is_left_or_replaced_anew(self) -> None:
        module = nn.Identity()

        def other(value: Tensor) -> Tensor:
            return value + 5

        replaced = Replacement(module, "forward", lambda before: lambda value: 10 * before(value))
        module.forward = other  # type: ignore[method-assign]
        replaced.undo()
        assert module.forward is other
        replaced.renew()
        assert module(torch.tensor(1)) == 60
        replaced.undo()
        assert module.forward is other
