"""Training: batches of mixes to a step, steps to a run, a run to the folder that it leaves behind."""
