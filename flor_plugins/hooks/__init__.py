"""Hooks: code that emits a metric, the same live and in hindsight."""
