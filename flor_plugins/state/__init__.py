"""What both trainers have in common of a torch training: RNG, module, optimizer.

Each file pairs what it captures with what it restores. Framework-free.
"""
