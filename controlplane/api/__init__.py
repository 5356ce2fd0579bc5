"""The edges: gRPC servicers and the HTTP gateway. They decode, call a service and encode; they decide nothing."""
