#!/usr/bin/env python3
"""Writes cases.json: small tokenizers, texts, and the ids that follow from the definitions, by the standard library
alone and slowly: the splitting patterns by `re` with its classes spelled out, merges and unigram sums by trying all.

usage: tests/unit/tokenizer/expect.py
"""
import json
import pathlib
import random
import re
import sys
import unicodedata

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "support"))
import make_tokenizers as make  # noqa: E402
import mixed_text  # noqa: E402


def spelled(kinds):
    """Inside of a character class: all characters whose category begins with one of `kinds`."""
    out, start = [], None
    for c in range(0x110001):
        inside = c < 0x110000 and unicodedata.category(chr(c))[0] in kinds
        if inside and start is None:
            start = c
        elif not inside and start is not None:
            out.append(f"\\U{start:08x}-\\U{c - 1:08x}")
            start = None
    return "".join(out)


SPACE = "\\t\\n\\v\\f\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
LETTER, NUMBER = spelled("L"), spelled("N")


def compiled(pattern):
    out, inside = "", False
    i = 0
    while i < len(pattern):
        for text, letters in (("\\p{L}", LETTER), ("\\p{N}", NUMBER), ("\\s", SPACE)):
            if pattern.startswith(text, i):
                out += letters if inside else f"[{letters}]"
                i += len(text)
                break
        else:
            if pattern.startswith("\\S", i):
                out += f"[^{SPACE}]"
                i += 2
                continue
            if pattern[i] in "[]":
                inside = pattern[i] == "["
            out += pattern[i]
            i += 1
    return re.compile(out)


PATTERNS = {name: compiled(p) for name, p in (("gpt2", make.GPT2), ("llama3", make.LLAMA3), ("qwen2", make.QWEN2))}
DIGIT = re.compile(f"([{NUMBER}])")


def words_of(kind, text):
    if kind != "digits":
        return PATTERNS[kind].findall(text)
    return [w for part in DIGIT.split(text) if part
            for w in ([part] if DIGIT.fullmatch(part) else PATTERNS["gpt2"].findall(part))]


def added_split(tokens, text):
    """Parts of `text`: str, or a token's id. Leftmost, longest; as Hugging Face's AddedVocabulary."""
    by_text = sorted(tokens, key=lambda t: -len(t["content"]))
    out, begin, at = [], 0, 0
    while at < len(text):
        hit = next((t for t in by_text if text.startswith(t["content"], at)), None)
        if hit is None:
            at += 1
            continue
        left, right = at, at + len(hit["content"])
        at = right
        if hit["single_word"] and (re.match(r"\w", text[left - 1:left]) or re.match(r"\w", text[right:])):
            continue
        while hit["lstrip"] and left > begin and re.match(f"[{SPACE}]", text[left - 1]):
            left -= 1
        while hit["rstrip"] and right < len(text) and re.match(f"[{SPACE}]", text[right]):
            right += 1
        out += [text[begin:left], hit["id"]]
        begin = right
        at = max(at, right)
    return [part for part in out + [text[begin:]] if part != ""]


def bpe(model, word, table):
    written = "".join(table[b] for b in word.encode("utf-8", "surrogateescape"))
    if model["ignore_merges"] and written in model["vocab"]:
        return [model["vocab"][written]]
    ranks = {tuple(pair): i for i, pair in enumerate(model["merges"])}
    symbols = list(written)
    while True:
        best = min(((ranks[p], i) for i, p in enumerate(zip(symbols, symbols[1:])) if p in ranks), default=None)
        if best is None:
            return [model["vocab"][s] for s in symbols]
        i = best[1]
        symbols[i:i + 2] = [symbols[i] + symbols[i + 1]]


def unigram(model, special, word):
    pieces = {p: (s, i) for i, (p, s) in enumerate(model["vocab"]) if i not in special and not re.fullmatch("<0x..>", p)}
    unknown = min([0.0] + [s for s, _ in pieces.values()]) - 10
    best = [(0.0, None, None)] + [None] * len(word)
    for at in range(len(word)):
        if best[at] is None:
            continue
        for end in range(at + 1, len(word) + 1):
            found = pieces.get(word[at:end])
            if found is None and end > at + 1:
                continue
            score, number = found or (unknown, None)
            if best[end] is None or best[at][0] + score > best[end][0]:
                best[end] = (best[at][0] + score, at, number)
    cuts, end = [], len(word)
    while end:
        _, at, number = best[end]
        if number is None and cuts and cuts[-1][1] is None:
            cuts[-1] = (word[at:end] + cuts[-1][0], None)
        else:
            cuts.append((word[at:end], number))
        end = at
    byte_ids = {p: i for i, (p, _) in enumerate(model["vocab"]) if re.fullmatch("<0x..>", p)}
    out = []
    for text, number in reversed(cuts):
        if number is not None:
            out.append(number)
        elif model["byte_fallback"]:
            out += [byte_ids[f"<0x{b:02X}>"] for b in text.encode("utf-8", "surrogateescape")]
        else:
            out.append(model["unk_id"])
    return out


