"""Measure a recipe for `flor-hf bench`.

What does recording it cost, and what do its hindsight questions cost beside training again?
"""
