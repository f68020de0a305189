#!/usr/bin/env python3
"""Trains the demo teacher's tokenizer: byte-level BPE with GPT-2's splitting, in plain Python.

    scripts/demo-teacher/train_tokenizer.py train.jsonl OUT_DIR [--vocabulary 4096]

Writes tokenizer.json and tokenizer_config.json in Hugging Face's layout. Byte pairs are counted over the distinct
words, weighted by how often each occurs, and the counts are kept up to date merge by merge (Sennrich et al.,
1508.07909, section 3.2). Ties are broken by the pair itself, so that the result is the same everywhere.
"""
import argparse
import collections
import heapq
import json
import os
import unicodedata

SPECIAL = "<|endoftext|>"


def byte_characters():
    """GPT-2's printable stand-ins for the 256 bytes."""
    kept = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, extra = {}, 0
    for byte in range(256):
        if byte in kept:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + extra)
            extra += 1
    return table


def kind(character):
    category = unicodedata.category(character)[0]
    return "s" if character.isspace() else category if category in "LN" else "o"


def split(text):
    """GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"""
    at, end = 0, len(text)
    while at < end:
        if text[at] == "'":
            for suffix in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"):
                if text.startswith(suffix, at):
                    yield suffix
                    at += len(suffix)
                    break
            else:
                suffix = None
            if suffix:
                continue
        start = at + 1 if text[at] == " " and at + 1 < end and kind(text[at + 1]) != "s" else at
        of = kind(text[start])
        if of != "s":
            stop = start + 1
            while stop < end and kind(text[stop]) == of:
                stop += 1
        else:
            stop = at + 1
            while stop < end and kind(text[stop]) == "s":
                stop += 1
            if stop < end and stop - at > 1:
                stop -= 1  # the last blank belongs to the word that follows
        yield text[at:stop]
        at = stop


def train(frequencies, merges_wanted):
    words = [(list(word), count) for word, count in sorted(frequencies.items())]
    counts, where = collections.Counter(), collections.defaultdict(set)
    for index, (symbols, count) in enumerate(words):
        for pair in zip(symbols, symbols[1:]):
            counts[pair] += count
            where[pair].add(index)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges = []
    while len(merges) < merges_wanted and heap:
        negative, pair = heapq.heappop(heap)
        if counts.get(pair, 0) != -negative:
            continue  # an old count: the pair was pushed again when it changed
        if -negative < 2:
            break
        merges.append(pair)
        joined, changed = pair[0] + pair[1], set()
        for index in where.pop(pair):
            symbols, count = words[index]
            for old in zip(symbols, symbols[1:]):
                counts[old] -= count
                changed.add(old)
            merged, at = [], 0
            while at < len(symbols):
                if at + 1 < len(symbols) and (symbols[at], symbols[at + 1]) == pair:
                    merged.append(joined)
                    at += 2
                else:
                    merged.append(symbols[at])
                    at += 1
            words[index] = (merged, count)
            for new in zip(merged, merged[1:]):
                counts[new] += count
                where[new].add(index)
                changed.add(new)
        for other in changed:
            if counts[other] > 0:
                heapq.heappush(heap, (-counts[other], other))
            else:
                del counts[other]
    return merges


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="JSONL with a 'text' member")
    parser.add_argument("out_dir")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--context", type=int, default=256)
    arguments = parser.parse_args()
    characters = byte_characters()
    spelled, frequencies = {}, collections.Counter()
    with open(arguments.corpus, encoding="utf-8") as lines:
        for line in lines:
            frequencies.update(split(json.loads(line)["text"]))
    for word, count in frequencies.items():
        spelled["".join(characters[byte] for byte in word.encode())] = count
    merges = train(spelled, arguments.vocabulary - 256 - 1)
    tokens = [SPECIAL] + sorted(characters.values()) + [a + b for a, b in merges]
    template = {"SpecialToken": {"id": SPECIAL, "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 0, "content": SPECIAL, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "TemplateProcessing", "single": [template, sequence],
                           "pair": [template, sequence, template, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {SPECIAL: {"id": SPECIAL, "ids": [0], "tokens": [SPECIAL]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
                  "vocab": {token: index for index, token in enumerate(tokens)},
                  "merges": [f"{a} {b}" for a, b in merges]},
    }
    config = {"tokenizer_class": "GPT2TokenizerFast", "bos_token": SPECIAL, "eos_token": SPECIAL,
              "add_bos_token": True, "add_eos_token": False, "model_max_length": arguments.context,
              "clean_up_tokenization_spaces": False}
    os.makedirs(arguments.out_dir, exist_ok=True)
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        with open(os.path.join(arguments.out_dir, name), "w", encoding="utf-8") as out:
            json.dump(content, out, ensure_ascii=False, indent=1)
            out.write("\n")
    print(f"{len(tokens)} tokens, {len(merges)} merges from {len(frequencies)} distinct words")


if __name__ == "__main__":
    main()
