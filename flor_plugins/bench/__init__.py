"""`flor-hf bench`: what recording a recipe costs, and what its hindsight questions cost
beside training again.
"""
