"""Streams that outlive their connections, and the server."""

import time

import pytest

from event_stream import (Cut, EventStream, Refused, constant_part, follow, is_last,
                          n_completion_tokens)
from kill_harness import Harness, kolmogorov_smirnov
from server_process import ServerProcess

# Of the harness in its short form: enough kills to hit every stream about once, and to bend the
# lengths of a server that begins anew far enough for some dozen streams to show it.
STREAMS, EVENTS_PER_KILL = 96, 200


@pytest.fixture
def resumable(hadal, tmp_path):
    server = ServerProcess(hadal, tmp_path).start()
    yield server
    server.stop()


def body(server, **options):
    return {"model": server.json("GET", "/v1/models")["data"][0]["id"], "stream": True,
            "messages": [{"role": "user", "content": "Tell me about the sea."}], "seed": 7,
            "max_tokens": 40, "ignore_eos": True, "thinking": {"type": "disabled"},
            "stream_options": {"include_usage": True}, **options}


def chat(server, request):
    return EventStream(server.port, "POST", "/v1/chat/completions", request)


def take(stream, n):
    events = []
    for event in stream:
        events.append(event)
        if len(events) == n:
            break
    stream.close()
    return events


def test_every_event_has_a_position(resumable):
    events = list(chat(resumable, body(resumable, stream_id="here")))
    assert is_last(events[-1])
    assert all(e.id.startswith("here:") for e in events)
    assert n_completion_tokens(events) == 40


def test_reattach_to_a_running_stream(resumable):
    request = body(resumable, stream_id="s1", max_tokens=120)
    seen = take(chat(resumable, request), 10)
    rest = follow(resumable.port, "/v1/streams/s1", seen[-1].id)
    whole = follow(resumable.port, "/v1/streams/s1")
    assert seen + rest == whole
    position = seen[4].id.rpartition(":")[2]
    assert follow(resumable.port, f"/v1/streams/s1?after={position}") == whole[5:]
    assert resumable.status()["http"]["errors_total"] == {}


def test_several_readers(resumable):
    first = chat(resumable, body(resumable, stream_id="s2", max_tokens=60))
    seen = [next(first)]
    second = follow(resumable.port, "/v1/streams/s2")
    seen += list(first)
    assert second[-len(seen) + 1:] == seen[1:]


def test_the_same_request_again_is_the_same_stream(resumable):
    request = body(resumable, stream_id="s3")
    first = list(chat(resumable, request))
    generated = resumable.status()["engine"]["generated_tokens_total"]
    assert list(chat(resumable, request)) == first
    assert resumable.status()["engine"]["generated_tokens_total"] == generated
    with pytest.raises(Refused) as refused:
        chat(resumable, {**request, "max_tokens": 41})
    assert refused.value.status == 409


def test_a_stream_can_be_stopped(resumable):
    seen = take(chat(resumable, body(resumable, stream_id="s4", max_tokens=20000)), 5)
    assert resumable.status()["requests"]  # its reader is gone, and it goes on
    assert resumable.request("DELETE", "/v1/streams/s4")[0] == 200
    resumable.wait_idle(timeout=10)
    assert follow_whatever(resumable, "s4")[:5] == seen
    assert resumable.request("DELETE", "/v1/streams/s5")[0] == 404
    with pytest.raises(Refused) as refused:
        follow(resumable.port, "/v1/streams/s5")
    assert refused.value.status == 404


def follow_whatever(server, name):
    return list(EventStream(server.port, "GET", f"/v1/streams/{name}"))


def test_a_finished_stream_survives_a_restart(resumable):
    request = body(resumable, stream_id="s6")
    whole = list(chat(resumable, request))
    resumable.stop()
    resumable.start()
    assert follow(resumable.port, "/v1/streams/s6") == whole
    assert follow(resumable.port, "/v1/streams/s6", whole[7].id) == whole[8:]
    assert list(chat(resumable, request)) == whole


def test_an_unfinished_stream_goes_on_after_a_drain(hadal, tmp_path):
    """SIGTERM with little patience: what cannot finish in time is left to the journal."""
    server = ServerProcess(hadal, tmp_path, "--drain", "0").start()
    try:
        request = body(server, stream_id="s7", max_tokens=400)
        seen = take(chat(server, request), 6)
        server.stop()
        server.start()
        rest = follow(server.port, "/v1/streams/s7", seen[-1].id)
        alone = list(chat(server, {**request, "stream_id": "s8"}))
        assert constant_part(seen + rest) == constant_part(alone)
    finally:
        server.stop()


def test_a_killed_stream_continues_without_its_client(resumable):
    request = body(resumable, stream_id="s9", max_tokens=300)
    seen = take(chat(resumable, request), 6)
    resumable.kill()
    resumable.start()
    deadline = time.monotonic() + 60
    while resumable.status()["requests"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    rest = follow(resumable.port, "/v1/streams/s9", seen[-1].id)
    assert n_completion_tokens(seen + rest) == 300


def test_what_is_not_resumable_does_not_come_back(resumable):
    stream = chat(resumable, body(resumable, max_tokens=20000))
    next(stream)
    resumable.kill()
    resumable.start()
    assert resumable.status()["requests"] == []
    with pytest.raises(Cut):
        for _ in stream:
            pass
        raise Cut("the stream ended without its last event")


def test_kills_lose_nothing_and_bend_nothing(hadal, tmp_path):
    """The short form of kill_harness.py; its long one is for people with time."""
    said = []
    harness = Harness(hadal, tmp_path, say=said.append)
    killed, reference = harness.equality(STREAMS, EVENTS_PER_KILL)
    print("\n".join(said))
    assert killed.n_kills >= 4
    assert sum(killed.restarts) >= STREAMS // 4
    # Equal streams have equal lengths; this is what the comparison below must be able to tell.
    assert kolmogorov_smirnov(killed.lengths(), reference.lengths())[1] == 1.0
    scratch = harness.run("scratch", STREAMS, 20_000_003, EVENTS_PER_KILL, resume=False)
    d, p = kolmogorov_smirnov(scratch.lengths(), reference.lengths())
    print("\n".join(said), f"D = {d:.3f}, p = {p:.2g}")
    assert p < 0.01, f"lengths of answers begun anew look unbiased: D = {d:.3f}, p = {p:.2g}"


def test_kolmogorov_smirnov():
    assert kolmogorov_smirnov([1, 2, 3], [1, 2, 3]) == (0.0, 1.0)
    d, p = kolmogorov_smirnov(range(100), range(30, 130))
    assert d == pytest.approx(0.3)
    # Smirnov's table: 0.3 of two samples of 100 is far beyond the 0.1 % point, 0.276.
    assert 1e-5 < p < 1e-3
