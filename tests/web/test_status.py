"""The status page."""

import copy
import itertools

from playwright.sync_api import expect

STATUS = {
    "state": "ready",
    "model": "mock",
    "version": "0.1.0",
    "started": 1790000000,
    "now": 1790000000.0,
    "uptime_s": 4000.0,
    "engine": {
        "running": 3,
        "prefilling": 1,
        "waiting": 2,
        "preempted": 0,
        "max_running": 64,
        "max_step_tokens": 512,
        "context_length": 65536,
        "steps_total": 1000,
        "step_seconds_total": 50.0,
        "forward_seconds_total": 48.0,
        "seconds_since_step": 0.003,
        "prompt_tokens_total": 20480,
        "cached_tokens_total": 16384,
        "replayed_tokens_total": 512,
        "generated_tokens_total": 9000,
        "drafted_tokens_total": 100,
        "accepted_drafts_total": 80,
        "preemptions_total": 0,
        "tokens_per_second": 87.3,
        "prefill_tokens_per_second": 410.0,
    },
    "cache": {
        "pages_total": 4096,
        "pages_used": 1200,
        "pages_cached": 800,
        "page_bytes": 31457280,
        "state_bytes": 9437184,
        "snapshot_bytes": 4194304,
        "prefix_query_tokens_total": 20480,
        "prefix_hit_tokens_total": 16384,
        "prefix_hit_rate": 0.8,
        "disk_bytes": 0,
    },
    "journal": {"policy": "interval:50ms", "lag_tokens": 5, "bytes": 1048576, "failed": False},
    "http": {
        "connections": 7,
        "requests_total": 321,
        "disconnects_total": 1,
        "errors_total": {"400": 2, "429": 1},
    },
    "requests": [],
}


def request(**members):
    return {
        "stream": "8hJ2kQ0fYwq1ZB5s7dT3nX",
        "api": "chat_completions",
        "state": "decoding",
        "key": "team-a",
        "user_id": "",
        "model": "mock",
        "age_s": 4.2,
        "prompt_tokens": 512,
        "cached_tokens": 384,
        "prefill_done": 512,
        "generated_tokens": 77,
        "tokens_per_second": 19.1,
        "choices": 1,
        "max_tokens": 4096,
        "readers": 1,
        "resumable": True,
        "recovered": False,
        **members,
    }


def ticking(status, **steps):
    """Answers that count up by `steps` a second, whatever the clock does."""
    polls = itertools.count()

    def answer():
        k = next(polls)
        now = copy.deepcopy(status)
        now["now"] += k
        for name, step in steps.items():
            for part in ("engine", "cache"):
                if name in now[part]:
                    now[part][name] += k * step
        return 200, now

    return answer


def test_live_numbers(page, server):
    status = {
        **STATUS,
        "requests": [
            request(user_id="<b>u</b>"),
            request(stream="other", state="prefilling", prefill_done=128, recovered=True),
        ],
    }
    server.status = ticking(
        status,
        generated_tokens_total=50,
        prompt_tokens_total=300,
        cached_tokens_total=200,
        steps_total=20,
        step_seconds_total=0.5,
        forward_seconds_total=0.45,
        prefix_query_tokens_total=400,
        prefix_hit_tokens_total=300,
    )
    page.goto(server.url + "status")
    expect(page.locator("#state")).to_have_text("ready")
    expect(page.get_by_role("heading", level=1)).to_have_text("mock")

    def chart(title):
        return page.locator(".chart").filter(
            has=page.get_by_role("heading", name=title, exact=True)
        )

    for title, values in {
        "Requests": ["3", "2"],
        "Tokens out": ["50.0"],
        "Tokens in": ["300", "200"],
        "KV pages": ["1,200", "800"],
        "Prefix hit rate": ["75 %"],
        "Journal lag": ["5"],
        "Step time": ["25 ms"],
        "Time in the model": ["90.0 %"],
    }.items():
        expect(chart(title).locator(".value > span")).to_have_text(values)
    expect(chart("KV pages").locator(".max")).to_have_text("4,096")
    expect(chart("Requests").get_by_role("img")).to_have_attribute(
        "aria-label", "Requests: running 3, waiting 2; scale to 5"
    )
    assert chart("Tokens out").locator(".line").get_attribute("d").startswith("M")

    rows = page.locator("#rows tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("<b>u</b>")  # as text
    expect(rows.nth(1)).to_contain_text("reading, recovered")
    expect(rows.nth(1).locator("progress")).to_have_js_property("value", 128)
    expect(page.locator("#facts")).to_contain_text("of these accepted80.0 %")
    expect(page.locator("#facts")).to_contain_text("400: 2, 429: 1")

    chart("Requests").locator("svg").hover()
    expect(chart("Requests").locator("figcaption")).to_contain_text("s ago")


def test_unreachable_and_back(page, server):
    server.status = lambda: (200, STATUS)
    page.goto(server.url + "status")
    expect(page.locator("#state")).to_have_text("ready")
    server.stop()
    expect(page.locator("#state")).to_have_text("unreachable")
    expect(page.locator("#trouble")).to_contain_text("cannot be reached since")
    server.start()
    expect(page.locator("#state")).to_have_text("ready")
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_restart_is_no_negative_rate(page, server):
    counts = itertools.count()
    server.status = lambda: (
        200,
        {
            **STATUS,
            "now": STATUS["now"] + next(counts),
            "engine": {**STATUS["engine"], "generated_tokens_total": 5},
        },
    )
    first = copy.deepcopy(STATUS)
    first["now"] -= 1
    first["started"] -= 1000
    answers = iter([(200, first)])
    later = server.status
    server.status = lambda: next(answers, None) or later()
    page.goto(server.url + "status")
    out = page.locator(".chart").nth(1)
    expect(out.locator(".value > span")).to_have_text("0.0")  # once two polls are of one run
    assert "-" not in out.locator(".line").get_attribute("d")


def test_loading_draining_and_a_failed_journal(page, server):
    page.goto(server.url + "status")
    expect(page.locator("#state")).to_have_text("loading the model")
    server.status = lambda: (
        200,
        {**STATUS, "state": "draining", "journal": {**STATUS["journal"], "failed": True}},
    )
    expect(page.locator("#state")).to_have_text("finishing, accepts nothing new")
    expect(page.locator("#trouble")).to_contain_text("The journal cannot be written")
    server.status = lambda: (200, {**STATUS, "journal": None})
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#facts")).to_contain_text("off")


def test_a_key(page, server):
    server.key = "sesame"
    server.status = lambda: (200, STATUS)
    page.goto(server.url + "status")
    expect(page.locator("#trouble")).to_contain_text("asks for an API key")
    page.get_by_label("API key").fill("sesame")
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#state")).to_have_text("ready")
    expect(page.locator("#key-form")).to_be_hidden()


def test_a_phone(page, server):
    page.set_viewport_size({"width": 390, "height": 780})
    server.status = lambda: (200, {**STATUS, "requests": [request(user_id="u" * 200)]})
    page.goto(server.url + "status")
    expect(page.locator("#rows tr")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
