"""What both trainers have in common of a torch training: RNG, module, optimizer, loaders,
processes, environment.

Where a file captures something it restores it, too. Framework-free.
"""
