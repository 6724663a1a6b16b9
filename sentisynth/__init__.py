"""A few labelled texts in, a small, fast, accurate text classifier out.

Read `flows/pipeline.py` first: it is the whole method. Below `runtime` nothing needs Ray.
"""

__version__ = "0.1.0"
