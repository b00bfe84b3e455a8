"""What every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from service.settings import Settings

# how long an example takes says something of the machine, and of what else it does
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors are fastest on one thread, and sums then have one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_settings() -> Iterator[None]:
    """What the shell of whoever runs this has set does not count, for servers of their own neither."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [*Settings.model_fields, "key"]:
            patch.delenv(f"AFT_{name.upper()}", raising=False)
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    """CI has all programs that tests need: where it left one out, it must not pass."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("TESTS_MUST_NOT_SKIP") and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("TESTS_MUST_NOT_SKIP is set, and tests were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
