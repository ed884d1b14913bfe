"""Measurements of speed and memory, as ratios, against a bound or another program; run each with `python -m`."""
