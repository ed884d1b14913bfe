"""How good stems are: the scores of field and paper; `multitracks` finds songs to measure on, `scores` measures."""

from vocalremover.evaluate.metrics import Meter, Scores, ideal_ratio_mask, ideal_vocals, sdr, si_sdr

__all__ = ["Meter", "Scores", "ideal_ratio_mask", "ideal_vocals", "sdr", "si_sdr"]
