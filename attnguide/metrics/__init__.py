"""Metrics: agreement of a picture with what was asked for, and distance of pictures to real ones."""

from attnguide.metrics.distance import FixedFeatures, PictureDistance
from attnguide.metrics.functional import score
from attnguide.metrics.objects import (
    AllPresent,
    AttributeBinding,
    BackgroundAccuracy,
    ExactCount,
    ExplainedForeground,
    InsideShare,
    ObjectMetric,
    Presence,
    RegionHit,
    RegionOverlap,
    RelationAccuracy,
    object_metrics,
)
from attnguide.metrics.precision import AveragePrecision
from attnguide.metrics.scoring import asked_of

__all__ = [
    "AllPresent",
    "AttributeBinding",
    "AveragePrecision",
    "BackgroundAccuracy",
    "ExactCount",
    "ExplainedForeground",
    "FixedFeatures",
    "InsideShare",
    "ObjectMetric",
    "PictureDistance",
    "Presence",
    "RegionHit",
    "RegionOverlap",
    "RelationAccuracy",
    "asked_of",
    "object_metrics",
    "score",
]
