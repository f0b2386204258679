"""A private copy of the embedded Triton server (2.51, x86-64) without what lets any client end it or hold it up.

The server has no options for these. So the copy differs from the original in a few bytes of the same number, each found
by a pattern that occurs exactly once. Where it does not, those bytes stay as they are, and a warning says so. The same
holds for the library that takes requests in: `libtritonserver`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.launcher.element_count import COUNT_ELEMENTS, COUNT_ELEMENTS_IN_BOUNDS

LIBRARIES = "nvidia_pytriton.libs"
_CORE = "libtritonserver-*.so"


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes that occur once in the server, what stands there in the copy, and the danger that ends by that."""

    found: bytes
    instead: bytes
    danger: str

    def __post_init__(self) -> None:
        assert len(self.found) == len(self.instead), self.danger


PLAIN_MESSAGES = "--grpc-http2-min-recv-ping-interval-without-data=1"  # the edited server: none is compressed
BODY_PER_MESSAGE = 2  # HTTP bodies may be longer by this factor: a token id takes 4 bytes, or 8 characters of JSON


def edits(max_message_bytes: int) -> list[Edit]:
    """Return the edits. `max_message_bytes` is the longest gRPC message that the copy takes."""
    max_body_bytes = BODY_PER_MESSAGE * max_message_bytes
    return [_error_mode(), _division(), _message_limit(max_message_bytes), _body_limit(max_body_bytes), _compression()]


def core_edits() -> list[Edit]:
    """Return the edits of `libtritonserver`."""
    danger = "a shape of more than 2^62 elements ends all streams"
    return [Edit(COUNT_ELEMENTS, COUNT_ELEMENTS_IN_BOUNDS, danger), _names_of_inputs()]


def copy_server(
    root: Path, run_directory: Path, wanted: Sequence[Edit], wanted_in_core: Sequence[Edit] = ()
) -> tuple[Path, list[str]]:
    """Return an edited copy of the server in `root`, and warnings. If no copy can run, it is the original."""
    original = root / "bin" / "tritonserver"
    content, warnings = edited("tritonserver", original.read_bytes(), wanted)
    core, core_warnings = _edited_core(root.parents[1] / LIBRARIES, wanted_in_core)
    warnings += core_warnings
    if len(warnings) == len(wanted) + len(wanted_in_core):
        return original, warnings
    try:
        copy = _written(content, core, root, run_directory)
    except OSError as error:
        for half_written in ("pytriton", LIBRARIES):  # a disk that they fill has no room for the rest of a start
            shutil.rmtree(run_directory / half_written, ignore_errors=True)
        return original, [f"{original} runs unchanged: no copy of it could be written: {error}"]
    if not os.access(copy, os.X_OK):
        return original, [f"{original} runs unchanged: {copy.parent} is mounted noexec"]
    return copy, warnings


def edited(name: str, content: bytes, wanted: Sequence[Edit]) -> tuple[bytes, list[str]]:
    """Return `content` with each edit whose pattern occurs once, and a warning for each other."""
    warnings = []
    for edit in wanted:
        if (count := content.count(edit.found)) == 1:
            content = content.replace(edit.found, edit.instead)
        else:
            warnings.append(f"{name} is of another build ({count} matches, not 1): {edit.danger}")
    return content, warnings


def _edited_core(libraries: Path, wanted: Sequence[Edit]) -> tuple[dict[str, bytes], list[str]]:
    """Return the edited library by its name, none where no edit could be made, and warnings."""
    found = next(iter(sorted(libraries.glob(_CORE))), None)
    content, warnings = edited("libtritonserver", b"" if found is None else found.read_bytes(), wanted)
    return {} if found is None or len(warnings) == len(wanted) else {found.name: content}, warnings


def _error_mode() -> Edit:
    """Look for a header under a name that no client can send: HTTP/2 allows small letters only.

    With `triton_grpc_error: true` an error ends a gRPC stream, and the server may then use the stream's freed state.
    """
    danger = "gRPC streams with the header triton_grpc_error may end it"
    return Edit(b"\0triton_grpc_error\0", b"\0TRITON_GRPC_ERROR\0", danger)


