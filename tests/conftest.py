"""What every Python test relies on."""

import signal


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
