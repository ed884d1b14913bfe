"""What encoders write into: file objects that keep what libraries written in C would lose."""

from typing import BinaryIO


class Out:
    """A file object for libraries written in C, which lose exceptions: what they write waits for `check`.

    This one only goes forward, as a pipe does, and a pipe may take nothing for long.
    """

    rewinds = False
    error: BaseException | None = None

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._waiting.append(data)
        return len(data)

    def check(self) -> None:
        """Hands on what waits. Raises what the file raises."""
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            self.file.write(data)


class OutFile(Out):
    """The same for a file on disk, which takes all at once: keeps the first exception, then writes nothing."""

    rewinds = True

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.closed_to_writing = False

    def write(self, data: bytes) -> int:
        if self.closed_to_writing:
            return len(data)
        try:
            return self.file.write(data)
        except BaseException as error:
            self._keep(error)
            return len(data)

    def check(self) -> None:
        """Raises the exception that a library has swallowed."""
        if self.error:
            raise self.error

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self.file.seek(offset, whence)
        except BaseException as error:
            self._keep(error)
            return 0

    def _keep(self, error: BaseException) -> None:
        self.error = self.error or error
        self.closed_to_writing = True

    def tell(self) -> int:
        return self.file.tell()
