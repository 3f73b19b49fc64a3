"""Warm containers: slots, who gets them, and the tasks that keep them."""
