import numpy as np
import pytest
import torch

from attnguide.attention.sites import Site
from attnguide.engine.cfg import pass_context
from attnguide.models.base import Conditioning
from attnguide.models.load import adapt
from attnguide.models.unet import StableDiffusion
from attnguide.types import Step
from tests import tiny

STEP = Step.at_sigma(0, 4, 801.0, 5.1)


def test_tokens_have_the_characters_they_stand_for() -> None:
    prompt = "A  red zebra, and a cat!"
    read = tiny.model().tokenize(prompt)
    assert len(read.tokens) == tiny.LENGTH
    assert read.offsets[0] is None and read.tokens[0] == "<|startoftext|>"
    assert read.ends[0] == len(read.word_positions) + 1
    pieces = [prompt[span[0] : span[1]] for span in read.offsets if span is not None]
    assert pieces == ["A", "red", *"zebra", ",", "and", "a", "cat", "!"]
    assert read.truncated == ""


def test_the_padding_token_may_stand_in_a_prompt() -> None:
    """Stable Diffusion 2 pads with "!"."""
    built = tiny.pipeline()
    built.tokenizer.pad_token = "!</w>"
    read = adapt(built).tokenize("a cat !")
    assert read.word_positions == (1, 2, 3) and read.ends == (4,)
    assert read.ids[4] == built.tokenizer.eos_token_id and set(read.ids[5:]) == {built.tokenizer.pad_token_id}


def test_lost_words_of_a_long_prompt() -> None:
    read = tiny.model().tokenize("a cat " * 10 + "and a red dog left of a blue ball")
    assert read.truncated == "red dog left of a blue ball"
    assert tiny.model().tokenize("a cat " * 11).truncated == ""


def test_empty_prompt() -> None:
    assert tiny.model().tokenize("").word_positions == ()


def test_prompts_are_encoded_as_the_pipeline_does() -> None:
    prompts, negatives = ["a cat", "a red ball"], ["blue", ""]
    got = tiny.model().encode_prompt(prompts, negatives)
    with torch.no_grad():
        cond, uncond = tiny.shared_pipeline().encode_prompt(prompts, "cpu", 1, True, negatives)
    assert got.uncond is not None and torch.equal(got.cond, cond) and torch.equal(got.uncond, uncond)
    assert not got.cond.requires_grad
    assert tiny.model().encode_prompt(prompts, None).uncond is None


def test_states_of_a_pass() -> None:
    states = tiny.model().encode_prompt(["a cat", "a dog", "a ball"], ["", "red", "blue"])
    assert states.uncond is not None
    found = states.for_pass(pass_context(STEP, "denoise", (2, 0), ("uncond", "cond"))).cond
    assert torch.equal(found, torch.stack([states.uncond[2], states.uncond[0], states.cond[2], states.cond[0]]))
    with pytest.raises(ValueError, match="no negative prompt was encoded"):
        Conditioning(states.cond).for_pass(pass_context(STEP, "denoise", (0,), ("uncond",)))


def test_extra_states_follow_their_rows() -> None:
    states = Conditioning(
        torch.zeros(2, 3, 4), torch.ones(2, 3, 4), {"pooled": (torch.tensor([1.0, 2]), torch.tensor([3.0, 4]))}
    )
    assert states.for_pass(pass_context(STEP, "denoise", (1,), ("uncond", "cond"))).extra["pooled"][0].tolist() == [4, 2]


@pytest.mark.parametrize(("height", "width", "sizes"), [(32, 32, {(16, 16), (8, 8)}), (40, 56, {(20, 28), (10, 14)})])
def test_sites(height: int, width: int, sizes: set[tuple[int, int]]) -> None:
    sites = tiny.model().attention_sites(height, width)
    assert len(sites) == 14 and {site.kind for site in sites} == {"self", "cross"}
    assert {(site.height, site.width) for site in sites} == sizes
    assert {(site.place, site.level) for site in sites} == {("down", 0), ("down", 1), ("mid", 1), ("up", 1), ("up", 0)}
    assert all((site.kind == "cross") == site.name.endswith("attn2") for site in sites)


@pytest.mark.parametrize("rows", [(16, 16), (18, 13), (9, 21)])
def test_site_sizes_are_what_the_network_computes(rows: tuple[int, int]) -> None:
    """Also where the latents do not halve evenly."""
    model = tiny.model()
    modules = model.attention_modules(2 * rows[0], 2 * rows[1])
    seen: dict[Site, int] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _module, args, kwargs, site=site: seen.update({site: (args or (kwargs["hidden_states"],))[0].shape[1]}),
            with_kwargs=True,
        )
        for site, module in modules.items()
    ]
    with torch.no_grad():
        model.predict(torch.zeros(1, 4, *rows), STEP, model.encode_prompt(["a cat"], None))
    for handle in handles:
        handle.remove()
    assert {site: site.height * site.width for site in modules} == seen


def test_prediction_is_the_network_s_answer_and_stops_where_told() -> None:
    model = tiny.model()
    states = model.encode_prompt(["a cat"], None)
    latents = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        expected = model.networks["unet"](latents, torch.tensor(801), encoder_hidden_states=states.cond).sample
        assert torch.equal(model.predict(latents, STEP, states), expected)  # type: ignore[arg-type]
        assert model.predict(latents, STEP, states, until=model.attention_sites(32, 32)[:2]) is None


def test_fractional_timesteps_are_not_rounded() -> None:
    model = tiny.model()
    states, latents = model.encode_prompt(["a cat"], None), torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        whole, between = (model.predict(latents, Step.at_sigma(0, 4, t, 1.0), states) for t in (500.0, 500.5))
    assert whole is not None and between is not None and not torch.equal(whole, between)


def test_pictures_and_latents() -> None:
    model = tiny.model()
    latents = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    pictures = [picture.image for picture in model.decode(latents) if picture.image is not None]
    assert [picture.size for picture in pictures] == [(24, 16)] * 2
    assert not np.array_equal(np.asarray(pictures[0]), np.asarray(pictures[1]))
    encoded = model.encode_image(pictures)
    assert encoded.shape == latents.shape and torch.equal(encoded, model.encode_image(pictures))


def test_sizes() -> None:
    model = tiny.model()
    assert model.default_size == (32, 32)
    assert model.latent_shape(40, 32) == (4, 20, 16)
    with pytest.raises(ValueError, match="height must be a multiple of 2 for tiny; got 41"):
        model.latent_shape(41, 32)


def test_guidance_reads_the_largest_maps_of_at_most_24_cells() -> None:
    assert tiny.model().guidance_level == 0
    assert StableDiffusion(tiny.pipeline(latent_size=32)).guidance_level == 1
    assert StableDiffusion(tiny.pipeline(latent_size=64)).guidance_level == 1  # 32 cells, and no coarser maps exist


def test_frozen_and_evaluating_restore_what_they_found() -> None:
    model = adapt(tiny.pipeline())
    unet = model.networks["unet"]
    next(unet.parameters()).requires_grad_(False)
    unet.mid_block.train()  # type: ignore[operator, union-attr]

    def state() -> tuple[list[bool], list[bool]]:
        networks = model.networks.values()
        weights = [weight.requires_grad for network in networks for weight in network.parameters()]
        return weights, [module.training for network in networks for module in network.modules()]

    before = state()
    assert any(before[1]) and not all(before[1]) and not all(before[0])
    with pytest.raises(KeyError), model.evaluating(), model.frozen():
        assert not any(state()[0]) and not any(state()[1])
        raise KeyError
    assert state() == before
