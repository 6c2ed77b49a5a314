"""Train a small causal language model on stories, to measure mutual information (MI) offline.

    python benchmarks/story_lm.py STORIES.jsonl story-lm --minutes 10
    lcm evaluate ... --task next-concept --lm ./story-lm

Only documents of the split "train" are read. Needs the extra `judges` (transformers).
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

VOCABULARY, LENGTH, ROWS, END = 4000, 256, 8, "</s>"


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END
    )


def main() -> None:
    """Train for `--minutes`, over which the learning rate falls to zero."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stories", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=2e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    lines = [json.loads(line) for line in options.stories.open(encoding="utf-8")]
    texts = [" ".join(line["sentences"]) for line in lines if line["split"] == "train"]
    tokenizer = make_tokenizer(texts)
    end = tokenizer.eos_token_id
    rows = [[end, *row] for row in tokenizer(texts)["input_ids"]]
    flat = torch.tensor([token for row in rows for token in row])
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_positions=1024, n_embd=192, n_layer=4, n_head=4,
        bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    model = GPT2LMHeadModel(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1)
    begun, step = time.monotonic(), 0
    while (done := (time.monotonic() - begun) / 60 / options.minutes) < 1:
        starts = torch.randint(len(flat) - LENGTH, (ROWS,)).tolist()
        batch = torch.stack([flat[start : start + LENGTH] for start in starts])
        loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = options.rate * min(1, (step + 1) / 50) * (1 - done)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)
    print(f"{model.num_parameters():,} parameters, {step} steps, {len(flat):,} tokens of text")


if __name__ == "__main__":
    main()
