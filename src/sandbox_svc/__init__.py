"""Runs untrusted snippets in containers that were warm before the request came."""

__version__ = "0.1.0"
