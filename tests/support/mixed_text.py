"""Lines of mixed text that tokenizers get wrong: Latin, CJK and other scripts, combining marks, emoji with joiners,
code, digits, white space of every kind, control characters, very long words, contractions, things that look like
special tokens. Deterministic; only characters of Unicode 14, which all libraries that we compare with know."""
import random
import unicodedata

WORDS = ("the of and a to in is you that it he was for on are as with his they at be this have from or one had by word "
         "Straße naïve façade Ærø señor Łódź İstanbul größer Привет мир здравствуйте Ελληνικά שלום עולם مرحبا بالعالم "
         "हिन्दी नमस्ते বাংলা ไทยภาษา 漢字 日本語 テスト ひらがな 中文测试 한국어 안녕하세요 ქართული Հայերեն አማርኛ "
         "don't I'LL we've THEY'RE it'S she'd O'Reilly 'tis rock'n'roll 'S 'ſ camelCase snake_case HTTPServer2 x1y2").split()
CODE = ("for (int i = 0; i < n; ++i) { sum += a[i] * 0x1F; }", "def f(x):\n    return x**2  # square", "a->b::c<T>&&!d||e",
        "SELECT * FROM t WHERE id = 42;\r\n", "\tif x:\n\t\tpass\n\n\n", "#include <vector>\r\n\r\n", "https://a.example/p?q=1&r=%20#s",
        "{\"key\": [1, 2.5e-3, null]}", "std::cout << \"\\n\";", "$x = @{a=1};  // ok", "<div class='a'>&nbsp;</div>", "^~|`$+<=>")
EMOJI = ("😀", "👩‍💻", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "👍🏽", "☃️", "✂", "❤️‍🔥", "1️⃣", "🧑🏿‍🚀", "ﷺ", "ﬁ", "①②③", "½", "Ⅷ", "㍿", "ｆｕｌｌ", "ｶﾞ")
SPACES = (" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", "\u00a0", "\u2003", "\u3000", "\u2028", "\x85", " \n ", "\v", "\f", "      ",
          "\u200b", "\ufeff", "\u202f", " \t ")
CONTROLS = ("\x01", "\x07", "\x1b[0m", "\x7f", "\u0080", "\u200d", "\u200e", "\ufffd", "\u00ad", "\ue000", "\U000e0001", "\u0301", "\u2581")
SPECIAL = ("<s>", "</s>", "<unk>", "<|im_end|>", "<|endoftext|>", "<|x|>", "<0x41>", "[INST]", "Ġ", "▁the", "<extra_id_0>", "<tool_call>")
LETTERS = [chr(c) for c in range(0xA1, 0x30000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co", "Cc")]


def lines(count, seed=1):
    rng = random.Random(seed)
    out = []
    for i in range(count):
        parts = []
        for _ in range(rng.choice((1, 2, 3, 5, 8, 13, 21))):
            kind = rng.random()
            if kind < 0.35:
                parts.append(rng.choice(WORDS))
            elif kind < 0.55:
                parts.append(rng.choice(SPACES))
            elif kind < 0.63:
                parts.append(rng.choice(EMOJI))
            elif kind < 0.70:
                parts.append("".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 6))))
            elif kind < 0.76:
                base = rng.choice("aeoun가かAé")
                parts.append(base + "".join(rng.choice("\u0301\u0308\u0323\u0327\u3099\u0345") for _ in range(rng.randint(1, 3))))
            elif kind < 0.83:
                parts.append(str(rng.randint(0, 10 ** rng.randint(1, 12))))
            elif kind < 0.89:
                parts.append(rng.choice(CODE))
            elif kind < 0.94:
                parts.append("".join(rng.choice("!?.,;:-_()[]{}'\"/\\@#$%^&*+=<>|~`…—“”«»、。！") for _ in range(rng.randint(1, 5))))
            elif kind < 0.97:
                parts.append(rng.choice(CONTROLS))
            elif kind < 0.99:
                parts.append(rng.choice(SPECIAL))
            else:
                parts.append(rng.choice("aé漢😀") * rng.choice((40, 300, 2000)))
            if rng.random() < 0.5:
                parts.append(" ")
        out.append("".join(parts))
    return out


def broken(text, rng):
    """`text` as bytes with some damage: cut, repeated, overlong and stray bytes."""
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        kind = rng.randint(0, 3)
        if kind == 0 and at < len(data):
            del data[at]
        elif kind == 1:
            data[at:at] = bytes([rng.randint(0x80, 0xff)])
        elif kind == 2:
            data[at:at] = rng.choice((b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe6\xbc", b"\xff\xfe", b"\x00"))
        else:
            data = data[:at]
    return bytes(data)
