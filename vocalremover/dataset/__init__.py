"""Training audio: where it lies, what is in it, whose it is, and how it travels."""

from vocalremover.dataset.catalogue import Catalogue, Sources, Track, load, prepare

__all__ = ["Catalogue", "Sources", "Track", "load", "prepare"]
