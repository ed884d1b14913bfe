"""Words on the command line in, one library call, lines and an exit code out.

Exit codes: 0 done, 1 some file failed (the others were done), 2 wrong usage, 3 device, 4 model, 5 no input,
130 after ^C, 143 after a polite kill. What the library or the system refuses comes out as one sentence on stderr.
Nothing heavy is imported before a command has been chosen and its options have been read, so that `--help` answers at
once.
"""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import current_thread, main_thread
from types import FrameType
from weakref import ReferenceType, ref

import click

from vocalremover import __version__
from vocalremover.cli import bench, convert, doctor, ensemble, evaluate, melodies, models, pieces, separate, train
from vocalremover.cli.output import say
from vocalremover.errors import VocalRemoverError


class Stopped(SystemExit):
    """A signal asked the program to end; raised where it was, so that temporary files go on the way out."""


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    }
)
@click.version_option(__version__, prog_name="vocalremover", message="%(prog)s %(version)s")
def commands() -> None:
    """Takes songs apart into vocals and instrumental."""


commands.add_command(separate.command)
commands.add_command(ensemble.command)
commands.add_command(models.group)
commands.add_command(convert.command)
commands.add_command(train.command)
commands.add_command(evaluate.command)
commands.add_command(bench.command)
commands.add_command(doctor.command)
train.command.add_command(melodies.command)
train.command.add_command(pieces.pack_command)
train.command.add_command(pieces.unpack_command)
train.command.add_command(pieces.piece_command)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and ends the program with its exit code."""
    # Threads that wait for one another by spinning take the CPU from whoever they wait for: beside one other busy
    # process a song took eight times as long. It has to be said before torch loads its OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A redirected stdout may know few letters, on Windows above all: a song's name must not end the run.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _signals_stop():
            code = commands.main(arguments, prog_name="vocalremover", standalone_mode=False) or 0
    except Stopped:
        say("vocalremover: stopped; no half-written file is left")
        raise
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except VocalRemoverError as error:
        say(f"vocalremover: {error}")
        code = error.exit_code
    except OSError as error:
        say(f"vocalremover: {_sentence(error)}")
        code = 1
    sys.exit(code)


def _sentence(error: OSError) -> str:
    """What could not be opened, read or written, and why. A stdout that takes nothing more is closed."""
    place = error.filename
    try:
        print(end="", flush=True)
    except OSError:
        place = "stdout"
        # What it holds would be tried once more at the very end, with a traceback.
        with suppress(OSError):
            sys.stdout.close()
    reason = error.strerror or str(error)
    return f"{place}: {reason}" if place else reason


@contextmanager
def _signals_stop() -> Iterator[None]:
    """While it lasts, ^C, a polite kill or a closed terminal raise Stopped; a second one leaves the tidying alone.

    What is raised in a finaliser or a library's callback is lost: a Stopped that is no more has to be raised again.
    """
    last: ReferenceType[Stopped] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if last is None or last() is None:
            stopped = Stopped(128 + number)
            last = ref(stopped)
            try:
                raise stopped
            finally:
                del stopped  # its traceback holds this frame

    names = ("SIGINT", "SIGTERM", "SIGHUP") if current_thread() is main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # A signal that is ignored from the start (nohup) stays so.
    replaced = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    for number in replaced:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
