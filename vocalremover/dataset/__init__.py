"""Training audio: where it lies, what is in it, whose it is, and how it travels."""

from vocalremover.dataset.catalogue import load, prepare
from vocalremover.dataset.sources import Sources
from vocalremover.dataset.tracks import Catalogue, Track

__all__ = ["Catalogue", "Sources", "Track", "load", "prepare"]
