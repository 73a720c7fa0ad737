"""A tokenizer that hadal trained, read by Hugging Face's tokenizers: the same ids for every text."""

import json
import random
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]

ODD = ["", " ", "  ", "\n", "\r\n", " \n\n ", "\t\tx", "a", "é", "日本語のテキスト", "中文 mixed 英文", "½ ²³ ３４",
       "1", "12", "123", "1234567890", "3.14159e-10", "don't I'll we've", "/* x */ // y\n#z!\n",
       "\u00a0\u3000\u2003 x", "\u200b\ufeff", "🐙🐙 👩‍🔬", "\x00\x01\x7f", "é" * 40, "ab" * 200,
       "!" * 90 + "\n\n", "=-" * 40, "<｜User｜>hi<｜Assistant｜><think>so</think>ok<｜end▁of▁sentence｜>",
       "<｜ User ｜>", "｜DSML｜<｜DSML｜>", "a\u0301\u0300 combining", "\U0010ffff\ue000"]


def run(hadal, *arguments):
    done = subprocess.run([hadal, *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture(scope="module", params=[300, 512, 4096])
def trained(request, hadal, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    run(hadal, "tokenizer", "train", ROOT / "src", ROOT / "docs", "--text-extension", "md", "h", "cpp",
        "--vocab-size", request.param, "--out", path)
    return path, request.param


def texts():
    out = list(ODD)
    for path in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "src/io/tokenizer.cpp"]:
        text = path.read_text("utf-8")
        out.append(text)
        out.extend(text.splitlines(keepends=True))
    chooser = random.Random(5)
    pieces = [c for odd in ODD for c in odd] + ["the", " of", "return", "::", ".\n", "\n\n", "  "]
    for _ in range(2000):
        out.append("".join(chooser.choices(pieces, k=chooser.randrange(1, 40))))
    return out


def test_same_ids_and_text(hadal, trained, tmp_path):
    path, vocab_size = trained
    theirs = Tokenizer.from_file(str(path))
    assert theirs.get_vocab_size() == vocab_size
    wanted = texts()
    lines = tmp_path / "texts.jsonl"
    lines.write_text("".join(json.dumps(t, ensure_ascii=False) + "\n" for t in wanted), "utf-8")
    ours = [json.loads(line) for line in
            run(hadal, "tokenize", "--tokenizer", path, "--json", "--input", lines).splitlines()]
    assert len(ours) == len(wanted)
    for text, ids in zip(wanted, ours):
        assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        assert theirs.decode(ids, skip_special_tokens=False) == text
