"""The HTTP gateway: the gRPC servicers as Connect/JSON, and the plain endpoints for people and monitoring."""
