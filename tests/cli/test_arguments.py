"""From typed words to values."""

from types import ModuleType

import pytest

from attnguide.cli import ablate, eval, maps, sample, tune, ui
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


def test_several_control_pictures_are_typed_one_after_the_other() -> None:
    words = ["--control", "canny=a.png", "depth=b.png:0.5", "a cat", "--control", "pose=c.png"]
    asked = parse("attnguide sample", words, settings(), description="", examples="")
    assert asked["prompt"] == "a cat"
    assert [(one["type"], one.get("scale")) for one in asked["control"]] == [("canny", None), ("depth", 0.5), ("pose", None)]


@pytest.mark.parametrize("command", [sample, ablate, eval, maps, tune, ui], ids=lambda command: command.__name__)
def test_help_lists_options_under_what_they_are_about(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.run(["--help"])
    lines = capsys.readouterr().out.splitlines()
    options = command.settings()[1:]  # the first is typed without a name
    sections = {setting.section for setting in options}
    headings = [line.removesuffix(":") for line in lines if line.removesuffix(":") in sections]
    assert "" not in sections
    assert len(headings) == len(sections)
    for setting in options:
        (at,) = [index for index, line in enumerate(lines) if line.split(" ")[:3] == ["", "", setting.option]]
        assert next(line for line in reversed(lines[:at]) if line[:1].isalpha()) == f"{setting.section}:"
