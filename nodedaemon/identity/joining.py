"""Join a cluster: exchange a token for a certificate, with a control plane that the token's authority vouches for."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import grpc

from limiquantix.compute.v1.join_service_pb2 import JoinNodeRequest, JoinNodeResponse
from limiquantix.compute.v1.join_service_pb2_grpc import JoinServiceStub
from limiquantix.errors import ApiError, Code
from limiquantix.join_token import JoinTokenText
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.credentials import MachineCertificate
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME
from limiquantix.rpc.status import from_rpc_error
from nodedaemon.identity.files import IdentityUnusable, NodeIdentity
from nodedaemon.identity.requests import new_request

if TYPE_CHECKING:  # the asynchronous stub's type exists for type checkers only
    from limiquantix.compute.v1.join_service_pb2_grpc import JoinServiceAsyncStub

JOIN_DEADLINE_S: Final = 15.0


class JoinFailed(Exception):
    """The host did not join; the message says why and what to do."""


async def join(token: JoinTokenText, hostname: str, addresses: Sequence[str] = ()) -> NodeIdentity:
    """Join, at the first control plane that answers.

    Nothing is sent to one that does not prove, by TLS, that the token's authority made it a control plane.

    Args:
        addresses: "host:port" instead of those in the token.

    Raises:
        JoinFailed: none answered, the token is not good, or the answer is no identity.
    """
    try:
        authority_pem = ssl.DER_cert_to_PEM_cert(token.authority_der).encode()
        key_pem, request_pem = await asyncio.to_thread(new_request)
        request = JoinNodeRequest(
            token_id=token.id, secret=token.secret, hostname=hostname, certificate_request=request_pem.decode()
        )
        answer = await _joined(addresses or token.addresses, authority_pem, request)
        # The authority is that of the token, which the operator handed over, whatever the answer says.
        held = MachineCertificate(answer.certificate.encode(), key_pem, authority_pem)
        identity = NodeIdentity.read(held, tuple(answer.addresses))
    except IdentityUnusable as error:
        raise JoinFailed(f"the control plane's answer cannot be used: {error}") from error
    if (identity.machine.id, identity.machine.cluster_id) != (answer.node_id, answer.cluster_id):
        raise JoinFailed("the control plane's answer cannot be used: its certificate is for another node")
    return identity


async def _joined(addresses: Sequence[str], authority_pem: bytes, request: JoinNodeRequest) -> JoinNodeResponse:
    """Ask one after the other; one that has answered, whatever it was, is the last that is asked."""
    troubles = []
    for address in addresses:
        try:
            return await _asked(address, authority_pem, request)
        except ApiError as error:
            if error.code is not Code.UNAVAILABLE:
                raise JoinFailed(error.message) from error
            troubles.append(error.message)
    raise JoinFailed("no control plane of the token's cluster answers: " + "; ".join(troubles))


async def _asked(address: str, authority_pem: bytes, request: JoinNodeRequest) -> JoinNodeResponse:
    credentials = grpc.ssl_channel_credentials(authority_pem)
    async with open_channel(address, credentials, CONTROL_PLANE_SERVER_NAME) as channel:
        stub: JoinServiceAsyncStub = JoinServiceStub(channel)
        try:
            return await stub.JoinNode(request, timeout=JOIN_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=f"control plane {address}") from error
