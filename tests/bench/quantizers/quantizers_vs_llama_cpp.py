#!/usr/bin/env python3
"""Our block quantizers beside llama.cpp's: the same F32 model, every matrix in the same format (llama-quantize
--pure), judged by retort-serve eval against the F32 file on the same text.

  quantizers_vs_llama_cpp.py --retort build/release/bin --llama-cpp DIR --data TEXT.jsonl [--teacher MODEL_FOLDER]

DIR holds llama-quantize. TEXT.jsonl: what scripts/quickstart --keep --data D leaves in D/texts/judged.jsonl.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

FORMATS = {"Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K": "Q5_K_S", "Q4_K": "Q4_K_S", "IQ4_NL": "IQ4_NL", "Q4_0": "Q4_0",
           "Q3_K": "Q3_K_S"}


def run(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def main():
    root = os.path.dirname(os.path.abspath(__file__)) + "/../../.."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retort", required=True)
    parser.add_argument("--llama-cpp", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", default=os.path.join(root, "scripts/demo-teacher/model"))
    parser.add_argument("--max-tokens", default="12000")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = os.path.join(folder, "recipe.yaml")
        with open(recipe, "w", encoding="utf-8") as out:
            out.write(f"version: 1\nteacher: {{model: {os.path.abspath(args.teacher)}}}\npasses:\n")
            for name in ["F32", *FORMATS]:
                out.write(f"  - export: {{file: {name}.gguf, format: {name}}}\n")
        students = os.path.join(folder, "out")
        run([os.path.join(args.retort, "retort-worker"), "run", recipe, "--out", students])
        whole = os.path.join(students, "F32.gguf")

        def judge(file):
            out = json.loads(run([os.path.join(args.retort, "retort-serve"), "eval", file, "--data", args.data, "--teacher",
                                  whole, "--max-tokens", args.max_tokens]))
            return out["perplexity"], out["kl_divergence"], out["top1_agreement"]

        print(f"F32: perplexity {judge(whole)[0]:.3f}\n")
        print("| format | bytes | perplexity | KL divergence | top-1 | llama.cpp: perplexity | KL divergence | top-1 "
              "| KL ratio |\n|---|---|---|---|---|---|---|---|---|")
        for name, theirs in FORMATS.items():
            ours, peer = os.path.join(students, name + ".gguf"), os.path.join(folder, name + ".gguf")
            run([os.path.join(args.llama_cpp, "llama-quantize"), "--pure", whole, peer, theirs])
            if os.path.getsize(ours) != os.path.getsize(peer):
                sys.exit(f"{name}: {os.path.getsize(ours)} bytes against {os.path.getsize(peer)}")
            (p, k, t), (pp, pk, pt) = judge(ours), judge(peer)
            print(f"| {name} | {os.path.getsize(ours):,} | {p:.3f} | {k:.5f} | {t:.1%} | {pp:.3f} | {pk:.5f} | {pt:.1%} "
                  f"| {k / pk:.3f} |", flush=True)


if __name__ == "__main__":
    main()
