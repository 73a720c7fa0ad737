#!/bin/bash
# Gathers English technical prose under permissive licences from Debian's documentation packages, as
# plain text files to build training data of. Downloads some 40 MB once; nothing is installed, and
# nothing is written but the folder.
#
#   bench/train/collect_text.sh FOLDER
#   hadal tokenizer train FOLDER/text --vocab-size 4096 --out FOLDER/tokenizer-4096.json
#   hadal data build FOLDER/text --tokenizer FOLDER/tokenizer-4096.json --validation 0.01 --out DATA
#
# Packages and licences, as their copyright files say: python3.11-doc (PSF), postgresql-doc-15
# (PostgreSQL), sqlite3-doc (public domain), llvm-14-doc (Apache-2.0 with LLVM exception), perl-doc
# (Artistic), rust-doc (MIT or Apache-2.0; the books, not the API reference).
set -euo pipefail

folder=${1:?usage: bench/train/collect_text.sh FOLDER}
packages=(python3.11-doc postgresql-doc-15 sqlite3-doc llvm-14-doc perl-doc rust-doc)

for tool in apt-get dpkg-deb python3 pod2text; do
  command -v "$tool" >/dev/null || { echo "collect_text: $tool is missing" >&2; exit 1; }
done
mkdir -p "$folder/packages" "$folder/unpacked"
folder=$(cd "$folder" && pwd)

for package in "${packages[@]}"; do
  if [[ -d $folder/unpacked/$package ]]; then continue; fi
  echo "collect_text: $package" >&2
  (cd "$folder/packages" && apt-get download -qq "$package") ||
    { echo "collect_text: apt-get cannot download $package; is this Debian 12?" >&2; exit 1; }
  rm -rf "$folder/unpacked/$package.partial"
  dpkg-deb -x "$folder/packages/${package}"_*.deb "$folder/unpacked/$package.partial"
  mv "$folder/unpacked/$package.partial" "$folder/unpacked/$package"
done

rm -rf "$folder/text"
python3 - "$folder" <<'PYTHON'
"""One text file a page: HTML without its tags and navigation, reStructuredText as it is, POD by
pod2text. Paragraphs of 80 characters and more that were seen before are dropped: headers, licences."""
import html.parser
import pathlib
import re
import subprocess
import sys

root = pathlib.Path(sys.argv[1])
out = root / "text"
SKIP = {"script", "style", "head", "nav", "footer", "svg", "button"}
BLOCK = {"p", "div", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "br", "dt", "dd", "table",
         "section", "blockquote"}
VOID = {"br", "img", "hr", "meta", "link", "input", "col", "area", "base", "wbr"}


class Text(html.parser.HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts, self.skipped, self.pre = [], 0, 0

    def handle_starttag(self, tag, attributes):
        classes = dict(attributes).get("class") or ""
        if tag in VOID:
            if tag == "br":
                self.parts.append("\n")
            return
        if self.skipped or tag in SKIP or re.search(r"\bnav(header|footer|bar)?\b", classes):
            self.skipped += 1
        elif tag in BLOCK:
            self.parts.append("\n\n" if tag in ("p", "pre") or tag[0] == "h" else "\n")
            self.pre += tag == "pre"

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if self.skipped:
            self.skipped -= 1
        elif tag in BLOCK:
            self.parts.append("\n")
            self.pre -= tag == "pre" and self.pre > 0

    def handle_data(self, data):
        if not self.skipped:
            self.parts.append(data if self.pre else re.sub(r"\s+", " ", data))


def from_html(path):
    parser = Text()
    parser.feed(path.read_text("utf-8", "replace"))
    return "".join(parser.parts)


def from_pod(path):
    return subprocess.run(["pod2text", "--utf8", str(path)], capture_output=True,
                          check=False).stdout.decode("utf-8", "replace")


def plain(path):
    return path.read_text("utf-8", "replace")


SOURCES = [
    ("python3.11-doc", "**/_sources/**/*.rst.txt", plain),
    ("postgresql-doc-15", "**/html/*.html", from_html),
    ("sqlite3-doc", "**/*.html", from_html),
    ("llvm-14-doc", "**/_sources/**/*.rst.txt", plain),
    ("perl-doc", "**/*.pod", from_pod),
    ("rust-doc", "usr/share/doc/rust-doc/html/*/**/*.html", from_html),
]
# API listings of rust-doc, which are no prose.
NO_PROSE = re.compile(r"rust-doc/html/(std|core|alloc|proc_macro|test|src|implementors)/|/print\.html")

seen_paragraphs, seen_pages, total = set(), set(), 0
for package, pattern, reader in SOURCES:
    pages = nbytes = 0
    for path in sorted((root / "unpacked" / package).glob(pattern)):
        if not path.is_file() or path.is_symlink() or NO_PROSE.search(str(path)):
            continue
        lines = [line.rstrip() for line in reader(path).replace("\0", "").splitlines()]
        paragraphs = []
        for paragraph in re.split(r"\n{2,}", "\n".join(lines).strip()):
            if len(paragraph) >= 80:
                if paragraph in seen_paragraphs:
                    continue
                seen_paragraphs.add(paragraph)
            paragraphs.append(paragraph)
        text = "\n\n".join(paragraphs) + "\n"
        if len(text) < 400 or text in seen_pages:
            continue
        seen_pages.add(text)
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", str(path.relative_to(root / "unpacked" / package)))
        target = out / package / (name + ".txt")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
        pages += 1
        nbytes += len(text.encode())
    total += nbytes
    print(f"{package:<20} {pages:>6} pages {nbytes / 1e6:>8.1f} MB")
print(f"{'all':<20} {len(seen_pages):>6} pages {total / 1e6:>8.1f} MB in {out}")
PYTHON
