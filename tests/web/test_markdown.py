"""The page's own renderer and event parser, as modules in the browser."""

import pytest

from mock_server import MockServer


@pytest.fixture(scope="module")
def chat(browser):
    """One page for all: nothing here changes it."""
    server = MockServer()
    page = browser.new_page()
    page.goto(server.url)
    yield page
    page.close()
    server.stop()


REL = 'rel="noopener noreferrer nofollow" target="_blank"'

CASES = [
    ("one\ntwo", "<p>one<br>two</p>"),
    ("one\n\ntwo", "<p>one</p><p>two</p>"),
    ("# Big\n## Next", "<h3>Big</h3><h4>Next</h4>"),
    ("#no heading", "<p>#no heading</p>"),
    (
        "**bold** *it* ***both*** ~~gone~~",
        "<p><strong>bold</strong> <em>it</em> <strong><em>both</em></strong> <del>gone</del></p>",
    ),
    ("*a **b** c*", "<p><em>a <strong>b</strong> c</em></p>"),
    ("**a *b***", "<p><strong>a <em>b</em></strong></p>"),
    ("2 * 3 * 4 and snake_case_name", "<p>2 * 3 * 4 and snake_case_name</p>"),
    ("**open", "<p>**open</p>"),
    (r"\*no\* 1 \< 2", "<p>*no* 1 &lt; 2</p>"),
    ("`a * b` and ``x ` y``", "<p><code>a * b</code> and <code>x ` y</code></p>"),
    ("*not `in * code` here*", "<p><em>not <code>in * code</code> here</em></p>"),
    (
        "- a\n- b",
        '<ul><li><span class="tight">a</span></li><li><span class="tight">b</span></li></ul>',
    ),
    ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
    (
        "3. c\n4. d",
        '<ol start="3"><li><span class="tight">c</span></li>'
        '<li><span class="tight">d</span></li></ol>',
    ),
    (
        "- a\n  - b\n  - c\n- d",
        '<ul><li><span class="tight">a</span><ul><li><span class="tight">b</span></li>'
        '<li><span class="tight">c</span></li></ul></li><li><span class="tight">d</span></li></ul>',
    ),
    (
        "- [x] done\n- [ ] open",
        '<ul><li>☑ <span class="tight">done</span></li>'
        '<li>☐ <span class="tight">open</span></li></ul>',
    ),
    ("born in\n1984. A year", "<p>born in<br>1984. A year</p>"),
    ("> q\n> r\n\nafter", "<blockquote><p>q<br>r</p></blockquote><p>after</p>"),
    ("---", "<hr>"),
    (
        '[text](https://a.example/b_c "t")',
        '<p><a href="https://a.example/b_c" REL>text</a></p>',
    ),
    (
        "see https://a.example/x_(y). ok",
        '<p>see <a href="https://a.example/x_(y)" REL>' "https://a.example/x_(y)</a>. ok</p>",
    ),
    (
        "[a](javascript:alert(1)) [b](data:text/html,x)",
        '<p><span title="javascript:alert(1)">a</span> <span title="data:text/html,x">b</span></p>',
    ),
    (
        "![pic](https://a.example/p.png)",
        '<p><a href="https://a.example/p.png" REL>pic</a></p>',
    ),
    (
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "<p>&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;</p>",
    ),
    ("[not a link] (x)", "<p>[not a link] (x)</p>"),
    ("", ""),
]

RENDER = """async (text) => {
  const { MarkdownView } = await import("/markdown.js");
  const root = document.createElement("div");
  const view = new MarkdownView(root);
  view.update(text);
  return root.innerHTML;
}"""


@pytest.mark.parametrize("text,html", CASES)
def test_renders(chat, text, html):
    assert chat.evaluate(RENDER, text) == html.replace("REL", REL)


def test_code_and_tables(chat):
    got = chat.evaluate("""async () => {
      const { MarkdownView } = await import("/markdown.js");
      const root = document.createElement("div");
      new MarkdownView(root).update("```py title\\nif a < b:\\n\\n    **x**\\n```\\nafter\\n\\n"
        + "| a | b | c |\\n|:--|:-:|--:|\\n| `x|y` | **2** |\\n| e\\\\|f | 3 | 4 | 5 |");
      return {
        code: root.querySelector("pre code").textContent,
        language: root.querySelector("figcaption span").textContent,
        after: root.querySelector("p").textContent,
        cells: [...root.querySelectorAll("td")].map((d) => d.textContent),
        classes: [...root.querySelectorAll("th")].map((d) => d.className),
      };
    }""")
    assert got == {
        "code": "if a < b:\n\n    **x**",
        "language": "py",
        "after": "after",
        "cells": ["x|y", "2", "", "e|f", "3", "4"],
        "classes": ["", "align-center", "align-end"],
    }


def test_growing_text_equals_the_whole_and_keeps_nodes(chat):
    assert (
        chat.evaluate(
            """async (texts) => {
      const { MarkdownView } = await import("/markdown.js");
      for (const text of texts) {
        const grown = document.createElement("div"), whole = document.createElement("div");
        const view = new MarkdownView(grown);
        for (let i = 0; i <= text.length; ++i) view.update(text.slice(0, i));
        new MarkdownView(whole).update(text);
        if (grown.innerHTML !== whole.innerHTML) return text;
      }
      const root = document.createElement("div");
      const view = new MarkdownView(root);
      view.update("one\\n\\ntwo");
      const first = root.firstChild;
      view.update("one\\n\\ntwo and more");
      return first === root.firstChild ? "same" : "the first block was built again";
    }""",
            [c[0] for c in CASES]
            + ["a\n\n```c\nint x;\n```\n\n1. x\n2. y\n\n   z\n\n| a |\n|--|\n| b |"],
        )
        == "same"
    )


@pytest.mark.parametrize(
    "piece",
    [
        "*a ",
        "**a ",
        "_a ",
        "`a ``b ",
        "[",
        "[a](",
        "~~a ",
        "***a **b *c ",
        "> ",
        "- ",
        "|-",
        "<http://",
        "* a\n  ",
        "> - ",
    ],
)
def test_hostile_text_takes_no_quadratic_time(chat, piece):
    chat.evaluate(RENDER, piece * 20000)  # minutes, where something were quadratic or deeper


SSE = """async ([pieces]) => {
  const { SseParser } = await import("/sse.js");
  const out = [];
  const parser = new SseParser((e) => out.push([e.type, e.data, e.id]));
  for (const piece of pieces) parser.feed(piece);
  return out;
}"""


@pytest.mark.parametrize(
    "text,events",
    [
        ("data: a\n\n", [["message", "a", ""]]),
        ("data:a\ndata: b\n\n", [["message", "a\nb", ""]]),
        (
            "event: x\r\nid: 7\r\ndata: a\r\n\r\ndata: b\r\n\r\n",
            [["x", "a", "7"], ["message", "b", "7"]],
        ),
        ("data: a\r\rdata: b\r\r", [["message", "a", ""], ["message", "b", ""]]),
        (": keep-alive\n\nid: 1\n\ndata: x\n\n", [["message", "x", "1"]]),
        ("\ufeffdata: a\n\n", [["message", "a", ""]]),
        ("data\n\n", [["message", "", ""]]),
        ("data: not ended\n", []),
        ("unknown: x\ndata: a:b\n\n", [["message", "a:b", ""]]),
    ],
)
def test_events(chat, text, events):
    assert chat.evaluate(SSE, [[text]]) == events
    assert chat.evaluate(SSE, [list(text)]) == events  # a character at a time
