"""Compare our encoder and decoder with sonar-space's pipelines, at SONAR's full size.

Also compares float32 with int8 and, on processors with AVX512-BF16 or AMX, with bfloat16:
`--precision auto` may take bfloat16 there only if it is faster, concepts stay within 1e-4
(1 - cosine) and 99 % of the texts are the same.

Both use the same random weights of the official shapes (24 + 24 layers, 256,206 ids) and a
sentencepiece model padded to 256,000 pieces. Runs are interleaved; times are medians, and ratios
are computed within each round. Needs sonar-space, about 14 GB of memory and, on two cores, a
quarter of an hour:

    python benchmarks/space.py [--rounds 3] [--sentences 64] [--tokens 12] [--layers 24]
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lcm_cli.hub.locate import SpaceFiles
from lcm_cli.space import DecodeOptions, Space
from lcm_cli.space.sonar_package import import_sonar
from lcm_cli.text.languages import SONAR

PIECES = 256_000
BFLOAT16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # without either, it is slow
WORDS = [
    "the",
    "a",
    "little",
    "cat",
    "dog",
    "lion",
    "girl",
    "river",
    "house",
    "went",
    "saw",
    "asked",
]
WORDS += ["and", "then", "because", "under", "near", "with", "slowly", "happily", "morning", "food"]


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=12, help="generated tokens per sentence")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--only", choices=["encode", "decode"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tokenizer(folder / "tokenizer.model")
        if options.only in (None, "encode"):
            bench_encode(folder, options)
        if options.only in (None, "decode"):
            bench_decode(folder, options)


def make_tokenizer(path: Path) -> None:
    """Train a small sentencepiece model and pad it with unused pieces."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    rng = random.Random(0)
    sentences = (" ".join(rng.choices(WORDS, k=12)) for _ in range(2000))
    prefix = str(path.with_suffix(""))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_prefix=prefix, vocab_size=100, hard_vocab_limit=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    for number in range(len(proto.pieces), PIECES):
        proto.pieces.add(piece=f"▁unused{number}", score=-100.0)
    path.write_bytes(proto.SerializeToString())


def sonar_config(layers: int) -> dict[str, object]:
    """Return the common options of sonar-space's "basic" encoder and decoder."""
    from fairseq2.data.tokenizers import VocabularyInfo

    return {
        "model_dim": 1024,
        "max_seq_len": 512,
        "vocab_info": VocabularyInfo(PIECES + 206, unk_idx=1, bos_idx=2, eos_idx=3, pad_idx=1),
        "num_encoder_layers": layers,
        "num_decoder_layers": layers,
        "num_encoder_attn_heads": 16,
        "num_decoder_attn_heads": 16,
        "ffn_inner_dim": 8192,
    }


def sonar_tokenizer(path: Path) -> object:
    """Load fairseq2's tokenizer with SONAR's languages."""
    from fairseq2.models.nllb.tokenizer import NllbTokenizerConfig, load_nllb_tokenizer

    return load_nllb_tokenizer(
        path, NllbTokenizerConfig(langs=list(SONAR), default_lang="eng_Latn")
    )


def save_part(folder: Path, part: str, network: torch.nn.Module) -> None:
    """Write the weights of sonar-space's network as one part of a space folder."""
    from safetensors.torch import save_file

    state = {k: v for k, v in network.state_dict().items() if not k.startswith("final_proj")}
    save_file(state, folder / f"{part}.safetensors")


def open_space(folder: Path, layers: int, precision: str) -> Space:
    """Open the folder as a space."""
    shape = {"layers": layers, "model_dim": 1024, "heads": 16, "ffn_dim": 8192}
    shape["vocabulary"] = PIECES + 206
    config = {"languages": SONAR, "encoder": shape, "decoder": {**shape, "concept_dim": 1024}}
    parts = (folder / "encoder.safetensors", folder / "decoder.safetensors")
    files = SpaceFiles("random", config, *parts, folder / "tokenizer.model", "none")
    return Space(files, torch.device("cpu"), precision, None)


def open_spaces(folder: Path, layers: int) -> dict[str, Space]:
    """Open the folder in each precision that this processor is fast in."""
    fast = any(getattr(torch.cpu, name, bool)() for name in BFLOAT16)
    precisions = ("float32", *(["bfloat16"] if fast else []), "int8")
    return {precision: open_space(folder, layers, precision) for precision in precisions}


def texts(count: int) -> list[str]:
    """Return sentences of 4 to 40 words."""
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=rng.randint(4, 40))) for _ in range(count)]


