"""Pictures of both pages, for people to look at: python tests/web/screenshots.py DIRECTORY"""

import copy
import math
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from mock_server import DONE, MockServer, arguments, call, content, finish, reasoning, usage
from test_status import STATUS, request

ANSWER = """A **prefix cache** keeps the keys and values of prompts that were already \
read, so that the next request which begins alike skips them.

### How a hit is found

1. The prompt is cut at aligned boundaries.
2. Each piece is looked up by the *hash chain* of its tokens:
   - a hit lends its pages,
   - a miss ends the search.
3. What is left is read as usual.

```python
def longest_prefix(tokens, cache, page=128):
    node = cache.root
    for start in range(0, len(tokens), page):
        child = node.children.get(tuple(tokens[start:start + page]))
        if child is None:
            return node
        node = child
    return node
```

| turn | prompt | cached | first token |
|:-----|------:|------:|------:|
| 1 | 16,412 | 0 | 3.1 s |
| 2 | 16,790 | 16,384 | 0.2 s |
| 3 | 17,204 | 16,768 | 0.2 s |

> Tokens that are read again only to rebuild a window are not counted as hits.

See `docs/serving` or https://example.org/prefix_(cache) for more."""

TOOL = """[
  {
    "type": "function",
    "function": {
      "name": "get_weather",
      "description": "The weather at a place now",
      "parameters": {
        "type": "object",
        "properties": {
          "place": { "type": "string" }
        }
      }
    }
  }
]"""


def send(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def fill_chat(page, server):
    server.answers.append(
        [
            reasoning(
                "The user asks about prefix caches. I should explain the idea "
                "first, then the lookup, then show numbers."
            ),
            content(ANSWER),
            finish(),
            usage(1412, 386, 1280, 41),
            DONE,
        ]
    )
    send(page, "How does a prefix cache make agent loops faster?")


def tool_chat(page, server):
    server.answers.append(
        [
            reasoning("I need the weather."),
            content("I will look at both places."),
            call(0, "a", "get_weather"),
            arguments(0, '{"place": "Kiel, Germany"}'),
            call(1, "b", "get_weather"),
            arguments(1, '{"place": "Bergen, Norway"}'),
            finish("tool_calls"),
            usage(420, 61, 256, 5),
            DONE,
        ]
    )
    send(page, "Is it warmer in Kiel or in Bergen?")


def status():
    k = 0

    def reply():
        nonlocal k
        now = copy.deepcopy(STATUS)
        now["now"] += k
        engine, cache = now["engine"], now["cache"]
        engine["running"] = round(8 + 6 * math.sin(k / 9))
        engine["waiting"] = max(0, round(6 * math.sin(k / 9 - 1)))
        engine["generated_tokens_total"] += int(80 * k + 300 * math.sin(k / 9))
        engine["prompt_tokens_total"] += int(400 * k + 2000 * math.sin(k / 7))
        engine["cached_tokens_total"] += int(300 * k + 1500 * math.sin(k / 7))
        engine["steps_total"] += 20 * k
        engine["step_seconds_total"] += 0.9 * k + 0.6 * math.sin(k / 5)
        engine["forward_seconds_total"] += 0.86 * k + 0.58 * math.sin(k / 5)
        cache["pages_used"] = round(2200 + 900 * math.sin(k / 20))
        cache["pages_cached"] = round(900 + 300 * math.sin(k / 20))
        cache["prefix_query_tokens_total"] += 400 * k
        cache["prefix_hit_tokens_total"] += int(320 * k + 300 * math.sin(k / 6))
        now["journal"]["lag_tokens"] = round(8 + 7 * math.sin(k / 3))
        now["requests"] = [
            request(),
            request(stream="web-41f0c2a9d7e84b55", user_id="agent-7", readers=1),
            request(
                stream="Zk3mQ8",
                state="prefilling",
                prompt_tokens=16384,
                prefill_done=9216,
                generated_tokens=0,
                tokens_per_second=0,
                api="messages",
            ),
            request(
                stream="r5TyB1",
                state="waiting",
                prefill_done=0,
                generated_tokens=0,
                tokens_per_second=0,
                cached_tokens=0,
                key="team-b",
                api="responses",
            ),
            request(stream="9s2LwE", state="detached", readers=0, recovered=True),
        ]
        k += 1
        return 200, now

    return reply


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    server = MockServer()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        for name, size, scheme in [
            ("light", (1280, 860), "light"),
            ("dark", (1280, 860), "dark"),
            ("phone", (390, 800), "light"),
            ("phone-dark", (390, 800), "dark"),
        ]:
            context = browser.new_context(
                viewport={"width": size[0], "height": size[1]},
                color_scheme=scheme,
                device_scale_factor=1.5,
            )
            page = context.new_page()
            page.goto(server.url)
            expect(page.locator("#model")).not_to_have_value("")
            page.screenshot(path=out / f"empty-{name}.png")
            fill_chat(page, server)
            page.screenshot(path=out / f"chat-{name}.png")
            page.locator("#log").evaluate("(log) => { log.scrollTop = 0; }")
            page.locator("summary").click()
            page.screenshot(path=out / f"chat-top-{name}.png")
            page.keyboard.press("Control+k")
            page.get_by_role("button", name="Settings", exact=True).click()
            page.get_by_label("Definitions (JSON)").fill(TOOL)
            page.screenshot(path=out / f"settings-{name}.png")
            if size[0] < 860:
                page.keyboard.press("Escape")
            tool_chat(page, server)
            page.screenshot(path=out / f"tools-{name}.png")
            server.failures.append(
                (429, {"message": "256 requests are waiting"}, [("Retry-After", "7")])
            )
            page.keyboard.press("Control+k")
            page.get_by_label("Message", exact=True).fill("hello")
            page.keyboard.press("Enter")
            expect(page.locator(".error")).to_be_visible()
            page.screenshot(path=out / f"error-{name}.png")
            if size[0] < 860:
                page.get_by_role("button", name="Conversations", exact=True).click()
                page.screenshot(path=out / f"list-{name}.png")
            server.status = status()
            # The page's clock runs fast, so that five minutes of charts are there at once.
            page.clock.install()
            page.goto(server.url + "status")
            for _ in range(150):
                with page.expect_response("**/status.json"):
                    page.clock.run_for(2000)
            page.clock.resume()
            page.screenshot(path=out / f"status-{name}.png", full_page=True)
            context.close()
        browser.close()
    server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
