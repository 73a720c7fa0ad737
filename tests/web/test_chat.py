"""The chat page: what is sent, what is shown, what survives."""

import json
import threading

import pytest
from playwright.sync_api import expect

from mock_server import (
    DONE,
    DROP,
    KEEP_ALIVE,
    answer,
    arguments,
    call,
    content,
    error,
    finish,
    reasoning,
    usage,
    wait,
    words,
)


def send(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def last_answer(page):
    return page.locator(".message.assistant").last


def done(page):
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def messages(request):
    return [(m["role"], m.get("content")) for m in request["body"]["messages"]]


def test_streams_an_answer_with_reasoning(chat, server):
    server.answers.append(
        [
            KEEP_ALIVE,
            reasoning("Let me "),
            reasoning("think."),
            content("Hello **wor"),
            content("ld**"),
            finish(),
            usage(1200, 345, cached=1024, thought=200),
            DONE,
        ]
    )
    send(chat, "Hi there")
    answer_text = last_answer(chat).locator(".answer")
    expect(answer_text.locator("strong")).to_have_text("world")
    done(chat)
    expect(chat.locator(".bubble")).to_have_text("Hi there")
    details = last_answer(chat).locator("details")
    expect(details).not_to_have_attribute("open", "")  # closed once the answer has begun
    expect(details.locator("summary")).to_have_text("Reasoning · 200 tokens")
    details.locator("summary").click()
    expect(details).to_contain_text("Let me think.")
    facts = last_answer(chat).locator(".facts")
    expect(facts).to_contain_text("1,200 in (1,024 cached) · 345 out (200 reasoning)")
    expect(facts).to_contain_text("seed 18446744073709551557")
    expect(chat.locator("#counter")).to_have_text("1,545 of 65,536 tokens")

    body = server.posts()[0]["body"]
    assert body["stream"] is True and body["resumable"] is True and body["stream_id"]
    assert body["stream_options"] == {"include_usage": True}
    assert body["model"] == "mock" and body["thinking"] == {"type": "enabled"}
    assert body["messages"] == [{"role": "user", "content": "Hi there"}]
    for unset in [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "max_tokens",
        "tools",
        "reasoning_effort",
    ]:
        assert unset not in body

    send(chat, "And more?")
    done(chat)
    assert server.posts()[1]["body"]["messages"][1] == {
        "role": "assistant",
        "content": "Hello **world**",
        "reasoning_content": "Let me think.",
    }

    chat.reload()  # kept in the browser
    expect(chat.locator(".message.user")).to_have_count(2)
    expect(chat.locator("#title")).to_have_text("Hi there")


def test_reasoning_is_open_while_it_streams(chat, server):
    go_on = threading.Event()
    server.answers.append([reasoning("hmm"), wait(go_on), *answer("So.")])
    send(chat, "Think")
    details = last_answer(chat).locator("details")
    expect(details).to_have_attribute("open", "")
    expect(details.locator("summary")).to_have_text("Thinking…")
    go_on.set()
    done(chat)
    expect(details).not_to_have_attribute("open", "")


def test_characters_and_lines_split_anywhere(chat, server):
    server.split = 1
    text = "Grüße aus der Tiefe 深海 🐙 — ok\u2028done"
    server.answers.append([content(text[:9]), content(text[9:]), finish(), DONE])
    send(chat, "x")
    done(chat)
    expect(last_answer(chat).locator(".answer p")).to_have_text(text)


def test_enter_sends_and_shift_enter_breaks_the_line(chat, server):
    field = chat.get_by_label("Message", exact=True)
    field.focus()
    chat.keyboard.type("one")
    chat.keyboard.press("Shift+Enter")
    chat.keyboard.type("two")
    assert server.posts() == []
    chat.keyboard.press("Enter")
    done(chat)
    assert messages(server.posts()[0]) == [("user", "one\ntwo")]
    expect(field).to_have_value("")


def test_escape_stops(chat, server):
    never = threading.Event()
    server.answers.append([content("half an ans"), wait(never)])
    send(chat, "x")
    expect(last_answer(chat)).to_contain_text("half an ans")
    expect(chat.get_by_role("button", name="Stop")).to_be_visible()
    chat.keyboard.press("Escape")
    done(chat)
    expect(last_answer(chat).locator(".facts")).to_contain_text("stopped")
    chat.wait_for_timeout(50)
    ends = [r for r in server.requests if r["method"] == "DELETE"]
    assert [r["path"] for r in ends] == ["/v1/streams/" + server.posts()[0]["body"]["stream_id"]]
    send(chat, "go on")  # what had come belongs to the conversation
    done(chat)
    assert messages(server.posts()[1])[1] == ("assistant", "half an ans")
    never.set()


def test_a_stopped_tool_call_is_left_out(chat, server):
    never = threading.Event()
    server.answers.append(
        [content("Well: "), call(0, "call_1", "f"), arguments(0, '{"a"'), wait(never)]
    )
    send(chat, "x")
    expect(last_answer(chat).locator(".call-name")).to_have_text("f")
    chat.get_by_role("button", name="Stop").click()
    done(chat)
    expect(last_answer(chat)).to_contain_text("ended inside a tool call")
    send(chat, "again")
    done(chat)
    assert "tool_calls" not in server.posts()[1]["body"]["messages"][1]
    never.set()


def test_regenerate_replaces_and_undo_brings_back(chat, server):
    server.answers.extend([answer("first"), answer("second"), answer("third")])
    send(chat, "a")
    done(chat)
    send(chat, "b")
    done(chat)
    first = chat.locator(".message.assistant").first
    first.get_by_role("button", name="Generate this answer again").click()
    expect(chat.locator(".answer")).to_have_text(["third"])
    done(chat)
    assert messages(server.posts()[2]) == [("user", "a")]
    chat.get_by_role("button", name="Undo").click()
    expect(chat.locator(".answer")).to_have_text(["first", "second"])


def test_editing_a_message(chat, server):
    send(chat, "wrnog")
    done(chat)
    chat.get_by_label("Message", exact=True).focus()
    chat.keyboard.press("ArrowUp")  # in an empty field: the last message
    field = chat.get_by_label("Your message")
    expect(field).to_be_focused()
    chat.keyboard.press("Escape")
    expect(chat.locator(".bubble")).to_have_text("wrnog")
    chat.locator(".message.user").hover()
    chat.get_by_role("button", name="Edit this message").click()
    field.fill("right")
    chat.get_by_role("button", name="Send", exact=True).first.click()
    expect(chat.locator(".answer")).to_have_text("You said: right")
    done(chat)
    assert messages(server.posts()[1]) == [("user", "right")]
    expect(chat.locator("#title")).to_have_text("right")


TOOLS = [
    {"name": "get_weather", "parameters": {"type": "object"}},
    {"type": "function", "function": {"name": "get_time"}},
]


def open_settings(page):
    page.get_by_role("button", name="Settings", exact=True).click()


def test_tool_calls_are_answered_by_hand(chat, server):
    open_settings(chat)
    chat.get_by_label("Definitions (JSON)").fill(json.dumps(TOOLS))
    expect(chat.locator("#tools-state")).to_have_text("2 tools: get_weather, get_time")
    server.answers.append(
        [
            reasoning("both"),
            content("Looking."),
            call(0, "call_a", "get_weather"),
            arguments(0, '{"place": "Sjö'),
            arguments(0, 'bo"}'),
            call(1, "call_b", "get_time"),
            arguments(1, "{}"),
            finish("tool_calls"),
            usage(50, 20),
            DONE,
        ]
    )
    server.answers.append(answer("It rains at noon."))
    send(chat, "Weather and time?")
    done(chat)
    view = last_answer(chat)
    expect(view.locator(".call-name")).to_have_text(["get_weather", "get_time"])
    expect(view.locator(".call pre").first).to_have_text('{\n  "place": "Sjöbo"\n}')
    weather = chat.get_by_label("Result of get_weather")
    expect(weather).to_be_focused()

    send(chat, "hello?")  # the model waits for results, not for this
    assert len(server.posts()) == 1
    expect(chat.locator("#toast")).to_contain_text("waits for the results")
    expect(weather).to_be_focused()

    weather.fill("rain")
    chat.get_by_label("Result of get_time").fill("12:00")
    chat.keyboard.press("Control+Enter")
    expect(last_answer(chat)).to_contain_text("It rains at noon.")
    done(chat)
    first, second = (p["body"] for p in server.posts())
    assert [t["function"]["name"] for t in first["tools"]] == ["get_weather", "get_time"]
    assert first["tool_choice"] == "auto"
    assert second["messages"][1] == {
        "role": "assistant",
        "content": "Looking.",
        "reasoning_content": "both",
        "tool_calls": [
            {
                "id": "call_a",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"place": "Sjöbo"}'},
            },
            {
                "id": "call_b",
                "type": "function",
                "function": {"name": "get_time", "arguments": "{}"},
            },
        ],
    }
    assert second["messages"][2:] == [
        {"role": "tool", "tool_call_id": "call_a", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_b", "content": "12:00"},
    ]
    expect(chat.get_by_label("Message", exact=True)).to_have_value("hello?")  # not lost

    # A result that was wrong is edited; the other one stays.
    chat.get_by_role("button", name="Edit this result").first.click()
    chat.locator(".call-result .editor textarea").fill("sun")
    chat.keyboard.press("Enter")
    done(chat)
    assert messages(server.posts()[2])[2:] == [("tool", "sun"), ("tool", "12:00")]

    chat.reload()
    expect(chat.locator(".call-result pre")).to_have_text(["sun", "12:00"])


def test_a_dropped_connection_is_taken_up_again(chat, server):
    seen = [threading.Event(), threading.Event()]  # what is under way when it breaks may be lost
    server.answers.append(
        [
            *words("one two three"),
            wait(seen[0]),
            DROP,
            *words(" four five"),
            wait(seen[1]),
            DROP,
            *words(" six"),
            finish(),
            usage(9, 9),
            DONE,
        ]
    )
    send(chat, "count")
    for text, event in zip(["one two three", "one two three four five"], seen):
        expect(last_answer(chat).locator(".answer")).to_have_text(text)
        event.set()
    done(chat)
    expect(last_answer(chat).locator(".answer")).to_have_text("one two three four five six")
    stream = server.posts()[0]["body"]["stream_id"]
    again = [r for r in server.requests if r["method"] == "GET" and "streams" in r["path"]]
    assert [r["path"] for r in again] == [f"/v1/streams/{stream}"] * 2
    assert [r["headers"]["Last-Event-ID"] for r in again] == [f"{stream}:3", f"{stream}:6"]
    assert len(server.posts()) == 1
    expect(last_answer(chat).locator(".facts")).to_contain_text("9 in · 9 out")


def test_a_restarted_server_is_waited_for(chat, server):
    go_on = threading.Event()
    seen = threading.Event()
    server.answers.append([content("before "), wait(seen), DROP, wait(go_on), *answer("after")])
    chat.route("**/v1/streams/*", lambda route: route.abort("connectionrefused"), times=2)
    send(chat, "x")
    expect(last_answer(chat)).to_contain_text("before")
    seen.set()
    expect(chat.locator("#counter")).to_contain_text("The connection broke")
    server.failures.append((503, {"message": "The model is loading."}, [("Retry-After", "0")]))
    go_on.set()
    done(chat)
    expect(last_answer(chat).locator(".answer")).to_have_text("before after")


def test_a_server_that_cannot_keep_streams(chat, server):
    server.failures.append(
        (
            503,
            {
                "message": "the journal cannot be written; ask again without "
                "stream_id and resumable"
            },
            [],
        )
    )
    send(chat, "x")
    done(chat)
    expect(last_answer(chat)).to_contain_text("You said: x")
    first, second = (p["body"] for p in server.posts())
    assert first["resumable"] and not {"resumable", "stream_id"} & set(second)


def test_a_lost_stream_keeps_what_came(chat, server):
    server.resumable = False
    seen = threading.Event()
    server.answers.append([content("a beginning"), wait(seen), DROP])
    send(chat, "x")
    expect(last_answer(chat)).to_contain_text("a beginning")
    seen.set()
    expect(chat.get_by_role("alert").filter(has_text="no longer knows this answer")).to_be_visible()
    expect(last_answer(chat)).to_contain_text("a beginning")
    server.answers.append(answer("whole"))
    chat.get_by_role("button", name="Try again").click()
    done(chat)
    expect(chat.locator(".answer")).to_have_text(["whole"])


def test_an_answer_goes_on_after_a_reload(chat, server):
    go_on = threading.Event()
    server.answers.append(
        [*words("written before the reload "), wait(go_on), *answer("and after.")]
    )
    send(chat, "x")
    expect(last_answer(chat)).to_contain_text("the reload")
    chat.reload()
    expect(last_answer(chat)).to_contain_text("the reload")
    expect(chat.get_by_role("button", name="Stop")).to_be_visible()
    go_on.set()
    done(chat)
    expect(chat.locator(".answer")).to_have_text(["written before the reload and after."])
    assert len(server.posts()) == 1


def test_another_conversation_while_one_answers(chat, server):
    go_on = threading.Event()
    server.answers.extend([[content("slow "), wait(go_on), *answer("but sure")], answer("quick")])
    send(chat, "first")
    expect(last_answer(chat)).to_contain_text("slow")
    chat.keyboard.press("Control+k")
    expect(chat.locator(".message")).to_have_count(0)
    send(chat, "second")
    expect(chat.locator(".answer")).to_have_text(["quick"])
    expect(chat.locator("#conversations .dot")).to_have_count(1)
    go_on.set()
    expect(chat.locator("#conversations .dot")).to_have_count(0)
    expect(chat.locator(".answer")).to_have_text(["quick"])
    chat.get_by_role("button", name="first", exact=True).click()
    expect(chat.locator(".answer")).to_have_text(["slow but sure"])


def test_errors_are_sentences_with_a_way_out(chat, server):
    alert = chat.locator(".error")
    server.failures.append(
        (
            400,
            {
                "message": "the prompt has 70000 tokens; the context holds 65536",
                "code": "context_length_exceeded",
            },
            [],
        )
    )
    send(chat, "x")
    expect(alert.locator("p")).to_have_text("The prompt has 70000 tokens; the context holds 65536.")
    expect(chat.locator(".message.assistant")).to_have_count(0)
    server.failures.append((429, {"message": "256 requests are waiting"}, [("Retry-After", "7")]))
    alert.get_by_role("button", name="Try again").click()
    expect(alert.locator("p")).to_have_text(
        "The server is busy: 256 requests are waiting. Try again in 7 s."
    )
    alert.get_by_role("button", name="Try again").click()
    expect(last_answer(chat)).to_contain_text("You said: x")
    expect(alert).to_have_count(0)


def test_an_error_inside_a_stream(chat, server):
    server.answers.append([*words("so far "), error("the engine has failed")])
    send(chat, "x")
    expect(chat.locator(".error p")).to_have_text("The engine has failed.")
    expect(last_answer(chat)).to_contain_text("so far")
    expect(last_answer(chat)).to_contain_text("This answer is not complete.")


def test_a_server_that_is_gone(chat, server):
    server.stop()
    send(chat, "x")
    expect(chat.locator(".error p")).to_contain_text("cannot be reached")
    server.start()
    chat.get_by_role("button", name="Try again").click()
    expect(last_answer(chat)).to_contain_text("You said: x")


def test_the_key_stays_in_the_tab(page, server):
    server.key = "sesame"
    page.goto(server.url)
    expect(page.locator(".error p")).to_contain_text("asks for an API key")
    page.get_by_role("button", name="Enter a key").click()
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    field.fill("wrong")
    field.press("Tab")
    expect(page.locator(".error p")).to_contain_text("does not accept this API key")
    field.fill("sesame")
    field.press("Tab")
    expect(page.locator(".error")).to_have_count(0)
    send(page, "x")
    done(page)
    assert server.posts()[-1]["headers"]["Authorization"] == "Bearer sesame"
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")


def test_sampling_goes_out_as_it_was_typed(chat, server):
    open_settings(chat)
    for label, value in {
        "Temperature": "0,7",
        "Top p": "0.9",
        "Top k": "40",
        "Min p": "0.05",
        "Seed": "18446744073709551615",
        "Max tokens": "256",
    }.items():
        chat.get_by_label(label).fill(value)
    chat.get_by_label("System prompt").fill("Be brief.")
    chat.get_by_label("Effort").select_option("max")
    send(chat, "x")
    done(chat)
    request = server.posts()[0]
    body = request["body"]
    assert (
        body["temperature"],
        body["top_p"],
        body["top_k"],
        body["min_p"],
        body["max_tokens"],
    ) == (0.7, 0.9, 40, 0.05, 256)
    assert '"seed":18446744073709551615' in request["text"]  # all 64 bits
    assert body["reasoning_effort"] == "max"
    assert messages(request) == [("system", "Be brief."), ("user", "x")]
    chat.get_by_label("Thinking").select_option("off")
    expect(chat.get_by_label("Effort")).to_be_hidden()
    chat.get_by_role("button", name="Back to defaults").click()
    send(chat, "y")
    done(chat)
    body = server.posts()[1]["body"]
    assert body["thinking"] == {"type": "disabled"}
    assert not {"temperature", "seed", "max_tokens", "reasoning_effort"} & set(body)


@pytest.mark.parametrize(
    "label,value,problem",
    [
        ("Temperature", "2.5", "Temperature must be at most 2."),
        ("Top p", "0", "Top p must be above 0."),
        ("Top k", "1.5", "Top k must be a whole number."),
        ("Seed", "18446744073709551616", "Seed must be below 2^64."),
        ("Max tokens", "0", "Max tokens must be at least 1."),
        ("Definitions (JSON)", '[{"description": "x"}]', 'Tool 1 has no "name".'),
    ],
)
def test_a_wrong_setting_is_not_sent(chat, server, label, value, problem):
    open_settings(chat)
    chat.get_by_label(label).fill(value)
    expect(chat.get_by_text(problem)).to_be_visible()
    send(chat, "x")
    expect(chat.get_by_label(label)).to_be_focused()
    assert server.posts() == []


def test_the_list_of_conversations(chat, server):
    for text in ["alpha", "beta"]:
        chat.keyboard.press("Control+k")
        send(chat, text)
        expect(last_answer(chat)).to_contain_text(f"You said: {text}")
        done(chat)
    names = chat.locator("#conversations .name")
    expect(names).to_have_text(["beta", "alpha"])
    chat.get_by_role("button", name="alpha", exact=True).hover()
    chat.get_by_role("button", name="Rename “alpha”").click()
    chat.get_by_label("Title").fill("Omega")
    chat.keyboard.press("Enter")
    expect(names).to_have_text(["beta", "Omega"])
    chat.get_by_role("button", name="Delete “beta”").click()
    expect(names).to_have_text(["Omega"])
    expect(chat.locator("#title")).to_have_text("Omega")
    chat.get_by_role("button", name="Undo").click()
    expect(names).to_have_text(["beta", "Omega"])
    expect(last_answer(chat)).to_contain_text("You said: beta")
    chat.reload()
    expect(names).to_have_text(["beta", "Omega"])


def test_deleting_a_conversation_that_answers(chat, server):
    never = threading.Event()
    server.answers.append([content("some"), wait(never)])
    send(chat, "doomed")
    expect(last_answer(chat)).to_contain_text("some")
    chat.get_by_role("button", name="Delete “doomed”").click()
    expect(chat.locator("#conversations li")).to_have_count(0)
    never.set()
    chat.wait_for_timeout(100)
    chat.reload()
    expect(chat.locator("#conversations li")).to_have_count(0)
    assert any(r["method"] == "DELETE" for r in server.requests)


def test_export_and_import(chat, server, tmp_path):
    send(chat, "keep me")
    done(chat)
    with chat.expect_download() as download:
        chat.get_by_role("button", name="Export all").click()
    path = tmp_path / "export.json"
    download.value.save_as(path)
    chat.get_by_role("button", name="Delete “keep me”").click()
    chat.locator("#import-file").set_input_files(path)
    expect(chat.locator("#toast")).to_contain_text("1 conversation imported.")
    chat.get_by_role("button", name="keep me", exact=True).click()
    expect(last_answer(chat)).to_contain_text("You said: keep me")
    chat.locator("#import-file").set_input_files(path)  # again: a second one, nothing overwritten
    expect(chat.locator("#conversations li")).to_have_count(2)

    good = json.loads(path.read_text())
    for damage, told in [
        ("[1,", "not JSON"),
        ('{"format": "x"}', "holds no conversations"),
        (json.dumps({**good, "version": 9}), "has version 9"),
        (
            json.dumps({**good, "conversations": [{"id": "x", "messages": [{"role": "user"}]}]}),
            "Conversation 1 of this file is damaged",
        ),
    ]:
        bad = tmp_path / "bad.json"
        bad.write_text(damage)
        chat.locator("#import-file").set_input_files(bad)
        expect(chat.locator("#toast")).to_contain_text(told)
    expect(chat.locator("#conversations li")).to_have_count(2)


def test_damaged_storage_does_not_stop_the_page(context, server):
    context.add_init_script("""
      if (location.protocol === "http:") {
      localStorage.setItem("hadal.conversation.bad", "{");
      localStorage.setItem("hadal.conversation.odd", '{"id": "odd", "messages": [null]}');
      localStorage.setItem("hadal.shown", "bad");
      localStorage.setItem("hadal.theme", "purple");
      }""")
    page = context.new_page()
    page.goto(server.url)
    send(page, "x")
    expect(last_answer(page)).to_contain_text("You said: x")


def test_colours(chat):
    def background():
        return chat.evaluate("getComputedStyle(document.body).backgroundColor")

    chat.emulate_media(color_scheme="light")
    light = background()
    chat.emulate_media(color_scheme="dark")
    dark = background()
    assert light != dark
    button = chat.locator("#theme")
    button.click()
    assert background() == light  # chosen, whatever the system says
    chat.reload()
    assert background() == light
    button.click()
    chat.emulate_media(color_scheme="light")
    assert background() == dark
    button.click()
    assert background() == light


def test_a_phone(context, server):
    page = context.new_page()
    page.set_viewport_size({"width": 390, "height": 780})
    page.goto(server.url)
    server.answers.append(
        answer(
            "| a | b |\n|---|---|\n| "
            + "x" * 80
            + " | 2 |\n\n```\n"
            + "y" * 200
            + "\n```\n"
            + "z" * 300
        )
    )
    send(page, "w" * 200)
    done(page)

    def overflow():
        return page.evaluate("document.documentElement.scrollWidth - innerWidth")

    assert overflow() <= 0
    assert (
        page.evaluate(
            "(log => log.scrollWidth - log.clientWidth)" "(document.getElementById('log'))"
        )
        <= 0
    )
    for name, panel in [("Conversations", "#list"), ("Settings", "#settings")]:
        page.get_by_role("button", name=name, exact=True).click()
        expect(page.locator(panel)).to_be_visible()
        assert overflow() <= 0
        page.keyboard.press("Escape")
        expect(page.locator(panel)).to_be_hidden()
        expect(page.get_by_role("button", name=name, exact=True)).to_be_focused()


def test_keys_and_names(chat, server):
    open_settings(chat)
    send(chat, "x")
    done(chat)
    nameless = chat.evaluate("""() => [...document.querySelectorAll(
      'button, a[href], input:not([hidden]), select, textarea')].filter((node) =>
        !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length))
      .map((node) => node.outerHTML)""")
    assert nameless == []
    skip = chat.locator(".skip")
    skip.focus()
    expect(skip).to_be_in_viewport()
    chat.keyboard.press("Enter")
    expect(chat.get_by_label("Message", exact=True)).to_be_focused()
    seen = []
    skip.focus()
    for _ in range(40):
        chat.keyboard.press("Tab")
        seen.append(chat.evaluate("document.activeElement.id"))
    order = [
        seen.index(i)
        for i in [
            "toggle-list",
            "model",
            "toggle-settings",
            "import",
            "input",
            "thinking",
            "system",
            "tools",
        ]
    ]
    assert order == sorted(order)


def test_the_end_is_followed_until_the_reader_scrolls_up(chat, server):
    go_on = threading.Event()
    lines = "\n\n".join(f"line {i}" for i in range(100))
    server.answers.append([content(lines), wait(go_on), *answer("\n\nthe end")])
    send(chat, "x")
    expect(last_answer(chat)).to_contain_text("line 99")

    def distance():
        return chat.locator("#log").evaluate("(l) => l.scrollHeight - l.scrollTop - l.clientHeight")

    def reach_the_end():
        for _ in range(200):
            if distance() < 2:
                return
            chat.wait_for_timeout(50)
        assert distance() < 2

    reach_the_end()
    chat.locator("#log").hover()
    chat.mouse.wheel(0, -900)
    expect(chat.get_by_label("Go to the newest message")).to_be_visible()
    go_on.set()
    done(chat)
    assert distance() > 500
    chat.get_by_label("Go to the newest message").click()
    reach_the_end()
