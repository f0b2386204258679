"""The options of `serve_many`, and those that it hands on to Dynamo's frontend."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from backend.core.errors import ConfigError
from backend.dynamo.many_options import check_free, engine_values, parser
from backend.dynamo.serve_many import _Many
from bench.live.server import free_port


def test_a_port_that_is_taken_is_named_with_its_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--tiers-port: somebody listens on 127.0.0.1:{port}"):
            check_free("--tiers-port", "127.0.0.1", port)
    check_free("--port", "127.0.0.1", free_port())


def test_every_engine_has_the_one_configuration_or_its_own(tmp_path: Path) -> None:
    files = []
    for index in range(3):
        files.append(str(tmp_path / f"{index}.json"))
        Path(files[-1]).write_text(json.dumps({"executor": "torch", "index": index}))
    one = parser(None).parse_args(["--replicas", "2", "--config", files[0]])
    assert [each["index"] for each in engine_values(one)] == [0, 0]
    own = parser(None).parse_args(["--config", *files])
    assert [each["index"] for each in engine_values(own)] == [0, 1, 2]
    assert own.executor == "torch"
    assert engine_values(parser(None).parse_args(["--replicas", "1"])) == [{"executor": "sim"}]


@pytest.mark.parametrize(
    ("options", "has_cache", "expected"),
    [
        ((), True, {"--router-predicted-ttl-secs": "5"}),
        ((), False, {}),
        (("--predict-s", "0"), True, {}),
        (("--predict-s", "2.5"), True, {"--router-predicted-ttl-secs": "2.5"}),
        (("--no-kv-events",), True, {"--no-router-kv-events": None}),
        (("--router", "round-robin"), True, {}),
    ],
)
def test_the_router_goes_by_events_and_short_predictions_where_there_is_a_cache(
    tmp_path: Path, options: tuple[str, ...], has_cache: bool, expected: dict[str, str | None]
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    many = _Many(parser(None).parse_args(["--environment", str(tmp_path), *options]), tmp_path)
    many._has_prefix_cache = has_cache
    arguments = many._frontend().command.arguments
    names = ("--router-predicted-ttl-secs", "--no-router-kv-events")
    found = {name: (*arguments, "")[arguments.index(name) + 1] for name in names if name in arguments}
    assert found.keys() == expected.keys()
    assert all(value is None or found[name] == value for name, value in expected.items())
