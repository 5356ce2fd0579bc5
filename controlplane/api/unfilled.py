"""Services of the contract that no part fills yet; every method answers UNIMPLEMENTED, on every transport."""

from __future__ import annotations

from limiquantix.compute.v1.folder_service_pb2_grpc import FolderServiceServicer


class FolderServicer(FolderServiceServicer):
    """Folders arrive with projects and roles."""
