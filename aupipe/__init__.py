"""aupipe: from raw facial-expression corpora to registered detectors of facial Action Units.

Importing the package does nothing and loads no framework; import the room that you need, e.g. `aupipe.predictor`.
"""

__version__ = "0.1.0"
