"""Where a server's health and metrics are follows from the one URL given."""

from __future__ import annotations

import pytest

from client import wire
from client.health import ask_readiness, metrics_url
from client.transports import UrlError


@pytest.mark.parametrize(
    ("url", "metrics"),
    [
        (wire.DEFAULT_GRPC_URL, wire.DEFAULT_METRICS_URL),
        (wire.DEFAULT_HTTP_URL, wire.DEFAULT_METRICS_URL),
        ("box:9001", "http://box:9002/metrics"),
        ("grpcs://box:9001", "http://box:9002/metrics"),
        ("http://[::1]:9000", "http://[::1]:9002/metrics"),
        ("https://gateway.example", None),
        ("fake://", None),
        ("box", None),
        ("box:65535", None),
        ("box:port", None),
    ],
)
def test_metrics_are_where_the_url_says_or_unknown(url: str, metrics: str | None) -> None:
    assert metrics_url(url) == metrics


def test_the_fake_is_ready_at_its_url() -> None:
    readiness = ask_readiness("fake://")
    assert readiness.is_ready
    assert set(readiness.ready_models) == set(wire.MODELS)


def test_a_url_of_no_known_kind_is_refused() -> None:
    with pytest.raises(UrlError):
        ask_readiness("ftp://box")
