import pytest
import torch

from tests import tiny
from tests.models import families


@pytest.mark.parametrize("family", families.available())
def test_every_tiny_pipeline_reads_its_prompt(family: str) -> None:
    first, other = (
        families.sample(family, prompt, generator=torch.Generator().manual_seed(0)) for prompt in (tiny.PROMPT, "a blue dog")
    )
    assert first.isfinite().all()
    assert (first - other).abs().max() > 1e-5 * first.abs().max()
