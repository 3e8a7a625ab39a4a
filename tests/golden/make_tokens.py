"""Writes tokens.json: what transformers' CLIPTokenizer makes of some 300 strings.

    python make_tokens.py TOKENIZER_DIRECTORY CLIP_MERGES.txt.gz

The first argument is the demo model's tokenizer directory, the second CLIP's list of merges
(bpe_simple_vocab_16e6.txt.gz), of which the 49408-token vocabulary is made. Of the large vocabulary
only ids are written: once as in Stable Diffusion 1 (padded with the end token), once as in Stable
Diffusion 2 (padded with `!`, special tokens matched whatever their case), and once with no
configuration at all.

Written with transformers 5.23.0 and tokenizers 0.23.3; refuses others.
"""

import gzip
import json
import pathlib
import random
import sys
import tempfile

import tokenizers
import transformers

assert (transformers.__version__, tokenizers.__version__) == ("5.23.0", "0.23.3"), "pinned versions"


def strings():
    words = [
        "", " ", "   \t\n ", "a", "A photo of an astronaut riding a horse on mars", "a battlefield",
        "a painting of a skull with roses, dark background, 4k, trending on artstation",
        "HELLO World", "hElLo", "it's a dog's life, they'll don't can't I'm we've you're he'd",
        "IT'S A DOG'S LIFE", "rock 'n' roll ''' quotes", "1234567890", "3.14159", "1,000,000 dollars", "2nd 3rd 4th",
        "x1y2z3", "50% off!!!", "!", "!!", "! ! !", "wow!", "a!b", "?!?!", "...", "…", "-", "--", "—", "a-b_c", "$100 & €200",
        "(parentheses) [brackets] {braces}", "((a)) (b:1.5) [c:d:0.5]", "#hashtag @mention", "user@example.com",
        "https://example.com/a?b=c&d=e#f", "C:\\Users\\x", "a/b\\c", "tab\there", "line\nbreak", "cr\r\nlf", "nul\0byte",
        "bell\x07", "non\u00a0breaking", "zero\u200bwidth", "\u200b", "thin\u2009space", "ideographic\u3000space", "\ufeffbom",
        "soft\u00adhyphen", "rtl \u202eoverride\u202c", "line\u2028separator",
        "café", "cafe\u0301", "CAFÉ", "naïve façade", "Ångström", "A\u030angstro\u0308m", "Straße", "STRASSE", "ẞ", "İstanbul", "ıI",
        "ŒUVRE œuvre", "Ðorðe", "Łódź", "dž Dž Ǆ", "ﬁ ﬂ ligature", "ſ long s", "Ω ohm Ω", "K kelvin", "ﷺ", "①②③", "½ ⅓ ²³", "Ⅷ",
        "Ελληνικά", "ΣΊΣΥΦΟΣ", "Привет, мир", "Ё ё е\u0308", "Україна", "שלום עולם", "שָׁלוֹם", "مرحبا بالعالم", "مُحَمَّد", "हिन्दी में", "ภาษาไทย",
        "தமிழ்", "ქართული", "Հայերեն", "አማርኛ", "ខ្មែរ", "བོད", "한국어", "\u1112\u1161\u11ab\u1100\u1173\u11af", "こんにちは世界", "カタカナ", "ｶﾀｶﾅ", "が か\u3099",
        "一只猫坐在月亮上", "漢字と kana mixed 123", "𠮷野家", "全角ＡＢＣ１２３", "！？",
        "😀", "😀😃😄", "a 🐱 cat", "🐱cat", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤", "❤️", "☠️ skull", "1️⃣", "🧑🏿‍🚀 astronaut", "☃", "✨sparkles✨",
        "\U0001fae0", "\U000e0067", "𝓯𝓪𝓷𝓬𝔂", "𝟘𝟙𝟚", "Z̸̢̛a̷l̴g̵o̶", "o\u0301\u0302\u0303\u0304\u0305", "\u0301", "a\u0301b\u0301",
        "<|endoftext|>", "<|startoftext|>", "a <|endoftext|> b", "a<|endoftext|>b", "<|ENDOFTEXT|>", "<|StartOfText|>x",
        "<|endoftext", "|endoftext|>", "<| endoftext |>", "<|endoftext|><|endoftext|>", "<|startoftext|>a<|endoftext|>", "</w>", "a</w> b",
        "<|pad|>", "[PAD]", "<unk>", "<s></s>", "\\u0041", "%s %d {0}", "<b>bold</b>", "&amp; &lt;", "null", "undefined", "NaN",
        "antidisestablishmentarianism", "supercalifragilisticexpialidocious", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "qwrtpsdfghjklzxcvbnm", "word " * 100, "a" * 500, "😀" * 60, "é" * 200, "1" * 200, "! " * 100, "the quick brown fox " * 20,
        "  leading", "trailing  ", "  both  ", "many     spaces", "a\u00a0\u00a0b", "a ,b ;c :d", "'", "''s", "'S 'T 'RE", "’s ’t don’t", "`code`",
        "o'clock o’clock", "y'all'd've", "l'été d’hiver", "\ud7a3", "\ufffd", "\uffff", "\U0010ffff", "\u0080\u0085", "a\u0085b", "\u1680x", "\u180ex",
    ]
    rng = random.Random(7)
    pools = [
        "abcdefghijklmnopqrstuvwxyz", "ABCDEF abcdef", "0123456789 .,", "àéîõüçñß ", "абвгд АБВ ", "あいうカキク漢字 ", "😀🐱👍🏽\u200d\ufe0f ",
        "'strevmld ", "!?.,;:-_/\\|<>()[]{} ", "\u0301\u0308\u030aaeo ", "<|endoftext|> ", "\t\n \u00a0\u3000ab", "a1 'b2 !c3 é😀漢",
    ]
    while len(words) < 310:
        pool = rng.choice(pools)
        words.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 40))))
    return words


