"""Networks with joint and with cross-attention, and how they are run outside of any pipeline."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attnguide.attention.sites import Site, depths
from tests import tiny
from tests.models import families

Case = tuple[nn.Module, dict[Site, nn.Module], Callable[[Tensor], Any], tuple[int, ...]]
"""A network, its cross sites, how it is run on its first input, and that input's shape."""


def unet() -> Case:
    network = tiny.pipeline().unet
    text = torch.randn(1, tiny.LENGTH, tiny.CHANNELS, generator=torch.Generator().manual_seed(0))
    sites = [site for site in tiny.model().attention_sites(32, 32) if site.kind == "cross"]
    sites.sort(key=lambda site: site.depth)
    modules = {site: network.get_submodule(site.name) for site in sites}
    return network, modules, lambda inputs: network(inputs, torch.tensor(5), text), (1, 4, 16, 16)


def flux() -> Case:
    pipeline = families.build("flux_dev")
    network, seen = pipeline.transformer, {}

    def remember(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.update(kwargs)

    handle = network.register_forward_pre_hook(remember, with_kwargs=True)
    with torch.no_grad():
        pipeline(tiny.PROMPT, height=32, width=32, num_inference_steps=1, output_type="latent")
    handle.remove()
    names = [name for name, _ in network.named_modules() if name.endswith(".attn")]
    modules = {
        Site(name, "cross", 8, 8, 2, "block", 1, depth, (-64, None), (0, -64)): network.get_submodule(name)
        for name, depth in zip(names, depths(len(names)), strict=True)
    }
    own = {name: value for name, value in seen.items() if name != "hidden_states"}
    return network, modules, lambda inputs: network(hidden_states=inputs, **own), seen["hidden_states"].shape
