"""A model on this computer in, its speed stage by stage and in several settings out; see `Bench`."""

from vocalremover.bench.bench import Bench, Wanted
from vocalremover.bench.plan import Plan, Setting
from vocalremover.bench.stages import STAGES, Stage
from vocalremover.bench.trials import Trial

__all__ = ["STAGES", "Bench", "Plan", "Setting", "Stage", "Trial", "Wanted"]
