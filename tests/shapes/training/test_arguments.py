"""The training command's line: what is refused, and defaults by device."""

from __future__ import annotations

import pytest
import torch

from attnguide.shapes.training.arguments import build_parser, parse_args


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--finish"], "--finish needs --minutes"),
        (["--minutes", "1", "--finish", "1.5"], "--finish must be above 0 and at most 1; got 1.5"),
        (["--device", "cuda"], "torch sees no graphics card here"),
        (["--processes", "0"], "--processes must be 1 or more"),
        (["--minutes", "0"], "--minutes must be above 0; got 0."),
        (["--minutes", "nan"], "--minutes must be above 0; got nan."),
        (["--scenes", "0"], "--scenes must be at least 1; got 0."),
        (["--batch-size", "-4"], "--batch-size must be at least 1; got -4."),
        (["--start-from", "no/such/folder"], "--start-from must be a folder that exists; got no/such/folder."),
    ],
    ids=["finish", "share", "cuda", "processes", "minutes", "no-number", "scenes", "batch-size", "start-from"],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        parse_args(arguments)
    assert said in capsys.readouterr().err


def test_defaults_follow_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card, processor = parse_args([]), parse_args(["--device", "cpu"])
    assert (card.device, card.precision, card.batch_size, card.compile) == ("cuda", "bf16-mixed", 512, True)
    assert (processor.precision, processor.batch_size, processor.compile) == ("32-true", 32, False)
    assert (card.scenes, card.size, processor.workers, processor.size) == (200_000, "large", 0, "small")
    assert parse_args(["--no-compile", "--batch-size", "64"]).batch_size == 64 and card.workers >= 1


def test_the_help_says_by_how_many_scenes_are_prepared() -> None:
    assert "by the thousand" in build_parser().format_help()
