"""A song in, its stems out, with one model: `Separator`, run as `Inference` says."""

from vocalremover.separate.inference import ORIGINAL_TTA, QUALITIES, Inference
from vocalremover.separate.separator import DEFAULTS, Progress, Separator, Stems

__all__ = ["DEFAULTS", "ORIGINAL_TTA", "QUALITIES", "Inference", "Progress", "Separator", "Stems"]
