"""Published checkpoints: the networks of FOMM, TPSM, MRFA and MTIA as their code builds them, and the import of their
files.

Nothing in the main line imports this package except the command `import-checkpoint` and the loading of imported files.
"""
