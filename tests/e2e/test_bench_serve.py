"""The load generator, by what it says about loads whose figures are known beforehand."""

import json
import subprocess

import pytest


@pytest.fixture
def bench(hadal, server):
    def run(*options, status=0):
        result = subprocess.run([hadal, "bench", "serve", "--url", server.url, "--json", *options],
                                capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == status, result.stderr
        return json.loads(result.stdout) if status == 0 else result.stderr
    return run


def test_a_closed_loop(bench):
    report = bench("--concurrency", "4", "--sessions", "12", "--prompt-tokens", "20",
                   "--max-tokens", "8")
    assert report["requests"] == report["ok"] == 12
    assert report["failures"] == {}
    assert report["prompt_tokens"] == 12 * 20
    assert report["completion_tokens"] == 12 * 8
    assert report["health_failures"] == 0 and report["health_ms"]["n"] > 0
    assert report["ttft_ms"]["n"] <= 12
    e2e = report["e2e_ms"]
    assert 0 < report["ttft_ms"]["p50"] < e2e["p50"] <= e2e["p90"] <= e2e["p99"] <= e2e["max"]


def test_poisson_arrivals(bench):
    report = bench("--rate", "20", "--sessions", "20", "--prompt-tokens", "4", "--max-tokens", "2")
    assert report["ok"] == 20
    assert report["rate"] == 20
    # 20 gaps of 50 ms on average; less than a fifth of that would be no gaps at all.
    assert report["seconds"] > 0.2


def test_agents_share_their_prefix(bench):
    report = bench("--trace", "agent", "--concurrency", "2", "--sessions", "4", "--rounds", "4",
                   "--prefix-tokens", "600", "--max-tokens", "60", "--prompt-tokens", "10",
                   "--result-tokens", "10")
    assert report["ok"] == 16
    rounds = report["rounds"]
    assert [r["round"] for r in rounds] == [0, 1, 2, 3]
    for before, after in zip(rounds, rounds[1:]):
        assert after["prompt_tokens"] > before["prompt_tokens"] > 600
        assert after["cached_tokens"] >= 512


def test_idle_streams(bench):
    report = bench("--concurrency", "2", "--sessions", "6", "--idle", "5", "--prompt-tokens", "8",
                   "--max-tokens", "40")
    assert report["ok"] == 6
    assert 0 < report["idle"]["most_open"] <= 5
    assert report["idle"]["failures"] == {}


def test_failures_are_counted_by_kind(hadal, server):
    result = subprocess.run([hadal, "bench", "serve", "--url", server.url, "--sessions", "3",
                             "--json", "--model", "no-such-model"],
                            capture_output=True, text=True, timeout=60, check=False)
    # The name is looked at before any load is put on.
    assert result.returncode == 1
    assert "404" in result.stderr + result.stdout


def test_a_server_that_is_not_there(hadal):
    result = subprocess.run([hadal, "bench", "serve", "--url", "http://127.0.0.1:1"],
                            capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "connection refused" in result.stderr


def test_a_url_that_is_none(hadal):
    result = subprocess.run([hadal, "bench", "serve", "--url", "https://x"], capture_output=True,
                            text=True, timeout=60, check=False)
    assert result.returncode == 1 and "http://" in result.stderr
