"""``attnguide completion``: scripts for shells, made of the settings of every subcommand."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys

import pytest

from attnguide.cli import COMMANDS
from attnguide.cli.completion import SHELLS, command_parser
from attnguide.methods import METHODS
from attnguide.models.names import SCHEDULERS

from .conftest import Command


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_names_commands_options_and_choices(attnguide: Command, shell: str) -> None:
    ended = attnguide("completion", shell)
    assert (ended.status, ended.err) == (0, "")
    options = ("no-plain", "cfg-scale", "method.step_size", "wandb.project", "dry-run", "debug")
    assert [word for word in (*COMMANDS, *METHODS, *SCHEDULERS, *options) if word not in ended.out] == []


def _completed(script: str, *words: str) -> list[str]:
    """What bash offers for the last word."""
    asked = (
        f'COMP_WORDS=({" ".join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _shtab_attnguide; echo "${{COMPREPLY[@]}}"'
    )
    shell = [shutil.which("bash") or "bash", "--norc", "-c", f"{script}\n{asked}"]
    return subprocess.run(shell, check=True, capture_output=True, text=True).stdout.split()


def test_bash_completes(attnguide: Command) -> None:
    """Where there is no bash, there is nothing to complete for."""
    script = attnguide("completion", "bash").out
    if shutil.which("bash") is not None:
        subprocess.run(["bash", "-n"], input=script, check=True, text=True)
        assert _completed(script, "attnguide", "sa") == ["sample"]
        assert _completed(script, "attnguide", "sample", "--metho")[0] == "--method"
        assert _completed(script, "attnguide", "sample", "--method", "box") == ["box_diff"]
        assert _completed(script, "attnguide", "methods", "mask_g") == ["mask_guidance"]
        assert "euler_ancestral" in _completed(script, "attnguide", "ablate", "--scheduler", "euler")


def test_every_option_is_offered() -> None:
    """All that a help page lists: the parser is plain argparse's, so that its actions can be read."""
    (commands,) = [action.choices for action in command_parser("file", "folder")._actions if isinstance(action.choices, dict)]
    assert list(commands) == list(COMMANDS)
    for name, parser in commands.items():
        (first, *others) = importlib.import_module(f"attnguide.cli.{name}").settings() or [None]
        offered = set(parser._option_string_actions)
        assert {s.option for s in others if not isinstance(s.default, dict)} | {"--config", "--help", "--debug"} <= offered
        assert [action.dest for action in parser._actions if not action.option_strings] == ([first.name] if first else [])


def test_files_and_folders_are_completed_as_such() -> None:
    (commands,) = [action.choices for action in command_parser("file", "folder")._actions if isinstance(action.choices, dict)]
    found = {
        f"{name} {action.dest}": getattr(action, "complete", None) for name in commands for action in commands[name]._actions
    }
    for wanted in ("sample rows", "sample model", "sample config", "maps image", "ablate file", "report out"):
        assert found[wanted] == "file", wanted
    for wanted in ("sample out", "sample model_config", "maps out", "report folder", "init folder"):
        assert found[wanted] == "folder", wanted


@pytest.mark.parametrize("words", [[], ["fish"], [""]], ids=str)
def test_other_shells_are_refused(attnguide: Command, words: list[str]) -> None:
    ended = attnguide("completion", *words)
    assert ended.status == 2 and "expected one of bash, zsh, tcsh; got" in ended.err and ended.err.count("\n") == 1


def test_without_shtab_the_extra_is_named(attnguide: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    ended = attnguide("completion", "bash")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == "error: completion needs a package that is not installed: pip install 'attnguide[completion]'\n"
