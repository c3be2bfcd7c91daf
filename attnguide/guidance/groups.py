"""Refusal of rows whose prompts have no usable groups of a noun and its modifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attnguide.prompt.pairs import TokenGroup
from attnguide.prompt.targets import Targets
from attnguide.prompt.tokens import TokenizedPrompt


def require_groups(method: str, targets: Targets, what: str, fits: Callable[[TokenGroup], bool] = lambda group: True) -> None:
    """Refuse a row without any group that a method can use.

    Args:
        method: Name of the method.
        targets: Rows that are checked.
        what: Name of a usable group in the error message.
        fits: Predicate of usable groups.

    Raises:
        ValueError: Naming the groups that were found.
    """
    for prompt, groups in zip(targets.tokenized, targets.groups, strict=True):
        if not any(fits(group) for group in groups):
            raise ValueError(
                f"Method {method!r} needs {what}; found {_spelt(prompt, groups)} in the prompt {prompt.text!r}. "
                "Say what belongs together, the noun last: groups: [[red, circle], [blue, square]]."
            )


def _spelt(prompt: TokenizedPrompt, groups: Sequence[TokenGroup]) -> str:
    return ", ".join(" + ".join(_word(prompt, word) for word in group.words) for group in groups) or "nothing"


def _word(prompt: TokenizedPrompt, positions: Sequence[int]) -> str:
    spans = [span for span in (prompt.offsets[position] for position in positions) if span]
    return prompt.text[min(s[0] for s in spans) : max(s[1] for s in spans)]
