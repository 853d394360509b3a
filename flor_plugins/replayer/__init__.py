"""Replaying: request → plan → workers → verdicts."""
