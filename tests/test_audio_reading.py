"""Whatever a person has is read, at its true length and place; what is damaged is told; what is no song is refused."""

import io
import os
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from test_audio_writing import lag, noise
from torch import Tensor

from vocalremover.audio import FORMATS, Encoding, PipeReader, Reader, Tags, Writer, read, write
from vocalremover.errors import AudioError


def ffmpeg_write(
    path: Path,
    codec: str,
    muxer: str,
    song: Tensor,
    rate: int = 44100,
    layout: str = "stereo",
    options: dict[str, str] | None = None,
) -> None:
    """The obvious way, as any program does it: `[channels, samples]` through an encoder of FFmpeg."""
    with av.open(str(path), "w", format=muxer, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 96000 * len(song)
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate)
        for start in range(0, song.shape[1], 1024):
            piece = np.ascontiguousarray(song[:, start : start + 1024].numpy().T).reshape(1, -1)
            # In turns: PyAV cannot hold the planes of eight channels.
            frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def drained(path: Path) -> tuple[Tensor, list[str]]:
    with Reader(path) as reader:
        return torch.cat([torch.zeros(reader.channels, 0), *reader.blocks()], dim=1), reader.warnings


KINDS = ["WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC"]
SUBTYPES = ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAC_24"]


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [(kind, subtype) for kind in KINDS for subtype in SUBTYPES if soundfile.check_format(kind, subtype)],
)
def test_lossless_files_of_others_are_read_to_their_last_bit(tmp_path: Path, kind: str, subtype: str) -> None:
    song = noise(2, 10007)
    # The name says nothing: what a file is, its content tells.
    path = tmp_path / "song.mp3"
    soundfile.write(path, song.numpy().T, 44100, format=kind, subtype=subtype)
    with Reader(path) as reader:
        assert (reader.rate, reader.channels, reader.samples, reader.layout) == (44100, 2, 10007, "stereo")
        found = torch.cat(list(reader.blocks()), dim=1)
    step = {"PCM_16": 2**-15, "PCM_24": 2**-23, "ALAC_24": 2**-23, "ULAW": 2**-5}.get(subtype, 2**-31)
    # libsndfile rounds in some codecs and truncates in others.
    assert (found - song).abs().max() <= step


@pytest.mark.parametrize(
    ("codec", "muxer", "rate", "delay", "shortest", "longest"),
    [
        ("aac", "mp4", 44100, 0, 0, 0),
        ("alac", "ipod", 44100, 0, 0, 0),
        ("flac", "matroska", 44100, 0, 0, 0),
        ("libopus", "webm", 48000, 0, 0, 0),
        ("libopus", "ogg", 48000, 0, 0, 0),
        ("flac", "ogg", 48000, 0, 0, 0),
        ("tta", "tta", 44100, 0, 0, 0),
        ("wavpack", "wv", 44100, 0, 0, 0),
        ("libmp3lame", "mp3", 44100, 0, 0, 0),
        # A matroska file made so has no word for the last frame's padding.
        pytest.param(
            *("aac", "matroska", 44100, 0, 0, 1023),
            marks=pytest.mark.skipif(av.library_versions["libavformat"] < (62, 12), reason="has no word for the delay"),
        ),
        # These have no word for the encoder's delay either.
        ("ac3", "ac3", 48000, 256, 0, 1536),
        # FFmpeg drops what it takes for the delay, and the encoder the last frame.
        ("wmav2", "asf", 44100, -2048, -2048, 0),
        ("aac", "adts", 44100, 1024, 0, 2048),
        ("mp2", "mpegts", 44100, 481, 0, 1152),
    ],
)
def test_files_of_other_programs_are_read_in_place(
    tmp_path: Path, codec: str, muxer: str, rate: int, delay: int, shortest: int, longest: int
) -> None:
    song = noise(2, 50021)
    ffmpeg_write(tmp_path / "song", codec, muxer, song, rate)
    with Reader(tmp_path / "song") as reader:
        assert (reader.rate, reader.channels, reader.layout) == (rate, 2, "stereo")
        found = torch.cat(list(reader.blocks()), dim=1)
        assert reader.samples in (None, found.shape[1])
        assert reader.warnings == []
    assert shortest <= found.shape[1] - 50021 <= longest
    assert lag(found[0], song[0]) == delay
    assert lag(found[1], song[1]) == delay


