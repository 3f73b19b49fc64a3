"""The HTTP layer: routes, adapters, wire types and the server."""
