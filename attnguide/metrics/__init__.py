"""Metrics: what a picture shows against what was asked for, and whether it still looks like a picture of its world."""

from attnguide.metrics.distance import FixedFeatures, PictureDistance
from attnguide.metrics.functional import score
from attnguide.metrics.shapes import (
    AllPresent,
    AttributeBinding,
    BackgroundAccuracy,
    ExactCount,
    ExplainedForeground,
    Presence,
    RegionHit,
    RelationAccuracy,
    ShapesMetric,
    shapes_metrics,
)
from attnguide.shapes.expectation import Expectation, expectation_from_layout, expectation_from_prompt

__all__ = [
    "AllPresent",
    "AttributeBinding",
    "BackgroundAccuracy",
    "ExactCount",
    "Expectation",
    "ExplainedForeground",
    "FixedFeatures",
    "PictureDistance",
    "Presence",
    "RegionHit",
    "RelationAccuracy",
    "ShapesMetric",
    "expectation_from_layout",
    "expectation_from_prompt",
    "score",
    "shapes_metrics",
]
