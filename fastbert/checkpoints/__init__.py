"""Checkpoint files: local or on the hub, read one tensor at a time, written whole or not at all."""
