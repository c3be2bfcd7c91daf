"""From typed words to values."""

import pytest

from attnguide.cli.arguments import parse
from attnguide.cli.sample import run, settings

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


def test_help_lists_options_under_what_they_are_about(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["--help"])
    lines = capsys.readouterr().out.splitlines()
    sections = list(dict.fromkeys(setting.section for setting in settings()))
    headings = [line.removesuffix(":") for line in lines if line.removesuffix(":") in sections]
    assert "" not in sections
    assert headings == sections
    for setting in settings()[1:]:
        (at,) = [index for index, line in enumerate(lines) if line.split(" ")[:3] == ["", "", setting.option]]
        assert next(line for line in reversed(lines[:at]) if line[:1].isalpha()) == f"{setting.section}:"
