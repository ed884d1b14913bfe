"""Tags and covers come back from every format that can hold them."""

import io
import struct
import zlib
from pathlib import Path

import av
import pytest
import torch

from vocalremover.audio import FORMATS, Encoding, Reader, Tags, write
from vocalremover.audio.sinks import COVERS

SONG = torch.sin(torch.arange(9600) / 20)[None] / 2


def png(side: int) -> bytes:
    """A square picture that does not compress."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    noise = torch.randint(0, 256, (side, 3 * side), generator=torch.Generator().manual_seed(side), dtype=torch.uint8)
    rows = b"".join(b"\0" + bytes(row.tolist()) for row in noise)
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    picture = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + picture


FULL = Tags("Größe 大 🎵", "Anna & Örs", "Das = Album", "3/12", "1999", png(160), "image/png")


@pytest.mark.parametrize("name", FORMATS)
def test_tags_and_cover_come_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"song.{name}"
    write(path, SONG, 48000, Encoding(name), FULL)
    with Reader(path) as reader:
        found = reader.tags
        assert (found.title, found.artist, found.album, found.track, found.date) == (
            FULL.title, FULL.artist, FULL.album, FULL.track, FULL.date,
        )  # fmt: skip
        # LIST INFO of a wav has no place for a picture.
        assert (found.cover, found.cover_mime) == ((None, None) if name == "wav" else (FULL.cover, "image/png"))
        assert sum(block.shape[1] for block in reader.blocks()) == SONG.shape[1]


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_without_tags_has_none(tmp_path: Path, name: str) -> None:
    write(tmp_path / "song", SONG, 48000, Encoding(name))
    assert Reader(tmp_path / "song").tags == Tags()


@pytest.mark.parametrize("name", FORMATS)
def test_a_cover_that_is_no_picture_stops_nothing(tmp_path: Path, name: str) -> None:
    write(tmp_path / "song", SONG, 48000, Encoding(name), Tags("Song", cover=b"no picture", cover_mime="image/png"))
    assert Reader(tmp_path / "song").tags.title == "Song"


def picture(codec: str, muxer: str, pixels: str) -> bytes:
    """A small picture of another kind."""
    file = io.BytesIO()
    with av.open(file, "w", format=muxer) as container:
        stream = container.add_stream(codec, rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = pixels
        container.mux(stream.encode(av.VideoFrame(32, 32, pixels)))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("name", ["flac", "mp3", "m4a"])
@pytest.mark.parametrize(("codec", "muxer", "pixels"), [
    ("bmp", "image2pipe", "bgr24"), ("gif", "gif", "rgb8"), ("tiff", "image2pipe", "rgb24"),
    ("libwebp", "webp", "yuv420p"), ("jpeg2000", "image2pipe", "rgb24"),
])  # fmt: skip
def test_a_cover_that_a_format_cannot_carry_is_left_out(
    tmp_path: Path, name: str, codec: str, muxer: str, pixels: str
) -> None:
    cover = picture(codec, muxer, pixels)
    write(tmp_path / "song", SONG, 48000, Encoding(name), Tags("Song", cover=cover))
    found = Reader(tmp_path / "song").tags
    assert (found.title, found.cover) == ("Song", cover if codec.removeprefix("lib") in COVERS[name] else None)


@pytest.mark.parametrize("name", ["ogg", "opus"])
@pytest.mark.parametrize(("codec", "muxer", "pixels", "mime"), [
    ("tiff", "image2pipe", "rgb24", "image/tiff"), ("libwebp", "webp", "yuv420p", "image/webp"),
])  # fmt: skip
def test_a_cover_keeps_its_kind(tmp_path: Path, name: str, codec: str, muxer: str, pixels: str, mime: str) -> None:
    cover = picture(codec, muxer, pixels)
    write(tmp_path / "song", SONG, 48000, Encoding("flac"), Tags("Song", cover=cover))
    write(tmp_path / "stem", SONG, 48000, Encoding(name), Reader(tmp_path / "song").tags)
    assert Reader(tmp_path / "stem").tags == Tags("Song", cover=cover, cover_mime=mime)


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_a_cover_of_an_unknown_kind_is_left_out(tmp_path: Path, name: str) -> None:
    write(tmp_path / "song", SONG, 48000, Encoding(name), Tags("Song", cover=png(8)))
    assert Reader(tmp_path / "song").tags == Tags("Song")


def test_a_stem_is_noted_in_the_title_and_nothing_else_changes() -> None:
    stem = FULL.for_stem("vocals")
    assert stem.title == "Größe 大 🎵 (Vocals)"
    assert {**vars(stem), "title": None} == {**vars(FULL), "title": None}


def test_no_title_is_invented() -> None:
    assert Tags(artist="Anna").for_stem("instrumental") == Tags(artist="Anna")


def test_tags_of_another_program_are_read_whatever_their_case(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.flac"), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=48000, layout="mono")
        container.metadata.update({"TITLE": "Song", "Artist": "Anna", "TRACKNUMBER": "7", "YEAR": "2001"})
        frame = av.AudioFrame.from_ndarray((SONG * 2**15).short().numpy(), format="s16", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert Reader(tmp_path / "song.flac").tags == Tags("Song", "Anna", None, "7", "2001")


def test_latin_letters_of_an_old_wav_are_read(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    write(path, SONG, 48000, tags=Tags("Gr__e", "Anna"))
    path.write_bytes(path.read_bytes().replace(b"Gr__e", "Größe".encode("latin-1")))
    assert Reader(path).tags == Tags("Größe", "Anna")


def test_a_cover_larger_than_a_page_of_ogg_is_whole(tmp_path: Path) -> None:
    cover = png(400)
    assert len(cover) > 5 * 65536
    write(tmp_path / "song.ogg", SONG, 48000, tags=Tags(cover=cover, cover_mime="image/png"))
    assert Reader(tmp_path / "song.ogg").tags.cover == cover
