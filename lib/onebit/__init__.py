"""onebit: the small library behind a study of 1-bit diffusion models.

Submodules are imported by name (`from onebit import data, recipes, study`), so that `import onebit` stays instant.
"""

__version__ = "0.1.0"