def bench_encode(folder: Path, options: argparse.Namespace) -> None:
    """Time encoding: sonar-space's pipeline (default batch size, 5), ours in each precision."""
    import_sonar()
    from sonar.inference_pipelines.text import TextToEmbeddingModelPipeline
    from sonar.models.sonar_text import SonarTextEncoderConfig, SonarTextEncoderFactory

    config = SonarTextEncoderConfig(
        **sonar_config(options.layers), pooling="mean", _from_fairseq=True
    )
    network = SonarTextEncoderFactory(config).create_model().eval()
    save_part(folder, "encoder", network)
    stock = TextToEmbeddingModelPipeline(network, sonar_tokenizer(folder / "tokenizer.model"))
    spaces = open_spaces(folder, options.layers)
    sentences = texts(options.sentences)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "sonar-space": lambda: stock.predict(sentences, source_lang="eng_Latn"),
        **{p: lambda s=s: torch.from_numpy(s.encode(sentences, "eng_Latn").concepts)
           for p, s in spaces.items()},
    }  # fmt: skip
    found = {name: run() for name, run in runs.items()}
    report("encode", measure(runs, options.rounds))
    print(
        f"  float32: max abs difference {(found['float32'] - found['sonar-space']).abs().max():.1e}"
    )
    for name in spaces:
        cosine = torch.cosine_similarity(found[name].double(), found["float32"].double())
        print(f"  {name}: largest 1 - cosine to float32 {1 - cosine.min():.1e}")
    bench_memory(folder, options)


def bench_decode(folder: Path, options: argparse.Namespace) -> None:
    """Time decoding, beam 5: sonar-space's pipeline (batch size 5), ours in each precision."""
    import_sonar()
    from sonar.inference_pipelines.text import EmbeddingToTextModelPipeline
    from sonar.models.sonar_text import SonarTextDecoderConfig, SonarTextDecoderFactory

    config = SonarTextDecoderConfig(
        **sonar_config(options.layers), activation_fn="ReLU", no_scale_embedding=False,
        no_token_positional_embeddings=False, learned_pos=False, emb_dropout_p=0.1,
        attention_dropout_p=0.1, activation_dropout_p=0.1, normalize_before=True,
    )  # fmt: skip
    network = SonarTextDecoderFactory(config).create_model().eval()
    save_part(folder, "decoder", network)
    stock = EmbeddingToTextModelPipeline(network, sonar_tokenizer(folder / "tokenizer.model"))
    concepts = torch.randn(options.sentences, 1024, generator=torch.Generator().manual_seed(0))
    limits = [options.tokens] * len(concepts)
    spaces = open_spaces(folder, options.layers)

    def ours(space: Space) -> list[str]:
        found = space.decode(concepts.numpy(), ["fra_Latn"], DecodeOptions(beam=5), limits=limits)
        return [best[0].text for best in found["fra_Latn"]]

    runs: dict[str, Callable[[], list[str]]] = {
        "sonar-space": lambda: stock.predict(
            concepts, target_lang="fra_Latn", beam_size=5, max_seq_len=options.tokens + 2
        ),
        **{p: lambda s=s: ours(s) for p, s in spaces.items()},
    }
    found = {name: run() for name, run in runs.items()}
    report("decode, beam 5", measure(runs, options.rounds))
    for name in spaces:
        same = sum(a == b for a, b in zip(found[name], found["sonar-space"], strict=True))
        print(f"  {name}: {same} of {len(limits)} texts equal to sonar-space's")
        same = sum(a == b for a, b in zip(found[name], found["float32"], strict=True))
        print(f"  {name}: {same} of {len(limits)} texts equal to those of float32")


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time each run once per round, alternately; each must have run once before."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(title: str, seconds: dict[str, list[float]]) -> None:
    """Print median times, and the median speed relative to the first run in the same round."""
    print(f"{title} ({torch.get_num_threads()} threads, torch {torch.__version__})")
    base = next(iter(seconds.values()))
    for name, times in seconds.items():
        ratio = statistics.median(b / t for b, t in zip(base, times, strict=True))
        print(f"  {name:12} {statistics.median(times):8.2f} s   {ratio:5.2f}x", flush=True)


MEMORY = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
from space import open_space, texts
space = open_space(Path(sys.argv[1]), int(sys.argv[2]), "float32")
space.encode(texts(64), "eng_Latn")
status = Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


def bench_memory(folder: Path, options: argparse.Namespace) -> None:
    """Print the peak resident memory of encoding 64 sentences, against the size of the weights."""
    weights = (folder / "encoder.safetensors").stat().st_size
    command = [sys.executable, "-c", MEMORY, str(folder), str(options.layers)]
    kilobytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak = int(kilobytes) * 1024
    print(f"  float32: peak memory {peak / 1e9:.2f} GB, weights {weights / 1e9:.2f} GB, "
          f"ratio {peak / weights:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