@pytest.mark.parametrize("clock", [600, 1000, 44100])
@pytest.mark.parametrize("samples", [100, 1023, 50001, 50020, 50176, 50177])
def test_an_edit_list_is_as_exact_as_the_file_allows(tmp_path: Path, clock: int, samples: int) -> None:
    song = noise(2, samples)
    ffmpeg_write(tmp_path / "song", "aac", "ipod", song, options={"movie_timescale": str(clock)})
    found, warnings = drained(tmp_path / "song")
    assert found.shape == song.shape
    assert samples < 1000 or lag(found[0], song[0]) == 0
    assert warnings == []


def test_the_priming_that_itunes_tells_is_taken_off(tmp_path: Path) -> None:
    song = noise(2, 50021)
    path = tmp_path / "song.m4a"
    ffmpeg_write(path, "aac", "ipod", song, options={"use_editlist": "0"})
    assert drained(path)[0].shape[1] == 50021 + 1024
    # iTunes' comment: a free-form atom, here at the end of the last list of the last box.
    words = f" 00000000 00000400 00000000 {50021:016X} 00000000 00000000"
    parts = (b"mean", b"\0" * 4 + b"com.apple.iTunes"), (b"name", b"\0" * 4 + b"iTunSMPB")
    parts += ((b"data", b"\0\0\0\1" + b"\0" * 4 + words.encode()),)
    atom = b"".join(struct.pack(">I", 8 + len(content)) + name + content for name, content in parts)
    atom = struct.pack(">I", 8 + len(atom)) + b"----" + atom
    data = bytearray(path.read_bytes())
    for box in (b"moov", b"udta", b"meta", b"ilst"):
        at = data.rfind(box) - 4
        data[at : at + 4] = struct.pack(">I", struct.unpack_from(">I", data, at)[0] + len(atom))
    path.write_bytes(data + atom)
    found, _ = drained(path)
    assert found.shape == song.shape
    assert lag(found[0], song[0]) == 0


def test_an_mp3_without_a_count_is_counted(tmp_path: Path) -> None:
    ffmpeg_write(tmp_path / "song", "libmp3lame", "mp3", noise(2, 50021))
    with av.open(str(tmp_path / "song")) as container:
        # FFmpeg keeps the frame with the count to itself.
        frames = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    (tmp_path / "bare").write_bytes(b"".join(frames))
    reader = Reader(tmp_path / "bare")
    assert reader.samples == 1152 * len(frames) == sum(block.shape[1] for block in reader.blocks())


# Most surplus makes FFmpeg guess the length, little makes it believe the first header.
@pytest.mark.parametrize("samples", [44100, 16 * 44100])
@pytest.mark.parametrize("between", [b"", b"TAG" + bytes(125)])
@pytest.mark.parametrize("cover", [b"", np.random.default_rng(0).bytes(5000)])
def test_joined_mp3s_are_read_to_their_end(tmp_path: Path, samples: int, between: bytes, cover: bytes) -> None:
    songs = noise(2, samples), noise(2, 22050, seed=1)
    for number, song in enumerate(songs):
        write(tmp_path / str(number), song, 44100, Encoding("mp3"), Tags("Song"))
    first, second = ((tmp_path / str(number)).read_bytes() for number in range(2))
    if cover:
        size = len(cover)
        second = b"ID3\3\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + cover + second
    (tmp_path / "song").write_bytes(first + between + second)
    found, warnings = drained(tmp_path / "song")
    # The padding of one and the delay of the other lie where they meet, the padding of the other at the end.
    assert 0 <= found.shape[1] - samples - 22050 <= 4 * 1152
    assert lag(found[0, :samples], songs[0][0]) == 0
    assert 0 <= lag(found[0, samples:], songs[1][0]) <= 3 * 1152
    assert warnings == []


def test_tags_at_the_end_of_an_mp3_do_not_change_its_length(tmp_path: Path) -> None:
    write(tmp_path / "song", noise(2, 50021), 44100, Encoding("mp3"))
    data = (tmp_path / "song").read_bytes()
    for tags in (bytes(2000), np.random.default_rng(0).bytes(2000)):
        (tmp_path / "song").write_bytes(data + b"APETAGEX" + tags)
        with Reader(tmp_path / "song") as reader:
            assert reader.samples == sum(block.shape[1] for block in reader.blocks()) == 50021


