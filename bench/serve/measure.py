#!/usr/bin/env python3
"""What bench/results/*-serve.md reports, measured again.

    python bench/serve/measure.py --hadal build/hadal [SCENARIO]...

Every scenario starts servers of its own on a free port with `hadal serve`, loads them with
`hadal bench serve`, and prints its figures. Without names, all run but `soak`, which takes as long
as --soak-seconds says.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "e2e"))
from server_process import ServerProcess  # noqa: E402


class Bench:
    def __init__(self, options):
        self.options = options
        self.directory = Path(tempfile.mkdtemp(prefix="hadal-measure-", dir=options.scratch))
        self.n = 0

    def server(self, *options, keep=True):
        self.n += 1
        return ServerProcess(self.options.hadal, self.directory / str(self.n), "--quiet", *options,
                             keep=keep)

    def load(self, server, *options):
        result = subprocess.run(
            [self.options.hadal, "bench", "serve", "--url", server.url, "--json",
             "--pid", str(server.process.pid), *map(str, options)],
            capture_output=True, text=True, check=False)
        if not result.stdout:
            raise SystemExit(f"hadal bench serve: {result.stderr}")
        report = json.loads(result.stdout)
        if report["failures"] or report["health_failures"]:
            print("  FAILED requests:", report["failures"], report["health_failures"])
        return report


def engine_of(server):
    return server.status()["engine"]


def ms(report, name, part="p50"):
    value = report[name][part]
    return "-" if value is None else f"{value:.2f} ms"


def batching(bench):
    """Throughput of 64 requests at a time against one; the engine's time outside forward passes."""
    server = bench.server().start()
    rates = {}
    for concurrency in (1, 4, 16, 64):
        before = engine_of(server)
        report = bench.load(server, "--concurrency", concurrency, "--sessions",
                            max(6, 3 * concurrency), "--prompt-tokens", 32, "--max-tokens", 96)
        after = engine_of(server)
        step = after["step_seconds_total"] - before["step_seconds_total"]
        forward = after["forward_seconds_total"] - before["forward_seconds_total"]
        rates[concurrency] = report["completion_tokens_per_s"]
        print(f"  {concurrency:3} at a time: {rates[concurrency]:8.1f} tokens/s, TPOT "
              f"{ms(report, 'tpot_ms')}, TTFT {ms(report, 'ttft_ms')}, steps not in forward "
              f"{100 * (1 - forward / step):.1f} %, wall not in steps "
              f"{100 * (1 - step / report['seconds']):.1f} %, /health p99 "
              f"{ms(report, 'health_ms', 'p99')}")
    print(f"  64 against 1: {rates[64] / rates[1]:.2f} times the throughput")
    server.stop()


def idle(bench, *options):
    """1,000 idle streams and 64 active ones."""
    server = bench.server("--max-running", 60, "--max-queue-requests", 4000, *options).start()
    report = bench.load(server, "--concurrency", 64, "--sessions", 100000, "--duration",
                        bench.options.idle_seconds, "--warm-up", 3, "--prompt-tokens", 64,
                        "--max-tokens", 64, "--idle", 1000)
    print_soak(report)
    server.stop()


def soak(bench):
    """The same for longer, to see whether memory grows. What is kept on purpose, finished streams
    for an hour, is kept for a minute, so that the run sees it come and go."""
    bench.options.idle_seconds = bench.options.soak_seconds
    idle(bench, "--retention", 60)


def print_soak(report):
    memory = report["memory"]
    print(f"  {report['ok']} of {report['requests']} requests whole in {report['seconds']:.0f} s, "
          f"failures {report['failures']}, {report['completion_tokens_per_s']:.1f} tokens/s")
    print(f"  idle: {report['idle']}")
    print(f"  /health p50 {ms(report, 'health_ms')}, p99 {ms(report, 'health_ms', 'p99')}, "
          f"max {ms(report, 'health_ms', 'max')}")
    print("  memory: " + ", ".join(f"{k.removesuffix('_bytes')} {memory[k] / 2**20:.1f} MiB"
                                   for k in memory if k != "samples"))


