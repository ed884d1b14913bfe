"""Training: draw a mix, render it, compare, step."""
