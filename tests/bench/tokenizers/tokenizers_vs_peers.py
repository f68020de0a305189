#!/usr/bin/env python3
"""Token ids of mixed text against Hugging Face's tokenizers and llama.cpp: how many lines of how many agree.

    tests/bench/tokenizers/tokenizers_vs_peers.py --build build/release --npm FOLDER
        [--lines 10000] [TOKENIZER.json ...]

--npm: a folder where `npm install --ignore-scripts @anush008/tokenizers node-llama-cpp` was run: Hugging Face's Rust library,
and llama.cpp, which reads the GGUF files that we write. What is not there is left out. Each TOKENIZER.json is compared with both,
and small ones made here with the first: byte-level BPE with each splitting, unigram of each kind. Hugging Face's cannot be given
invalid UTF-8 and llama.cpp replaces it; expect.py beside the unit test checks that. docs/format.md lists where the two
differ from each other.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unicodedata

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "support"))
import make_tokenizers as make  # noqa: E402
import mixed_text  # noqa: E402


def run(command, lines, **more):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    start = time.monotonic()
    done = subprocess.run([str(c) for c in command], input=text, capture_output=True, text=True, check=False, **more)
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()], time.monotonic() - start


def report(name, peer, lines, ours, theirs):
    different = [i for i in range(len(lines)) if ours[i] != theirs[i]]
    print(f"{name:32} {peer:22} {len(lines) - len(different):6} of {len(lines)} agree")
    for i in different[:3]:
        print(f"    {lines[i][:200]!r}\n      ours   {ours[i][:60]}\n      theirs {theirs[i][:60]}")
    return len(different)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default="build/release")
    parser.add_argument("--npm", type=pathlib.Path)
    parser.add_argument("--lines", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("tokenizers", nargs="*", type=pathlib.Path)
    args = parser.parse_args()
    tool = args.build / "bin" / "encode_lines"
    lines = mixed_text.lines(args.lines, args.seed)
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        words = [w for line in mixed_text.lines(400, 99) for w in line.split()]
        spaced = [s + w for w in words for s in ("", " ")]
        table = make.charsmap(make.charsmap_rules())
        made = {
            "gpt2": make.byte_bpe(spaced, 300, dict(make.BYTE_LEVEL, use_regex=True)),
            "digits": make.byte_bpe(spaced, 300, make.DIGITS),
            "llama3": make.byte_bpe(spaced, 300, make.split(make.LLAMA3), ignore_merges=True),
            "qwen2": make.byte_bpe(spaced, 300, make.split(make.QWEN2), normalizer={"type": "NFC"}),
            "unigram": make.unigram(words, 600, table),
            "unigram-strip": make.unigram(words, 600, table, pre="strip"),
            "unigram-bytes": make.unigram(words, 600, None, byte_fallback=True),
        }
        files = []
        for name, value in made.items():
            (folder / name).mkdir()
            make.dump(value, folder / name / "tokenizer.json")
            files.append((name, folder / name / "tokenizer.json"))
        files += [(path.resolve().parent.name if path.resolve().parent.name != "models" else path.resolve().parent.parent.name, path)
                  for path in args.tokenizers]
        for name, path in files:
            gguf = folder / "vocabulary.gguf"
            ours, seconds = run([tool, path, gguf], lines)
            copy, _ = run([tool, gguf], lines)
            different += report(name, "our own GGUF", lines, copy, ours)
            size = sum(len(line.encode()) for line in lines)
            print(f"{name:32} {'':22} {size / 1e6:.1f} MB in {seconds:.2f} s with loading")
            if args.npm and (args.npm / "node_modules/@anush008/tokenizers").exists():
                theirs, _ = run(["node", HERE / "peer.mjs", path], lines,
                                env=dict(os.environ, RETORT_NPM_FOLDER=str(args.npm.resolve())))
                different += report(name, "Hugging Face", lines, ours, theirs)
            if path in args.tokenizers and args.npm and (args.npm / "node_modules/node-llama-cpp").exists():
                # It does not bring texts to NFC itself, as Qwen's tokenizer does.
                composed = [unicodedata.normalize("NFC", line) for line in lines]
                theirs, _ = run(["node", HERE / "llama_cpp.mjs", gguf], composed,
                                env=dict(os.environ, RETORT_NPM_FOLDER=str(args.npm.resolve())))
                bare, _ = run([tool, gguf, "--bare"], composed)
                different += report(name, "llama.cpp", composed, bare, theirs)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
