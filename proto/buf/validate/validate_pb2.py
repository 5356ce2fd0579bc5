"""Descriptor of the protovalidate rules for the google.protobuf runtime.

Generated `*_pb2` modules import this name. protovalidate ships the rules for its own runtime only, so the descriptor is
taken from the installed package instead of keeping a second copy that could disagree with the interpreter of the rules.
"""

# The well-known types are imported for what it does: they must be in the pool before the file that depends on them.
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, field_mask_pb2, timestamp_pb2  # noqa: F401
from protovalidate import FieldPathPb

DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(FieldPathPb.desc().file.proto.to_binary())
