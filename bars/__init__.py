"""The bars that a release must clear, run against a real factory: ``make bars``."""
