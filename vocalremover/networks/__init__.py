"""The networks: one file, one network; magnitudes in, mask out. They share only `layers`."""
