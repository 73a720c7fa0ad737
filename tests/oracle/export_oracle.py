#!/usr/bin/env python3
"""Holds an exported model against Hugging Face's implementation of DeepSeek-V4.

Test-only; needs the PyPI packages `torch`, `transformers` (5.17 or newer), `safetensors` and
`numpy`: some gigabytes, so it is no part of the test suite. What it printed last is in
bench/results/2026-11-24-export-oracle.md.

  tests/oracle/export_oracle.py --hadal build/hadal

A small model of random weights is written as a training checkpoint, by this script and from the
description in docs/formats/training_checkpoint.md alone, exported with `hadal export`, and run by
both sides in f32 over sequences long enough for every kind of layer. Exit status 1 when they
differ by more than --tolerance, 77 when a package is missing.

Tolerance. Both compute the same formulas from the same weights (bf16 values, exact in f32), in
sums of another order: at most 512 terms (relative 512 * 2^-24 = 3e-5, in practice its square root,
1.3e-6) over 5 layers of 2 sublayers that add up. 2e-5 of the largest logit leaves a factor of
7 over what was measured. A choice that flips (an expert, a selected entry) would show as 1e-2 and more.
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file
except ImportError as missing:
    print(f"export_oracle: {missing}", file=sys.stderr)
    sys.exit(77)

CONFIG = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": 256,
    "hidden_size": 128,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 5,
    "num_hash_layers": 1,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "q_lora_rank": 128,
    "head_dim": 128,
    "qk_rope_head_dim": 64,
    "o_groups": 2,
    "o_lora_rank": 64,
    "sliding_window": 48,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "max_position_embeddings": 1024,
    "index_n_heads": 16,
    "index_head_dim": 128,
    "index_topk": 24,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def hadal(binary, *arguments):
    subprocess.run([binary, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def random_masters(binary, config, scratch, rng):
    """Names and shapes from `hadal synthesize`, values from `rng`."""
    (scratch / "config.json").write_text(json.dumps(config))
    hadal(binary, "synthesize", "--config", scratch / "config.json", "--out", scratch / "synthetic",
          "--mtp", config["num_nextn_predict_layers"])
    hadal(binary, "quantize", "-m", scratch / "synthetic", "-o", scratch / "plain",
          "--format", "f32")
    masters = {}
    for file in sorted((scratch / "plain").glob("*.safetensors")):
        masters.update(load_file(file))
    for name, value in masters.items():
        if name.endswith("tid2eid"):
            masters[name] = value.astype(np.int32)
            continue
        noise = rng.standard_normal(value.shape).astype(np.float32)
        if "norm" in name:
            masters[name] = 1 + 0.1 * noise
        elif name.endswith(("scale", "base", "sink", "ape", "bias")):
            masters[name] = 0.3 * noise
        else:
            masters[name] = noise / np.sqrt(value.shape[-1], dtype=np.float32)
    return masters


def write_training_checkpoint(directory, config, masters, step):
    """docs/formats/training_checkpoint.md."""
    directory.mkdir(parents=True)

    def described(name):
        data = (directory / name).read_bytes()
        return {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    save_file(masters, directory / "tensors-00001-of-00001.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "state.json").write_text(json.dumps({
        "format": "hadal training checkpoint",
        "version": 1,
        "step": step,
        "weight_format": "f32",
        "progress": {"tokens": 0, "step": step, "indexer_steps": 0},
        "loader": {"version": 1, "seed": "1", "documents": 1, "tokens": 1, "alignment": 1,
                   "window_documents": 1, "window_tokens": 1, "epoch": 0, "next_document": 0,
                   "windows": [], "samples": 0, "inputs": 0, "targets": 0},
        "spikes": {"log_losses": [], "gradient_norms": [], "was_high": False},
        "anticipatory_steps": 0,
        "choices_ahead": 0,
        "in_warmup": False,
        "identity": {},
        "extra": {},
    }))
    (directory / "manifest.json").write_text(json.dumps({
        "format": "hadal training checkpoint manifest",
        "version": 1,
        "step": step,
        "state": described("state.json"),
        "config": described("config.json"),
        "tensors": [described("tensors-00001-of-00001.safetensors")],
    }))


def compare(binary, hca_ratio, yarn, tolerance):
    config = dict(CONFIG, compress_ratios=[0, 4, hca_ratio, 4, 0, 0])
    if yarn:
        config["rope_scaling"] = {"type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1,
                                  "original_max_position_embeddings": 64}
    rng = np.random.default_rng(2026)
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        masters = random_masters(binary, config, scratch, rng)
        write_training_checkpoint(scratch / "run/checkpoints/step-00000003", config, masters, 3)
        exported = scratch / "exported"
        hadal(binary, "export", scratch / "run", exported, "--format", "bf16")

        ids = rng.integers(0, config["vocab_size"], (2, 300)).astype(np.int32)
        save_file({"input_ids": ids}, scratch / "ids.safetensors")
        hadal(binary, "logits", "-m", exported, "--numerics", "fp32",
              "--input", scratch / "ids.safetensors", "--output", scratch / "logits.safetensors")
        ours = load_file(scratch / "logits.safetensors")["logits"]

        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            exported, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        problems = {key: sorted(value)[:5] for key, value in info.items() if value}
        with torch.no_grad():
            theirs = model(torch.from_numpy(ids).long(), use_cache=False).logits.numpy()
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    agree = (ours.argmax(-1) == theirs.argmax(-1)).mean()
    print(f"HCA ratio {hca_ratio}, {'YaRN' if yarn else 'no YaRN'}: {type(model).__name__}, "
          f"{len(masters)} masters, logits {ours.shape}, largest {np.abs(theirs).max():.3f}, "
          f"difference {difference:.2e} of it, argmax equal {100 * agree:.2f} %, "
          f"loading {problems or 'clean'}")
    return difference <= tolerance and agree == 1 and not problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hadal", required=True)
    parser.add_argument("--tolerance", type=float, default=2e-5)
    arguments = parser.parse_args()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    results = [compare(arguments.hadal, ratio, yarn, arguments.tolerance)
               for ratio, yarn in ((128, False), (128, True), (16, False))]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
