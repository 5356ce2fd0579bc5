"""Follows what the API streams, across lost connections: a watch that broke goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import chain, repeat

from controlplane.cli.api_client import AUTH_SERVICE, ApiClient, Document, ServerUnreachable, StreamQuiet, may_pass
from limiquantix.errors import ApiError, OutOfRange, Reason, ResourceExhausted, Unauthenticated

_LONGEST_PAUSE_S = 5.0
_PAUSES_S = (0.25, 0.5, 1.0, 2.0)
PATIENCE_S = 300.0
"""How long a server may be away; a machine that starts anew is back by then."""


def revision_of(message: Document) -> int:
    """Return where a watch can go on after a message; 0 if the message does not say."""
    return int(message.get("revision") or 0)


@dataclass(frozen=True, slots=True)
class Feed:
    """One thing to follow.

    Args:
        when_anew: what it means for a reader that the feed has to begin anew, as the end of a warning.
        revision_of: where a message says that the feed can go on; always 0 for a feed that begins anew each time.
        from_revision: where to begin; 0 as the method does without.
    """

    service: str
    method: str
    request: Document
    when_anew: str = ""
    revision_of: Callable[[Document], int] = revision_of
    from_revision: int = 0


def follow(client: ApiClient, feed: Feed) -> Generator[Document, None, None]:
    """Yield the messages of a feed until the server says that it is over.

    A connection that breaks is made again, and the feed goes on after the last revision that was seen. So it is when
    the token ends that it began with, as long as there is a new one for it.

    Raises:
        ApiError: the server refused; Unauthenticated, there is nothing to renew what says who calls with.
        ServerUnreachable: it was never reached, or is away for longer than `PATIENCE_S`.
    """
    revision = feed.from_revision
    pauses_s, waited_s = _pauses_s(), 0.0
    while True:
        request = {**feed.request, **({"fromRevision": str(revision)} if revision else {})}
        try:
            for message in client.stream(feed.service, feed.method, request):
                pauses_s, waited_s = _pauses_s(), 0.0
                revision = feed.revision_of(message) or revision
                yield message
            return
        except StreamQuiet:
            pauses_s, waited_s = _pauses_s(), 0.0
        except OutOfRange as error:
            if not revision:
                raise
            client.warn(f"{error.message}; {feed.when_anew}")
            revision = 0
        except Unauthenticated:
            if waited_s >= PATIENCE_S:
                raise
            # Renews what says who calls: streams are refused in their bodies, where nobody looks who renews it.
            client.insist(AUTH_SERVICE, "WhoAmI", {})
            waited_s += (pause_s := next(pauses_s))
            client.pause(pause_s)
        except (ApiError, ServerUnreachable) as error:
            if not _may_go_on(error) or waited_s >= PATIENCE_S:
                raise
            if not waited_s:
                client.warn(f"{error}; trying to go on")
            pause_s = next(pauses_s)
            waited_s += pause_s
            client.pause(pause_s)


def _pauses_s() -> Iterator[float]:
    return chain(_PAUSES_S, repeat(_LONGEST_PAUSE_S))


def _may_go_on(error: ApiError | ServerUnreachable) -> bool:
    if isinstance(error, ResourceExhausted):
        return error.reason == Reason.WATCH_TOO_SLOW
    return may_pass(error)
