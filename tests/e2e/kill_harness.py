#!/usr/bin/env python3
"""Kills the server at random moments under sampled streams, and compares what their clients got
with what they get when nobody kills.

    python tests/e2e/kill_harness.py --hadal build/hadal --kills 300

Four runs over the same number of streams, so many at a time:

  reference    no kills
  killed       kill -9, restart, re-attach with Last-Event-ID, as often as it takes. Every stream
               must equal its reference event by event (with several choices: each choice), and
               what its clients read piece by piece must equal the whole as the server tells it
               afterwards, byte for byte.
  independent  no kills, other seeds: a sample of the same law of lengths. The lengths of `killed`
               must be such a sample as well (Kolmogorov-Smirnov).
  scratch      kill -9, restart, and every stream that was cut begins anew with a fresh seed. Its
               lengths must fail the same test: what survives is too short. Were they to pass, the
               test would prove nothing.

Kills come by the number of events that the clients have read, with some milliseconds of jitter, so
that a busy machine does not change how often a stream is hit.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from event_stream import (Cut, EventStream, Refused, by_choice, constant_part,  # noqa: E402
                          follow, is_last, n_completion_tokens)
from server_process import ServerProcess  # noqa: E402

# What the embedded model answers at length, and at very different lengths.
QUESTIONS = ("Explain the command.", "Write a story about a king.", "How do I open a file?",
             "Say something wise.")
BEGINNINGS = ("In the beginning", "The book of", "The following options",
              "To install the package,", "And the LORD said")
RETRY_S = 0.02
GIVE_UP_S = 120  # without any progress of one stream


class Spec:
    """One request of the run: which API, which prompt, which seed."""

    APIS = ("chat", "completions", "messages", "completions", "chat", "completions", "responses",
            "completions")
    PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions",
             "messages": "/v1/messages", "responses": "/v1/responses"}

    def __init__(self, index, model, max_tokens):
        self.index, self.api = index, self.APIS[index % len(self.APIS)]
        self.path = self.PATHS[self.api]
        self.model, self.max_tokens = model, max_tokens
        self.n = 2 if index % 16 == 4 else 1

    def body(self, seed, stream_id=None):
        question = QUESTIONS[self.index % len(QUESTIONS)]
        messages = [{"role": "user", "content": question}]
        body = {"model": self.model, "stream": True, "seed": seed, "temperature": 1.5}
        if self.api == "chat":
            body |= {"messages": messages, "max_tokens": self.max_tokens,
                     "thinking": {"type": "disabled"}, "logprobs": self.index % 16 == 0,
                     "n": self.n,
                     "stream_options": {"include_usage": True}}
        elif self.api == "completions":
            body |= {"prompt": BEGINNINGS[self.index // 2 % len(BEGINNINGS)], "stop": ["."],
                     "max_tokens": self.max_tokens, "temperature": 1,
                     "stream_options": {"include_usage": True}}
        elif self.api == "messages":
            body |= {"messages": messages, "max_tokens": self.max_tokens,
                     "thinking": {"type": "disabled"}}
        else:
            body |= {"input": question, "max_output_tokens": self.max_tokens,
                     "reasoning": {"effort": "none"}}
        if stream_id is not None:
            body["stream_id"] = stream_id
        return body


class Run:
    """All streams of one run, `concurrency` at a time."""

    def __init__(self, server, specs, concurrency, seed, kill=None, resume=True):
        self.server, self.specs, self.concurrency = server, specs, concurrency
        self.seed, self.kill, self.resume = seed, kill, resume
        self.events = [None] * len(specs)   # of every stream, as its client read them
        self.restarts = [0] * len(specs)    # of a stream, from scratch or by re-attaching
        self.n_kills = self.n_read = 0
        self.downtime_s = []
        self.failures = []
        self._next = 0
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._up = threading.Event()  # as far as the killer knows
        self._up.set()

    def go(self):
        begin = time.monotonic()
        threads = [threading.Thread(target=self._worker) for _ in range(self.concurrency)]
        for thread in threads:
            thread.start()
        killer = threading.Thread(target=self._kill_server) if self.kill else None
        if killer:
            killer.start()
        for thread in threads:
            thread.join()
        self._done.set()
        if killer:
            killer.join()
        self.seconds = time.monotonic() - begin
        if self.failures:
            raise AssertionError(f"{len(self.failures)} streams failed; the first: "
                                 f"{self.failures[0]}\n{self.server.log_tail()}")
        return self

    def lengths(self):
        return [n_completion_tokens(events) for events in self.events]

    def _worker(self):
        while True:
            with self._lock:
                index = self._next
                if index >= len(self.specs) or self.failures:
                    return
                self._next += 1
            try:
                self.events[index] = (self._resumed if self.resume else self._from_scratch)(index)
            except Exception as e:  # noqa: BLE001: whatever it is, the run has failed
                self.failures.append(f"stream {index} ({self.specs[index].api}): {e!r}")

    def _read(self, stream, into):
        for event in stream:
            into.append(event)
            self.n_read += 1
            if is_last(event):
                stream.close()
                return True
        return False

    def _resumed(self, index):
        spec, events = self.specs[index], []
        name = f"kill-{self.seed}-{index}"
        body = spec.body(self.seed + index, name)
        last_progress, n_before = time.monotonic(), 0
        while True:
            try:
                if any(e.id for e in events):
                    last = next(e.id for e in reversed(events) if e.id)
                    stream = EventStream(self.server.port, "GET", f"/v1/streams/{name}",
                                         headers={"Last-Event-ID": last})
                else:
                    # Nothing was seen, so nothing can be lost: the same request again is the same
                    # stream, whether or not the server has logged it.
                    stream = EventStream(self.server.port, "POST", spec.path, body)
                if self._read(stream, events):
                    return events
            except Cut:
                pass
            except Refused as e:
                if e.status not in (503, 529):  # it is loading
                    raise
            if len(events) > n_before:
                last_progress, n_before = time.monotonic(), len(events)
                self.restarts[index] += 1
            if time.monotonic() - last_progress > GIVE_UP_S:
                raise AssertionError(f"no progress for {GIVE_UP_S} s behind event {len(events)}")
            self._wait_up()

    def _from_scratch(self, index):
        spec, attempt = self.specs[index], 0
        deadline = time.monotonic() + 10 * GIVE_UP_S
        while True:
            events = []
            body = spec.body(self.seed + index + 1_000_003 * attempt)
            try:
                if self._read(EventStream(self.server.port, "POST", spec.path, body), events):
                    return events
            except Cut:
                pass
            except Refused as e:
                if e.status not in (503, 529):  # it is loading
                    raise
            if events:
                attempt += 1
                self.restarts[index] += 1
            if time.monotonic() > deadline:
                raise AssertionError("never came to its end")
            self._wait_up()

    def _wait_up(self):
        """A little longer than nothing, so that some knock while it loads; not all the time, or the
        knocking takes the processor from the loading."""
        time.sleep(RETRY_S)
        self._up.wait(0.5)

    def _kill_server(self):
        rng = random.Random(self.seed)
        while not self._done.is_set():
            # Uniform in the number of events, which is memoryless enough and never waits long.
            goal = self.n_read + rng.randrange(1, 2 * self.kill)
            deadline = time.monotonic() + GIVE_UP_S
            while self.n_read < goal and time.monotonic() < deadline:
                if self._done.wait(0.002):
                    return
            time.sleep(rng.random() * 0.02)
            self._up.clear()
            self.server.kill()
            killed_at = time.monotonic()
            self.n_kills += 1
            # One in eight dies while it recovers.
            while rng.random() < 0.125:
                self.server.start(wait=False)
                time.sleep(rng.random() * 0.2)
                self.server.kill()
                self.n_kills += 1
            self.server.start()
            self._up.set()
            self.downtime_s.append(time.monotonic() - killed_at)


def kolmogorov_smirnov(a, b):
    """(D, p) of two samples; p by the asymptotic law, which is on the safe side for whole numbers:
    ties make it too large."""
    a, b = sorted(a), sorted(b)
    i = j = 0
    d = 0.0
    for x in sorted(set(a) | set(b)):
        while i < len(a) and a[i] <= x:
            i += 1
        while j < len(b) and b[j] <= x:
            j += 1
        d = max(d, abs(i / len(a) - j / len(b)))
    n = len(a) * len(b) / (len(a) + len(b))
    t = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * d
    if t < 0.3:
        return d, 1.0  # the series below does not converge there
    p = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * t * t) for k in range(1, 101))
    return d, min(1.0, max(0.0, p))


def compare(killed, reference):
    """Every stream of two runs with equal seeds. Returns sentences about what differs."""
    wrong = []
    for index, (a, b) in enumerate(zip(killed.events, reference.events)):
        common = by_choice if killed.specs[index].n > 1 else constant_part
        a, b = common(a), common(b)
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            wrong.append(f"stream {index} ({killed.specs[index].api}, re-attached "
                         f"{killed.restarts[index]} times) differs at event {at}: "
                         f"{a[at:at + 2]} and without kills {b[at:at + 2]}")
        positions = [[int(n) for n in e.id.rpartition(":")[2].split(".")]
                     for e in killed.events[index] if e.id]
        if positions != sorted(positions) or len({tuple(p) for p in positions}) != len(positions):
            wrong.append(f"stream {index}: its positions do not grow: {positions}")
    return wrong


def compare_with_replays(killed):
    """What clients pieced together, and the whole as the server tells it now."""
    wrong = []
    for index, events in enumerate(killed.events):
        replay = follow(killed.server.port, f"/v1/streams/kill-{killed.seed}-{index}")
        if replay != events:
            at = next((i for i, (x, y) in enumerate(zip(replay, events)) if x != y),
                      min(len(replay), len(events)))
            wrong.append(f"stream {index} ({killed.specs[index].api}): its client has "
                         f"{events[at:at + 2]} at event {at}, a replay {replay[at:at + 2]}")
    return wrong


class Harness:
    def __init__(self, hadal, directory, *, concurrency=16, max_tokens=64, options=(), seed=1,
                 say=lambda text: None):
        self.hadal, self.directory = hadal, Path(directory)
        self.concurrency, self.max_tokens = concurrency, max_tokens
        self.options, self.seed, self.say = options, seed, say

    def server(self, name):
        return ServerProcess(self.hadal, self.directory / name, "--quiet", *self.options)

    def run(self, name, n_streams, seed, kill=None, resume=True, after=None):
        server = self.server(name).start()
        try:
            model = server.json("GET", "/v1/models")["data"][0]["id"]
            specs = [Spec(i, model, self.max_tokens) for i in range(n_streams)]
            run = Run(server, specs, self.concurrency, seed, kill, resume).go()
            self.say(f"{name}: {n_streams} streams, {run.n_kills} kills, "
                     f"{sum(run.restarts)} restarts of streams, {sum(run.lengths())} tokens, "
                     f"{run.seconds:.1f} s"
                     + (f", down {1e3 * sum(run.downtime_s) / len(run.downtime_s):.0f} ms a kill"
                        if run.downtime_s else ""))
            if after:
                after(run)
            return run
        finally:
            server.stop()

    def equality(self, n_streams, kill):
        """(killed, reference); raises AssertionError when a token is lost or changed."""
        wrong = []
        killed = self.run("killed", n_streams, self.seed, kill,
                          after=lambda run: wrong.extend(compare_with_replays(run)))
        reference = self.run("reference", n_streams, self.seed)
        wrong += compare(killed, reference)
        if wrong:
            raise AssertionError(f"{len(wrong)} streams are not what they should be:\n"
                                 + "\n".join(wrong[:5]))
        return killed, reference


def histogram(lengths, width=8):
    counts = Counter((n - 1) // width for n in lengths)
    return {f"{k * width + 1}-{(k + 1) * width}": counts[k] for k in sorted(counts)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hadal", default="build/hadal", help="the program")
    parser.add_argument("--kills", type=int, default=300, help="at least so many")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--events-per-kill", type=int, default=300, help="on average")
    parser.add_argument("--scratch-streams", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--option", action="append", default=[],
                        help="for hadal serve, e.g. --option=--journal --option=step")
    parser.add_argument("--json", help="write the figures there")
    options = parser.parse_args()

    def say(text):
        print(text, flush=True)

    with tempfile.TemporaryDirectory(prefix="hadal-kills-") as directory:
        harness = Harness(options.hadal, directory, concurrency=options.concurrency,
                          max_tokens=options.max_tokens, options=options.option, seed=options.seed,
                          say=say)
        # So many streams that the kills are enough; a first few show how long they are. More than
        # the division says, since clients read on between a goal that is reached and the kill.
        probe = harness.run("probe", 4 * options.concurrency, options.seed + 77_000_000)
        events_each = sum(len(e) for e in probe.events) / len(probe.events)
        n = math.ceil(1.15 * options.kills * options.events_per_kill / events_each)
        killed, reference = harness.equality(n, options.events_per_kill)
        independent = harness.run("independent", n, options.seed + 10_000_019)
        scratch = harness.run("scratch", min(n, options.scratch_streams), options.seed + 20_000_003,
                              options.events_per_kill, resume=False)
    samples = {name: run.lengths() for name, run in
               (("reference", reference), ("killed", killed), ("independent", independent),
                ("scratch", scratch))}
    for name, lengths in samples.items():
        say(f"{name:12} mean {sum(lengths) / len(lengths):.2f}  {histogram(lengths)}")
    d, p = kolmogorov_smirnov(samples["killed"], samples["independent"])
    d_scratch, p_scratch = kolmogorov_smirnov(samples["scratch"], samples["independent"])
    say(f"killed against independent:  D = {d:.4f}, p = {p:.3g} (wanted: >= 0.01)")
    say(f"scratch against independent: D = {d_scratch:.4f}, p = {p_scratch:.3g} (wanted: < 0.0001)")
    if options.json:
        Path(options.json).write_text(json.dumps({
            "kills": killed.n_kills, "streams": n, "restarts": sum(killed.restarts),
            "tokens": sum(samples["killed"]), "seconds": killed.seconds,
            "ks_killed": {"d": d, "p": p}, "ks_scratch": {"d": d_scratch, "p": p_scratch},
            "histograms": {k: histogram(v) for k, v in samples.items()}}, indent=1) + "\n")
    ok = killed.n_kills >= options.kills and p >= 0.01 and p_scratch < 1e-4
    say(f"{killed.n_kills} kills: " + ("nothing lost, nothing changed, no bias" if ok else "FAILED"))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
