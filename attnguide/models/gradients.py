"""Whether a gradient can be taken through a network's weights."""

from __future__ import annotations

from torch import nn


def check_weights(name: str, network: nn.Module | None) -> None:
    """Refuse inference-mode weights, which autograd cannot pass through.

    Args:
        name: Name of the part.
        network: The part; nothing is checked when ``None``.

    Raises:
        ValueError: Naming the part, and what would work.
    """
    if network is not None and any(weight.is_inference() for weight in network.parameters()):
        raise ValueError(
            f"Guidance needs gradients, and the weights of {name} were made inside torch.inference_mode(): load the "
            "model outside of it."
        )


def check_quantiser(network: nn.Module) -> None:
    """Refuse quantised weights without a backward pass.

    Raises:
        ValueError: Naming the quantiser, and what would work.
    """
    quantizer = getattr(network, "hf_quantizer", None)
    if quantizer is not None and not quantizer.is_trainable:
        raise ValueError(
            f"Guidance needs gradients through the network, which its quantised weights ({type(quantizer).__name__}) do "
            "not have: load them in bf16 with offload='group', or use a method without gradients (attnguide methods)."
        )
