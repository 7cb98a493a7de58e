"""Settings and fixtures of every test."""

import os
import shutil
import signal

import pytest

# Before torch is imported, and inherited by the processes that tests start. The models are tiny: more threads would
# spend their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "2")
if "PYTEST_XDIST_WORKER" in os.environ:  # of several processes that share the cores
    os.environ["OMP_NUM_THREADS"] = "1"
# What is started in the background ignores Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def page():
    """A page of headless Chromium, offline but for this machine. Fails no test for want of a browser: skips it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the [test] extra: playwright")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("needs Chromium on the path (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as running:
        arguments = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = running.chromium.launch(executable_path=executable, args=arguments)
        yield browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()


@pytest.fixture(scope="session")
def repository():
    """A tiny model of every kind, assembled: `dsr` at the root, the others in subfolders. Not to be changed."""
    from tests.convert_weights import repositories

    return repositories.repository()