def prefix(bench):
    """TTFT of an agent's turn behind a shared prefix: cold, from memory, from disk."""
    agent = ("--trace", "agent", "--prefix-tokens", bench.options.prefix_tokens, "--concurrency", 1,
             "--prompt-tokens", 30, "--result-tokens", 30, "--max-tokens", 60, "--health-ms", 0)
    server = bench.server().start()
    first = bench.load(server, *agent, "--sessions", 1, "--rounds", 8)
    rounds = first["rounds"]
    cold, warm = rounds[0], rounds[1:]
    hit = statistics.median(r["ttft_ms"]["p50"] for r in warm)
    # Another agent with the same system prompt.
    other = bench.load(server, *agent, "--sessions", 1, "--rounds", 1, "--seed", 1)
    time.sleep(1)
    server.stop()
    server.start()
    restart = bench.load(server, *agent, "--sessions", 1, "--rounds", 1)["rounds"][0]
    server.stop()
    t = cold["ttft_ms"]["p50"]
    print(f"  cold:          {t:9.1f} ms, {cold['prompt_tokens']:.0f} tokens, "
          f"{cold['cached_tokens']:.0f} of them cached")
    print(f"  next turns:    {hit:9.1f} ms ({100 * hit / t:.1f} % of cold; wanted: 10), cached "
          f"{[int(r['cached_tokens']) for r in warm]} of {[int(r['prompt_tokens']) for r in warm]}")
    same = other["rounds"][0]
    print(f"  same again:    {same['ttft_ms']['p50']:9.1f} ms, {same['cached_tokens']:.0f} cached")
    r = restart["ttft_ms"]["p50"]
    print(f"  after restart: {r:9.1f} ms ({100 * r / t:.1f} % of cold; wanted: 25), "
          f"{restart['cached_tokens']:.0f} cached")


def journal(bench):
    """What each sync policy costs at batch 16, interleaved so that the machine's moods are shared."""
    policies = ("off", "none", "interval:50ms", "step")
    servers = {p: bench.server("--journal", p).start() for p in policies}
    rates = {p: [] for p in policies}
    for _ in range(bench.options.repetitions):
        for policy, server in servers.items():
            report = bench.load(server, "--concurrency", 16, "--sessions", 32, "--prompt-tokens",
                                16, "--max-tokens", 128, "--health-ms", 0)
            rates[policy].append(report["completion_tokens_per_s"])
    base = statistics.median(rates["off"])
    for policy, values in rates.items():
        median = statistics.median(values)
        print(f"  {policy:14} {median:8.1f} tokens/s, {100 * (1 - median / base):+5.1f} % lost "
              f"(runs: {', '.join(f'{v:.0f}' for v in values)})")
    for server in servers.values():
        server.stop()


SCENARIOS = {"batching": batching, "journal": journal, "prefix": prefix, "idle": idle,
             "soak": soak}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO",
                        help="; ".join(f"{k}: {f.__doc__.splitlines()[0]}"
                                       for k, f in SCENARIOS.items()))
    parser.add_argument("--hadal", default="build/hadal")
    parser.add_argument("--scratch", help="where servers keep their data; else the system's")
    parser.add_argument("--prefix-tokens", type=int, default=16384)
    parser.add_argument("--idle-seconds", type=int, default=60)
    parser.add_argument("--soak-seconds", type=int, default=1800)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    options.hadal = str(Path(options.hadal).resolve())
    unknown = set(options.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"there is no scenario {', '.join(unknown)}; there is {', '.join(SCENARIOS)}")
    for name in options.scenarios or [s for s in SCENARIOS if s != "soak"]:
        print(f"{name}: {SCENARIOS[name].__doc__}", flush=True)
        SCENARIOS[name](Bench(options))


if __name__ == "__main__":
    main()
