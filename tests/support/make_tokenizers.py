"""Small tokenizer.json files made from nothing but the standard library: byte-level BPE with each splitting, and
unigram models with a precompiled charsmap, byte fallback and added tokens of every kind."""
import base64
import collections
import json
import struct
import unicodedata

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def split(pattern):
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        dict(BYTE_LEVEL, use_regex=False)]}


DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, dict(BYTE_LEVEL, use_regex=True)]}


def byte_characters():
    printable = [b for b in range(256) if 33 <= b <= 126 or 0xA1 <= b <= 0xAC or b >= 0xAE]
    table, extra = {}, 256
    for b in range(256):
        table[b] = chr(b) if b in printable else chr(extra)
        extra += b not in printable
    return table


def added(token, number, **flags):
    return dict({"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False, "special": True}, **flags)


def train_bpe(words, merges):
    """The most frequent pair first [Sennrich 2016]; `words`: a count for each word, a tuple of symbols."""
    words = collections.Counter(words)
    out = []
    for _ in range(merges):
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda p: (pairs[p], p))
        out.append(list(best))
        merged = collections.Counter()
        for word, count in words.items():
            new, i = [], 0
            while i < len(word):
                if word[i:i + 2] == best:
                    new.append(word[i] + word[i + 1])
                    i += 2
                else:
                    new.append(word[i])
                    i += 1
            merged[tuple(new)] += count
        words = merged
    return out


def byte_bpe(words, merges, pre_tokenizer, normalizer=None, ignore_merges=False, more=()):
    """`words`: the text split into words, as str."""
    table = byte_characters()
    symbols = collections.Counter(tuple(table[b] for b in word.encode()) for word in words)
    rules = train_bpe(symbols, merges)
    vocab = {c: i for i, c in enumerate(table[b] for b in range(256))}
    for left, right in rules:
        vocab.setdefault(left + right, len(vocab))
    if ignore_merges:  # whole words that no merge makes
        for word in sorted(set(words), key=lambda w: (-len(w), w))[:40]:
            vocab.setdefault("".join(table[b] for b in word.encode()), len(vocab))
    tokens = [added("<|endoftext|>", len(vocab)), added("<|x|>", len(vocab) + 1, lstrip=True),
              added("<tool_call>", len(vocab) + 2, special=False, rstrip=True),
              added("[INST]", len(vocab) + 3, special=False, single_word=True),
              added("naïve", len(vocab) + 4, special=False, normalized=True)]
    return {"version": "1.0", "added_tokens": tokens, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "post_processor": None, "decoder": dict(BYTE_LEVEL, use_regex=True),
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges, "vocab": vocab, "merges": rules}}


def charsmap_rules(codes=(*range(1, 0x3100), *range(0xF900, 0x10000))):
    """NFKC of single characters and of letters with one mark, white space to U+0020, control characters to nothing."""
    rules = {}
    for c in codes:
        ch = chr(c)
        category = unicodedata.category(ch)
        if category in ("Cs", "Cn", "Co"):
            continue
        to = unicodedata.normalize("NFKC", ch)
        if ch in "\t\n\r\v\f\x85\u2028\u2029\u200b\ufeff" or category == "Zs":
            to = " "
        elif category == "Cc":
            to = ""
        if to != ch:
            rules[ch.encode()] = to.encode()
    for base in "aeiouAEIOUncかき":
        for mark in "\u0301\u0308\u0303\u3099":
            to = unicodedata.normalize("NFKC", base + mark)
            if len(to) == 1:
                rules[(base + mark).encode()] = to.encode()
    return rules


def charsmap(rules):
    """A precompiled table in SentencePiece's layout."""
    texts = bytearray()
    place = {}
    for to in sorted(set(rules.values())):
        place[to] = len(texts)
        texts += to + b"\0"
    # Darts' double array: a unit's offset XOR label is the child's place; value units have bit 31 set.
    trie = {}
    for key, to in rules.items():
        node = trie
        for byte in key:
            node = node.setdefault(byte, {})
        node[0] = place[to]
    units, used_offsets = [0] * 256, set()
    taken = {0}
    queue = [(0, trie, 0)]
    free = 1

    def grow(n):
        while len(units) < n:
            units.extend([0] * 256)

    while queue:
        at, node, label = queue.pop()
        labels = sorted(node)
        while free in taken:
            free += 1
        offset = max(1, free ^ labels[0])
        while True:
            relative = offset ^ at
            if offset not in used_offsets and relative < 1 << 21 and all((offset ^ l) not in taken for l in labels):
                break
            offset += 1
        used_offsets.add(offset)
        grow(max(offset ^ l for l in labels) + 1)
        taken.update(offset ^ l for l in labels)
        units[at] = (offset ^ at) << 10 | (1 << 8 if 0 in node else 0) | label
        for l in labels:
            if l == 0:
                units[offset] = 1 << 31 | node[0]
            else:
                queue.append((offset ^ l, node[l], l))
    blob = b"".join(struct.pack("<I", u) for u in units)
    return struct.pack("<I", len(blob)) + blob + bytes(texts)


def unigram(words, pieces, charsmap_bytes=None, byte_fallback=False, pre="split"):
    """Pieces: characters and frequent pieces of words that begin with U+2581; scores fall with frequency, with ties."""
    counts = collections.Counter()
    for word in words:
        word = "\u2581" + word
        for i in range(len(word)):
            for j in range(i + 1, min(len(word), i + 8) + 1):
                counts[word[i:j]] += 1
    # Characters of the last words are left out, so that some are unknown.
    chars = sorted({c for w in words[:len(words) * 2 // 3] for c in w if "\u2581" != c and c != "\uac00"})
    best = [p for p, n in sorted(counts.items(), key=lambda e: (-e[1] * len(e[0]), e[0])) if len(p) > 1][:pieces]
    vocab = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u2581", -2.0]]
    if byte_fallback:
        vocab += [[f"<0x{b:02X}>", 0.0] for b in range(256)]
    vocab += [[p, -3.0 - (i // 4) / 64] for i, p in enumerate(best)]
    vocab += [[c, -12.0 - (i % 16) / 8] for i, c in enumerate(c for c in chars if c not in set(best))]
    tokens = [added("<pad>", 0), added("</s>", 1), added("<unk>", 2), added("<extra_id_0>", len(vocab), lstrip=True, rstrip=True),
              added("[INST]", len(vocab) + 1, special=False, single_word=True), added("ﬁx", len(vocab) + 2, special=False, normalized=True)]
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    normalizers = [] if charsmap_bytes is None else [{"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap_bytes).decode()}]
    if pre == "strip":
        normalizers += [{"type": "Strip", "strip_left": False, "strip_right": True}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}]
    return {"version": "1.0", "added_tokens": tokens,
            "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]} if pre == "split" else metaspace,
            "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                               "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}},
                                        {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                               "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
            "decoder": metaspace, "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": byte_fallback, "vocab": vocab}}


def dump(value, path):
    with open(path, "w", encoding="utf-8") as out:
        json.dump(value, out, ensure_ascii=False, indent=0)
        out.write("\n")