def encode(kind, tokenizer, rules, data):
    text = data.decode("utf-8", "surrogateescape")
    raw = [t for t in tokenizer["added_tokens"] if not t["normalized"]]
    late = [t for t in tokenizer["added_tokens"] if t["normalized"]]
    model = tokenizer["model"]
    table = make.byte_characters()
    out = []
    for part in added_split(raw, text):
        if isinstance(part, int):
            out.append(part)
            continue
        if kind == "qwen2":
            part = unicodedata.normalize("NFC", part)
        if rules:
            part = "".join(rules.get(c.encode("utf-8", "surrogateescape"), c.encode("utf-8", "surrogateescape"))
                           .decode("utf-8", "surrogateescape") for c in part)
        def normal(t):
            content = t["content"]
            if rules:
                content = "".join(rules.get(c.encode(), c.encode()).decode() for c in content)
            return dict(t, content=content)
        for piece in added_split([normal(t) for t in late], part):
            if isinstance(piece, int):
                out.append(piece)
            elif "merges" in model:
                for word in words_of(kind, piece):
                    out += bpe(model, word, table)
            else:
                for word in re.split(f"[{SPACE}]+", piece):
                    for run in re.findall("\u2581[^\u2581]*|^[^\u2581]+", word and (word if word[0] == "\u2581" else "\u2581" + word)):
                        out += unigram(model, {t["id"] for t in tokenizer["added_tokens"]}, run)
    return out if "merges" in model else out + [1]


def plain(line):
    """No character that joins others to a grapheme: the standard library cannot find graphemes."""
    return not any(unicodedata.category(c)[0] == "M" or unicodedata.category(c) == "Cf" or ord(c) in (0xE33, 0xEB3)
                   or 0x1F1E6 <= ord(c) <= 0x1F1FF or 0x1F3FB <= ord(c) <= 0x1F3FF or 0x1100 <= ord(c) <= 0x11FF
                   or 0xA960 <= ord(c) <= 0xA97F or 0xD7B0 <= ord(c) <= 0xD7FF for c in line)


def main():
    words = [w for line in mixed_text.lines(120, 7) for w in line.split() if len(w) < 30]
    spaced = [s + w for w in words for s in ("", " ")]
    rules = make.charsmap_rules((*range(1, 0x180), *range(0x2000, 0x2100), *range(0xFF00, 0xFF60)))
    tokenizers = {
        "gpt2": make.byte_bpe(spaced, 120, dict(make.BYTE_LEVEL, use_regex=True)),
        "digits": make.byte_bpe(spaced, 120, make.DIGITS),
        "llama3": make.byte_bpe(spaced, 120, make.split(make.LLAMA3), ignore_merges=True),
        "qwen2": make.byte_bpe(spaced, 120, make.split(make.QWEN2), normalizer={"type": "NFC"}),
        "unigram": make.unigram(words, 200, make.charsmap(rules)),
        "unigram-bytes": make.unigram(words, 200, None, byte_fallback=True),
    }
    rng = random.Random(3)
    lines = [line for line in mixed_text.lines(400, 11) if len(line) < 200]
    cases = []
    for kind, tokenizer in tokenizers.items():
        for i, line in enumerate(lines[:55]):
            data = line.encode() if i % 3 or kind.startswith("unigram") else mixed_text.broken(line, rng)
            if kind.startswith("unigram") and not plain(line):
                continue
            ids = encode(kind, tokenizer, rules if kind == "unigram" else None, data)
            cases.append({"tokenizer": kind, "bytes": data.decode("latin-1"), "ids": ids})
    with open(HERE / "cases.json", "w", encoding="utf-8") as out:
        out.write('{"tokenizers": ' + json.dumps(tokenizers) + ',\n"cases": [\n')
        out.write(",\n".join(json.dumps(case) for case in cases) + "\n]}\n")


if __name__ == "__main__":
    main()
