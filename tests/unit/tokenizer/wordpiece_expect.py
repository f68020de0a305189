#!/usr/bin/env python3
"""Writes wordpiece_cases.json: what BERT's tokenizer makes of texts, by an implementation of its definition
[Devlin 2019] in Python's standard library, which shares nothing with ours. Run it after changing a text here."""
import json
import pathlib
import random
import unicodedata

VOCABULARY = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'] + [
    *'abcdefghijklmnopqrstuvwxyz0123456789.,!?-\'"()[]{}@#$%^&*+=/\\<>|~`_:;', *('##' + c for c in 'abcdefghijklmnoprstuvwxyz01234'),
    'the', 'token', '##izer', '##ization', 'un', '##aff', '##able', 'naive', 'cafe', 'strasse', 'word', 'the\u0301', 'é', 'É',
    '\u4e2d', '\u6587', '##\u6587', '\u3042', '##\u3044', '\u1112', '##\u1161', '##\u11ab', 'σ', '##σ', 'ς', 'Σ', 'i\u0307', '##\u0307',
    '😀', '##😀', '\u2581', '##\u2581', 'ß', '\u20ac', '\u3002', '×', '¿', '«', '»', 'A', 'B', '##B', 'The', 'ö', 'o', '\u0301']
VOCABULARY = list(dict.fromkeys(VOCABULARY))
IDEOGRAPHS = [(0x4e00, 0x9fff), (0x3400, 0x4dbf), (0x20000, 0x2a6df), (0x2a700, 0x2b73f), (0x2b740, 0x2b81f),
              (0x2b920, 0x2ceaf), (0xf900, 0xfaff), (0x2f800, 0x2fa1f)]
SPACES = {9, 10, 11, 12, 13, 32, 0x85, 0xa0, 0x1680, *range(0x2000, 0x200b), 0x2028, 0x2029, 0x202f, 0x205f, 0x3000}


def punctuation(c):
    return (33 <= ord(c) <= 126 and not c.isalnum()) or unicodedata.category(c).startswith('P')


def encode(text, lower, accents_off, clean, chinese, limit=100):
    if clean:
        kept = ''
        for c in text:
            if c not in '\t\n\r' and (unicodedata.category(c) in ('Cc', 'Cf', 'Co') or c in '\0\ufffd'):
                continue
            kept += ' ' if ord(c) in SPACES else c
        text = kept
    if chinese:
        text = ''.join(f' {c} ' if any(a <= ord(c) <= b for a, b in IDEOGRAPHS) else c for c in text)
    if accents_off:
        text = ''.join(c for c in unicodedata.normalize('NFD', text) if unicodedata.category(c) != 'Mn')
    if lower:
        text = ''.join('i\u0307' if c == '\u0130' else c.lower() for c in text)
    words = ['']
    for c in text:
        if ord(c) in SPACES:
            words.append('')
        elif punctuation(c):
            words += [c, '']
        else:
            words[-1] += c
    ids = []
    for word in filter(None, words):
        pieces, at = [], 0
        while at < len(word) and len(word) <= limit:
            for end in range(len(word), at, -1):
                piece = ('##' if at else '') + word[at:end]
                if piece in VOCABULARY:
                    pieces.append(VOCABULARY.index(piece))
                    at = end
                    break
            else:
                break
        ids += pieces if at == len(word) else [1]
    return [2, *ids, 3]


TEXTS = ['', ' ', 'the tokenizer', 'The Tokenization is unaffable!', 'naïve café', 'Straße STRASSE', "don't [MASK] it's #1",
         '中文 mixed中with文text', 'あい 한글 한', 'ΣΑΣ σας ΟΔΟΣ', 'İstanbul Iı', '😀😀 a😀', '▁a▁ ▁', 'a\u200bb\u00adc\u0000d\ufffde', 'tab\tnew\nline\r\x0bvt\x85nel',
         '\u2028para\u2029 \u00a0nbsp\u3000ideographic', 'the\u0301 e\u0301 É', 'x' * 100, 'x' * 101, 'a' * 99 + 'é', '¿qué? «sí» 3×4=12€', 'http://a.b/c?d=e&f[0]',
         'if (x<=0) { return -1; } // ok', '\ue000private\uf8ff', '\u0600arabic\u06dd', 'zqzq', 'q q', '[CLS] [SEP]', 'a.b,c', '\U0002b820\U0002b921 \U0001d538', 'ÀÉÎÕÜ åøæ', 'ﬁ ﬀ ½ ²']


def main():
    random.seed(11)
    ranges = [(0x20, 0x7e), (0xa0, 0x17f), (0x391, 0x3a1), (0x3a3, 0x3c9), (0x410, 0x44f), (0x4e00, 0x4e40), (0x3041, 0x3060),
              (0xac00, 0xac40), (0x2010, 0x2027), (0x1f600, 0x1f610), (0x300, 0x315), (0x0, 0x1f)]
    for _ in range(150):
        text = ''
        for _ in range(random.randint(1, 10)):
            if random.random() < .5:
                text += random.choice(VOCABULARY[5:]).replace('##', '')
            else:
                text += chr(random.randint(*random.choice(ranges)))
            text += random.choice(['', '', ' '])
        TEXTS.append(text)
    modes = [(True, True, True, True), (False, False, True, True), (True, False, True, False), (False, True, False, True)]
    cases = []
    for i, text in enumerate(TEXTS):
        mode = modes[0] if i % 2 == 0 or i < 40 else modes[1 + i // 2 % 3]
        for lower, accents_off, clean, chinese in [mode] if i >= 40 else modes:
            cases.append({'lowercase': lower, 'strip_accents': accents_off, 'clean_text': clean, 'handle_chinese_chars': chinese,
                          'text': text, 'ids': encode(text, lower, accents_off, clean, chinese)})
    target = pathlib.Path(__file__).with_name('wordpiece_cases.json')
    target.write_text(json.dumps({'vocabulary': VOCABULARY, 'cases': cases}, ensure_ascii=True, indent=0) + '\n')


main()