def test_an_mp3_inside_a_wav_is_read_to_its_end(tmp_path: Path) -> None:
    song = noise(2, 50021)
    ffmpeg_write(tmp_path / "song", "libmp3lame", "wav", song)
    with Reader(tmp_path / "song") as reader:
        found = torch.cat(list(reader.blocks()), dim=1)
        assert reader.samples == found.shape[1]
        assert reader.warnings == []
    # A wav has no word for the encoder's delay and padding.
    assert 0 <= found.shape[1] - 50021 <= 2 * 1152
    assert lag(found[0], song[0]) == 1105
    data = (tmp_path / "song").read_bytes()
    (tmp_path / "song").write_bytes(data[: len(data) // 2])
    assert [warning[:9] for warning in drained(tmp_path / "song")[1]] == ["truncated"]


def test_tags_at_the_end_of_a_stream_are_no_damage(tmp_path: Path) -> None:
    ffmpeg_write(tmp_path / "song", "wavpack", "wv", noise(2, 50021))
    data = (tmp_path / "song").read_bytes()
    assert b"APETAGEX" in data
    for content, warnings in ((data, []), (data[: len(data) // 2], ["truncated"])):
        with PipeReader(io.BytesIO(content)) as reader:
            assert (sum(block.shape[1] for block in reader.blocks()) == 50021) == (not warnings)
            assert [warning[:9] for warning in reader.warnings] == warnings


def test_the_sound_track_of_a_video_is_read(tmp_path: Path) -> None:
    song = noise(2, 48000)
    for name, (muxer, codec) in {"a.mp4": ("mp4", "aac"), "a.mkv": ("matroska", "flac")}.items():
        with av.open(str(tmp_path / name), "w", format=muxer) as container:
            video = container.add_stream("mpeg4", rate=25)
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
            audio = container.add_stream(codec, rate=48000, layout="stereo")
            for _ in range(25):
                container.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
            frame = av.AudioFrame.from_ndarray(song.numpy(), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
            container.mux(video.encode(None))
        found, _ = drained(tmp_path / name)
        assert found.shape == song.shape
        assert lag(found[0], song[0]) == 0


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mp3"), "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        container.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(video.encode(None))
    with pytest.raises(AudioError, match="no sound track"):
        Reader(tmp_path / "song.mp3")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("block", [1000, 1 << 16])
def test_every_reading_begins_at_the_beginning_and_cuts_do_not_matter(tmp_path: Path, name: str, block: int) -> None:
    write(tmp_path / "song", noise(2, 20011), 48000, Encoding(name))
    whole, _ = read(tmp_path / "song")
    with Reader(tmp_path / "song", block=block) as reader:
        half = reader.blocks()
        next(half)
        for blocks in (list(reader.blocks()), list(reader.blocks())):
            assert max(part.shape[1] for part in blocks) <= block
            assert all(part.dtype == torch.float32 and part.is_contiguous() for part in blocks)
            torch.testing.assert_close(torch.cat(blocks, dim=1), whole, rtol=0, atol=0)
    assert list(half) == []


@pytest.mark.parametrize("name", FORMATS)
def test_memory_does_not_grow_with_the_song(tmp_path: Path, name: str) -> None:
    seconds = 12
    with Writer(tmp_path / "song", 48000, 2, Encoding(name)) as writer:
        for second in range(seconds):
            writer.write(noise(2, 48000, seed=second % 2))
    tracemalloc.start()
    with Reader(tmp_path / "song", block=4096) as reader:
        assert sum(block.shape[1] for block in reader.blocks()) == 48000 * seconds
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The song takes 4.6 MB; a block 32 kB.
    assert peak < 1_000_000


def test_opus_is_always_48_khz(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "song", noise(1, 16000).numpy().T, 16000, format="OGG", subtype="OPUS")
    reader = Reader(tmp_path / "song")
    assert (reader.rate, reader.samples) == (48000, 48000)
    assert sum(block.shape[1] for block in reader.blocks()) == 48000


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 88200, 96000, 192000])
def test_any_rate_is_kept(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "song", noise(1, 999).numpy().T, rate, format="FLAC")
    found, found_rate = read(tmp_path / "song")
    assert (found.shape, found_rate) == ((1, 999), rate)


@pytest.mark.parametrize(("layout", "channels"), [("5.1(side)", 6), ("7.1", 8), ("2.1", 3)])
@pytest.mark.parametrize(("codec", "muxer"), [("pcm_s24le", "wav"), ("flac", "flac"), ("pcm_f32le", "wav")])
def test_loudspeakers_are_named_and_stay_in_place(
    tmp_path: Path, codec: str, muxer: str, layout: str, channels: int
) -> None:
    song = noise(channels, 5000)
    ffmpeg_write(tmp_path / "song", codec, muxer, song, layout=layout)
    with Reader(tmp_path / "song") as reader:
        assert (reader.layout, reader.channels, reader.samples) == (layout, channels, 5000)
        # Handed on to a writer, the layout is kept.
        with Writer(tmp_path / "copy", 44100, channels, layout=reader.layout) as writer:
            for block in reader.blocks():
                writer.write(block)
    assert Reader(tmp_path / "copy").layout == layout
    torch.testing.assert_close(read(tmp_path / "copy")[0], song, rtol=0, atol=2**-15)


def caf(path: Path, song: Tensor, *speakers: int) -> None:
    """A caf of 16 bits at 44.1 kHz with the numbers of its loudspeakers (1 left, 2 right, 3 centre, 4 LFE ...)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return name + struct.pack(">q", len(content)) + content

    channels = len(song)
    form = struct.pack(">d4sIIIII", 44100, b"lpcm", 0, 2 * channels, 1, channels, 16)
    places = struct.pack(">III", 0, 0, channels) + b"".join(struct.pack(">II3f", one, 0, 0, 0, 0) for one in speakers)
    data = bytes(4) + (song.T.numpy() * 2**15).round().astype(">i2").tobytes()
    path.write_bytes(b"caff\0\1\0\0" + chunk(b"desc", form) + chunk(b"chan", places) + chunk(b"data", data))


def test_loudspeakers_in_an_order_of_their_own_stay_in_it(tmp_path: Path) -> None:
    song = noise(6, 5000)
    caf(tmp_path / "song", song, 1, 2, 5, 6, 3, 4)
    with Reader(tmp_path / "song") as reader:
        assert (reader.layout, reader.samples) == ("6 channels", 5000)
        assert reader.tags == Tags()
        found = torch.cat(list(reader.blocks()), dim=1)
    torch.testing.assert_close(found, song, rtol=0, atol=2**-15)
    with open(tmp_path / "song", "rb") as file, pytest.raises(AudioError, match="in an order that cannot be read"):
        PipeReader(file)


def test_loudspeakers_in_the_usual_order_need_no_usual_name(tmp_path: Path) -> None:
    caf(tmp_path / "song", noise(3, 5000), 1, 2, 10)
    with Reader(tmp_path / "song") as reader:
        assert reader.layout == "3 channels (FL+FR+SL)"
        assert sum(block.shape[1] for block in reader.blocks()) == 5000


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("layout", "usual"), [("FL", "mono"), ("downmix", "stereo")])
def test_one_or_two_channels_are_mono_or_stereo(tmp_path: Path, name: str, layout: str, usual: str) -> None:
    channels = av.AudioLayout(layout).nb_channels
    ffmpeg_write(tmp_path / "song", "pcm_s16le", "mov", noise(channels, 5000), layout=layout)
    with Reader(tmp_path / "song") as reader:
        assert reader.layout == usual
        with Writer(tmp_path / "copy", 44100, channels, Encoding(name), layout=reader.layout) as writer:
            for block in reader.blocks():
                writer.write(block)
    assert Reader(tmp_path / "copy").layout == usual


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_a_chain_of_songs_is_read_to_its_end(tmp_path: Path, name: str) -> None:
    songs = noise(2, 96000), noise(2, 48000, seed=1)
    for number, song in enumerate(songs):
        write(tmp_path / str(number), song, 48000, Encoding(name))
    (tmp_path / "song").write_bytes((tmp_path / "0").read_bytes() + (tmp_path / "1").read_bytes())
    with Reader(tmp_path / "song") as reader:
        assert reader.samples is None
        found = torch.cat(list(reader.blocks()), dim=1)
        assert reader.warnings == []
    # FFmpeg leaves half a short block of Vorbis standing where the songs meet.
    assert 144000 <= found.shape[1] <= 144128
    assert lag(found[0, :96000], songs[0][0]) == 0
    assert lag(found[0, -48000:], songs[1][0]) == 0


def test_an_opus_that_begins_midway_is_as_long_as_what_is_left(tmp_path: Path) -> None:
    song = noise(2, 480000)
    write(tmp_path / "song", song, 48000, Encoding("opus"))
    pages = [b"OggS" + page for page in (tmp_path / "song").read_bytes().split(b"OggS")[1:]]
    (tmp_path / "song").write_bytes(b"".join(pages[:2] + pages[len(pages) // 2 :]))
    with Reader(tmp_path / "song") as reader:
        found = torch.cat(list(reader.blocks()), dim=1)
        assert 0 < reader.samples == found.shape[1] < 400000
        assert reader.warnings == []
    assert lag(found[0], song[0, -found.shape[1] :]) == 0


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_a_chain_that_changes_its_form_is_told_where_it_breaks(tmp_path: Path, name: str) -> None:
    write(tmp_path / "0", noise(2, 96000), 48000, Encoding(name))
    write(tmp_path / "1", noise(1, 48000), 48000, Encoding(name))
    (tmp_path / "song").write_bytes((tmp_path / "0").read_bytes() + (tmp_path / "1").read_bytes())
    found, warnings = drained(tmp_path / "song")
    assert found.shape[1] >= 90000
    assert len(warnings) == 1


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("5.1", 6)])
def test_a_stream_that_changes_its_form_keeps_that_of_its_beginning(tmp_path: Path, layout: str, channels: int) -> None:
    ffmpeg_write(tmp_path / "a", "ac3", "ac3", noise(2, 48000), 48000)
    ffmpeg_write(tmp_path / "b", "ac3", "ac3", noise(channels, 48000), 48000, layout)
    (tmp_path / "song").write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    with Reader(tmp_path / "song") as reader:
        assert (reader.rate, reader.channels, reader.layout) == (48000, 2, "stereo")
        found = torch.cat(list(reader.blocks()), dim=1)
    alone, _ = read(tmp_path / "a")
    assert torch.equal(found[:, : alone.shape[1]], alone)
    assert found.shape == (2, 2 * alone.shape[1])


def test_what_is_no_number_becomes_silence_and_is_told(tmp_path: Path) -> None:
    song = noise(2, 5000)
    broken = song.clone()
    broken[0, 100], broken[1, 200:203] = float("nan"), float("inf")
    soundfile.write(tmp_path / "song", broken.numpy().T, 44100, format="WAV", subtype="FLOAT")
    found, warnings = drained(tmp_path / "song")
    song[0, 100], song[1, 200:203] = 0, 0
    assert torch.equal(found, song)
    assert len(warnings) == 1
    assert warnings[0].startswith("4 samples")


def test_samples_of_the_largest_float_are_numbers(tmp_path: Path) -> None:
    song = torch.full((2, 5000), torch.finfo(torch.float32).max)
    soundfile.write(tmp_path / "song", song.numpy().T, 44100, format="WAV", subtype="FLOAT")
    found, warnings = drained(tmp_path / "song")
    assert torch.equal(found, song)
    assert warnings == []


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "ogg", "opus", "m4a"])
def test_what_is_left_of_a_cut_file_is_delivered_and_the_rest_told(tmp_path: Path, name: str) -> None:
    song = noise(2, 4 * 48000)
    if name == "m4a":
        ffmpeg_write(tmp_path / "song", "aac", "ipod", song, 48000, options={"movflags": "faststart"})
    else:
        write(tmp_path / "song", song, 48000, Encoding(name))
    data = (tmp_path / "song").read_bytes()
    (tmp_path / "song").write_bytes(data[: len(data) // 2])
    found, warnings = drained(tmp_path / "song")
    # Half of the bytes are about half of the song, less the frame that was cut and a page of ogg (up to a second).
    assert found.shape[1] == pytest.approx(2 * 48000, abs=48000 if name in ("ogg", "opus") else 8000)
    assert lag(found[0], song[0]) == 0
    assert len(warnings) == 1
    # An ogg does not tell how long it was.
    wanted = "truncated: " + (
        "the end" if name in ("ogg", "opus") else f"decoded {found.shape[1] / 48000:.1f} s of 4.0 s"
    )
    assert warnings[0].startswith(wanted)


@pytest.mark.parametrize("name", ["flac", "mp3", "m4a"])
def test_damage_in_the_middle_costs_only_its_surroundings(tmp_path: Path, name: str) -> None:
    write(tmp_path / "song", noise(2, 4 * 48000), 48000, Encoding(name))
    whole, _ = read(tmp_path / "song")
    data = bytearray((tmp_path / "song").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    (tmp_path / "song").write_bytes(data)
    found, _ = drained(tmp_path / "song")
    assert found.shape[1] == pytest.approx(4 * 48000, abs=20000)
    torch.testing.assert_close(found[:, :60000], whole[:, :60000])


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_before_its_first_sound_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "song", noise(2, 48000), 48000, Encoding(name))
    (tmp_path / "song").write_bytes((tmp_path / "song").read_bytes()[:50])
    with pytest.raises(AudioError, match="song: "):
        read(tmp_path / "song")


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "song.m4a", noise(2, 48000), 48000, Encoding("m4a"))
    data = (tmp_path / "song.m4a").read_bytes()
    (tmp_path / "song.m4a").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="index is missing"):
        Reader(tmp_path / "song.m4a")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"This is no song.\n" * 500, "not audio"),
        (bytes(5000), "not audio"),
        (np.random.default_rng(1).bytes(5000), "song.mp3: "),
        # Playlists must not make us open other files.
        (b"ffconcat version 1.0\nfile other.wav\n", "not audio"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.wav\n#EXT-X-ENDLIST\n", "not audio"),
    ],
)
def test_what_is_no_song_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    write(tmp_path / "other.wav", noise(1, 1000), 44100)
    (tmp_path / "song.mp3").write_bytes(content)
    with pytest.raises(AudioError, match=sentence):
        read(tmp_path / "song.mp3")


def test_a_locked_song_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "song.m4a", noise(2, 48000), 48000, Encoding("m4a"))
    # The name that a bought song of old carries in place of its codec's.
    (tmp_path / "song.m4a").write_bytes(
        (tmp_path / "song.m4a").read_bytes().replace(b"mp4a", b"drms").replace(b"esds", b"free")
    )
    with pytest.raises(AudioError, match=r"song.m4a: cannot be decoded"):
        read(tmp_path / "song.m4a")


def test_places_without_a_song_are_told(tmp_path: Path) -> None:
    for path, sentence in {
        tmp_path / "missing.mp3": "no such file",
        tmp_path: "folder, not a file",
        tmp_path / ("x" * 300): "cannot be opened",
        tmp_path / "a\0b": "cannot be opened",
    }.items():
        with pytest.raises(AudioError, match=sentence):
            Reader(path)


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "song").write_bytes(b"RIFF")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(AudioError, match="no permission"):
        Reader(tmp_path / "song")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux does")
def test_no_file_stays_open(tmp_path: Path) -> None:
    write(tmp_path / "song", noise(2, 5000), 48000, Encoding("flac"))
    (tmp_path / "broken").write_bytes(b"fLaC" + bytes(100))
    (tmp_path / "text").write_bytes(b"no song" * 100)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with Reader(tmp_path / "song", block=100) as reader:
            next(reader.blocks())
        for name in ("broken", "text"):
            with pytest.raises(AudioError):
                read(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("more", [b"", b"LIST\x1a\0\0\0INFOINAM\x0e\0\0\0Never a sound\0", b"JUNK\4\0\0\0\1\2\3\4"])
def test_a_wav_of_no_samples_is_a_song(tmp_path: Path, more: bytes) -> None:
    soundfile.write(tmp_path / "song", np.zeros((0, 2)), 44100, format="WAV")
    (tmp_path / "song").write_bytes((tmp_path / "song").read_bytes() + more)
    with Reader(tmp_path / "song") as reader:
        assert (reader.samples, list(reader.blocks()), reader.warnings) == (0, [], [])
    assert read(tmp_path / "song")[0].shape == (2, 0)


@pytest.mark.parametrize("size", [0, 36, 2**32 - 1, None])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_wav_whose_recorder_broke_off_is_whole(tmp_path: Path, size: int | None, subtype: str) -> None:
    song = noise(2, 5000)
    # Silence looks like chunks of no size.
    song[:, :100] = 0
    soundfile.write(tmp_path / "song", song.numpy().T, 44100, format="WAV", subtype=subtype)
    data = bytearray((tmp_path / "song").read_bytes())
    at = data.find(b"data") + 4
    data[at : at + 4] = bytes(4)
    if size is not None:
        data[4:8] = struct.pack("<I", size)
    (tmp_path / "song").write_bytes(data)
    found, warnings = drained(tmp_path / "song")
    torch.testing.assert_close(found, song, rtol=0, atol=2**-15)
    assert warnings == []


def test_a_wav_from_a_pipe_is_not_called_cut(tmp_path: Path) -> None:
    song = noise(2, 5000)
    soundfile.write(tmp_path / "song", song.numpy().T, 44100, format="WAV", subtype="FLOAT")
    data = bytearray((tmp_path / "song").read_bytes())
    at = data.find(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff" * 4
    (tmp_path / "song").write_bytes(data)
    found, warnings = drained(tmp_path / "song")
    assert torch.equal(found, song)
    assert warnings == []
