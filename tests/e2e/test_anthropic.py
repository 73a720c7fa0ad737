"""Anthropic's own client against /v1/messages."""

import anthropic
import pytest

from tools import ANTHROPIC_TOOLS, question, run_tool

HELLO = [{"role": "user", "content": "Hello!"}]
SYSTEM = "You are a helpful assistant."
NO_THINKING = {"type": "disabled"}


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0,
                             timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def model(server):
    return server.json("GET", "/v1/models")["data"][0]["id"]


def with_defaults(options):
    """This client's create() no longer has sampling parameters; the API still does."""
    extra = dict(options.pop("extra_body", {}))
    for name in ("temperature", "seed", "thinking_budget", "ignore_eos"):
        if name in options:
            extra[name] = options.pop(name)
    return {"max_tokens": 80, "thinking": NO_THINKING, **options, "extra_body": extra}


def ask(client, model, messages, **options):
    return client.messages.create(model=model, messages=messages, **with_defaults(options))


def ask_streaming(client, model, messages, **options):
    return client.messages.stream(model=model, messages=messages, **with_defaults(options))


def prompt_tokens(usage):
    return (usage.input_tokens + (usage.cache_read_input_tokens or 0)
            + (usage.cache_creation_input_tokens or 0))


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def test_message(client, model):
    message = ask(client, model, HELLO, system=SYSTEM, temperature=0)
    assert message.type == "message" and message.role == "assistant"
    assert message.id.startswith("msg_")
    assert message.stop_reason == "end_turn"
    assert text_of(message).strip()
    assert prompt_tokens(message.usage) > 1
    assert message.usage.output_tokens > 1


def test_a_stream_says_what_the_whole_message_says(client, model):
    for seed in range(3):
        whole = ask(client, model, HELLO, system=SYSTEM, seed=seed)
        with ask_streaming(client, model, HELLO, system=SYSTEM, seed=seed) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == text_of(whole) == text_of(final)
        assert final.stop_reason == whole.stop_reason
        assert final.usage.output_tokens == whole.usage.output_tokens


def test_the_order_of_events(client, model):
    events = [e.type for e in ask(client, model, HELLO, stream=True)]
    assert events[0] == "message_start"
    assert events[-2:] == ["message_delta", "message_stop"]
    body = [e for e in events if e.startswith("content_block")]
    assert body[0] == "content_block_start" and body[-1] == "content_block_stop"


def test_max_tokens_and_stop_sequences(client, model):
    free = ask(client, model, HELLO, temperature=0)
    cut = ask(client, model, HELLO, temperature=0, max_tokens=2)
    assert cut.stop_reason == "max_tokens" and cut.usage.output_tokens == 2
    stop = text_of(free).split()[2]
    stopped = ask(client, model, HELLO, temperature=0, stop_sequences=[stop])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == stop
    assert text_of(stopped) == text_of(free)[:text_of(free).index(stop)]


def test_thinking(client, model):
    options = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1100,
               "seed": 1, "thinking_budget": 8}
    message = ask(client, model, HELLO, **options)
    first = message.content[0]
    assert first.type == "thinking" and first.thinking
    with ask_streaming(client, model, HELLO, **options) as stream:
        final = stream.get_final_message()
    assert final.content[0].thinking == first.thinking
    assert text_of(final) == text_of(message)
    # It is given back as it came, signature and all.
    following = ask(client, model, [*HELLO, {"role": "assistant", "content": message.content},
                                    {"role": "user", "content": "And now?"}], **options)
    assert following.content


def test_a_tool_call_the_model_was_trained_on(client, model):
    message = ask(client, model, [{"role": "user", "content": "What is 12*37?"}], system=SYSTEM,
                  tools=ANTHROPIC_TOOLS, temperature=0)
    assert message.stop_reason == "tool_use"
    use = message.content[-1]
    assert (use.type, use.name, use.input) == ("tool_use", "calculator", {"expression": "12*37"})
    assert use.id.startswith("toolu_")


