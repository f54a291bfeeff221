//! THE DOOR: gRPC on one unix socket, translated and nothing else; one file per group of calls; Error -> Status.
