"""From images and texts to a model's inputs."""

from fastbert.processors.align import AlignProcessor
from fastbert.processors.efficientnet import EfficientNetImageProcessor

__all__ = ["AlignProcessor", "EfficientNetImageProcessor"]
