"""Judges: who looks at a picture and says what it shows. Metrics compare that with what was asked, whoever looked."""

from attnguide.judges.base import Asked, AskedObject, Detection, Judge, Seen
from attnguide.judges.names import JUDGES, open_judge, open_judges

__all__ = ["JUDGES", "Asked", "AskedObject", "Detection", "Judge", "Seen", "open_judge", "open_judges"]
