"""Options below headings: what a command's help looks like."""

from collections.abc import Callable
from itertools import groupby

import click

HEADINGS = ("Models", "Stems", "Files", "Many files", "Device", "Quality against speed", "On the screen")
COLUMN = 24  # letters of the help's left side


class Option(click.Option):
    """An option that is told below a heading of HEADINGS."""

    def __init__(self, *words: object, heading: str, **settings: object) -> None:
        super().__init__(*words, **settings)
        self.heading = heading


class Command(click.Command):
    """A command whose help tells its options below headings."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the sections in the order of HEADINGS."""

        def place(option: click.Parameter) -> int:
            return HEADINGS.index(getattr(option, "heading", HEADINGS[-1]))

        told = [parameter for parameter in self.get_params(context) if isinstance(parameter, click.Option)]
        for number, options in groupby(sorted(told, key=place), place):
            records = [option.get_help_record(context) for option in options]
            with formatter.section(HEADINGS[number]):
                formatter.write_dl([(words.ljust(COLUMN), text) for words, text in records], col_max=COLUMN)


def option(heading: str, *words: str, **settings: object) -> Callable[[Callable], Callable]:
    """click.option below a heading."""
    return click.option(*words, cls=Option, heading=heading, **settings)


def choice(*names: str) -> click.Choice:
    """One of the names, in whatever case it is typed."""
    return click.Choice(names, case_sensitive=False)
