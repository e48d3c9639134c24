"""A language model in NumPy whose cache, or whose attention too, is in kvarnd.

`python -m kvarn.worker --help`; needs the packages of kvarn[worker]. It is made to show and to test
what the daemon does for a model, not to be fast: the forward pass is NumPy on the processor.
"""
