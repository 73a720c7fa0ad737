"""OpenAI's own client against every endpoint of its that hadal serves."""

import asyncio
import json
import time

import openai
import pydantic
import pytest

from tools import CALCULATOR, OPENAI_TOOLS, RESPONSES_TOOLS, question, run_tool

NO_THINKING = {"thinking": {"type": "disabled"}}
HELLO = [{"role": "system", "content": "You are a helpful assistant."},
         {"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0,
                       timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


def ask(client, model, messages, **options):
    extra = {**NO_THINKING, **options.pop("extra_body", {})}
    options.setdefault("max_tokens", 80)
    return client.chat.completions.create(model=model, messages=messages, extra_body=extra,
                                          **options)


def text_of(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


# --- models -----------------------------------------------------------------------------------

def test_models(client, model):
    assert client.models.retrieve(model).id == model
    entry = client.models.list().data[0]
    assert entry.object == "model"
    assert entry.model_extra["context_length"] > 0
    assert entry.model_extra["max_output_tokens"] > 0


# --- chat -------------------------------------------------------------------------------------

def test_chat(client, model):
    answer = ask(client, model, HELLO, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content.strip()
    assert choice.finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens > 1
    assert usage.completion_tokens_details.reasoning_tokens == 0
    assert usage.model_extra["prompt_cache_hit_tokens"] == usage.prompt_tokens_details.cached_tokens
    assert (usage.model_extra["prompt_cache_hit_tokens"]
            + usage.model_extra["prompt_cache_miss_tokens"]) == usage.prompt_tokens


def test_a_stream_says_what_the_whole_answer_says(client, model):
    for seed in range(4):
        whole = ask(client, model, HELLO, seed=seed, max_tokens=30)
        chunks = list(ask(client, model, HELLO, seed=seed, max_tokens=30, stream=True,
                          stream_options={"include_usage": True}))
        assert text_of(chunks) == whole.choices[0].message.content
        assert len({c.id for c in chunks}) == 1
        assert len({c.created for c in chunks}) == 1
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == \
            whole.choices[0].finish_reason
        assert all(c.choices[0].finish_reason is None for c in chunks[:-2])
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_stream_helper_accumulates(client, model):
    with client.chat.completions.stream(model=model, messages=HELLO, max_tokens=30, seed=3,
                                        extra_body=NO_THINKING) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content == \
        ask(client, model, HELLO, max_tokens=30, seed=3).choices[0].message.content


def test_thinking_goes_to_its_own_member(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=48, seed=1)
    message = answer.choices[0].message
    assert message.model_extra["reasoning_content"]
    assert "<think>" not in (message.content or "") + message.model_extra["reasoning_content"]
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0
    chunks = list(client.chat.completions.create(model=model, messages=HELLO, max_tokens=48, seed=1,
                                                 stream=True))
    reasoning = "".join((c.choices[0].delta.model_extra or {}).get("reasoning_content") or ""
                        for c in chunks if c.choices)
    assert reasoning == message.model_extra["reasoning_content"]
    assert text_of(chunks) == (message.content or "")


def test_no_effort_means_no_thinking(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=16,
                                            reasoning_effort="none")
    assert not answer.choices[0].message.model_extra.get("reasoning_content")


def test_a_seed_reproduces(client, model):
    def say(seed):
        return ask(client, model, [{"role": "user", "content": "Tell me about the sea."}],
                   seed=seed, max_tokens=24).choices[0].message.content
    first = [say(seed) for seed in range(5)]
    assert [say(seed) for seed in range(5)] == first
    assert len(set(first)) > 1


def test_the_seed_drawn_for_a_request_without_one_reproduces_it(client, model):
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=HELLO, max_tokens=24, extra_body=NO_THINKING)
    again = ask(client, model, HELLO, seed=int(raw.headers["x-seed"]), max_tokens=24)
    assert again.choices[0].message.content == raw.parse().choices[0].message.content


def test_n_choices(client, model):
    answer = ask(client, model, HELLO, n=3, seed=5, max_tokens=24)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    texts = [c.message.content for c in answer.choices]
    assert len(set(texts)) > 1
    streamed = ["", "", ""]
    finished = []
    for chunk in ask(client, model, HELLO, n=3, seed=5, max_tokens=24, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                finished.append(choice.index)
    assert streamed == texts
    assert sorted(finished) == [0, 1, 2]


def test_stop_strings(client, model):
    free = ask(client, model, HELLO, temperature=0, max_tokens=24).choices[0].message.content
    stop = free.split()[2]
    for stream in (False, True):
        answer = ask(client, model, HELLO, temperature=0, max_tokens=24, stop=[stop, "zzzz"],
                     stream=stream)
        if stream:
            chunks = list(answer)
            text, reason = text_of(chunks), chunks[-1].choices[0].finish_reason
        else:
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert text == free[:free.index(stop)]
        assert reason == "stop"


def test_max_tokens(client, model):
    answer = ask(client, model, HELLO, max_tokens=3, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_logprobs(client, model):
    answer = ask(client, model, HELLO, temperature=0, max_tokens=12, logprobs=True, top_logprobs=4)
    entries = answer.choices[0].logprobs.content
    assert len(entries) in (answer.usage.completion_tokens, answer.usage.completion_tokens - 1)
    text = b"".join(bytes(e.bytes) for e in entries).decode()
    assert text.startswith(answer.choices[0].message.content)
    for entry in entries:
        tops = [t.logprob for t in entry.top_logprobs]
        assert len(tops) == 4
        assert tops == sorted(tops, reverse=True)
        assert entry.logprob == tops[0] <= 0  # greedy
        assert entry.token == entry.top_logprobs[0].token
    chunks = list(ask(client, model, HELLO, temperature=0, max_tokens=12, logprobs=True,
                      top_logprobs=4, stream=True))
    streamed = [e for c in chunks if c.choices and c.choices[0].logprobs
                for e in c.choices[0].logprobs.content or []]
    assert [(e.token, e.logprob) for e in streamed] == [(e.token, e.logprob) for e in entries]


def test_a_prefix_is_continued(client, model):
    messages = [*HELLO, {"role": "assistant", "content": "Hello! How", "prefix": True}]
    answer = ask(client, model, messages, temperature=0, max_tokens=12)
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.content.startswith("Hello! How")


def test_many_at_once_answer_as_alone(server, model, client):
    alone = [ask(client, model, HELLO, seed=s, max_tokens=20).choices[0].message.content
             for s in range(12)]

    async def together():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none",
                                      max_retries=0) as client:
            answers = await asyncio.gather(*(
                client.chat.completions.create(model=model, messages=HELLO, seed=s, max_tokens=20,
                                               extra_body=NO_THINKING) for s in range(12)))
            return [a.choices[0].message.content for a in answers]
    assert asyncio.run(together()) == alone


# --- tools ------------------------------------------------------------------------------------

def test_a_tool_call_the_model_was_trained_on(client, model):
    answer = ask(client, model, [HELLO[0], {"role": "user", "content": "What is 12*37?"}],
                 tools=OPENAI_TOOLS, temperature=0)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    call = choice.message.tool_calls[0]
    assert call.function.name == "calculator"
    assert json.loads(call.function.arguments) == {"expression": "12*37"}
    assert call.id.startswith("call_")


def test_streamed_arguments_join_to_the_whole(client, model):
    messages = [HELLO[0], {"role": "user", "content": "What is 12*37?"}]
    calls = {}
    reasons = []
    for chunk in ask(client, model, messages, tools=OPENAI_TOOLS, temperature=0, stream=True):
        for choice in chunk.choices:
            reasons.append(choice.finish_reason)
            assert not choice.delta.content
            for fragment in choice.delta.tool_calls or []:
                call = calls.setdefault(fragment.index, {"name": "", "arguments": ""})
                call["name"] += fragment.function.name or ""
                call["arguments"] += fragment.function.arguments or ""
    assert calls == {0: {"name": "calculator", "arguments": '{"expression": "12*37"}'}}
    assert reasons[-1] == "tool_calls"


def test_parallel_calls_over_several_rounds(client, model):
    """Two calls in one turn, their results in the wrong order, and on from there."""
    messages = [HELLO[0], {"role": "user", "content": "What is 12*37, and what is the weather in "
                                                      "Paris?"}]
    # Two calls as the model would have made them: a client may replay any history.
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_a", "type": "function",
             "function": {"name": "calculator", "arguments": '{"expression": "12*37"}'}},
            {"id": "call_b", "type": "function",
             "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}]},
        {"role": "tool", "tool_call_id": "call_b", "content": '{"temperature": 20}'},
        {"role": "tool", "tool_call_id": "call_a", "content": '{"result": 444}'}]
    n_calls = 0
    for index in range(4):
        messages.append({"role": "user", "content": question(index)})
        answer = ask(client, model, messages, tools=OPENAI_TOOLS, tool_choice="required",
                     temperature=0.5, seed=index, max_tokens=100)
        choice = answer.choices[0]
        messages.append(choice.message.model_dump(exclude_none=True))
        for call in choice.message.tool_calls or []:
            n_calls += 1
            result = run_tool(call.function.name, json.loads(call.function.arguments), index)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    assert n_calls >= 4
    ids = [c["id"] for m in messages for c in m.get("tool_calls", [])]
    assert len(ids) == len(set(ids))


def test_two_calls_in_one_answer(client, model):
    """Some seed makes the model ask for both; then both arrive whole."""
    messages = [HELLO[0], {"role": "user",
                           "content": "What is the weather in Paris and in Rome?"}]
    for seed in range(12):
        message = ask(client, model, messages, tools=OPENAI_TOOLS, tool_choice="required",
                      seed=seed, max_tokens=120, temperature=0.8).choices[0].message
        if len(message.tool_calls or []) >= 2:
            break
    assert len(message.tool_calls) >= 2
    for call in message.tool_calls:
        assert isinstance(json.loads(call.function.arguments), dict)
    single = ask(client, model, messages, tools=OPENAI_TOOLS, tool_choice="required", seed=seed,
                 max_tokens=120, temperature=0.8, parallel_tool_calls=False).choices[0]
    assert len(single.message.tool_calls) == 1


def test_a_named_tool_is_called_whatever_was_asked(client, model):
    for seed in range(3):
        choice = ask(client, model, HELLO, tools=OPENAI_TOOLS, seed=seed, max_tokens=100,
                     tool_choice={"type": "function", "function": {"name": "get_weather"}},
                     ).choices[0]
        assert [c.function.name for c in choice.message.tool_calls] == ["get_weather"]


def test_no_tool_is_called_when_none_may_be(client, model):
    messages = [HELLO[0], {"role": "user", "content": "What is 12*37?"}]
    choice = ask(client, model, messages, tools=OPENAI_TOOLS, tool_choice="none").choices[0]
    assert choice.message.tool_calls is None
    assert "DSML" not in (choice.message.content or "")


def test_strict_arguments_match_their_schema(client, model):
    tool = {"type": "function", "function": {
        "name": "set_light", "description": "Switch a light.", "strict": True,
        "parameters": {"type": "object", "additionalProperties": False,
                       "properties": {"room": {"type": "string", "enum": ["kitchen", "hall"]},
                                      "on": {"type": "boolean"},
                                      "level": {"type": "integer", "enum": [1, 2, 3]}},
                       "required": ["room", "on", "level"]}}}
    for seed in range(4):
        choice = ask(client, model, [{"role": "user", "content": "Switch the light on."}],
                     tools=[tool], tool_choice="required", seed=seed, max_tokens=120,
                     parallel_tool_calls=False).choices[0]
        arguments = json.loads(choice.message.tool_calls[0].function.arguments)
        assert arguments["room"] in ("kitchen", "hall")
        assert arguments["on"] in (True, False)
        assert arguments["level"] in (1, 2, 3)
        assert len(arguments) == 3


def test_twenty_rounds_recompute_little(client, model):
    """An agent. From the second round on, what is recomputed is the new text and less than a page."""
    messages = [{"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": question(0)}]
    known = 0  # tokens of the last prompt and of its answer
    for index in range(20):
        answer = ask(client, model, messages, tools=OPENAI_TOOLS, tool_choice="required",
                     seed=index, temperature=0.7, max_tokens=200)
        choice, usage = answer.choices[0], answer.usage
        assert choice.finish_reason == "tool_calls", choice
        new = usage.prompt_tokens - known
        missed = usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens
        if index > 0:
            assert new > 0
            assert missed < 128 + new, f"round {index}: {usage}, {new} new tokens"
        known = usage.prompt_tokens + usage.completion_tokens
        messages.append(choice.message.model_dump(exclude_none=True))
        for call in choice.message.tool_calls:
            result = run_tool(call.function.name, json.loads(call.function.arguments), index)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


# --- structured output ------------------------------------------------------------------------

class Sky(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    clear: bool
    clouds: int
    colour: str


SKY_SCHEMA = {"type": "object", "additionalProperties": False,
              "properties": {"clear": {"type": "boolean"},
                             "clouds": {"type": "integer", "enum": [0, 1, 2, 8]},
                             "colour": {"type": "string", "enum": ["blue", "grey"]}},
              "required": ["clear", "clouds", "colour"]}


def test_json_object(client, model):
    """Any object. One that max_tokens cuts off is the beginning of one."""
    whole = 0
    for seed in range(6):
        choice = ask(client, model, [{"role": "user", "content": "Describe the sky as JSON."}],
                     response_format={"type": "json_object"}, seed=seed, max_tokens=150).choices[0]
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
            whole += 1
        else:
            assert choice.finish_reason == "length"
    assert whole > 0


@pytest.mark.parametrize("thinking", ["disabled", "enabled"])
def test_json_schema(client, model, thinking):
    extra = {"thinking": {"type": thinking}}
    if thinking == "enabled":
        extra["thinking_budget"] = 8
    for seed in range(3):
        choice = ask(client, model, [{"role": "user", "content": "How is the sky?"}], seed=seed,
                     response_format={"type": "json_schema", "json_schema": {
                         "name": "sky", "strict": True, "schema": SKY_SCHEMA}},
                     max_tokens=100, extra_body=extra).choices[0]
        assert choice.finish_reason == "stop"
        sky = Sky.model_validate_json(choice.message.content)
        assert sky.clouds in (0, 1, 2, 8) and sky.colour in ("blue", "grey")


class Traffic(pydantic.BaseModel):
    red: bool
    amber: bool


def test_parse(client, model):
    answer = client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": "Which lights are on?"}],
        response_format=Traffic, max_tokens=60, extra_body=NO_THINKING)
    assert isinstance(answer.choices[0].message.parsed, Traffic)


# --- completions ------------------------------------------------------------------------------

def test_completions(client, model):
    answer = client.completions.create(model=model, prompt="The book of", max_tokens=8,
                                       temperature=0)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason in ("length", "stop")
    streamed = client.completions.create(model=model, prompt="The book of", max_tokens=8,
                                         temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in streamed if c.choices) == answer.choices[0].text


def test_completions_of_several_prompts(client, model):
    prompts = ["The book of", "In the beginning"]
    answer = client.completions.create(model=model, prompt=prompts, max_tokens=6, temperature=0,
                                       n=2)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    single = [client.completions.create(model=model, prompt=p, max_tokens=6, temperature=0)
              .choices[0].text for p in prompts]
    assert [c.text for c in answer.choices] == [single[0], single[0], single[1], single[1]]


def test_completions_echo_and_logprobs(client, model):
    answer = client.completions.create(model=model, prompt="The book of", max_tokens=4,
                                       temperature=0, echo=True, logprobs=2)
    choice = answer.choices[0]
    assert choice.text.startswith("The book of")
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    assert logprobs.text_offset == sorted(logprobs.text_offset)


def test_token_ids_as_prompt(client, model, server):
    tokens = server.json("POST", "/tokenize", {"model": model, "prompt": "The book of",
                                               "content": "The book of"})["tokens"]
    by_text = client.completions.create(model=model, prompt="The book of", max_tokens=6,
                                        temperature=0)
    by_ids = client.completions.create(model=model, prompt=tokens, max_tokens=6, temperature=0)
    if by_ids.usage.prompt_tokens == by_text.usage.prompt_tokens:
        assert by_ids.choices[0].text == by_text.choices[0].text
    assert by_ids.usage.prompt_tokens == len(tokens)


def test_fill_in_the_middle(client, model):
    answer = client.completions.create(model=model, prompt="def add(a, b):\n", max_tokens=12,
                                       suffix="\n    return c\n", temperature=0)
    plain = client.completions.create(model=model, prompt="def add(a, b):\n", max_tokens=12,
                                      temperature=0)
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens
    assert answer.choices[0].finish_reason in ("length", "stop")


# --- responses --------------------------------------------------------------------------------

def respond(client, model, text, **options):
    options.setdefault("max_output_tokens", 30)
    options.setdefault("reasoning", {"effort": "none"})
    return client.responses.create(model=model, input=text, **options)


def test_responses(client, model):
    answer = respond(client, model, "Hello!", instructions="You are a helpful assistant.",
                     temperature=0)
    assert answer.status == "completed"
    assert answer.output_text.strip()
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    cut = respond(client, model, "Hello!", max_output_tokens=2, extra_body={"ignore_eos": True})
    assert cut.status == "incomplete"
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_responses_stream(client, model):
    events = list(respond(client, model, "Hello!", temperature=0, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    order = ["response.output_item.added", "response.content_part.added",
             "response.output_text.delta", "response.output_text.done",
             "response.content_part.done", "response.output_item.done"]
    positions = [kinds.index(kind) for kind in order]
    assert positions == sorted(positions)
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == events[-1].response.output_text
    assert text == respond(client, model, "Hello!", temperature=0).output_text


def test_responses_reasoning(client, model):
    answer = respond(client, model, "Hello!", reasoning={"effort": "high"}, max_output_tokens=60,
                     extra_body={"seed": 1, "thinking_budget": 8})
    assert [item.type for item in answer.output][0] == "reasoning"
    assert answer.usage.output_tokens_details.reasoning_tokens > 0


def test_responses_function_calls_go_on_from_the_previous_response(client, model):
    answer = respond(client, model, "What is 12*37?", instructions="You are a helpful assistant.",
                     tools=RESPONSES_TOOLS, tool_choice="required", temperature=0,
                     max_output_tokens=100)
    for index in range(3):
        calls = [item for item in answer.output if item.type == "function_call"]
        assert calls
        results = [{"type": "function_call_output", "call_id": call.call_id,
                    "output": run_tool(call.name, json.loads(call.arguments), index)}
                   for call in calls]
        following = respond(client, model,
                            [*results, {"role": "user", "content": question(index + 1)}],
                            previous_response_id=answer.id, tools=RESPONSES_TOOLS,
                            tool_choice="required", temperature=0.5, max_output_tokens=100,
                            extra_body={"seed": index})
        assert following.previous_response_id == answer.id
        assert following.usage.input_tokens > answer.usage.input_tokens
        answer = following


def test_responses_streamed_function_call(client, model):
    events = list(respond(client, model, "What is 12*37?", tools=RESPONSES_TOOLS,
                          tool_choice={"type": "function", "name": "calculator"}, temperature=0,
                          max_output_tokens=100, stream=True))
    joined = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert joined == done[0].arguments
    assert json.loads(joined).keys() == {"expression"}


def test_responses_are_kept(client, model):
    answer = respond(client, model, "Hello!", temperature=0)
    again = client.responses.retrieve(answer.id)
    assert again.output_text == answer.output_text
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_nothing")


def test_responses_structured(client, model):
    answer = client.responses.parse(model=model, input="Which lights are on?", text_format=Traffic,
                                    reasoning={"effort": "none"}, max_output_tokens=60)
    assert isinstance(answer.output_parsed, Traffic)


# --- cancel -----------------------------------------------------------------------------------

def test_closing_a_stream_frees_its_request(client, model, server):
    before = server.wait_idle()["http"]["disconnects_total"]
    stream = ask(client, model, HELLO, max_tokens=20000, stream=True,
                 extra_body={"ignore_eos": True})
    for _, chunk in zip(range(4), stream):
        pass
    assert server.status()["requests"]
    stream.close()
    after = server.wait_idle(timeout=10)
    assert after["http"]["disconnects_total"] == before + 1


def test_a_client_that_gives_up_on_a_whole_answer_frees_it_too(client, model, server):
    server.wait_idle()
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.5), model, HELLO, max_tokens=20000,
            extra_body={"ignore_eos": True})
    server.wait_idle(timeout=10)


def test_a_background_response_can_be_cancelled(client, model, server):
    answer = respond(client, model, "Hello!", background=True, max_output_tokens=20000,
                     extra_body={"ignore_eos": True})
    assert answer.status in ("queued", "in_progress")
    deadline = time.monotonic() + 20
    while client.responses.retrieve(answer.id).status == "queued":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    client.responses.cancel(answer.id)
    server.wait_idle(timeout=10)
    assert client.responses.retrieve(answer.id).status == "cancelled"
