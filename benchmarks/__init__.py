"""Measurements of speed and memory, as ratios against a bound or another way of doing the same.

`python -m benchmarks` runs them all, each in a process of its own, prints one table and writes JSON; `python -m
benchmarks.NAME --help` tells the options of one. `rows.py` says how a new one plugs in.
"""
