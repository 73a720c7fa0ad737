"""What goes wrong reaches its client as the exception it knows, and nobody else."""

import json

import anthropic
import openai
import pytest

from server_process import ServerProcess

HELLO = [{"role": "user", "content": "Hello!"}]
NO_THINKING = {"thinking": {"type": "disabled"}}
KEYS = {"keys": [{"name": "team-a", "key": "sk-team-a-0123456789"},
                 {"name": "single", "key": "sk-single-0123456789", "concurrent": 1},
                 {"name": "other", "key": "sk-other-0123456789", "models": ["something-else"]}]}


@pytest.fixture(scope="module")
def keyed_server(hadal, tmp_path_factory):
    directory = tmp_path_factory.mktemp("keyed")
    keys = directory / "keys.json"
    keys.write_text(json.dumps(KEYS))
    server = ServerProcess(hadal, directory, "--api-key-file", keys).start()
    yield server
    server.stop()


def bearer(index):
    return {"Authorization": "Bearer " + KEYS["keys"][index]["key"]}


def openai_client(server, key, **options):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0, timeout=60,
                         **options)


@pytest.fixture(scope="module")
def client(keyed_server):
    with openai_client(keyed_server, KEYS["keys"][0]["key"]) as client:
        yield client


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


def ask(client, model, messages=HELLO, **options):
    return client.chat.completions.create(**{"model": model, "messages": messages, "max_tokens": 8,
                                             "extra_body": NO_THINKING, **options})


def test_a_wrong_key(keyed_server, model):
    for key in ("sk-wrong", "sk-team-a-012345678", "sk-team-a-01234567890"):
        with openai_client(keyed_server, key) as client, \
                pytest.raises(openai.AuthenticationError) as error:
            ask(client, model)
        assert error.value.code == "invalid_api_key"
        assert key not in str(error.value)
    with anthropic.Anthropic(base_url=keyed_server.url, api_key="sk-wrong", max_retries=0) as client, \
            pytest.raises(anthropic.AuthenticationError) as error:
        client.messages.create(model=model, messages=HELLO, max_tokens=4)
    assert error.value.body["error"]["type"] == "authentication_error"


def test_a_right_key_in_either_header(keyed_server, client, model):
    assert ask(client, model).choices
    with anthropic.Anthropic(base_url=keyed_server.url, api_key=KEYS["keys"][0]["key"],
                             max_retries=0) as client:
        assert client.messages.create(model=model, messages=HELLO, max_tokens=4).content


def test_a_key_that_may_not(keyed_server, model):
    with openai_client(keyed_server, KEYS["keys"][2]["key"]) as client, \
            pytest.raises(openai.PermissionDeniedError):
        ask(client, model)


def test_health_and_metrics_need_no_key(keyed_server):
    for path in ("/health", "/ready", "/version", "/metrics"):
        assert keyed_server.request("GET", path)[0] == 200
    assert keyed_server.request("GET", "/status.json")[0] == 401


def test_a_key_at_its_limit_is_told_when_to_come_back(keyed_server, model):
    with openai_client(keyed_server, KEYS["keys"][1]["key"]) as client:
        stream = ask(client, model, max_tokens=20000, stream=True,
                     extra_body={**NO_THINKING, "ignore_eos": True})
        next(stream)
        with pytest.raises(openai.RateLimitError) as error:
            ask(client, model)
        assert int(error.value.response.headers["retry-after"]) >= 1
        with anthropic.Anthropic(base_url=keyed_server.url, api_key=KEYS["keys"][1]["key"],
                                 max_retries=0) as claude, \
                pytest.raises(anthropic.RateLimitError):
            claude.messages.create(model=model, messages=HELLO, max_tokens=4)
        stream.close()
        keyed_server.wait_idle(headers=bearer(0))
        assert ask(client, model).choices


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as error:
        ask(client, "gpt-17")
    assert error.value.code == "model_not_found"
    assert "gpt-17" in str(error.value)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-17")


@pytest.mark.parametrize("options, param", [
    ({"temperature": 3}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 17}, "n"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {
        "url": "data:image/png;base64,AAAA"}}]}]}, "messages[0].content[0]"),
    ({"messages": [*HELLO, {"role": "tool", "tool_call_id": "call_x", "content": "1"}]},
     "messages[1]"),
    ({"tools": [{"type": "function", "function": {"name": "has space"}}]},
     "tools[0].function.name"),
    ({"max_tokens": 9999999}, "max_tokens"),
    ({"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "strict": True,
        "schema": {"type": "object", "properties": {"a": {"type": "string", "pattern": "a+"}},
                   "required": ["a"], "additionalProperties": False}}}}, "response_format"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
])
def test_a_bad_request_names_its_member(client, model, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, model, **options)
    assert error.value.type == "invalid_request_error"
    assert (error.value.param or "").startswith(param), error.value.body


def test_a_prompt_that_does_not_fit(client, model):
    context = client.models.retrieve(model).model_extra["context_length"]
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, model, [{"role": "user", "content": "a b " * context}])
    assert error.value.code == "context_length_exceeded"
    assert error.value.body["n_ctx"] == context
    assert error.value.body["n_prompt_tokens"] > context


def test_bodies_that_are_no_requests(keyed_server):
    deep = "[" * 200 + "]" * 200
    for body in ("", "{", "[]", '"x"', '{"model": 1}', '{"model": "\ud800"}'.encode(
            "utf-8", "surrogatepass"), '{"messages": ' + deep + "}", b'{"model": "\xff"}'):
        status, headers, text = keyed_server.request("POST", "/v1/chat/completions", body, bearer(0))
        assert status == 400, (body[:40], text)
        error = json.loads(text)["error"]
        assert error["type"] == "invalid_request_error" and error["message"]
        assert headers["x-request-id"]


def test_paths_and_methods_that_are_not_there(keyed_server):
    assert keyed_server.request("GET", "/v1/nothing", headers=bearer(0))[0] == 404
    status, headers, _ = keyed_server.request("GET", "/v1/chat/completions", headers=bearer(0))
    assert status == 405 and "POST" in headers["allow"]


def test_streams_of_others_cannot_be_read(keyed_server, client, model):
    """A stream belongs to the key that began it."""
    ask(client, model, extra_body={**NO_THINKING, "stream_id": "mine"})
    assert keyed_server.request("GET", "/v1/streams/mine", headers=bearer(0))[0] == 200
    assert keyed_server.request("GET", "/v1/streams/mine", headers=bearer(1))[0] == 404
    assert keyed_server.request("GET", "/v1/streams/mine")[0] == 401
