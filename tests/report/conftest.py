"""What hadal report writes, in a headless Chromium and through TensorBoard's own reader.

    scripts/python_tests.sh build/venv tests/report --hadal build/hadal

Skipped, with the reason, where playwright or Debian's chromium is not installed.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from synthetic import Run

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sync_playwright = None

ROOT = Path(__file__).resolve().parents[2]


def pytest_addoption(parser):
    parser.addoption("--hadal", default=str(ROOT / "build" / "hadal"), help="the program to test")
    parser.addoption(
        "--chromium",
        default=shutil.which("chromium") or "/usr/bin/chromium",
        help="the browser to test with",
    )


@pytest.fixture(scope="session")
def hadal(request):
    path = Path(request.config.getoption("--hadal"))
    assert path.exists(), f"no program at {path}: build it, or give --hadal PATH"
    return lambda *words: subprocess.run([path, *map(str, words)], capture_output=True, text=True)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Directories of two runs that are alike and of one of another kind."""
    top = tmp_path_factory.mktemp("runs")
    return {
        "muon": Run(steps=300, pace=1.3, spike_at=120).train().write(top / "muon"),
        "adamw": Run(steps=300, seed=2, lr=2e-3).train().write(top / "adamw"),
        "plain": Run(steps=50, seed=3, rich=False).train().write(top / "plain"),
    }


@pytest.fixture(scope="session")
def browser(request):
    if sync_playwright is None:
        pytest.skip("playwright is not installed: pip install -r tests/requirements.txt")
    path = Path(request.config.getoption("--chromium"))
    if not path.exists():
        pytest.skip(f"no browser at {path}: apt-get install chromium, or give --chromium PATH")
    expect.set_options(timeout=120_000)  # machines that test are busy ones
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(path), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_report(browser, hadal, tmp_path):
    """Writes the report of some runs and opens it; nothing may fail or be asked for on the way."""
    failures = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(120_000)

    def open_page(*directories):
        file = tmp_path / "report.html"
        done = hadal("report", *directories, "-o", file)
        assert done.returncode == 0, done.stderr
        page = context.new_page()
        page.on("pageerror", lambda e: failures.append(f"uncaught: {e}"))
        page.on("console", lambda m: failures.append(m.text) if m.type == "error" else None)
        page.on(
            "request",
            lambda r: failures.append(f"asked for {r.url}")
            if not r.url.startswith(("file:", "data:"))
            else None,
        )
        page.goto(file.as_uri())
        return page

    yield open_page
    context.close()
    assert failures == []
