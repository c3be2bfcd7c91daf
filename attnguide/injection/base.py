"""The contract of an injection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from attnguide.attention.edits import Edit
from attnguide.prompt.targets import Targets


class Injection(ABC):
    """A method that edits attention in the denoising passes.

    Attributes:
        needs_regions: ``"phrase"`` if regions must name words, ``"place"`` if they must also say where, ``None`` if none
            are needed.
    """

    name: str = "injection"
    needs_regions: str | None = "place"

    @abstractmethod
    def edits(self, targets: Targets) -> Sequence[Edit]:
        """The edits for one batch of rows, made once before its first step."""
