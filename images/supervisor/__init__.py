"""PID 1 of every sandbox; standard library only. See `supervisor.py` for the whole story."""
