"""The LimiQuantix contract: generated messages, the shared error vocabulary and what is needed to speak gRPC."""
