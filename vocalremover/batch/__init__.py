"""Files and folders in, jobs out; jobs in, stems on disk out; and a stream in, a stem streamed out.

`plan` turns what a person named into jobs and refuses, before anything starts, whatever would lose a file; `preview`
tells what would become of them. `run` does the jobs, several at once: each song is read, separated and written in
blocks into a hidden folder beside its outputs, and its stems appear under their names all together or not at all. A
song that fails never stops the others. `pipe` does the same for one song without a name.
"""

from vocalremover.batch.jobs import Job
from vocalremover.batch.journal import JOURNAL, Journal
from vocalremover.batch.ledger import Ledger, Step, preview
from vocalremover.batch.pipe import pipe
from vocalremover.batch.plan import plan
from vocalremover.batch.results import Progress, Result, Summary
from vocalremover.batch.run import run
from vocalremover.batch.settings import CLIPS, STEMS, Settings
from vocalremover.batch.songs import SONG_SUFFIXES, Song, find_songs

__all__ = [
    "CLIPS",
    "JOURNAL",
    "SONG_SUFFIXES",
    "STEMS",
    "Job",
    "Journal",
    "Ledger",
    "Progress",
    "Result",
    "Settings",
    "Song",
    "Step",
    "Summary",
    "find_songs",
    "pipe",
    "plan",
    "preview",
    "run",
]
