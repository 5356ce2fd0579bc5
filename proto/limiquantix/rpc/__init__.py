"""What every process needs to speak the contract over gRPC: status, validation, call pipeline, servers, channels."""