def byte_characters():
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) for byte in kept] + [chr(256 + i) for i in range(len(rest))]


def write_clip(directory, merges_path, flags, pad):
    lines = gzip.open(merges_path).read().decode("utf-8").split("\n")[1:48895]
    letters = byte_characters()
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(line.split()) for line in lines]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    assert len(vocabulary) == 49408
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    if pad is not None:
        special = {name: {"content": content, **flags} for name, content in NAMED.items()}
        (directory / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": pad}))
        written = {name: {"__type": "AddedToken", **token} for name, token in special.items()}
        config = {**written, "pad_token": "<|endoftext|>", "model_max_length": 77, "do_lower_case": True}
        (directory / "tokenizer_config.json").write_text(json.dumps(config))


NAMED = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
FLAGS = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def encode(directory, texts, limit):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(directory)
    ids = []
    for text in texts:
        row = tokenizer(text, padding="max_length", truncation=True, max_length=limit)["input_ids"]
        real = len(row)
        while real > 1 and row[real - 1] == row[real - 2] == tokenizer.pad_token_id:
            real -= 1
        ids.append(row[:real])
    return {"limit": limit, "pad": tokenizer.pad_token_id, "ids": ids}


def main():
    demo, merges = sys.argv[1:]
    texts = strings()
    golden = {"texts": texts, "demo": encode(demo, texts, 24)}
    for name, pad in [("sd1", "<|endoftext|>"), ("sd2", "!"), ("bare", None)]:
        with tempfile.TemporaryDirectory() as directory:
            write_clip(pathlib.Path(directory), merges, FLAGS, pad)
            golden[name] = encode(directory, texts, 77)
    with tempfile.TemporaryDirectory() as directory:
        for name in ["vocab.json", "merges.txt"]:
            source = pathlib.Path(demo, name)
            pathlib.Path(directory, name).write_bytes(source.read_bytes())
        golden["demo_from_vocab"] = encode(directory, texts, 24)
    target = pathlib.Path(__file__).with_name("tokens.json")
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items()]
    target.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    print(f"{len(texts)} texts, {target.stat().st_size} bytes")


main()
