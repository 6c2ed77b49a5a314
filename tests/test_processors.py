"""The numbers hold on other processors: on kernels for older ones, with one thread and with two.

Arithmetic libraries choose their kernels by what the processor knows. These variables choose for
them, and each was seen to change bits: of torch's own kernels, of oneDNN's (packed layers), of
MKL's (matrix products) and of OpenBLAS's (numpy's products). `make test` is the run with
the processor's own kernels and all of its threads.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
NUMERIC = [  # what compares float32 numbers, and texts that hang on them
    "tests/models",
    "tests/evaluation/test_next_concept.py",
    "tests/space/test_parity.py",
    "tests/space/test_space.py",
    "tests/transfer/test_sonar_converter.py",
    "tests/test_pipeline.py",
    "tests/writing/test_answer_model.py",
    "tests/writing/test_summarize.py",
    "tests/space/test_fragility.py",
    "tests/training/trainers/test_token_loss.py",
]
OLDEST = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Prescott",
    "OMP_NUM_THREADS": "1",
}
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "OMP_NUM_THREADS": "2",
}
HAS_AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernels",
    [
        pytest.param(OLDEST, id="oldest"),
        pytest.param(AVX2, id="avx2", marks=pytest.mark.skipif(not HAS_AVX2, reason="no AVX2")),
    ],
)
def test_numbers_hold_with_other_kernels(kernels: dict[str, str]) -> None:
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *NUMERIC]
    done = subprocess.run(
        call, cwd=ROOT, env=os.environ | kernels, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