def test_parallel_results_over_several_rounds(client, model):
    messages = [
        {"role": "user", "content": "What is 12*37, and what is the weather in Paris?"},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "toolu_a", "name": "calculator",
             "input": {"expression": "12*37"}},
            {"type": "tool_use", "id": "toolu_b", "name": "get_weather", "input": {"city": "Paris"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_b", "content": '{"temperature": 20}'},
            {"type": "tool_result", "tool_use_id": "toolu_a", "is_error": True,
             "content": [{"type": "text", "text": "division by zero"}]},
            {"type": "text", "text": question(0)}]}]
    for index in range(4):
        message = ask(client, model, messages, system=SYSTEM, tools=ANTHROPIC_TOOLS,
                      tool_choice={"type": "any"}, max_tokens=100, temperature=0.5, seed=index)
        uses = [block for block in message.content if block.type == "tool_use"]
        assert uses and message.stop_reason == "tool_use"
        messages.append({"role": "assistant", "content": message.content})
        messages.append({"role": "user", "content": [
            *({"type": "tool_result", "tool_use_id": use.id,
               "content": run_tool(use.name, use.input, index)} for use in uses),
            {"type": "text", "text": question(index + 1)}]})


def test_tool_choice(client, model):
    named = ask(client, model, HELLO, tools=ANTHROPIC_TOOLS, max_tokens=100,
                tool_choice={"type": "tool", "name": "get_weather"})
    assert [b.name for b in named.content if b.type == "tool_use"] == ["get_weather"]
    single = ask(client, model, [{"role": "user", "content": "Weather in Paris and in Rome?"}],
                 tools=ANTHROPIC_TOOLS, max_tokens=120,
                 tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert len([b for b in single.content if b.type == "tool_use"]) == 1
    none = ask(client, model, HELLO, tools=ANTHROPIC_TOOLS, tool_choice={"type": "none"})
    assert all(b.type == "text" for b in none.content)


def test_count_tokens(client, model):
    for options in ({}, {"system": SYSTEM}, {"system": SYSTEM, "tools": ANTHROPIC_TOOLS}):
        counted = client.messages.count_tokens(model=model, messages=HELLO, thinking=NO_THINKING,
                                               **options)
        used = ask(client, model, HELLO, max_tokens=1, **options)
        assert counted.input_tokens == prompt_tokens(used.usage)


def test_twenty_rounds_recompute_little(client, model):
    """An agent on streams. From the second round on, what is recomputed is the new text and less
    than a page."""
    messages = [{"role": "user", "content": question(0)}]
    known = 0
    for index in range(20):
        with ask_streaming(client, model, messages, system=SYSTEM, tools=ANTHROPIC_TOOLS,
                           tool_choice={"type": "any"}, max_tokens=200, temperature=0.7,
                           seed=index) as stream:
            message = stream.get_final_message()
        uses = [block for block in message.content if block.type == "tool_use"]
        assert uses and message.stop_reason == "tool_use", message
        prompt = prompt_tokens(message.usage)
        missed = prompt - (message.usage.cache_read_input_tokens or 0)
        new = prompt - known
        if index > 0:
            assert new > 0
            assert missed < 128 + new, f"round {index}: {message.usage}, {new} new tokens"
        known = prompt + message.usage.output_tokens
        messages.append({"role": "assistant", "content": message.content})
        messages.append({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": use.id,
             "content": run_tool(use.name, use.input, index)} for use in uses]})


def test_closing_a_stream_frees_its_request(client, model, server):
    server.wait_idle()
    stream = ask(client, model, HELLO, max_tokens=20000, stream=True, ignore_eos=True)
    for _, event in zip(range(6), stream):
        pass
    assert server.status()["requests"]
    stream.close()
    server.wait_idle(timeout=10)


def test_errors_are_typed(client, model, server):
    with pytest.raises(anthropic.BadRequestError) as unknown:
        ask(client, "no-such-model", HELLO)
    assert unknown.value.body["error"]["type"] == "invalid_request_error"
    assert unknown.value.body["request_id"]
    with pytest.raises(anthropic.BadRequestError) as bad:
        ask(client, model, [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_nothing", "content": "x"}]}])
    assert "toolu_nothing" in str(bad.value)
    with pytest.raises(anthropic.BadRequestError):
        ask(client, model, HELLO, temperature=7)
    context = server.json("GET", f"/v1/models/{model}")["context_length"]
    with pytest.raises(anthropic.BadRequestError) as long:
        ask(client, model, [{"role": "user", "content": "a b " * context}], max_tokens=1)
    assert str(context) in str(long.value)
