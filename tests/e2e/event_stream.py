"""A client of streams that counts only what has arrived whole, and knows where it stands."""

import http.client
import json
from typing import NamedTuple


class Event(NamedTuple):
    id: str     # "STREAM:POSITION", "" for none
    name: str   # of the event, "" for none
    data: str


class Cut(Exception):
    """The connection ended before the response did, or there was none."""


class Refused(Exception):
    def __init__(self, status, body):
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body


def read_events(lines):
    """Whole events only: what is cut off has not been seen."""
    fields = {}
    for line in lines:
        if not line.endswith(b"\n"):
            return
        line = line.rstrip(b"\r\n").decode()
        if not line:
            if "data" in fields:
                yield Event(fields.get("id", ""), fields.get("event", ""), fields["data"])
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = fields["data"] + "\n" + value if name == "data" and name in fields \
                else value


class EventStream:
    """One response being read. Iterates over its events; raises Cut when the connection breaks and
    Refused when the server says no."""

    def __init__(self, port, method, path, body=None, headers=None, timeout=60):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        try:
            self.connection.request(method, path, None if body is None else json.dumps(body),
                                    {"Content-Type": "application/json", **(headers or {})})
            self.response = self.connection.getresponse()
            if self.response.status != 200:
                raise Refused(self.response.status, self.response.read().decode())
        except (OSError, http.client.HTTPException) as e:
            self.connection.close()
            raise Cut(repr(e)) from e
        self._events = self._read()

    def __iter__(self):
        return self._events

    def __next__(self):
        return next(self._events)

    def _read(self):
        def lines():
            while line := self.response.readline():
                yield line
        try:
            yield from read_events(lines())
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise Cut(repr(e)) from e
        finally:
            self.close()

    def close(self):
        self.connection.close()


def is_last(event):
    """Of a response in any of the APIs."""
    return event.data == "[DONE]" or event.name in (
        "message_stop", "response.completed", "response.incomplete", "response.failed")


def follow(port, path, last_event_id=None, **options):
    """All events behind `last_event_id` of a stream that exists."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    events = []
    for event in EventStream(port, "GET", path, headers=headers, **options):
        events.append(event)
        if is_last(event):
            return events
    raise Cut("the response ended without its last event")


# What differs between two runs of one request: names that are drawn, times, and how much of the
# prompt was cached.
_VARIES = {"id", "item_id", "call_id", "created", "created_at", "completed_at", "response_id",
           "system_fingerprint", "prompt_tokens_details", "prompt_cache_hit_tokens",
           "prompt_cache_miss_tokens", "input_tokens_details", "cache_creation_input_tokens",
           "cache_read_input_tokens", "signature", "encrypted_content", "stream_id", "metadata"}


def _constant(value, in_usage=False):
    if isinstance(value, dict):
        return {k: _constant(v, k == "usage") for k, v in value.items()
                # Anthropic's input_tokens are those that were not cached.
                if k not in _VARIES and not (in_usage and k == "input_tokens")}
    if isinstance(value, list):
        return [_constant(v) for v in value]
    return value


def constant_part(events):
    """What two runs of one request must have in common, position by position."""
    out = []
    for event in events:
        data = event.data
        if data != "[DONE]":
            data = json.dumps(_constant(json.loads(data)), ensure_ascii=False)
        out.append((event.id.rpartition(":")[2], event.name, data))
    return out


def by_choice(events):
    """The same of a response with several choices, which promises each choice and not how they
    take turns: choices of one request may wait for each other, above all after a restart."""
    choices, rest = {}, []
    for _, name, data in constant_part(events):
        index = None
        if data != "[DONE]":
            index = next((c["index"] for c in json.loads(data).get("choices", [])), None)
        (rest if index is None else choices.setdefault(index, [])).append((name, data))
    return [item for index in sorted(choices) for item in choices[index]] + rest


def n_completion_tokens(events):
    """Of the usage that the response ends with."""
    for event in reversed(events):
        if event.data == "[DONE]":
            continue
        data = json.loads(event.data)
        usage = data.get("usage") or (data.get("response") or {}).get("usage")
        if usage:
            return usage.get("completion_tokens", usage.get("output_tokens"))
    raise AssertionError("the response has no usage")
