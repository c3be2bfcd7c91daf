"""Judges: models or rules that say what a picture shows. Metrics compare their detections with what was asked."""

from attnguide.judges.base import Asked, AskedObject, Detection, Judge, Seen
from attnguide.judges.names import JUDGES, open_judge, open_judges

__all__ = ["JUDGES", "Asked", "AskedObject", "Detection", "Judge", "Seen", "open_judge", "open_judges"]
