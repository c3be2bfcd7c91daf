from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

from attnguide.shapes.training.muon import Muon, orthogonalise, split_parameters
from tests import tiny


def _matrices(rows: int, columns: int, smallest: float = 0.3) -> Tensor:
    """Three matrices with singular values from ``smallest`` to 1."""
    left = torch.linalg.qr(torch.randn(3, rows, rows)).Q
    right = torch.linalg.qr(torch.randn(3, columns, columns)).Q
    count = min(rows, columns)
    return left[:, :, :count] * torch.linspace(1.0, smallest, count) @ right[:, :count]


@pytest.mark.parametrize("shape", [(16, 16), (8, 72), (72, 8)], ids=["square", "wide", "tall"])
@pytest.mark.parametrize("size", [1e-6, 100.0])
def test_singular_values_come_near_1_and_vectors_stay(shape: tuple[int, int], size: float) -> None:
    matrices = size * _matrices(*shape)
    found = orthogonalise(matrices)
    assert found.shape == matrices.shape and found.dtype == matrices.dtype
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert F.cosine_similarity(found.flatten(1), (left @ right).flatten(1)).min() > 0.95


def test_more_than_its_iterations_would_not_be_missed() -> None:
    matrices = _matrices(16, 16)
    none, five = torch.linalg.svdvals(orthogonalise(matrices, 0)), torch.linalg.svdvals(orthogonalise(matrices))
    assert none.max() < 0.5 < five.min()


def test_matrices_of_nothing_stay_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_norms_biases_embeddings_and_outer_convolutions_are_set_aside() -> None:
    pipeline = tiny.shared_pipeline()
    networks = nn.ModuleDict({"text_encoder": pipeline.text_encoder, "unet": pipeline.unet})
    names = {id(parameter): name for name, parameter in networks.named_parameters()}
    hidden, rest = ([names[id(parameter)] for parameter in part] for part in split_parameters(networks))
    assert len(hidden) + len(rest) == len(names) and not set(hidden) & set(rest)
    assert all(name.endswith(".weight") and "norm" not in name and "embedding" not in name for name in hidden)
    for name in ("attn2.to_q.weight", "conv1.weight", "time_emb_proj.weight", "q_proj.weight", "downsamplers.0.conv.weight"):
        assert any(found.endswith(name) for found in hidden), name
    for name in ("unet.conv_in.weight", "unet.conv_out.weight", "unet.time_embedding.linear_1.weight"):
        assert name in rest
    assert any(name.endswith("token_embedding.weight") for name in rest)


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3, padding=1))


def _trained(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> list[float]:
    """Losses of a regression onto another network of the same form."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        inputs, wanted = torch.randn(2, 16, 4, 6, 6, generator=generator)
        optimizer.zero_grad()
        loss = F.mse_loss(network(inputs), wanted)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_rest_is_adamw() -> None:
    ours, theirs = _network(), _network()
    theirs.load_state_dict(ours.state_dict())
    settings = {"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
    _trained(ours, Muon([], ours.parameters(), **settings), 3)  # type: ignore[arg-type]
    _trained(theirs, torch.optim.AdamW(theirs.parameters(), **settings), 3)  # type: ignore[arg-type]
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_a_first_step_by_hand() -> None:
    """The first mean is a twentieth of the gradient, Nesterov's average points the same way, only the direction counts."""
    weight = nn.Parameter(torch.zeros(6, 2, 3, 3))
    weight.grad = _matrices(6, 18)[0].reshape(weight.shape)
    unseen = nn.Parameter(torch.ones(2, 2))
    Muon([weight, unseen], [], lr=0.1, weight_decay=0.0).step()
    expected = -0.1 * 0.2 * 18**0.5 * orthogonalise(weight.grad.flatten(1)[None])[0]
    torch.testing.assert_close(weight.data.flatten(1), expected, rtol=0.05, atol=1e-3)
    assert torch.equal(unseen, torch.ones(2, 2))  # it had no gradient


def test_weights_decay_with_the_learning_rate() -> None:
    weight, bias = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    weight.grad, bias.grad = torch.zeros(3, 3), torch.zeros(3)
    Muon([weight], [bias], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.data, torch.full((3, 3), 0.95))
    torch.testing.assert_close(bias.data, torch.full((3,), 0.95))


def test_a_kept_state_goes_on_to_the_last_bit() -> None:
    network = _network()
    optimizer = Muon(*split_parameters(network), lr=0.01)
    _trained(network, optimizer, 3)
    again, kept = copy.deepcopy(network), copy.deepcopy(optimizer.state_dict())
    resumed = Muon(*split_parameters(again), lr=1.0)
    resumed.load_state_dict(kept)
    assert _trained(network, optimizer, 3, seed=1) == _trained(again, resumed, 3, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), again.parameters(), strict=True))
    fresh = copy.deepcopy(network)
    _trained(network, optimizer, 1, seed=2)
    _trained(fresh, Muon(*split_parameters(fresh), lr=0.01), 1, seed=2)
    assert not torch.equal(next(network.parameters()), next(fresh.parameters()))  # the state does matter


def test_the_loss_of_a_convolution_falls() -> None:
    network, wanted = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
    optimizer = Muon(*split_parameters(network), lr=0.02)
    inputs = torch.randn(16, 8, 6, 6)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(network(inputs), wanted(inputs).detach())
        loss.backward()
        return loss.detach()

    losses = [float(optimizer.step(closure)) for _ in range(80)]
    assert losses[-1] < 0.1 * losses[0]


def _step_of_one(rank: int, processes: int, folder: Path) -> None:
    """One step of a process of a group, whose weights are written to a file of its own."""
    if processes > 1:
        dist.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=processes)
    torch.manual_seed(0)
    network = _network()
    weights = [nn.Parameter(torch.randn(3, 5)) for _ in range(3)]
    _trained(network, Muon(*split_parameters(network), lr=0.01), 2)
    for weight in weights:
        weight.grad = torch.randn(3, 5)
    Muon(weights, [], lr=0.1).step()
    torch.save([*network.parameters(), *weights], folder / f"{processes}_{rank}.pt")
    if processes > 1:
        dist.destroy_process_group()


def test_processes_share_the_work_and_come_to_the_same_weights(tmp_path: Path) -> None:
    _step_of_one(0, 1, tmp_path)
    torch.multiprocessing.spawn(_step_of_one, (2, tmp_path), nprocs=2)
    alone, *together = (torch.load(tmp_path / name, weights_only=True) for name in ("1_0.pt", "2_0.pt", "2_1.pt"))
    for found in together:
        for one, other in zip(alone, found, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
