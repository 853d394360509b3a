"""What all trainings in torch have in common: RNG, modules, optimizers, loaders, processes.

Where a file captures something it restores it, too. Framework-free.
"""
