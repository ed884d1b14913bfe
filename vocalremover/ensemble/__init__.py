"""Several Separators, one rule, the same face: a song in, stems out, as `vocalremover.separate` has them."""

from vocalremover.ensemble.choir import Choir
from vocalremover.ensemble.ensemble import Ensemble
from vocalremover.ensemble.files import combine_files
from vocalremover.ensemble.rules import METHODS, Rule
from vocalremover.ensemble.turns import Turns, fit_together, load_all

__all__ = ["METHODS", "Choir", "Ensemble", "Rule", "Turns", "combine_files", "fit_together", "load_all"]
