"""Published checkpoints: the networks of FOMM, TPSM, MRFA and MTIA as their code builds them, and the way from their
files to ours.

Nothing of the main line imports this package but the command `import-checkpoint` and the loading of what it wrote.
"""
