"""What goes wrong, as one sentence for a person and one exit code for a script."""


class VocalRemoverError(Exception):
    """Anything the library refuses on purpose; `str(error)` is a sentence that names the file and the way out."""

    exit_code = 1


class AudioError(VocalRemoverError):
    """A song cannot be read or a stem cannot be written."""


class UsageError(VocalRemoverError):
    """Settings that contradict each other."""

    exit_code = 2


class DeviceError(VocalRemoverError):
    """The requested device or a needed package is absent."""

    exit_code = 3


class ModelError(VocalRemoverError):
    """A checkpoint is missing, damaged, foreign or malicious."""

    exit_code = 4


class InputError(VocalRemoverError):
    """There is nothing to do: no song was found."""

    exit_code = 5


class TrainingError(VocalRemoverError):
    """A training run cannot go on."""
