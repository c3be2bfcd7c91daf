import pytest
import torch

from attnguide.engine.noise import generators, initial_noise

CPU = torch.device("cpu")
SHAPE = (4, 6, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_seed_gives_the_same_noise_alone_and_in_any_batch(dtype: torch.dtype) -> None:
    batch = initial_noise(generators([7, 0, 2**40]), SHAPE, dtype, CPU)
    assert batch.shape == (3, *SHAPE) and batch.dtype == dtype
    for row, seed in enumerate((7, 0, 2**40)):
        assert torch.equal(initial_noise(generators([seed]), SHAPE, dtype, CPU)[0], batch[row])
    assert not torch.equal(batch[0], batch[1])


def test_noise_is_the_library_s() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    sources = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    expected = randn_tensor((2, *SHAPE), generator=sources, dtype=torch.float32)
    assert torch.equal(initial_noise(generators([3, 4]), SHAPE, torch.float32, CPU), expected)


def test_noise_is_drawn_on_the_cpu_wherever_it_is_wanted() -> None:
    """On the meta device nothing can be drawn; the generators move on all the same."""
    drawn, skipped = generators([1]), generators([1])
    initial_noise(drawn, SHAPE, torch.float32, CPU)
    assert initial_noise(skipped, SHAPE, torch.float32, torch.device("meta")).is_meta
    assert torch.equal(drawn[0].get_state(), skipped[0].get_state())


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    initial_noise(generators([5]), SHAPE, torch.float32, CPU)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_has_unit_variance() -> None:
    noise = initial_noise(generators([0]), (4, 64, 64), torch.float32, CPU)
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
