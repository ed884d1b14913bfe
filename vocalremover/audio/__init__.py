"""Audio in and out: the only place that knows of soundfile, PyAV and soxr. Audio is float32 `[channels, samples]`."""

from vocalremover.audio.pipes import PipeReader, PipeWriter, needs_index
from vocalremover.audio.reading import Reader, check, read
from vocalremover.audio.resampling import Resampler, resample
from vocalremover.audio.streams import OneWay
from vocalremover.audio.tags import Tags
from vocalremover.audio.writing import FORMATS, Encoding, Writer, write

__all__ = [
    "FORMATS",
    "Encoding",
    "OneWay",
    "PipeReader",
    "PipeWriter",
    "Reader",
    "Resampler",
    "Tags",
    "Writer",
    "check",
    "needs_index",
    "read",
    "resample",
    "write",
]
