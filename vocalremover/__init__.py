"""The face of the library: `from vocalremover import Ensemble, Separator, MODELS, read, write`.

Names are looked up on first use (PEP 562), so that `import vocalremover` and the command's `--help` load neither
torch nor librosa.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vocalremover.audio import read, write
    from vocalremover.ensemble import Ensemble
    from vocalremover.models import MODELS
    from vocalremover.separate import Separator

__version__ = "0.1.0"
__all__ = ["MODELS", "Ensemble", "Separator", "__version__", "read", "write"]

_HOMES = {
    "Ensemble": "vocalremover.ensemble",
    "MODELS": "vocalremover.models",
    "Separator": "vocalremover.separate",
    "read": "vocalremover.audio",
    "write": "vocalremover.audio",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
