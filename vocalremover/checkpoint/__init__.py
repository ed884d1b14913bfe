"""A name or a file of weights in, its recipe and its network out: `load`, and what else is done with such files."""

from vocalremover.checkpoint.store import convert, find, folders, load, models_folder, save, sha256, verify

__all__ = ["convert", "find", "folders", "load", "models_folder", "save", "sha256", "verify"]
