"""The page in a headless Chromium, against a scripted server.

Skipped, with the reason, where playwright or Debian's chromium is not installed. Chromium is found
as /usr/bin/chromium or by the option --chromium.
"""

import shutil
from pathlib import Path

import pytest

from mock_server import MockServer

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sync_playwright = None


def pytest_addoption(parser):
    parser.addoption(
        "--chromium",
        default=shutil.which("chromium") or "/usr/bin/chromium",
        help="the browser to test with",
    )


@pytest.fixture(scope="session")
def browser(request):
    if sync_playwright is None:
        pytest.skip("playwright is not installed: pip install -r tests/requirements.txt")
    path = Path(request.config.getoption("--chromium"))
    if not path.exists():
        pytest.skip(f"no browser at {path}: apt-get install chromium, or give --chromium PATH")
    expect.set_options(timeout=20_000)  # machines that test are busy ones
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(path), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server():
    server = MockServer()
    yield server
    server.stop()


@pytest.fixture
def context(browser, server):
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    context.set_default_timeout(20_000)
    failures = []

    def watch(page):
        page.on("pageerror", lambda e: failures.append(f"uncaught: {e}"))
        page.on(
            "console",
            lambda m: (
                failures.append(m.text)
                if m.type == "error"
                and "Failed to load resource" not in m.text
                and "net::ERR_" not in m.text
                else None
            ),
        )

    context.on("page", watch)
    context.on(
        "request",
        lambda r: (
            None
            if r.url.startswith((server.url, "blob:", "data:"))
            else failures.append(f"asked elsewhere: {r.url}")
        ),
    )
    yield context
    context.close()
    assert failures == []  # a policy violation is a console error too


@pytest.fixture
def page(context):
    return context.new_page()


@pytest.fixture
def chat(page, server):
    page.goto(server.url)
    expect(page.locator("#model")).not_to_have_value("")
    return page
