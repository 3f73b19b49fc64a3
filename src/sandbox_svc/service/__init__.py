"""The one use case and its words: tenants, requests, verdicts, reports."""
