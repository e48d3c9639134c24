"""What a quantised cache costs a real model: `python -m kvarn.fidelity --help`.

A model reads real texts while its cache is kept as a configuration keeps it, and its distribution
of the next token is compared with that of the same model over an fp16 cache. Decode-faithful: a
token sees the first block and its own block as they were computed, and all blocks between as the
codec gives them back, so that errors of one block reach what is computed behind it.

Competitors are quantised here in NumPy (kvarn.fidelity.quantisers); kvarnd's own go through a
running daemon: each block is appended, and read back once it is sealed.
"""
