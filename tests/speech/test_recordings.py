"""Recordings: the formats that are read, resampling, streaming, and the errors for bad files."""

import subprocess
import sys

import numpy as np
import pytest

from lcm_cli.documents import read
from lcm_cli.documents.recording import RATE
from lcm_cli.errors import IntegrityError, UsageError

soundfile = pytest.importorskip("soundfile")


def tone(seconds, rate=RATE, pitch=440.0):
    times = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * pitch * times)).astype(np.float32)


def recording(path):
    (document,) = read([str(path)])
    return document.recording


def samples(path):
    return np.concatenate(list(recording(path).blocks()))


@pytest.fixture
def write(tmp_path):
    def write(name, samples, rate=RATE, **options):
        path = tmp_path / name
        soundfile.write(path, samples, rate, **options)
        return path

    return write


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff"])
def test_each_format_gives_the_samples(write, name):
    found = samples(write(name, tone(2)))
    assert found.dtype == np.float32
    assert abs(len(found) - 2 * RATE) < 0.1 * RATE  # mp3 and Vorbis pad
    middle = found[RATE // 2 : RATE]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / 2**0.5, rel=0.02)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(write, rate):
    path = write("a.wav", tone(25, rate), rate, subtype="FLOAT")  # three blocks
    found = samples(path)
    assert abs(len(found) - 25 * RATE) <= 1
    inner = slice(RATE, -RATE)
    assert np.abs(found[: 25 * RATE] - tone(25)[: len(found)])[inner].max() < 1e-3


def test_a_pitch_over_half_the_rate_is_removed(write):
    found = samples(write("a.wav", tone(2, 48_000, 10_000), 48_000, subtype="FLOAT"))
    assert np.abs(found[RATE // 2 : -RATE // 2]).max() < 1e-3


def test_channels_are_averaged(write):
    both = np.stack([tone(1), -tone(1)], axis=1)
    assert np.abs(samples(write("a.wav", both))).max() < 1e-4


def test_the_content_decides_over_the_name(write, tmp_path):
    path = write("a.flac", tone(1)).rename(tmp_path / "a.wav")
    assert len(samples(path)) == RATE
    path = path.rename(tmp_path / "a.txt")
    assert len(samples(path)) == RATE


def test_one_sample_and_eight_kilohertz_are_read(write):
    assert len(samples(write("a.wav", tone(1)[:1]))) == 1
    assert len(samples(write("b.wav", tone(1, 8_000), 8_000))) == RATE


def test_a_recording_without_samples_is_an_error(write):
    with pytest.raises(IntegrityError, match="no samples"):
        recording(write("a.wav", tone(0)))


def test_an_empty_file_is_an_error(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(IntegrityError, match="is empty"):
        recording(tmp_path / "a.wav")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_an_error_with_their_time(write, bad):
    sound = tone(12)
    sound[RATE * 11] = bad
    with pytest.raises(IntegrityError, match=r"not finite, from 11\.00 s"):
        samples(write("a.wav", sound, subtype="FLOAT"))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_a_truncated_file_is_an_error(write, name):
    path = write(name, tone(20))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(IntegrityError, match=r"cut off|cannot be decoded"):
        samples(path)


def test_a_truncated_mp3_file_is_an_error_that_gives_the_durations(write):
    path = write("a.mp3", tone(20))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    with pytest.raises(IntegrityError, match=r"cut off: it has 5\.0 of 20\.0 s"):
        recording(path)


def test_the_length_of_an_mp3_file_without_a_header_is_found_by_reading(write):
    # Its bit rate rises, so that the length estimated from its beginning is too large.
    noise = np.random.default_rng(0).uniform(-1, 1, 20 * RATE).astype(np.float32)
    sound = np.concatenate([np.zeros(20 * RATE, np.float32), noise])
    path = write("a.mp3", sound, bitrate_mode="VARIABLE", compression_level=0)
    data = path.read_bytes()
    path.write_bytes(data[data.index(b"\xff\xf3", 4) :])  # without the frame of the Xing header
    assert recording(path).seconds > 60
    assert abs(len(samples(path)) - len(sound)) < RATE / 2


def test_text_under_an_audio_name_is_an_error(tmp_path):
    (tmp_path / "a.wav").write_text("These are words.")
    with pytest.raises(IntegrityError, match="is not an audio file, despite its name"):
        recording(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\0\0\0\x20ftypisom", "an MP4 file"),
        (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
        (b"RIFF\0\0\0\0AVI ", "a media file"),
    ],
)
def test_video_is_refused_with_the_command_that_extracts_its_sound(tmp_path, head, what):
    (tmp_path / "film").write_bytes(head + bytes(100))
    with pytest.raises(IntegrityError, match=what) as caught:
        recording(tmp_path / "film")
    assert "ffmpeg" in caught.value.hint


def test_an_unknown_codec_is_an_error(write):
    path = write("a.wav", tone(1))
    data = bytearray(path.read_bytes())
    data[20:22] = b"\x77\x77"  # the tag of the codec
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="cannot be decoded") as caught:
        recording(path)
    assert "ffmpeg" in caught.value.hint


def test_a_missing_package_is_named_with_the_extra(write, monkeypatch):
    path = write("a.wav", tone(1))
    monkeypatch.setitem(sys.modules, "soundfile", None)  # importing it fails
    with pytest.raises(UsageError, match="needs the package soundfile") as caught:
        recording(path)
    assert "lcm-cli[speech]" in caught.value.hint


def test_blocks_are_short_whatever_the_duration(write):
    path = write("a.flac", np.zeros(RATE * 600, np.float32))
    lengths = [len(block) for block in recording(path).blocks()]
    assert sum(lengths) == RATE * 600
    assert max(lengths) <= RATE * 10


def test_reading_text_imports_no_audio_package(tmp_path):
    (tmp_path / "a.txt").write_text("These are words.")
    code = (
        "import sys; from lcm_cli.documents import read; list(read([sys.argv[1]]));"
        "print([n for n in ('soundfile', 'soxr', 'silero_vad') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.txt"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
