"""Features of speech: log mel energies as in Kaldi, normalized for each utterance.

They equal those of sonar-space's pipeline, that is of fairseq2's WaveformToFbankConverter with 80
mel bands, waveforms scaled by 2^15 and standardized bands, whose computation is Kaldi's: windows of
25 ms every 10 ms, mean removed, pre-emphasis 0.97, a Povey window, the power spectrum, and
triangular mel bands from 20 Hz to 8 kHz.

Shapes: S samples, T steps of 10 ms, W samples of a window, B mel bands.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

RATE = 16_000  # samples a second
STEP = 160  # samples from one window to the next
WINDOW = 400
_FFT = 512  # the next power of two
_LOWEST = 20.0  # Hz, of the first mel band
_PRE_EMPHASIS = 0.97
_SCALE = 2.0**15  # Kaldi's samples are 16-bit integers
_FLOOR = torch.finfo(torch.float32).eps  # of an energy


def steps(samples: int) -> int:
    """Return the number of steps in a waveform: windows that lie completely within it."""
    return max(0, 1 + (samples - WINDOW) // STEP)


def log_mel(waveform_S: Tensor, bins: int) -> Tensor:
    """Return log mel energies (T, B) of samples between -1 and 1 at 16 kHz."""
    frames_TW = (waveform_S * _SCALE).unfold(0, WINDOW, STEP)
    frames_TW = frames_TW - frames_TW.mean(dim=1, keepdim=True)
    # The first sample of a window has no predecessor: Kaldi takes the sample itself.
    before_TW = torch.cat([frames_TW[:, :1], frames_TW[:, :-1]], dim=1)
    frames_TW = (frames_TW - _PRE_EMPHASIS * before_TW) * _povey(waveform_S.device)
    # In float64: where terms nearly cancel, float32 would lose the third digit of an energy.
    power = torch.fft.rfft(frames_TW.double(), n=_FFT).abs().square().float()
    energies_TB = power[:, :-1] @ _mel_bands(bins, waveform_S.device)
    return energies_TB.clamp(min=_FLOOR).log()


def features(waveform_S: Tensor, bins: int = 80, stride: int = 2) -> Tensor:
    """Return the frames (T // stride, stride * B) that a speech encoder reads.

    Each band has mean 0 and variance 1 over the utterance. Steps that do not fill a frame are left
    out. The waveform must have at least two steps.
    """
    mel_TB = log_mel(waveform_S, bins)
    variance, mean = torch.var_mean(mel_TB, dim=0)
    # A band without any variance, which fairseq2 would turn into NaN, becomes 0.
    mel_TB = (mel_TB - mean) / variance.sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    frames = len(mel_TB) // stride
    return mel_TB[: frames * stride].view(frames, stride * bins)


def pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return rows of frames as one tensor (N, L, F), padded with zeros, and their lengths (N,)."""
    lengths_N = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), lengths_N


@cache
def _povey(device: torch.device) -> Tensor:
    window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64)
    return window.pow(0.85).float().to(device)


@cache
def _mel_bands(bins: int, device: torch.device) -> Tensor:
    """Return the weights (FFT / 2, B) of triangular bands, equally wide on the mel scale."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * (1.0 + hertz / 700.0).log()

    limits = mel(torch.tensor([_LOWEST, RATE / 2], dtype=torch.float64))
    width = (limits[1] - limits[0]) / (bins + 1)
    left_B = limits[0] + width * torch.arange(bins)
    points = mel(torch.arange(_FFT // 2, dtype=torch.float64) * RATE / _FFT)[:, None]
    rising, falling = (points - left_B) / width, (left_B + 2 * width - points) / width
    return torch.minimum(rising, falling).clamp(min=0).float().to(device)
