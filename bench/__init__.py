"""Measurements that compare: the service beside its alternatives, in one run, on one machine."""
