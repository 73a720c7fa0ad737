"""The server as its users meet it: over HTTP, with the clients that they have.

    python -m pytest tests/e2e --hadal build/hadal
"""

from pathlib import Path

import pytest

from server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[2]


def pytest_addoption(parser):
    parser.addoption("--hadal", default=str(ROOT / "build" / "hadal"), help="the program to test")


@pytest.fixture(scope="session")
def hadal(request):
    path = Path(request.config.getoption("--hadal"))
    assert path.exists(), f"no program at {path}: build it, or give --hadal PATH"
    return path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        for name in ("server", "keyed_server"):
            server = item.funcargs.get(name)
            if server is not None:
                report.sections.append((f"end of {server.log}", server.log_tail()))
    return report


@pytest.fixture(scope="module")
def server(hadal, tmp_path_factory):
    """One server a module, with a journal of its own."""
    server = ServerProcess(hadal, tmp_path_factory.mktemp("server")).start()
    yield server
    server.stop()
