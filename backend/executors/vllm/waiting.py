"""A queue of waiting requests from which any one can be taken, with the methods of vLLM's own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from backend.executors.vllm.surface import VllmRequest


class WaitingRequests:
    """First come, first served, unless put in front; every call but iteration takes the same time at any length."""

    def __init__(self, requests: Iterable[VllmRequest] = ()) -> None:
        self._requests = OrderedDict((request.request_id, request) for request in requests)

    def add_request(self, request: VllmRequest) -> None:
        self._requests[request.request_id] = request

    def pop_request(self) -> VllmRequest:
        return self._requests.popitem(last=False)[1]

    def peek_request(self) -> VllmRequest:
        return next(iter(self._requests.values()))

    def prepend_request(self, request: VllmRequest) -> None:
        self._requests[request.request_id] = request
        self._requests.move_to_end(request.request_id, last=False)

    def prepend_requests(self, requests: Iterable[VllmRequest]) -> None:
        """Put `requests` in front, so that the last of them comes first, as vLLM's own queue does."""
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: VllmRequest) -> None:
        """Take `request` out, if it is there."""
        self._requests.pop(request.request_id, None)

    def remove_requests(self, requests: Iterable[VllmRequest]) -> None:
        for request in requests:
            self.remove_request(request)

    def __contains__(self, request: VllmRequest) -> bool:
        return request.request_id in self._requests

    def __bool__(self) -> bool:
        return bool(self._requests)

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[VllmRequest]:
        return iter(self._requests.values())
