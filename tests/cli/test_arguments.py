"""From typed words to values."""

import pytest

from attnguide.cli.arguments import parse
from attnguide.cli.sample import settings

CASES = {
    "trainer.strategy=ddp trainer.devices=2": {"strategy": "ddp", "devices": 2},
    "trainer.devices=[0,1] trainer.fast_dev_run=false": {"devices": [0, 1], "fast_dev_run": False},
    "wandb.name=run wandb.group=12 wandb.project=true": {"name": "run", "group": "12", "project": "true"},
    "wandb.name=1:30 wandb.tags=[a,b]": {"name": "1:30", "tags": ["a", "b"]},
}


@pytest.mark.parametrize("typed", CASES)
def test_values_of_names_keep_their_types(typed: str) -> None:
    words = [f"--{word}" for word in typed.split()]
    assert parse("attnguide sample", words, settings(), description="", examples="")[typed.split(".")[0]] == CASES[typed]