def _division() -> Edit:
    """Divide by no element size of 0.

    `TopkClassifications`, for an output with the parameter `classification`, divides the output's size by that of its
    elements. The size is 0 for strings (type 13), which a `switch` refuses just after. The literal `classification`
    cannot be renamed instead: the lookup compares with constants in the code, and the literal only chooses the bucket.
    The seed of the map changes, so a renamed literal still meets the right bucket at times.
    """
    found = (
        "31 d2"  # xor  edx, edx
        "89 c1"  # mov  ecx, eax       the element's size
        "4c 89 e8"  # mov  rax, r13    the output's size
        "48 f7 f1"  # div  rcx
    )
    instead = (
        "31 d2"  # xor  edx, edx
        "91"  # xchg ecx, eax
        "4c 89 e8"  # mov  rax, r13
        "e3 02"  # jrcxz past the next
        "f7 f1"  # div  ecx            an output has less than 4 GiB
    )
    switch = "83 fd 0c 0f 87"  # cmp ebp, 12; ja: types above 12 are refused
    danger = "an output with the parameter 'classification' ends it"
    return Edit(bytes.fromhex(found + switch), bytes.fromhex(instead + switch), danger)


def _message_limit(max_bytes: int) -> Edit:
    """Limit gRPC messages: `builder.max_receive_message_size_ = INT32_MAX` in the original."""
    store = bytes.fromhex("41 c7 45 50")
    danger = "it takes gRPC messages of 2 GB, which hold up all others"
    return Edit(store + bytes.fromhex("ff ff ff 7f"), store + max_bytes.to_bytes(4, "little"), danger)


def _body_limit(max_bytes: int) -> Edit:
    """Limit HTTP bodies: `evhtp` ends a connection whose body is too long, but the server sets no limit."""
    found = (
        "48 8b 40 70"  # mov  rax, [rax + 0x70]  the limit
        "48 85 c0"  # test rax, rax
        "74 10"  # je   past the next           0: no limit
    )
    instead = "b8" + max_bytes.to_bytes(4, "little").hex() + "0f 1f 40 00"  # mov eax, limit; nop
    comparison = "48 8b 53 78 48 01 ea 48 39 d0 0f 86"  # with the bytes that came
    danger = "it takes HTTP bodies of any length"
    return Edit(bytes.fromhex(found + comparison), bytes.fromhex(instead + comparison), danger)


def _names_of_inputs() -> Edit:
    """Leave out the names of a request's inputs from the error that there are too many or too few.

    `ValidateRequestInputs` copies the list for each name that it adds: 5 s for 100,000 names. The jump is the one for a
    request without inputs.
    """
    before = (
        "48 8d 84 24 60 02 00 00"  # lea  rax, [rsp + 0x260]
        "48 89 44 24 18"  # mov  [rsp + 0x18], rax
        "48 85 ed"  # test rbp, rbp                   the first input
    )
    behind = "b3 11 00 00 0f 1f 00"  # past the loop; nop
    found, instead = "0f 84", "90 e9"  # je; nop, jmp
    danger = "a gRPC message of 100,000 inputs holds up all streams for seconds"
    return Edit(bytes.fromhex(before + found + behind), bytes.fromhex(before + instead + behind), danger)


def _compression() -> Edit:
    """Let an option that the server passes on to gRPC set another argument: which compression it takes.

    gRPC inflates a message before it compares it with its limit: 1 MB becomes 1 GB. This argument is a set of bits.
    `PLAIN_MESSAGES` sets one of them, so that gRPC refuses a call that says it is compressed.
    """
    found, instead = b"grpc.http2.min_ping_interval_without_data_ms\0", b"grpc.compression_enabled_algorithms_bitset\0"
    danger = "it inflates compressed gRPC messages without a limit"
    return Edit(found, instead.ljust(len(found), b"\0"), danger)


def _written(content: bytes, core: Mapping[str, bytes], root: Path, run_directory: Path) -> Path:
    copy = run_directory / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(content)
    copy.chmod(0o700)
    (copy.parents[1] / "lib").symlink_to(root / "lib")  # both searched relative to the server
    _lay_out(run_directory / LIBRARIES, root.parents[1] / LIBRARIES, core)
    return copy


def _lay_out(directory: Path, libraries: Path, own: Mapping[str, bytes]) -> None:
    """Fill `directory` with `own` and links to the rest: a library looks for others beside where it was found."""
    directory.mkdir()
    for library in libraries.iterdir():
        if library.name not in own:
            (directory / library.name).symlink_to(library)
    for name, content in own.items():
        (directory / name).write_bytes(content)
