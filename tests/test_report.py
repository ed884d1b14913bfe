"""The page about a run and the pictures in it."""

import html
import math
import os
import re
import shutil
import struct
import subprocess
import zlib
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from time import sleep
from urllib.parse import unquote, urljoin

import numpy as np
import pytest
import torch

from vocalremover import pictures, staging
from vocalremover.audio import Encoding, write
from vocalremover.batch import Job, Result
from vocalremover.errors import AudioError, UsageError
from vocalremover.pictures import ROWS, WIDTH, Columns, measure
from vocalremover.report import Page

RATE = 44100
ODD = 'c:<b>"Ünïcode" & 曲\'s $1 100%#?\n\t'


def tone(hertz: float, seconds: float = 2.0, rate: int = RATE, channels: int = 1) -> torch.Tensor:
    """`[channels, samples]`, at full scale."""
    return torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * rate)) / rate).expand(channels, -1).clone()


def saved(path: Path, audio: torch.Tensor, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, audio, rate, Encoding("wav", "32f"))
    return path


def decoded(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A PNG with a palette -> its indices `[height, width]` and the palette `[colours, 4]`."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, place = {}, 8
    while place < len(content):
        size, name = struct.unpack(">I4s", content[place : place + 8])
        body = content[place + 8 : place + 8 + size]
        assert struct.unpack(">I", content[place + 8 + size :][:4])[0] == zlib.crc32(name + body)
        chunks[name], place = body, place + 12 + size
    width, height, bits, kind = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (bits, kind) == (8, 3)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    colours = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    return lines[:, 1:], np.column_stack((colours, np.frombuffer(chunks[b"tRNS"], np.uint8)))


# What is kept of a song


@pytest.mark.parametrize("pieces", [0, 1, WIDTH - 1, 2 * WIDTH, 2 * WIDTH + 1, 7 * WIDTH + 3])
@pytest.mark.parametrize("size", [1, 100, 5000])
def test_columns_lose_nothing_and_stay_few(pieces: int, size: int) -> None:
    values = np.random.default_rng(pieces).random((pieces, 2))
    sums, peaks = Columns(np.add, 2), Columns(np.maximum, 2)
    for start in range(0, pieces, size):
        sums.add(values[start : start + size])
        peaks.add(values[start : start + size])
    columns, counts = sums.get()
    assert len(columns) <= 2 * WIDTH
    assert counts.sum() == pieces
    np.testing.assert_allclose(columns.sum(0), values.sum(0))
    if pieces:
        np.testing.assert_allclose(peaks.get()[0].max(0), values.max(0))
        first = int(counts[0, 0])
        np.testing.assert_allclose(columns[0], values[:first].sum(0))
        assert (counts[:-1] == first).all()


def test_levels_of_a_sine(tmp_path: Path) -> None:
    sound = measure(saved(tmp_path / "sine.wav", 0.5 * tone(1000)))
    assert sound.seconds == 2
    assert sound.peak == pytest.approx(0.5, rel=1e-3)
    assert sound.rms == pytest.approx(0.5 / math.sqrt(2), rel=1e-3)
    assert np.sqrt(sound.squares[5:-5]) == pytest.approx(sound.rms, rel=0.05)  # columns are no whole periods


@pytest.mark.parametrize("rate", [44100, 48000, 96000])
def test_loudness_of_the_standard_s_own_sine(tmp_path: Path, rate: int) -> None:
    # ITU-R BS.1770-4: 997 Hz at full scale in one channel of two is -3.01 LUFS.
    audio = torch.cat((tone(997, rate=rate), torch.zeros(1, 2 * rate)))
    # The half frames at the ends hold silence: less than 0.1 dB of two seconds.
    assert measure(saved(tmp_path / "sine.wav", audio, rate)).loudness == pytest.approx(-3.01, abs=0.1)


def test_loudness_leaves_silence_out(tmp_path: Path) -> None:
    half = torch.cat((tone(997), torch.zeros(1, 4 * RATE)), dim=1)
    # One block of five lies on the edge.
    assert measure(saved(tmp_path / "half.wav", half)).loudness == pytest.approx(-3.01, abs=0.6)
    assert measure(saved(tmp_path / "none.wav", torch.zeros(2, RATE))).loudness == -math.inf


@pytest.mark.parametrize("samples", [1, 100, 600, RATE // 10])
def test_short_songs_have_pictures(tmp_path: Path, samples: int) -> None:
    sound = measure(saved(tmp_path / "short.wav", torch.full((2, samples), 0.5)))
    assert sound.peak == 0.5
    for content in (pictures.waveform(sound, 1.0, (1, 2, 3)), pictures.spectrogram(sound, 1.0)):
        assert decoded(content)[0].size


@pytest.mark.parametrize("blocks", [1 << 10, 1 << 18])
def test_pictures_do_not_depend_on_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    path = saved(tmp_path / "song.wav", tone(440, seconds=12))
    usual = measure(path)
    monkeypatch.setattr(pictures, "BLOCK", blocks)
    other = measure(path)
    np.testing.assert_array_equal(other.extremes, usual.extremes)
    np.testing.assert_allclose(other.powers, usual.powers, rtol=1e-4, atol=1e-9)


# Pictures


def test_a_picture_is_a_pixel_wide_at_least() -> None:
    content = pictures.png(np.zeros((72, 0), np.uint8), [(0, 0, 0, 255)])
    assert struct.unpack(">II", content[16:24]) == (1, 72)


def test_a_spectrogram_shows_a_tone_at_its_pitch(tmp_path: Path) -> None:
    def row(hertz: float) -> int:
        sound = measure(saved(tmp_path / "tone.wav", tone(hertz)))
        pixels, colours = decoded(pictures.spectrogram(sound, sound.powers.max()))
        assert pixels.shape[0] == ROWS
        light = colours[pixels, :3].sum(-1, dtype=int)
        assert light.max() > 600
        assert np.median(light) < 60
        return int(light.sum(1).argmax())

    rows = [row(hertz) for hertz in (200, 400, 800, 1600)]
    # Octaves are evenly spaced, high pitches above; a row is a tenth of an octave.
    assert np.diff(rows) == pytest.approx(-ROWS / math.log2(20_000 / 40), abs=1)


def test_a_waveform_shows_where_sound_is(tmp_path: Path) -> None:
    audio = torch.cat((torch.zeros(1, RATE), 0.5 * tone(100, 1.0)), dim=1)
    pixels, colours = decoded(pictures.waveform(measure(saved(tmp_path / "song.wav", audio)), 1.0, (1, 2, 3)))
    height, width = pixels.shape
    inked = (pixels > 0).sum(0)
    assert (inked[: width // 2 - 2] <= 2).all()
    # Half of full scale takes half of the height.
    assert inked[width // 2 + 2 : -2] == pytest.approx(height / 2, abs=2)
    assert colours[0, 3] == 0
    assert tuple(colours[2]) == (1, 2, 3, 255)


# The page


@pytest.fixture
def run(tmp_path: Path) -> list[Result]:
    """A song that was separated, one that failed, one that was skipped; their names are awkward."""
    song = saved(tmp_path / "songs" / f"{ODD}.wav", 0.5 * tone(440, 1.0, channels=2))
    outputs = {
        stem: saved(tmp_path / "stems" / f"{ODD}_{stem}.wav", share * tone(440, 1.0, channels=2))
        for stem, share in (("vocals", 0.1), ("instrumental", 0.4))
    }
    job = Job(song, outputs)
    return [
        Result(job, 0.5, 1.0, ("the <stem> was clipped & more",)),
        Result(Job(tmp_path / "b.mp3", {}), 0.1, error="b.mp3: <i>empty</i>", state="failed"),
        Result(job, 0.0, state="skipped"),
    ]


def written(path: Path, results: list[Result], settings: dict[str, object] | None = None) -> str:
    with Page(path, settings or {}) as page:
        for result in results:
            page.add(result)
    return path.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """All elements of a page with their attributes, and all its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_a_page_holds_everything_and_asks_no_network(tmp_path: Path, run: list[Result]) -> None:
    page = Elements(written(tmp_path / "page.html", run, {"model": "<default>", "stft": {"hop": 1024}, "tta": False}))
    assert len(page.all("article")) == 3
    assert len(page.all("audio")) == 6
    assert len(page.all("img")) == 12
    for image in page.all("img"):
        assert decoded(b64decode(image["src"].removeprefix("data:image/png;base64,")))[0].size
    for _, attributes in page.found:
        for name in ("src", "href"):
            assert not re.match(r"(\w+:)?//", attributes.get(name) or "")
    told = ("1 done, 1 failed, 1 skipped", "<stem> was clipped & more", "b.mp3: <i>empty</i>", "<default>", "hop 1024")
    for sentence in told:
        assert sentence in page.text
    assert "peak −6.0 dBFS, RMS −9.0 dBFS" in page.text
    assert not page.all("b") and not page.all("i")


def test_players_find_their_files(tmp_path: Path, run: list[Result]) -> None:
    folder = tmp_path / "a b" / "c#d"
    page = Elements(written(folder / "page.html", run))
    place = f"file://{html.escape(str(folder)).replace(' ', '%20').replace('#', '%23')}/page.html"
    files = {unquote(urljoin(place, player["src"]).removeprefix("file://")) for player in page.all("audio")}
    assert files == {str(path) for path in (run[0].job.input, *run[0].job.outputs.values())}


@pytest.mark.skipif(os.name != "posix", reason="only there a name may hold any bytes")
def test_a_name_of_any_bytes_is_shown_and_found(tmp_path: Path) -> None:
    song = tmp_path / os.fsdecode(b"b\xe4d.wav")
    shutil.copy(saved(tmp_path / "x.wav", tone(440, 0.2)), song)
    text = written(tmp_path / "page.html", [Result(Job(song, {}), 1.0, 0.2)])
    assert "b\\udce4d.wav" in text
    assert "./b%E4d.wav" in text


def test_the_speed_is_that_of_the_whole_run(tmp_path: Path, run: list[Result]) -> None:
    path, job = tmp_path / "page.html", Job(tmp_path / "a.mp3", {})
    with Page(path, {}) as page:
        sleep(0.01)
        page.add(Result(job, 1000.0, 1000.0))
        page.add(Result(job, 1000.0, 1000.0))
    facts = re.search(r"2 done; 33:20 of audio, ([\d.]+) times real time", path.read_text(encoding="utf-8"))
    assert float(facts[1]) > 2, "songs that are at work at once do not take one another's time"
    skipped = written(tmp_path / "page.html", run[2:])
    assert "1 skipped" in skipped and "real time" not in skipped


def test_a_song_that_has_gone_is_told(tmp_path: Path, run: list[Result]) -> None:
    run[0].job.outputs["vocals"].unlink()
    text = written(tmp_path / "page.html", run[:1])
    assert "There are no pictures" in text
    assert "<img" not in text


def test_nothing_is_replaced_but_a_page(tmp_path: Path) -> None:
    page, mine = tmp_path / "page.html", tmp_path / "mine.html"
    mine.write_text("mine")
    written(page, [])
    written(page, [])
    for path in (mine, tmp_path):
        with pytest.raises(UsageError, match="is no report"):
            Page(path, {})
    assert mine.read_text() == "mine"
    with Page(mine, {}, overwrite=True):
        pass
    assert "0 songs" in mine.read_text(encoding="utf-8")


def test_a_page_appears_whole_or_not_at_all(tmp_path: Path, run: list[Result]) -> None:
    folder = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt), Page(folder / "page.html", {}) as page:
        page.add(run[0])
        raise KeyboardInterrupt
    assert os.listdir(folder) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(AudioError, match="file"):
        Page(tmp_path / "file" / "page.html", {})


def test_what_a_killed_run_left_beside_the_page_is_swept(tmp_path: Path) -> None:
    dead = tmp_path / f"{staging.PREFIX}dead"
    dead.mkdir()
    (dead / staging.LOCK).write_text(staging.socket.gethostname())
    written(tmp_path / "page.html", [])
    assert os.listdir(tmp_path) == ["page.html"]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Leaves what the page is once all is loaded in its title. A player that may load holds that moment up.
PROBE = """
<script>
window.addEventListener("load", () => {
  const images = [...document.images];
  const least = Math.min(...images.map((image) => Math.min(image.naturalWidth, image.naturalHeight, image.width)));
  const durations = players.map((player) => player.duration.toFixed(2));
  const fits = document.documentElement.scrollWidth <= window.innerWidth;
  document.title = `images ${images.length} least ${least} plays ${durations.join()} fits ${fits}`;
});
</script>
"""


@pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")
@pytest.mark.parametrize("width", [1000, 500])
def test_a_browser_shows_the_page(tmp_path: Path, run: list[Result], width: int) -> None:
    path = tmp_path / "page.html"
    page = written(path, run[:2]).replace("</body>", f"{PROBE}</body>").replace('preload="none"', 'preload="auto"')
    path.write_text(page, encoding="utf-8")
    words = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom"
    more = (f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}")
    shown = subprocess.run(
        [CHROMIUM, *words.split(), *more, path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search("<title>(.*)</title>", shown.stdout)[1]
    match = re.fullmatch(r"images 6 least (\d+) plays 1.00,1.00,1.00 fits true", title)
    assert match, title
    assert int(match[1]) > 10
    assert "CONSOLE" not in shown.stderr, shown.stderr


def test_the_command_writes_a_page(command: Callable, make_song: Callable, tiny_model: Path, tmp_path: Path) -> None:
    songs = [make_song("a.wav"), make_song("b.wav")]
    songs[1].write_text("not a song")
    outcome = command("separate", *songs, "-m", tiny_model, "--report", tmp_path / "page.html", "-d", "cpu")
    assert outcome.code == 1
    page = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [article["class"] for article in page.all("article")] == ["done", "failed"]
    assert "b.wav: cannot be decoded" in page.text
    assert "tiny" in page.text
