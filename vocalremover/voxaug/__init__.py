"""voxaug: any voice over any backing, drawn by a rule and rendered with effects.

`draw` is pure: it makes a `Mix`, plain numbers that say which tracks, where cut, how loud and how changed. `render`
turns a `Mix` into audio.
"""

from vocalremover.voxaug.drawing import Mixes, draw
from vocalremover.voxaug.mixes import Mix, Part
from vocalremover.voxaug.rendering import render, render_batch
from vocalremover.voxaug.strengths import OURS, PRESETS, Strengths, strengths_of

__all__ = ["OURS", "PRESETS", "Mix", "Mixes", "Part", "Strengths", "draw", "render", "render_batch", "strengths_of"]
