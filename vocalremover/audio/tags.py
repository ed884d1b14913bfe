"""What a file says about its song: title, artist, album, track, date and the cover picture.

Read and written through FFmpeg's metadata (PyAV), which knows the words of every container: ID3 in mp3, Vorbis
comments in flac, ogg and opus, atoms in m4a, LIST INFO in wav. A cover travels as an attached picture in mp3, flac
and m4a, and as the comment METADATA_BLOCK_PICTURE in ogg and opus; LIST INFO of a wav has no place for one.
"""

import base64
import dataclasses
import io
import struct
from collections.abc import Container
from dataclasses import dataclass

import av
from av.container import InputContainer
from av.stream import Disposition

# Names by which containers call a field; FFmpeg has already translated most of them.
FIELDS = {
    "title": ("title",),
    "artist": ("artist", "author"),
    "album": ("album",),
    "track": ("track", "tracknumber", "wm/tracknumber"),
    "date": ("date", "year", "wm/year"),
}
PICTURE_TYPES = {
    "png": "image/png", "mjpeg": "image/jpeg", "bmp": "image/bmp", "gif": "image/gif", "tiff": "image/tiff",
    "webp": "image/webp",
}  # fmt: skip
COMMENT_NAMES = {"track": "TRACKNUMBER"}
FRONT_COVER = 3


@dataclass(frozen=True)
class Tags:
    """A song's words and its cover picture as the bytes of an image file; what is not known is None."""

    title: str | None = None
    artist: str | None = None
    album: str | None = None
    track: str | None = None
    date: str | None = None
    cover: bytes | None = None
    cover_mime: str | None = None

    def for_stem(self, stem: str) -> "Tags":
        """The same tags with the stem noted in the title: `"Title (Vocals)"`. A song without a title gets none."""
        if not self.title:
            return self
        return dataclasses.replace(self, title=f"{self.title} ({stem[:1].upper()}{stem[1:]})")

    def words(self) -> dict[str, str]:
        """The text fields that are known, by FFmpeg's names."""
        return {name: text for name in FIELDS if (text := getattr(self, name))}


def from_container(container: InputContainer, cover: bool = True) -> Tags:
    """Reads the tags of a file that PyAV has opened; the cover moves its position, so decode from another opening."""
    found: dict[str, str] = {}
    for metadata in (*(stream.metadata for stream in container.streams.audio), container.metadata):
        found.update({name.lower(): _readable(text) for name, text in metadata.items()})
    words = {
        field: next((text for name in names if (text := found.get(name, "").strip())), None)
        for field, names in FIELDS.items()
    }
    picture, mime = _cover(container) if cover else (None, None)
    return Tags(**words, cover=picture, cover_mime=mime)


def _readable(text: str) -> str:
    # Old ID3v1 and INFO fields are Latin-1; as UTF-8 their letters arrive as escapes.
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogateescape").decode("latin-1")
    return text


def _cover(container: InputContainer) -> tuple[bytes | None, str | None]:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            continue
        try:
            picture = next((bytes(packet) for packet in container.demux(stream) if packet.size), None)
        except av.error.FFmpegError:
            picture = None
        if picture:
            return picture, PICTURE_TYPES.get(stream.codec_context.name)
    return None, None


def picture_stream(cover: bytes | None, kinds: Container[str]) -> InputContainer | None:
    """Opens the cover as a container of one picture, from which a muxer can copy; None where it is not of `kinds`."""
    if not cover:
        return None
    try:
        container = av.open(io.BytesIO(cover))
    except av.error.FFmpegError:
        return None
    known = any(stream.width and stream.codec_context.name in kinds for stream in container.streams.video[:1])
    return container if known else None


def comments(tags: Tags) -> dict[str, str]:
    """The tags as the comments of ogg and opus; the cover is laid out as the picture block of RFC 9639, 8.8.

    A cover of an unknown kind is left out.
    """
    lines = {COMMENT_NAMES.get(name, name.upper()): text for name, text in tags.words().items()}
    if tags.cover and tags.cover_mime:
        mime = tags.cover_mime.encode()
        block = struct.pack(">II", FRONT_COVER, len(mime)) + mime
        # No description; width, height, depth and colours are left for the player to find in the picture itself.
        block += struct.pack(">IIIII", 0, 0, 0, 0, 0) + struct.pack(">I", len(tags.cover)) + tags.cover
        lines["METADATA_BLOCK_PICTURE"] = base64.b64encode(block).decode()
    return lines
